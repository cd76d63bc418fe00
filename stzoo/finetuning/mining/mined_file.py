"""What `mine` returns."""

from functools import cached_property
from typing import Any

from stzoo.data.training_sets.mined import read_made
from stzoo.utils.recorded import Recorded


class MinedFile(Recorded):
    """The file with mined negatives, which finetune, rerank and contamination take as data; a Path.

    Example:
        >>> mined = stzoo.mine("bm25s", data=data, output="mined.parquet")   # doctest: +SKIP
        >>> mined.counts                                                     # doctest: +SKIP
        >>> stzoo.finetune(model, data=mined, output="runs/tuned")           # doctest: +SKIP
    """

    @cached_property
    def record(self) -> dict[str, Any]:
        """How it was made: "recipe", "model", "teacher", "data", "versions", "counts", "notes"."""
        return read_made(self.path) or {}
