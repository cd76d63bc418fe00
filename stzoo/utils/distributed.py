"""Several processes, started by torchrun or accelerate: checks, ranks and agreement between them.

Processes exchange gradients by torch's process group, which notices within its time limit (30 minutes) that
one is gone. Where the others wait for one that works alone, they ask torch's store instead, in which each
process leaves a sign of life every few seconds.
"""

import atexit
import contextlib
import datetime
import itertools
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from stzoo.errors import RecipeError, StzooError, TrainingError, first_line
from stzoo.utils.messages import note_if_slow

START_S = 3600  # the first time that they wait, processes may arrive one after the other
BEAT_S = 5  # time between two signs of life
SILENCE_S = 600  # without a sign of life, a process counts as dead; one call may keep all threads busy
CONNECT_S = 60  # that another failed process tries to reach the first one; torch tries twice
STAY_S = 120  # that a failed process stays, for the others to arrive and notice
PATIENCE_S = 24 * 3600  # wait for a process that is alive; it may be stuck
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # which torchrun sets
KEPT = "What is finished is kept; run the command again to continue (training with --resume)."
IN_SEVERAL = "Start it without torchrun; bench, encode, finetune, mine, prepare and pretrain run in several."
FAILED = "failed"  # counter in the store
UNSUPPORTED = {  # variables that accelerate sets when it shards a model
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}
_waits = itertools.count()  # all processes wait for the same things in the same order


def require_one_process(command: str, advice: str = IN_SEVERAL) -> None:
    """Refuses to run a command in several processes, which would write to the same output.

    Args:
        command: The command, or an option.
        advice: What to do then, for the message.

    Raises:
        StzooError: If torchrun or accelerate started more than one process.
    """
    if (count := world_size()) > 1:
        raise StzooError(
            f"{command} runs in one process, but {count} were started (WORLD_SIZE is {count}). {advice}"
        )


def check_launcher() -> None:
    """Checks that the variables of torchrun agree, and refuses models that accelerate is to shard.

    Raises:
        RecipeError: If a variable is missing or has an impossible value, or if accelerate is configured to
            shard models.
    """
    for variable, name in UNSUPPORTED.items():
        if os.environ.get(variable, "").lower() in ("1", "true", "t", "yes", "y", "on"):
            raise RecipeError(
                f"accelerate is configured for {name} ({variable} is set), which stzoo does not support. "
                "Start it with torchrun, or with `accelerate launch --multi_gpu`. Each process then has a "
                "copy of the model or, with --shard-model, a part of it."
            )
    count = world_size()
    if count == 1 and not rank():
        return
    if missing := [name for name in LAUNCHER if not os.environ.get(name)]:
        known = [f"{name} is {os.environ[name]}" for name in LAUNCHER if name not in missing]
        raise RecipeError(
            f"the environment is that of several processes ({', '.join(known)}), but {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set. Start the command with torchrun, which sets "
            f"{', '.join(LAUNCHER)}, or unset them to run in one process."
        )
    if rank() >= count:
        raise RecipeError(
            f"RANK is {rank()} and WORLD_SIZE {count}; expected a rank from 0 to {count - 1}. Start the "
            "command with torchrun, which sets both."
        )
    for name in ("LOCAL_RANK", "MASTER_PORT"):
        _of_launcher(name, 0)


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


def own_share(values: Sequence[Any]) -> Sequence[Any]:
    """The values that this process works on, if all processes share them out; see `gathered`."""
    first, last = (len(values) * number // world_size() for number in (rank(), rank() + 1))
    return values[first:last]


def gathered(rows: Any) -> Any:
    """The rows of all processes, one after the other; all must call this together.

    Args:
        rows: Array of the rows of this process.
    """
    import numpy as np
    import torch
    from torch import distributed as dist

    if world_size() == 1:
        return rows
    wait_for_all()  # some may need longer than the time limit of an exchange
    sizes: list[Any] = [None] * world_size()
    group = dist.new_group(backend="gloo")
    dist.all_gather_object(sizes, len(rows), group=group)
    ends = np.cumsum([0, *sizes])
    every = np.empty((ends[-1], *rows.shape[1:]), rows.dtype)
    every[ends[rank()] : ends[rank() + 1]] = rows
    for source, (first, last) in enumerate(itertools.pairwise(ends)):
        if first < last:
            dist.broadcast(torch.from_numpy(every[first:last]), source, group=group)
    dist.destroy_process_group(group)
    return every


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
    return _of_launcher("WORLD_SIZE", 1, least=1)


def _of_launcher(variable: str, default: int, least: int = 0) -> int:
    """Reads a number that torchrun or accelerate has put into the environment.

    Raises:
        RecipeError: If it is not a whole number, or too small.
    """
    value = os.environ.get(variable) or str(default)
    if not re.fullmatch(r"[0-9]{1,9}", value) or int(value) < least:
        raise RecipeError(
            f"the environment variable {variable} is {value!r}; expected a whole number from {least} on, as "
            "torchrun sets it. Unset it to run in one process."
        )
    return int(value)


@contextlib.contextmanager
def lost_processes(advice: str) -> Iterator[None]:
    """Explains errors of the exchange with other processes in the block.

    Args:
        advice: What is kept, and how to continue.

    Raises:
        TrainingError: If another process has ended or does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not _is_of_exchange(error):
            raise
        reason = re.sub(r"^\[\S*\] ", "", first_line(error)).partition(". This is")[0]
        raise TrainingError(
            f"process {rank()} of {world_size()} cannot reach another process of the run, which has ended or "
            f"does not answer ({reason}). The other one's message, if it wrote one, says why. "
            f"{advice}"
        ) from error


def _is_of_exchange(error: RuntimeError) -> bool:
    """True for errors of gloo, NCCL and the store, most of which have no class of their own."""
    from torch import distributed as dist

    words = "gloo|nccl|tcpstore|connection (closed|reset|refused)|broken pipe|timed out"
    return isinstance(error, dist.DistError) or bool(re.search(words, str(error), re.IGNORECASE))


@cache
def _store() -> Any:
    """The store that all processes share; from now on, this one leaves signs of life there.

    Raises:
        RecipeError: If a variable of the launcher is missing or wrong.
        TrainingError: If the first process cannot be reached.
    """
    check_launcher()
    try:
        store = _rendezvous(START_S)
        store.add(f"alive/{rank()}", 1)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"{world_size()} processes were started (WORLD_SIZE), but this one cannot reach the first at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({first_line(error)}). If the first "
            "has failed, its own message says why; else start them with torchrun. What is finished is kept."
        ) from error
    ended = threading.Event()

    def beat() -> None:
        with contextlib.suppress(RuntimeError):  # the process with the store has ended
            while not ended.wait(BEAT_S):
                store.add(f"alive/{rank()}", 1)

    def end() -> None:
        ended.set()
        thread.join(BEAT_S)

    thread = threading.Thread(target=beat, daemon=True, name="signs of life")
    thread.start()
    atexit.register(end)  # Python aborts if it ends while a thread uses the store
    return store


def _rendezvous(seconds: float) -> Any:
    """Connects to the store; the first process, if it has the store, also waits for all others to connect."""
    from torch import distributed as dist

    store, *_ = next(dist.rendezvous("env://", timeout=datetime.timedelta(seconds=seconds)))
    return dist.PrefixStore("stzoo", store)


def report_failure() -> None:
    """Lets the other processes know that this one has failed, unless torchrun does; it then has to end.

    Otherwise they would wait for it: for an hour, if it is the first one and they cannot reach it.
    """
    with contextlib.suppress(RuntimeError, ValueError, StzooError):
        if world_size() == 1 or "TORCHELASTIC_RUN_ID" in os.environ:
            return
        if _store.cache_info().currsize:
            _store().add(FAILED, 1)
            return
        check_launcher()
        os.environ["TORCH_CPP_LOG_LEVEL"] = "FATAL"  # or it shows traces if no other process is there
        from torch import distributed as dist

        if dist.is_initialized():  # its exchanges fail
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)  # as Python's handlers do not run while torch waits
        with note_if_slow("waiting until the other processes know that this one has failed …"):
            _rendezvous(STAY_S if is_main_process() else CONNECT_S).add(FAILED, 1)


def _wait(key: str, count: int, others: Sequence[int]) -> None:
    """Waits until a counter of the store is that high.

    Args:
        key: The counter; negative if a process has failed.
        count: The number to wait for.
        others: Ranks of the processes that may still have to raise it.

    Raises:
        TrainingError: If one of them has failed, shows no sign of life, or takes longer than `PATIENCE_S`.
    """
    store, begun, pause = _store(), time.monotonic(), 0.01
    seen = dict.fromkeys(others, (0, begun))
    with lost_processes(KEPT):
        while 0 <= (reached := -store.add(FAILED, 0) or store.add(key, 0)) < count:
            time.sleep(pause)
            pause = min(pause * 1.2, 1.0)
            now = time.monotonic()
            for other, (beats, since) in seen.items():
                if (beats_now := store.add(f"alive/{other}", 0)) != beats:
                    seen[other] = (beats_now, now)
                elif now - since > (SILENCE_S if beats else START_S):
                    what = "has shown no sign of life" if beats else "has not been here"
                    raise TrainingError(
                        f"process {other} of {world_size()} {what} for {now - since:.0f} s, so process "
                        f"{rank()} waits no longer. {KEPT}"
                    )
            if now - begun > PATIENCE_S:
                raise TrainingError(
                    f"process {rank()} of {world_size()} has waited {PATIENCE_S / 3600:.0f} hours for the "
                    f"others, which may be stuck. {KEPT}"
                )
    if reached < 0:
        raise TrainingError(f"another process of the run has failed; its own message says why. {KEPT}")


@lost_processes(KEPT)
def wait_for_all() -> None:
    """Waits until all processes that torchrun started together are here.

    Raises:
        TrainingError: If they cannot find each other, or one has died or is stuck.
    """
    if world_size() == 1:
        return
    key, ranks = f"wait/{next(_waits)}", range(world_size())
    _store().add(key, 1)
    _wait(key, world_size(), ranks)
    _leave(key)


@lost_processes(KEPT)
def _leave(key: str) -> None:
    """Makes the first process, which may have the store, stay until all others have read a counter."""
    _store().add(f"{key}/read", 1)
    if is_main_process():
        _wait(f"{key}/read", world_size(), range(world_size()))


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """Runs the block in the main process before it runs in the others.

    Raises:
        TrainingError: In the others, if it fails there, or the main process has died or is stuck.
    """
    if world_size() == 1:
        yield
        return
    key = f"wait/{next(_waits)}"
    if is_main_process():
        store = _store()
        try:
            yield
        except BaseException:
            store.add(key, -1)
            raise
        store.add(key, 1)
        _leave(key)
    else:
        _wait(key, 1, [0])
        _leave(key)
        yield
