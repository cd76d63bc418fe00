"""Mined files: queries with the negatives that a model found for them, as Parquet or jsonl.

Both have the names that FlagEmbedding gave them, so that it and `datasets` read them: query, pos, neg,
pos_scores, neg_scores; beside them query_id, pos_id, neg_id. What made the file lies in Parquet's schema
metadata under "stzoo", in jsonl in the first row under "stzoo". The same rows give the same bytes.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stzoo.data.training_sets.files import Table, open_table
from stzoo.data.training_sets.sets import MADE, Candidate, Mined
from stzoo.errors import DataError, RecipeError
from stzoo.utils.files import atomic_file
from stzoo.utils.inputs import parse_json

SUFFIXES = (".parquet", ".jsonl")
GROUP_ROWS = 1000


def check_mined_name(path: str | Path) -> Path:
    """The path of a mined file to be written.

    Raises:
        RecipeError: if its suffix names no form.
    """
    if Path(path).suffix not in SUFFIXES:
        raise RecipeError(f"{path} cannot be written; expected a name that ends in {' or '.join(SUFFIXES)}.")
    return Path(path)


def write_training(path: str | Path, rows: Iterable[Mined], made: dict[str, Any]) -> Path:
    """Writes mined rows, whole or not at all, and returns the path; memory does not grow with their number.

    Args:
        path: ends in .parquet or .jsonl.
        rows: taken one by one; a list in which a passage has no score is written without scores.
        made: JSON values that say what made them; `TrainingSet.made` of what is read again.

    Raises:
        RecipeError: if the suffix names no form.
        DataError: if there is no row, or a score is not finite.
        OutputError: if the disk is full or the folder cannot be written.
    """
    path = check_mined_name(path)
    filed = map(_filed, rows)
    first = next(filed, None)
    if first is None:
        raise DataError(f"there is no row to write to {path}: no query got a negative.")
    about = json.dumps(made, ensure_ascii=False, allow_nan=False)
    with atomic_file(path) as draft:
        write = _write_parquet if path.suffix == ".parquet" else _write_jsonl
        write(draft, chain([first], filed), about)
    return path


def read_made(path: str | Path) -> dict[str, Any] | None:
    """What made a mined file; None of another file. No more than its first row is read.

    Raises:
        DataError: if it is not there or cannot be read.
    """
    return made_of(open_table(Path(path), False))


def made_of(table: Table) -> dict[str, Any] | None:
    """What a table says of its making; see `read_made`."""
    if table.metadata is not None:
        made = table.metadata.get(MADE.encode())
        with contextlib.suppress(ValueError):
            made = None if made is None else parse_json(made.decode())
    else:
        row = next((row for _, row in table.read()), None)
        made = row.get(MADE) if isinstance(row, dict) else None
    if not isinstance(made, dict | None):
        raise DataError(f"{table.file}: its {MADE!r} is no JSON object; expected what stzoo mine writes.")
    return made


def _filed(row: Mined) -> dict[str, Any]:
    filed: dict[str, Any] = {"query_id": row.query_id, "query": row.query}
    for name, candidates in (("pos", row.positives), ("neg", row.negatives)):
        filed[name] = [one.text for one in candidates]
        filed[f"{name}_id"] = [one.id or "" for one in candidates]
        filed[f"{name}_scores"] = _scores(row.query_id, candidates)
    return filed


def _scores(query: str, candidates: list[Candidate]) -> list[float]:
    scores = [one.score for one in candidates if one.score is not None]
    if len(scores) < len(candidates):
        return []
    if not all(map(isfinite, scores)):
        raise DataError(f"a score of query {query!r} is no finite number, of {scores}.")
    # As short as it can be for the reader to get the same float32, and the same in both forms.
    return [float(str(score)) for score in np.array(scores, np.float32)]


def _write_jsonl(path: Path, rows: Iterator[dict[str, Any]], about: str) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for number, row in enumerate(rows):
            line = json.dumps(row, ensure_ascii=False)
            file.write((line if number else f'{{"{MADE}": {about}, {line[1:]}') + "\n")


def _write_parquet(path: Path, rows: Iterator[dict[str, Any]], about: str) -> None:
    texts, scores = pa.list_(pa.string()), pa.list_(pa.float32())
    kinds = {"query_id": pa.string(), "query": pa.string()}
    for name in ("pos", "neg"):
        kinds |= {name: texts, f"{name}_id": texts, f"{name}_scores": scores}
    schema = pa.schema(kinds.items(), metadata={MADE: about})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while group := list(islice(rows, GROUP_ROWS)):
            writer.write_table(pa.Table.from_pylist(group, schema))
