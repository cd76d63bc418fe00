"""Several processes, as torchrun and accelerate start them: what is refused, and what they agree on."""

import contextlib
import datetime
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from stzoo.errors import RecipeError, StzooError

PATIENCE = datetime.timedelta(days=30)  # of the processes that wait while the first one mines
UNSUPPORTED = {  # what accelerate sets for its ways to split a model up
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}


def require_one_process(command: str) -> None:
    """Refuses a command that several processes would run side by side into the same output.

    Raises:
        StzooError: if torchrun or accelerate started more than one process.
    """
    if (count := world_size()) > 1:
        raise StzooError(
            f"{command} runs in one process, and {count} were started (WORLD_SIZE is {count}). Start it "
            "without torchrun or accelerate; only pretrain and finetune run in several processes."
        )


def refuse_sharding() -> None:
    """Refuses what is not built yet: models that are split up over the processes.

    Raises:
        RecipeError: if accelerate is configured for it.
    """
    for variable, name in UNSUPPORTED.items():
        if os.environ.get(variable, "").lower() in ("1", "true", "t", "yes", "y", "on"):
            raise RecipeError(
                f"accelerate is configured for {name} ({variable} is set), which stzoo does not support. "
                "Start it with torchrun, or with `accelerate launch --multi_gpu`: each process then has a "
                "copy of the model."
            )


def largest(values: Sequence[float], group: Any) -> list[float]:
    """The largest of each value over all processes.

    Args:
        values: as many in each process.
        group: a gloo group of all processes, so that no device is waited for; None in a single process.
    """
    if group is None:
        return list(values)
    import torch
    from torch import distributed as dist

    found = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=group)
    return found.tolist()


def is_main_process() -> bool:
    """False in every process but the first of those that torchrun or accelerate started together."""
    return _of_launcher("RANK", 0) == 0


def world_size() -> int:
    """How many processes torchrun or accelerate started together."""
    return _of_launcher("WORLD_SIZE", 1)


def _of_launcher(variable: str, alone: int) -> int:
    """The number that torchrun or accelerate has put into the environment.

    Raises:
        RecipeError: if it is not a whole number.
    """
    value = os.environ.get(variable) or str(alone)
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise RecipeError(
            f"the environment variable {variable} is {value!r}; expected a whole number, as torchrun sets "
            "it. Unset it to run in one process."
        )
    return int(value)


@contextlib.contextmanager
def main_process_first(cpu: bool) -> Iterator[None]:
    """Lets the first process go through the block before the others do.

    Args:
        cpu: True if the processes compute on the CPU.
    """
    if world_size() == 1:
        yield
        return
    from accelerate import PartialState
    from torch import distributed as dist

    PartialState(cpu=cpu)  # brings them together, with the time limit that their other exchanges keep
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    if not is_main_process():
        dist.barrier(group)
    yield
    if is_main_process():
        dist.barrier(group)
    dist.destroy_process_group(group)
