"""Where the parts of a work are computed: in this process, or by the workers of an engine such as Ray.

Workers apply one function to values, several at a time, and give the results back as they come. The process
that starts them reads the inputs and writes the files (`Parts.complete`), so they need neither the data nor a
shared file system.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, Protocol

from stzoo.errors import RecipeError, check_known
from stzoo.utils.distributed import require_one_process
from stzoo.utils.optional import import_extra

ENGINES = ("local", "ray")


class Workers(Protocol):
    """Workers that apply one function.

    Attributes:
        capacity: Number of values to submit before a result is awaited.
    """

    capacity: int

    def submit(self, number: int, value: Any) -> None:
        """Has a worker apply the function to a value."""

    def next(self) -> tuple[int, Any]:
        """Waits for a result, and returns it with the number of its value.

        Raises:
            StzooError: If the function failed, or a worker died too often.
        """


class ThisProcess:
    """The only worker is this process, which computes when the result is awaited."""

    capacity = 1

    def __init__(self, compute: Callable[[Any], Any]):
        self._compute = compute
        self._submitted: tuple[int, Any] | None = None

    def submit(self, number: int, value: Any) -> None:
        """See `Workers`."""
        self._submitted = number, value

    def next(self) -> tuple[int, Any]:
        """See `Workers`."""
        assert self._submitted is not None, "submit() comes first"
        (number, value), self._submitted = self._submitted, None
        return number, self._compute(value)


Engine = Callable[[Callable[[Any], Any]], contextlib.AbstractContextManager[Workers]]
_engine: ContextVar[Engine | None] = ContextVar("engine", default=None)


def on_device(compute: Any, device: str | None) -> Any:
    """A function like another one, with its model on a device; None for the best available one.

    Functions that use a model have a method `on` for this. Any other function is returned as it is.
    """
    return compute.on(device) if hasattr(compute, "on") else compute


@contextlib.contextmanager
def started(compute: Callable[[Any], Any]) -> Iterator[Workers]:
    """Workers of the current engine, which begin their work with the first value.

    Args:
        compute: The function; picklable, as are its values and results.
    """
    with (_engine.get() or _here)(compute) as workers:
        yield workers


def has_workers() -> bool:
    """True if the current engine has workers other than this process."""
    return _engine.get() is not None


def applied(workers: Workers, values: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """The results of numbered values, with their numbers; a value is read when a worker is free."""
    waiting, at_work = iter(values), 0
    while True:
        while at_work < workers.capacity and (one := next(waiting, None)):
            workers.submit(*one)
            at_work += 1
        if not at_work:
            return
        yield workers.next()
        at_work -= 1


def check_engine(engine: str, workers: int | None, address: str | None) -> None:
    """Checks the options of `chosen_engine`, without starting anything.

    Raises:
        MissingExtraError: If Ray is not installed.
        RecipeError: If the engine is unknown, or an option of Ray is given without it.
        StzooError: If torchrun started several processes, and the engine is Ray.
    """
    check_known("engine", engine, ENGINES)
    if engine == "local":
        if workers is not None or address is not None:
            option = "--ray-address" if workers is None else "--ray-workers"
            raise RecipeError(f"{option} has no effect without --engine ray; add it, or drop the option.")
        return
    if workers is not None and workers < 1:
        raise RecipeError(f"ray_workers is {workers}; expected at least 1.")
    require_one_process("--engine ray", "Start the command without torchrun, or drop the option.")
    import_extra("ray", "ray", "Ray")


@contextlib.contextmanager
def chosen_engine(engine: str, workers: int | None, address: str | None) -> Iterator[None]:
    """Makes the engine that a user chose the current one while the block runs.

    Args:
        engine: One of ENGINES.
        workers: Number of workers of Ray; None for its default.
        address: Address of the Ray cluster; None for its default.

    Raises:
        RecipeError: If there is no cluster.
        StzooError: See `check_engine`.
    """
    check_engine(engine, workers, address)
    if engine == "local":
        yield
        return
    from stzoo.utils.ray_engine import ray_engine

    with ray_engine(address, workers) as chosen, using(chosen):
        yield


@contextlib.contextmanager
def _here(compute: Callable[[Any], Any]) -> Iterator[Workers]:
    yield ThisProcess(compute)


@contextlib.contextmanager
def using(engine: Engine | None) -> Iterator[None]:
    """Makes an engine the current one while the block runs; None for this process."""
    token = _engine.set(engine)
    try:
        yield
    finally:
        _engine.reset(token)
