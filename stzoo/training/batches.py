"""Batches of the trainer: the collator that makes them of rows, and their views."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator


@dataclass
class Collator(SentenceTransformerDataCollator):
    """A collator that calls `function`; the host trainer refuses plain functions.

    Attributes:
        function: Function from rows to a batch.
    """

    function: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Makes a batch of rows."""
        assert self.function is not None
        return self.function(features)


def split_views(batch: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Groups a batch by view: `batch["passage_input_ids"]` becomes `views["passage"]["input_ids"]`."""
    views = [name.removesuffix("_input_ids") for name in batch if name.endswith("_input_ids")]
    return {
        view: {
            name.removeprefix(f"{view}_"): value
            for name, value in batch.items()
            if name.startswith(f"{view}_")
        }
        for view in views
    }
