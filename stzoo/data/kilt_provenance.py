"""Rows that name pages: what KILT's questions hold as evidence, and where a corpus says its passages' pages.

Source: https://github.com/facebookresearch/KILT (the form of its data).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stzoo.data.row_location import RowLocation
from stzoo.data.rows import read_jsonl


def evidence_sets(row: dict[str, Any], at: RowLocation) -> tuple[frozenset[str], ...]:
    """The distinct evidence sets, of page ids, of a question.

    Raises:
        DataError: if the row's output or its provenance is no list of objects, or an id is none.
    """
    sets = [
        [at.id(item, "wikipedia_id") for item in at.objects(output, "provenance")]
        for output in at.objects(row, "output")
        if output.get("provenance") is not None
    ]
    return tuple(dict.fromkeys(map(frozenset, sets)))


def pages_in_rows(corpus: Path, progress: bool | None) -> Iterator[str]:
    """The page of each passage of a corpus.jsonl(.gz): "wikipedia_id", at the top or in "metadata".

    Raises:
        DataError: if a passage has none.
    """
    for at, row in read_jsonl(corpus, progress):
        if "wikipedia_id" not in row and isinstance(row.get("metadata"), dict):
            row = row["metadata"]
        yield at.id(row, "wikipedia_id")
