"""Files that several data sets share, read and kept in memory once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

R = TypeVar("R")
_kept: ContextVar[dict[Path, Any] | None] = ContextVar("what was read, by file", default=None)


@contextmanager
def each_file_once() -> Iterator[None]:
    """Inside the block, `once` keeps what it reads, and returns it whenever the same file is asked for."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def once(file: Path, read: Callable[[], R]) -> R:
    """What `read` returns; inside `each_file_once`, what the first call for this file returned."""
    kept = _kept.get()
    if kept is None:
        return read()
    name = file.resolve()
    if name not in kept:
        kept[name] = read()
    found: R = kept[name]
    return found
