"""Many tasks' gradients -> one update.

In a step each task's gradient is a row of one tensor, [K, P]. A row's pieces are the parameters' own `.grad`
while its task is differentiated, so that backward adds to it in place and nothing is copied. Once all rows
are full, a balancer makes of them the gradient that the optimiser sees.
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
    """What a balancer is built for.

    Attributes:
        tasks: the K names.
        entries: P, how many numbers are trained.
        steps: optimiser steps of the run.
        seed: of what is drawn.
        device: of torch, where gradients lie.
    """

    tasks: tuple[str, ...]
    entries: int
    steps: int
    seed: int = 0
    device: Any = "cpu"


class Gradients:
    """The tasks' gradients of a step, which backward adds up where they lie.

    Args:
        parameters: what is trained; those that are frozen are left out.
        rows: K, or 1 where only the tasks' sum matters.

    Attributes:
        parameters: those that are trained, P numbers together, in the order of the columns.
        rows: [K, P] of the parameters' dtype, zero at first.

    Raises:
        ModelError: if nothing is trained, or not all of one dtype on one device.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], rows: int):
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        if not self.parameters:
            raise ModelError("no parameter of the model is trained; all are frozen.")
        kinds = {(parameter.dtype, parameter.device) for parameter in self.parameters}
        if len(kinds) > 1:
            raise ModelError(f"the trained parameters are of several kinds, {sorted(map(str, kinds))}.")
        dtype, device = kinds.pop()
        self._sizes = [parameter.numel() for parameter in self.parameters]
        self.rows = torch.zeros(rows, sum(self._sizes), dtype=dtype, device=device)
        self._pieces = [self._split(row) for row in self.rows]

    def _split(self, flat: Tensor) -> list[Tensor]:
        pieces = flat.split(self._sizes)
        return [piece.view_as(p) for piece, p in zip(pieces, self.parameters, strict=True)]

    @contextmanager
    def row(self, number: int) -> Iterator[None]:
        """Lets backward add to this row; leaves the parameters without gradients.

        Raises:
            ModelError: if something inside gave a parameter another gradient, as `zero_grad` does: what
                backward adds afterwards would be lost.
        """
        pieces = self._pieces[number]
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.grad = piece
        yield
        lost = sum(p.grad is not piece for p, piece in zip(self.parameters, pieces, strict=True))
        for parameter in self.parameters:
            parameter.grad = None
        if lost:
            raise ModelError(f"{lost} of {len(pieces)} gradients were replaced while they were added up.")

    def values(self) -> Tensor:
        """[P], a copy of the parameters."""
        return torch.cat([parameter.detach().reshape(-1) for parameter in self.parameters])

    def set_gradients(self, update: Tensor) -> None:
        """Makes [P] the parameters' gradients, without a copy."""
        for parameter, piece in zip(self.parameters, self._split(update), strict=True):
            parameter.grad = piece


class Balancer(nn.Module):
    """What makes one update of several gradients; its state is its state_dict.

    Where a gradient or a loss is not finite, the update is the mean, as in TACO's code, and the state stays.

    Attributes:
        additive: True if only the sum of the gradients matters. They are then given as one row, [1, P], their
            sum.
        about: the K tasks and what else it was built for.
    """

    additive = False

    def __init__(self, about: BalancerContext):
        super().__init__()
        self.about = about

    def forward(self, gradients: Tensor, losses: Tensor, parameters: Tensor) -> Tensor:
        """The update of a step; arguments and result are those of `balance`, finite or not."""
        if self.additive or not (finite(gradients) and finite(losses)):
            return torch.div(gradients.sum(0), len(self.about.tasks), out=gradients[0])
        return self.balance(gradients, losses, parameters)

    def balance(self, gradients: Tensor, losses: Tensor, parameters: Tensor) -> Tensor:
        """The update of a step whose gradients and losses are finite; what a balancer has to write.

        Args:
            gradients: float [K, P], one row a task; may be written to.
            losses: float [K], in nats.
            parameters: float [P].

        Returns:
            float [P], of the size of one task's gradient; it may be one of the rows.
        """
        raise NotImplementedError


class Sum(Balancer):
    """The sum of the gradients divided by the number of tasks: naive multi-task training."""

    additive = True


class Aggregated(Balancer):
    """One of TorchJD's aggregators (https://torchjd.org).

    Args:
        about: what it is for.
        aggregator: name of its class.
        scale: what it returns is multiplied by this.
        options: of the class.

    Unlike it: what is drawn depends on the seed and the step alone, so that all processes draw alike.
    """

    step: Tensor

    def __init__(self, about: BalancerContext, aggregator: str, scale: float = 1.0, **options: Any):
        super().__init__(about)
        try:
            from torchjd import aggregation

            self.aggregator = getattr(aggregation, aggregator)(**options)
        except ImportError:
            raise MissingExtraError("torchjd, or what its solvers need,", "torchjd") from None
        except (TypeError, ValueError) as error:
            raise RecipeError(f"balancer_options do not hold: {first_line(error)}") from None
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
    """True if all are. It makes no tensor of their size."""
    return bool(values.sum(-1).isfinite().all())  # what is not stays so in the sum


def pcgrad(about: BalancerContext) -> Aggregated:
    """Each gradient without what conflicts with another (https://arxiv.org/abs/2001.06782); the mean."""
    return Aggregated(about, "PCGrad", scale=1 / len(about.tasks))


def cagrad(about: BalancerContext, c: float = 0.4) -> Aggregated:
    """The mean, moved towards what the worst task gains by (https://arxiv.org/abs/2110.14048).

    `c` bounds how far, as a share of the mean's length.
    """
    return Aggregated(about, "CAGrad", c=c)


def upgrad(about: BalancerContext) -> Aggregated:
    """The mean of gradients that are projected so as to harm no task (https://arxiv.org/abs/2406.16232)."""
    return Aggregated(about, "UPGrad")


def aligned_mtl(about: BalancerContext, scale_mode: str = "min") -> Aggregated:
    """Gradients made orthogonal and of one length (https://arxiv.org/abs/2305.19000); the mean."""
    check_known("scale_mode", scale_mode, ("min", "median", "rmse"))
    return Aggregated(about, "AlignedMTL", scale_mode=scale_mode)


def mgda(about: BalancerContext) -> Aggregated:
    """The shortest vector between the gradients (https://arxiv.org/abs/1810.04650)."""
    return Aggregated(about, "MGDA")


def imtl_g(about: BalancerContext) -> Aggregated:
    """The combination that leans on each gradient alike (IMTL-G, ICLR 2021)."""
    return Aggregated(about, "IMTLG")
