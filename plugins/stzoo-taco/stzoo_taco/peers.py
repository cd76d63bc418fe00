"""Balancers that TACO's paper compares it with: GradNorm and CGD.

TorchJD has the others.
"""

import torch
from torch import Tensor
from torch.optim.adam import adam

from stzoo import RecipeError
from stzoo.finetuning.balancers import Balancer, BalancerContext


def norms(gradients: Tensor) -> Tensor:
    """[K], the lengths of the rows."""
    return torch.linalg.vector_norm(gradients, dim=1)


class GradNorm(Balancer):
    """Weights of tasks, learnt so that all their gradients pull according to how far they lag behind.

    Args:
        about: the tasks.
        alpha: how strongly tasks that lag behind are pulled; the paper's.
        learning_rate: of the weights, by Adam.

    Attributes:
        weights: float32 [K], which add up to K; a buffer, as are the first losses and Adam's moments.

    Source: Chen et al., ICML 2018, https://arxiv.org/abs/1711.02257, algorithm 1.
    Unlike it: norms are those of all trained parameters, not of the last shared layer. Weights stay above
        0.01 of their mean, as a step of Adam could lead below 0.
    Unlike TACO's code, in whose comparison the weights are in no optimiser and stay 1: they are learnt here.
        Its name for alpha is beta.
    """

    weights: Tensor
    first: Tensor
    step: Tensor
    moment: Tensor
    square: Tensor

    def __init__(self, about: BalancerContext, alpha: float = 1.5, learning_rate: float = 0.025):
        super().__init__(about)
        if not learning_rate > 0:
            raise RecipeError(f"balancer_options.learning_rate is {learning_rate}; expected above 0.")
        self.alpha, self.learning_rate = alpha, learning_rate
        K = len(about.tasks)
        for name, start in (("weights", torch.ones(K)), ("first", torch.zeros(K)), ("step", torch.zeros(()))):
            self.register_buffer(name, start)
        self.register_buffer("moment", torch.zeros(K))
        self.register_buffer("square", torch.zeros(K))

    def balance(self, gradients: Tensor, losses: Tensor, parameters: Tensor) -> Tensor:  # noqa: ARG002
        """See `Balancer`."""
        K = len(gradients)
        if self.step == 0:
            self.first.copy_(losses)
        update = self.weights @ gradients / K
        lengths = norms(gradients)
        pull = self.weights * lengths
        pace = losses / self.first.clamp(min=1e-12)
        wanted = pull.mean() * (pace / pace.mean().clamp(min=1e-12)) ** self.alpha
        slope = lengths * torch.sign(pull - wanted)  # of sum |pull - wanted|, whose second part is held fixed
        adam(
            [self.weights], [slope], [self.moment], [self.square], [], [self.step],
            amsgrad=False, beta1=0.9, beta2=0.999, lr=self.learning_rate, weight_decay=0.0, eps=1e-8,
            maximize=False,
        )  # fmt: skip
        self.weights.clamp_(min=0.01)
        self.weights.mul_(K / self.weights.sum())
        return update


class CGD(Balancer):
    """Weights of tasks that grow where a task's gradient also lowers the others' losses.

    Args:
        about: the tasks.
        beta: losses count to this power.
        tau: what is gained is divided by this.
        normalised: True to compare directions, without lengths.

    Attributes:
        weights: float32 [K], which add up to 1; a buffer.

    Source: Piratla et al., ICLR 2022, https://openreview.net/forum?id=irARV_2VFs4, as in TACO's code
        (`cgd_backward`), whose settings are the defaults.
    """

    weights: Tensor

    def __init__(
        self, about: BalancerContext, beta: float = 0.25, tau: float = 100.0, normalised: bool = True
    ):
        super().__init__(about)
        if not tau > 0:
            raise RecipeError(f"balancer_options.tau is {tau}; expected above 0.")
        self.beta, self.tau, self.normalised = beta, tau, normalised
        K = len(about.tasks)
        self.register_buffer("weights", torch.full((K,), 1 / K))

    def balance(self, gradients: Tensor, losses: Tensor, parameters: Tensor) -> Tensor:  # noqa: ARG002
        """See `Balancer`."""
        likeness = gradients @ gradients.T
        if self.normalised:
            lengths = norms(gradients).clamp(min=1e-12)
            likeness /= lengths[:, None] * lengths
        gain = (torch.outer(losses, losses) ** self.beta * likeness).sum(1)
        self.weights.copy_((gain / self.tau + self.weights.log()).softmax(0))
        return self.weights @ gradients
