"""Hides the progress bars and load reports of transformers, datasets and sentence-transformers."""

import contextlib
import logging
import os
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from tqdm.std import tqdm


@contextlib.contextmanager
def silence_hf_logging() -> Iterator[None]:
    """Silences transformers, datasets and sentence-transformers, except for errors, while the block runs.

    With STZOO_VERBOSE=1 it changes nothing.
    """
    if os.environ.get("STZOO_VERBOSE") == "1":
        yield
        return
    import datasets
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    logger = logging.getLogger("sentence_transformers")
    before = logger.level
    bars = transformers_logging.is_progress_bar_enabled()
    dataset_bars = datasets.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        logger.setLevel(before)
        if bars:
            transformers_logging.enable_progress_bar()
        if dataset_bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Hides all progress bars of this thread while the block runs, also libraries', which are all tqdm's."""
    if tqdm.__init__ is not _init:
        tqdm.__init__ = _init
    token = _hidden.set(True)
    try:
        yield
    finally:
        _hidden.reset(token)


_hidden: ContextVar[bool] = ContextVar("hidden", default=False)
_original = tqdm.__init__


def _init(self: Any, *args: Any, **options: Any) -> None:
    _original(self, *args, **(options | {"disable": True} if _hidden.get() else options))
