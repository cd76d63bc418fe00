"""Rows that name pages: what KILT's questions hold as evidence, and where a corpus says its passages' pages.

Source: https://github.com/facebookresearch/KILT (the form of its data).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stzoo.data.beir import as_text
from stzoo.data.texts import numbered_objects
from stzoo.errors import DataError


def evidence_sets(row: dict[str, Any], path: Path, line: int) -> tuple[frozenset[str], ...]:
    """The distinct evidence sets, of page ids, of a question.

    Raises:
        DataError: if the row's output or its provenance is no list of objects, or an id is none.
    """
    sets = [
        [id_of(item, "wikipedia_id", path, line) for item in objects(output, "provenance", path, line)]
        for output in objects(row, "output", path, line)
        if output.get("provenance") is not None
    ]
    return tuple(dict.fromkeys(map(frozenset, sets)))


def objects(row: dict[str, Any], key: str, path: Path, line: int) -> list[dict[str, Any]]:
    """The objects that a row lists under a key; none where the key is missing or null.

    Raises:
        DataError: if it is something else.
    """
    found = row.get(key) or []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise DataError.at(path, line, f"the {key} {_shown(found)}", f'"{key}": [{{…}}, …]')
    return found


def id_of(row: dict[str, Any], key: str, path: Path, line: int) -> str:
    """The id that a row has under a key.

    Raises:
        DataError: if it is neither text nor a whole number, or blank.
    """
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        found = f"the {key} {_shown(value)}" if key in row else f"no {key}"
        raise DataError.at(path, line, found, f'a "{key}" that is text or a whole number')
    return as_text(str(value).strip(), key, path, line)


def pages_in_rows(corpus: Path, progress: bool | None) -> Iterator[str]:
    """The page of each passage of a corpus.jsonl(.gz): "wikipedia_id", at the top or in "metadata".

    Raises:
        DataError: if a passage has none.
    """
    for line, row in numbered_objects(corpus, progress):
        if "wikipedia_id" not in row and isinstance(row.get("metadata"), dict):
            row = row["metadata"]
        yield id_of(row, "wikipedia_id", corpus, line)


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)[:40]
