"""The groups of parameters of an optimizer, and the schedule of their learning rates."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from stzoo.training.settings import Training


def parameter_groups(
    tensors: Mapping[str, Tensor], settings: Training, new: Collection[str], decaying: Collection[str]
) -> list[dict[str, Any]]:
    """Four groups: parameters of the encoder with and without weight decay, then new ones, likewise.

    Args:
        tensors: All tensors by name, of which those that are trained are chosen.
        settings: Settings of the run.
        new: Names of the parameters that use `settings.new_learning_rate`.
        decaying: Names of the parameters with weight decay.
    """
    new_rate = getattr(settings, "new_learning_rate", None) or settings.learning_rate
    groups: list[dict[str, Any]] = []
    for is_new, rate in ((False, settings.learning_rate), (True, new_rate)):
        for decays in (True, False):
            chosen = [
                parameter
                for name, parameter in tensors.items()
                if isinstance(parameter, nn.Parameter)
                and parameter.requires_grad
                and (name in new) == is_new
                and (name in decaying) == decays
            ]
            decay = settings.weight_decay if decays else 0.0
            groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
    return groups


def linear_schedule(optimizer: Optimizer, steps: int, head_steps: int, warmup_ratio: float) -> LambdaLR:
    """Linear warm-up and decay; for the encoder, they begin after the head warm-up.

    Args:
        optimizer: Optimizer with the groups of `parameter_groups`.
        steps: Number of steps in all.
        head_steps: Number of steps of the head warm-up.
        warmup_ratio: Share of the steps in which the learning rate rises.
    """
    head = min(head_steps, steps)

    def slope(start: int) -> Callable[[int], float]:
        length = max(steps - start, 1)
        rise = round(warmup_ratio * length)

        def factor(step: int) -> float:
            at = step - start
            if at < 0:
                return 0.0
            return (at + 1) / (rise + 1) if at < rise else (length - at) / max(length - rise, 1)

        return factor

    return LambdaLR(optimizer, [slope(head), slope(head), slope(0), slope(0)])
