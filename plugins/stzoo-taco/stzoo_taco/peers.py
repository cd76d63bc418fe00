"""Balancers that TACO's paper compares with: GradNorm and CGD. The others come from TorchJD."""

import torch
from torch import Tensor
from torch.optim.adam import adam

from stzoo import RecipeError
from stzoo.finetuning.balancers import Balancer, BalancerContext


class GradNorm(Balancer):
    """Learns task weights with which the gradients of tasks that lag behind are larger.

    Args:
        context: The tasks.
        alpha: Strength of the correction for tasks that lag behind; the paper's symbol.
        learning_rate: Learning rate of the weights, which Adam updates.

    Attributes:
        weights: float32 [K], which sum to K; a buffer, as are the first losses and Adam's moments.

    Source: Chen et al., ICML 2018, https://arxiv.org/abs/1711.02257, algorithm 1.
    Unlike it: norms are those of all trained parameters, not of the last shared layer. Weights stay above
        0.01 of their mean, as a step of Adam could make them negative.
    Unlike TACO's code, in which no optimizer has the weights and they stay 1, they are learnt here. TACO's
        code calls alpha beta.
    """

    weights: Tensor
    first: Tensor
    step: Tensor
    moment: Tensor
    square: Tensor

    def __init__(self, context: BalancerContext, alpha: float = 1.5, learning_rate: float = 0.025):
        super().__init__(context)
        if not learning_rate > 0:
            raise RecipeError(
                f"balancer_options.learning_rate is {learning_rate}; expected a number above 0."
            )
        self.alpha, self.learning_rate = alpha, learning_rate
        K = len(context.tasks)
        for name, start in (("weights", torch.ones(K)), ("first", torch.zeros(K)), ("step", torch.zeros(()))):
            self.register_buffer(name, start)
        self.register_buffer("moment", torch.zeros(K))
        self.register_buffer("square", torch.zeros(K))

    def balance(self, gradients: Tensor, losses: Tensor, parameters: Tensor) -> Tensor:  # noqa: ARG002
        """Computes the update, see `Balancer`."""
        K = len(gradients)
        if self.step == 0:
            self.first.copy_(losses)
        update = self.weights @ gradients / K
        lengths = gradients.norm(dim=1)
        weighted = self.weights * lengths
        ratios = losses / self.first.clamp(min=1e-12)
        target = weighted.mean() * (ratios / ratios.mean().clamp(min=1e-12)) ** self.alpha
        # of sum |weighted - target|, with a constant target
        gradient = lengths * torch.sign(weighted - target)
        adam(
            [self.weights], [gradient], [self.moment], [self.square], [], [self.step],
            amsgrad=False, beta1=0.9, beta2=0.999, lr=self.learning_rate, weight_decay=0.0, eps=1e-8,
            maximize=False,
        )  # fmt: skip
        self.weights.clamp_(min=0.01)
        self.weights.mul_(K / self.weights.sum())
        return update


class CGD(Balancer):
    """Task weights that grow if a task's gradient also lowers the losses of other tasks.

    Args:
        context: The tasks.
        beta: Exponent of the losses.
        tau: Divisor of the gains.
        normalised: True to compare directions only, without the lengths of gradients.

    Attributes:
        weights: float32 [K], which sum to 1; a buffer.

    Source: Piratla et al., ICLR 2022, https://openreview.net/forum?id=irARV_2VFs4, as in TACO's code
        (`cgd_backward`), whose settings are the defaults.
    """

    weights: Tensor

    def __init__(
        self, context: BalancerContext, beta: float = 0.25, tau: float = 100.0, normalised: bool = True
    ):
        super().__init__(context)
        if not tau > 0:
            raise RecipeError(f"balancer_options.tau is {tau}; expected a number above 0.")
        self.beta, self.tau, self.normalised = beta, tau, normalised
        K = len(context.tasks)
        self.register_buffer("weights", torch.full((K,), 1 / K))

    def balance(self, gradients: Tensor, losses: Tensor, parameters: Tensor) -> Tensor:  # noqa: ARG002
        """Computes the update, see `Balancer`."""
        similarity = gradients @ gradients.T
        if self.normalised:
            lengths = gradients.norm(dim=1).clamp(min=1e-12)
            similarity /= lengths[:, None] * lengths
        gain = (torch.outer(losses, losses) ** self.beta * similarity).sum(1)
        self.weights.copy_((gain / self.tau + self.weights.log()).softmax(0))
        return self.weights @ gradients
