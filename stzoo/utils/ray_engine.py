"""Workers on a Ray cluster, or on this machine by Ray.

Each worker is an actor that gets the function, with the model in it, once. Ray schedules the workers, and
adds nodes if the cluster may grow. The values of a worker that has died go to the others, and another worker
is started, which may have to wait for a node. (Ray's own restarts keep the values of the worker that waits.)
"""

import contextlib
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

from stzoo.errors import RecipeError, StzooError, TrainingError, first_line
from stzoo.utils.messages import collect_notes, counted, notify
from stzoo.utils.optional import import_extra
from stzoo.utils.workers import Engine, on_device

AHEAD = 2  # values that a worker has: one that it computes, and the next one
RESTARTS = 3  # of workers that die with the same value, and of each as it starts
PATIENCE_S = 10  # for the cluster to answer
SILENCE_S = 60  # until the user is notified that no worker has started
# packages that results depend on
PACKAGES = ("stzoo", "sentence-transformers", "transformers", "tokenizers", "torch")


@contextlib.contextmanager
def ray_engine(address: str | None = None, workers: int | None = None) -> Iterator[Engine]:
    """Connects to a Ray cluster, and gives the engine that works on it.

    Args:
        address: Address of the cluster, e.g. "auto" or "ray://host:10001"; None for that in RAY_ADDRESS, or
            else a cluster of this machine alone, which ends with the block.
        workers: Number of workers; None for one per GPU of the cluster, or else one per node, also for
            functions without a model (see `on_device`).

    Raises:
        MissingExtraError: If Ray is not installed.
        RecipeError: If the cluster cannot be reached.
    """
    ray = import_extra("ray", "ray", "Ray")
    was_connected = ray.is_initialized()
    if not was_connected:
        _connect(ray, address)
    try:
        yield lambda compute: _started(ray, compute, workers)
    finally:
        if not was_connected:
            ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    where = address or os.environ.get("RAY_ADDRESS")
    logging.getLogger("ray").setLevel(logging.ERROR)  # Ray logs much when it starts its own cluster
    try:
        if found := re.search(r"([^/]+):(\d+)$", where or ""):  # as Ray would try for minutes
            with contextlib.closing(socket.create_connection((found[1], int(found[2])), timeout=PATIENCE_S)):
                pass
        with _sigterm_kept():
            ray.init(address=where or "local", log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise RecipeError(
            f"there is no Ray cluster at {where or 'this machine'} ({first_line(error)}). Start one by `ray "
            f"start --head`, or {'leave out --ray-address' if address else 'unset RAY_ADDRESS'} to use this "
            "machine alone."
        ) from None


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keeps the handler of SIGTERM, which `ray.init` replaces."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


class _Worker:
    """What an actor does."""

    _compute: Callable[[Any], Any] | None = None

    def versions(self) -> dict[str, str]:
        return _versions()

    def apply(self, function: list[Any], threads: int, value: Any) -> tuple[Any, list[str]]:
        """Applies the function of a reference, which is read at the first call, also after a restart."""
        if self._compute is None:
            os.environ["RAYON_NUM_THREADS"] = str(threads)  # of tokenizers
            self._compute = on_device(_received(function[0]), None)
            if torch := sys.modules.get("torch"):  # which the function may not use
                torch.set_num_threads(threads)
        with collect_notes() as notes:
            return self._compute(value), notes


def _received(reference: Any) -> Any:
    """The function that a worker applies.

    Raises:
        RecipeError: If it cannot be opened there.
    """
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RaySystemError as error:
        raise RecipeError(
            f"a worker of Ray cannot load the function that it is to run ({first_line(error)}). Install the "
            "packages and plugins of this machine there; workers of prepare also need a shared file system."
        ) from None


class _RayWorkers:
    """See `stzoo.utils.workers.Workers`; the actors start with the first value.

    Starting them with the engine would save the time in which the driver loads the model (0.9 of 5 seconds,
    as it has imported torch by then), but hold GPUs, or ask for new nodes, where nothing is to be computed.
    """

    def __init__(self, ray: Any, compute: Callable[[Any], Any], workers: int | None):
        self._ray, self._compute = ray, compute
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = int(sum(node.get("GPU", 0) for node in nodes)) if hasattr(compute, "on") else 0
        used = [int(node.get("CPU", 0)) for node in nodes if not gpus or node.get("GPU", 0)]
        self._count = workers or gpus or max(1, sum(cpus > 0 for cpus in used))
        self._gpus = 1 if gpus else 0
        fair = sum(used) // self._count
        self._cpus = max(1, min([fair, *filter(None, used)]))  # that each of these nodes has
        self.capacity = AHEAD * self._count
        self._function: list[Any] = []
        self._actors: list[Any] = []
        self._starting: dict[Any, Any] = {}  # actor by the reference of its versions
        self._idle: deque[Any] = deque()  # actors, each as often as it may get another value
        self._waiting: deque[tuple[int, Any]] = deque()
        self._at_work: dict[Any, tuple[int, Any, Any]] = {}  # number, value, actor by the result's reference
        self._failures: Counter[int] = Counter()  # of workers, by the number of a value that they had
        self._failed_starts = 0  # in a row

    def submit(self, number: int, value: Any) -> None:
        if not self._actors:
            # in a list, it stays a reference
            self._function = [self._ray.put(on_device(self._compute, "cpu"))]
            for _ in range(self._count):
                self._start()
        self._waiting.append((number, value))
        self._assign()

    def next(self) -> tuple[int, Any]:
        from ray.exceptions import RayError, RayTaskError

        while True:
            found, _ = self._ray.wait([*self._at_work, *self._starting], timeout=SILENCE_S)
            if not found:
                if len(self._starting) == self._count:
                    notify(
                        f"No worker of Ray has started for {SILENCE_S} s; each needs "
                        f"{counted(self._cpus, 'CPU')} and {counted(self._gpus, 'GPU')} that are free on one "
                        "node. See `ray status`."
                    )
                continue
            (ready,) = found
            try:
                result = self._ray.get(ready)
            except RayTaskError as error:
                if isinstance(error.cause, StzooError):
                    raise error.cause from None
                raise
            except RayError as error:  # the worker or its node has died
                self._replace(self._starting.get(ready) or self._at_work[ready][-1], error)
                continue
            if actor := self._starting.pop(ready, None):
                _check_versions(result)
                self._failed_starts = 0
                self._idle.extend([actor] * AHEAD)
                self._assign()
                continue
            self._failed_starts = 0  # of others, which are not in the way
            number, _, actor = self._at_work.pop(ready)
            self._idle.append(actor)
            self._assign()
            values, notes = result
            for note in notes:
                notify(note)
            return number, values

    def stop(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)

    def _start(self) -> None:
        actor = self._ray.remote(num_cpus=self._cpus, num_gpus=self._gpus)(_Worker).remote()
        self._actors.append(actor)
        self._starting[actor.versions.remote()] = actor

    def _replace(self, dead: Any, error: Exception) -> None:
        """Starts another worker, which may have to wait for a node, and gives what one had to the others.

        Raises:
            TrainingError: If workers have died too often with one of its values, or as they started.
        """
        lost = [reference for reference, (_, _, actor) in self._at_work.items() if actor is dead]
        values = [self._at_work.pop(reference)[:2] for reference in lost]
        self._starting = {key: actor for key, actor in self._starting.items() if actor is not dead}
        self._idle = deque(actor for actor in self._idle if actor is not dead)
        self._actors.remove(dead)
        self._ray.kill(dead)  # it may only be out of reach
        self._failures.update(number for number, _ in values)
        self._failed_starts += not values
        starts = self._failed_starts // self._count
        often = max((self._failures[number] for number, _ in values), default=starts)
        if often > RESTARTS:
            raise TrainingError(
                f"a worker of Ray failed {counted(often, 'time')} ({first_line(error)}). What is finished is "
                "kept; run the command again to continue."
            ) from error
        self._waiting.extendleft(reversed(values))
        self._start()
        self._assign()

    def _assign(self) -> None:
        while self._idle and self._waiting:
            actor = self._idle.popleft()
            number, value = self._waiting.popleft()
            self._at_work[actor.apply.remote(self._function, self._cpus, value)] = number, value, actor


@contextlib.contextmanager
def _started(ray: Any, compute: Callable[[Any], Any], workers: int | None) -> Iterator[_RayWorkers]:
    made = _RayWorkers(ray, compute, workers)
    try:
        yield made
    finally:
        made.stop()


def _versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


def _check_versions(theirs: dict[str, str]) -> None:
    """Refuses workers whose results may differ.

    Raises:
        RecipeError: If a worker has another version of a package.
    """
    if theirs != (ours := _versions()):
        name = next(name for name in PACKAGES if theirs.get(name) != ours[name])
        raise RecipeError(
            f"a worker of Ray has {name} {theirs.get(name)}, this machine {ours[name]}; install the same "
            "version everywhere, as vectors of different versions may differ."
        )
