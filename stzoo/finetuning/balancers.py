"""Balancers, which combine the gradients of several tasks into one update.

In each step the gradients of the tasks are the rows of one tensor, [K, P]. During the backward pass of a
task, views of its row are the parameters' `.grad`, so that gradients are added in place, without copies. Once
all rows are complete, a balancer combines them into the gradient for the optimiser.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stzoo.errors import MissingExtraError, ModelError, RecipeError, check_known, first_line


@dataclass(frozen=True)
class BalancerContext:
    """The training that a balancer is built for.

    Attributes:
        tasks: Names of the K tasks.
        entries: Number of trained values, P.
        steps: Number of optimiser steps in the run.
        seed: Seed of random choices.
        device: Device of the gradients.
    """

    tasks: tuple[str, ...]
    entries: int
    steps: int
    seed: int = 0
    device: Any = "cpu"


class Gradients:
    """The gradients of the tasks in a step, to which the backward pass adds in place.

    Args:
        parameters: Parameters of the model; frozen ones are ignored.
        rows: Number of rows: K, or 1 if only the sum over tasks matters.

    Attributes:
        parameters: The trained parameters, P values in total, in the order of the columns.
        rows: Gradients [K, P] in the dtype of the parameters, initially zero.

    Raises:
        ModelError: If no parameter is trained, or their dtypes or devices differ.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], rows: int):
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        if not self.parameters:
            raise ModelError("the model has no parameters to train; all are frozen.")
        kinds = {(parameter.dtype, parameter.device) for parameter in self.parameters}
        if len(kinds) > 1:
            raise ModelError(f"the trained parameters differ in dtype or device: {sorted(map(str, kinds))}.")
        dtype, device = kinds.pop()
        self._sizes = [parameter.numel() for parameter in self.parameters]
        self.rows = torch.zeros(rows, sum(self._sizes), dtype=dtype, device=device)
        self._pieces = [self._split(row) for row in self.rows]

    def _split(self, flat: Tensor) -> list[Tensor]:
        pieces = flat.split(self._sizes)
        return [piece.view_as(p) for piece, p in zip(pieces, self.parameters, strict=True)]

    @contextmanager
    def row(self, number: int) -> Iterator[None]:
        """Makes backward passes in this context add to a row; afterwards the parameters have no gradients.

        Raises:
            ModelError: If a parameter's gradient was replaced inside the context, as `zero_grad` does, so
                that what backward passes add later would be lost.
        """
        pieces = self._pieces[number]
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.grad = piece
        yield
        lost = sum(p.grad is not piece for p, piece in zip(self.parameters, pieces, strict=True))
        for parameter in self.parameters:
            parameter.grad = None
        if lost:
            raise ModelError(f"{lost} of {len(pieces)} gradients were replaced during the backward pass.")

    def values(self) -> Tensor:
        """A copy of the parameters as one vector, [P]."""
        return torch.cat([parameter.detach().reshape(-1) for parameter in self.parameters])

    def set_gradients(self, update: Tensor) -> None:
        """Sets the parameters' gradients to a vector [P], without copying it."""
        for parameter, piece in zip(self.parameters, self._split(update), strict=True):
            parameter.grad = piece


class Balancer(nn.Module):
    """Base class of balancers, which combine several gradients into one update; its state is its state_dict.

    If a gradient or a loss is not finite, the update is the mean, as in TACO's code, and the state does not
    change.

    Attributes:
        additive: True if only the sum of the gradients matters; it is then the only row, [1, P].
        about: The tasks and the training that it was built for.
    """

    additive = False

    def __init__(self, about: BalancerContext):
        super().__init__()
        self.about = about

    def forward(self, gradients: Tensor, losses: Tensor, parameters: Tensor) -> Tensor:
        """Computes the update of a step, like `balance`, but also if gradients or losses are not finite."""
        if self.additive or not (finite(gradients) and finite(losses)):
            return torch.div(gradients.sum(0), len(self.about.tasks), out=gradients[0])
        return self.balance(gradients, losses, parameters)

    def balance(self, gradients: Tensor, losses: Tensor, parameters: Tensor) -> Tensor:
        """Computes the update of a step with finite gradients and losses; subclasses must define it.

        Args:
            gradients: Gradients with one row per task, float [K, P]; may be overwritten.
            losses: Losses in nats, float [K].
            parameters: Values of the parameters, float [P].

        Returns:
            The update, float [P], on the scale of a single task's gradient; it may be one of the rows.
        """
        raise NotImplementedError


class Sum(Balancer):
    """Mean of the gradients: naive multi-task training."""

    additive = True


class Aggregated(Balancer):
    """Aggregator of TorchJD (https://torchjd.org) as a balancer.

    Args:
        about: The tasks and the training.
        aggregator: Name of the aggregator's class.
        scale: Factor by which the aggregator's result is multiplied.
        options: Options of the class.

    Unlike it: random choices depend only on the seed and the step, so that they agree in all processes.
    """

    step: Tensor

    def __init__(self, about: BalancerContext, aggregator: str, scale: float = 1.0, **options: Any):
        super().__init__(about)
        try:
            from torchjd import aggregation

            self.aggregator = getattr(aggregation, aggregator)(**options)
        except ImportError:
            raise MissingExtraError("torchjd, or a solver that it needs,", "torchjd") from None
        except (TypeError, ValueError) as error:
            raise RecipeError(f"balancer_options are invalid: {first_line(error)}") from None
        self.scale = scale
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def balance(self, gradients: Tensor, losses: Tensor, parameters: Tensor) -> Tensor:  # noqa: ARG002
        """See `Balancer`."""
        self.step += 1
        devices = [gradients.device] if gradients.is_cuda else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.about.seed + int(self.step))
            return self.aggregator(gradients).mul_(self.scale)


def finite(values: Tensor) -> bool:
    """True if all values are finite, without allocating a tensor of their size."""
    return bool(values.sum(-1).isfinite().all())  # NaN and infinity persist in the sum


def pcgrad(about: BalancerContext) -> Aggregated:
    """Mean of the gradients without their conflicting components (https://arxiv.org/abs/2001.06782)."""
    return Aggregated(about, "PCGrad", scale=1 / len(about.tasks))


def cagrad(about: BalancerContext, c: float = 0.4) -> Aggregated:
    """Mean of the gradients, moved in favour of the worst task (https://arxiv.org/abs/2110.14048).

    Args:
        about: The tasks and the training.
        c: Maximum distance from the mean, as a share of its length.
    """
    return Aggregated(about, "CAGrad", c=c)


def upgrad(about: BalancerContext) -> Aggregated:
    """Mean of the gradients, projected so that they harm no task (https://arxiv.org/abs/2406.16232)."""
    return Aggregated(about, "UPGrad")


def aligned_mtl(about: BalancerContext, scale_mode: str = "min") -> Aggregated:
    """Mean of gradients made orthogonal and equally long (https://arxiv.org/abs/2305.19000)."""
    check_known("scale_mode", scale_mode, ("min", "median", "rmse"))
    return Aggregated(about, "AlignedMTL", scale_mode=scale_mode)


def mgda(about: BalancerContext) -> Aggregated:
    """Shortest convex combination of the gradients (https://arxiv.org/abs/1810.04650)."""
    return Aggregated(about, "MGDA")


def imtl_g(about: BalancerContext) -> Aggregated:
    """Combination with equal projections onto all gradients (IMTL-G, ICLR 2021)."""
    return Aggregated(about, "IMTLG")
