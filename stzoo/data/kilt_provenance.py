"""The pages of KILT's rows: evidence of questions, and pages of passages.

Source: https://github.com/facebookresearch/KILT (the format of its data).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stzoo.data.row_location import RowLocation
from stzoo.data.rows import read_jsonl


def evidence_sets(row: dict[str, Any], at: RowLocation) -> tuple[frozenset[str], ...]:
    """The distinct evidence sets (sets of page ids) of a question.

    Raises:
        DataError: If the row's output or provenance is not a list of objects, or an id is invalid.
    """
    sets = [
        [at.id(item, "wikipedia_id") for item in at.objects(output, "provenance")]
        for output in at.objects(row, "output")
        if output.get("provenance") is not None
    ]
    return tuple(dict.fromkeys(map(frozenset, sets)))


def pages_in_rows(corpus: Path, progress: bool | None) -> Iterator[str]:
    """The page of each passage of a corpus.jsonl(.gz): "wikipedia_id", at the top level or in "metadata".

    Raises:
        DataError: If a passage has none.
    """
    for at, row in read_jsonl(corpus, progress):
        if "wikipedia_id" not in row and isinstance(row.get("metadata"), dict):
            row = row["metadata"]
        yield at.id(row, "wikipedia_id")
