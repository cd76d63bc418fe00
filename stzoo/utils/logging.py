"""Hides the progress bars and load reports of transformers, datasets and sentence-transformers."""

import contextlib
import logging
import os
from collections.abc import Iterator
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
    """Hides all progress bars while the block runs, also those of libraries, all of which are tqdm's."""
    original = tqdm.__init__

    def hidden(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **{**options, "disable": True})

    tqdm.__init__ = hidden
    try:
        yield
    finally:
        tqdm.__init__ = original
