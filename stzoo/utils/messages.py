"""The one channel for notes and warnings to the user, one line each on stderr."""

import contextlib
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator

logger = logging.getLogger("stzoo")


class _Stderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)  # its open bars are cleared and drawn again
        with tqdm.external_write_mode(file=sys.stderr) if tqdm else contextlib.nullcontext():
            print(f"stzoo: {record.getMessage()}", file=sys.stderr, flush=True)


logger.addHandler(_Stderr())


def notify(text: str, *, is_passing: bool = False) -> None:
    """Shows a note to the user through the logger "stzoo".

    Of the processes that torchrun started together, only the first shows it. Handlers and levels can be set
    on the logger as usual.

    Args:
        text: The note.
        is_passing: True if it is of no interest later; `collect_notes` leaves it out.
    """
    if os.environ.get("RANK", "0") == "0":
        logger.warning(text, extra={"is_passing": is_passing})


@contextlib.contextmanager
def note_if_slow(text: str, seconds: float = 2.0) -> Iterator[None]:
    """Shows a passing note to the user if the block takes longer than some seconds."""
    timer = threading.Timer(seconds, notify, (text,), {"is_passing": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def show_progress(progress: bool | None = None) -> bool:
    """True if progress bars are to be shown: as asked for, or if that is None, when stderr is a terminal."""
    return sys.stderr.isatty() if progress is None else progress


def counted(number: int, noun: str) -> str:
    """A number with its noun in the singular or plural, e.g. "1 query" or "2,000 queries"."""
    plural = re.sub("(?<![aeiou])ys$", "ies", re.sub("(s|x|ch)s$", r"\1es", f"{noun}s"))
    return f"{number:,} {noun if number == 1 else plural}"


def duration(seconds: float) -> str:
    """A duration in hours, minutes and seconds, e.g. "4 min 10 s"."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


@contextlib.contextmanager
def collect_notes() -> Iterator[list[str]]:
    """Collects the distinct notes that are shown while the block runs, but for passing ones."""
    notes: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if text not in notes and not getattr(record, "is_passing", False):
                notes.append(text)

    handler = Collect()
    logger.addHandler(handler)
    try:
        yield notes
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def no_notes() -> Iterator[None]:
    """Shows and collects no notes while the block runs."""
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
