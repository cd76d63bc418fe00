"""The one look of progress bars: a single line on stderr that fits the terminal."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm

from stzoo.utils.distributed import is_main_process

STAGES = "{desc} {n_fmt}/{total_fmt} [{elapsed}{postfix}]"  # of a few stages, whose number foretells no time
_outer: ContextVar[Any] = ContextVar("outer", default=None)


def progress_bar(*iterable: Any, **options: Any) -> Any:
    """A progress bar; see tqdm for its options.

    It adapts to the width of the terminal, also when that changes, leaves no line behind, and is shown on a
    terminal only, unless the options say otherwise. Of several processes, only the first shows it.
    """
    if not is_main_process():
        options["disable"] = True
    return tqdm(*iterable, **{"dynamic_ncols": True, "leave": False, "disable": None, **options})


@contextlib.contextmanager
def advancing(bar: Any) -> Iterator[None]:
    """Has `advance` move this bar while the block runs.

    So a bar over texts moves with each of them, even if they are worked on shard by shard.
    """
    token = _outer.set(bar)
    try:
        yield
    finally:
        _outer.reset(token)


def advance(count: int) -> None:
    """Moves the bar of the surrounding `advancing`, if there is one."""
    if (bar := _outer.get()) is not None:
        bar.update(count)
