"""Several processes, started by torchrun or accelerate: checks, ranks and agreement between them."""

import contextlib
import datetime
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from stzoo.errors import RecipeError, StzooError, first_line

PATIENCE = datetime.timedelta(days=30)  # time limit of processes that wait while the main process mines
UNSUPPORTED = {  # variables that accelerate sets when it shards a model
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}


def require_one_process(command: str) -> None:
    """Refuses to run a command in several processes, which would write to the same output.

    Raises:
        StzooError: If torchrun or accelerate started more than one process.
    """
    if (count := world_size()) > 1:
        raise StzooError(
            f"{command} runs in one process, but {count} were started (WORLD_SIZE is {count}). Start it "
            "without torchrun; bench, encode, finetune, mine, prepare and pretrain run in several."
        )


def refuse_sharding() -> None:
    """Refuses models that are sharded over the processes, which is not supported yet.

    Raises:
        RecipeError: If accelerate is configured to shard models.
    """
    for variable, name in UNSUPPORTED.items():
        if os.environ.get(variable, "").lower() in ("1", "true", "t", "yes", "y", "on"):
            raise RecipeError(
                f"accelerate is configured for {name} ({variable} is set), which stzoo does not support. "
                "Start it with torchrun, or with `accelerate launch --multi_gpu`: each process then has a "
                "copy of the model."
            )


def largest(values: Sequence[float], group: Any) -> list[float]:
    """The maximum of each value over all processes.

    Args:
        values: Values of this process, as many as in the others.
        group: A gloo group of all processes, which need not wait for devices; None in a single process.
    """
    if group is None:
        return list(values)
    import torch
    from torch import distributed as dist

    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX, group=group)
    return tensor.tolist()


def is_main_process() -> bool:
    """True in a single process, and in the first of those that torchrun or accelerate started together."""
    return rank() == 0


def rank() -> int:
    """The number of this process among those that torchrun or accelerate started together, from 0."""
    return _of_launcher("RANK", 0)


def local_device() -> str | None:
    """The GPU of this process among those of its machine; None without a launcher or GPUs."""
    import torch

    if "LOCAL_RANK" not in os.environ or not torch.cuda.is_available():
        return None
    return f"cuda:{_of_launcher('LOCAL_RANK', 0) % torch.cuda.device_count()}"


def world_size() -> int:
    """The number of processes that torchrun or accelerate started together."""
    return max(1, _of_launcher("WORLD_SIZE", 1))


def _of_launcher(variable: str, default: int) -> int:
    """Reads a number that torchrun or accelerate has put into the environment.

    Raises:
        RecipeError: If it is not a whole number.
    """
    value = os.environ.get(variable) or str(default)
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise RecipeError(
            f"the environment variable {variable} is {value!r}; expected a whole number, as torchrun sets "
            "it. Unset it to run in one process."
        )
    return int(value)


def wait_for_all() -> None:
    """Waits until all processes that torchrun started together are here.

    Raises:
        StzooError: If they cannot find each other, or one has died.
    """
    if world_size() == 1:
        return
    from torch import distributed as dist

    try:
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=PATIENCE)
        group = dist.new_group(backend="gloo", timeout=PATIENCE)
        dist.barrier(group)
        dist.destroy_process_group(group)
    except (RuntimeError, ValueError) as error:
        raise StzooError(
            f"{world_size()} processes were started (WORLD_SIZE), but not all can be reached "
            f"({first_line(error)}). Start them with torchrun; what is finished is kept."
        ) from error


@contextlib.contextmanager
def main_process_first(cpu: bool) -> Iterator[None]:
    """Runs the block in the main process before it runs in the others.

    Args:
        cpu: True if the processes compute on the CPU.
    """
    if world_size() == 1:
        yield
        return
    from accelerate import PartialState
    from torch import distributed as dist

    PartialState(cpu=cpu)  # connects the processes, with the usual time limit for other exchanges
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    if not is_main_process():
        dist.barrier(group)
    yield
    if is_main_process():
        dist.barrier(group)
    dist.destroy_process_group(group)
