"""Mined files: queries with the negatives that a model found for them, as Parquet or jsonl.

The columns have FlagEmbedding's names, so that FlagEmbedding and `datasets` can read them: query, pos, neg,
pos_scores, neg_scores; and also query_id, pos_id, neg_id. Metadata on how the file was made is in Parquet's
schema metadata, or in the first row of jsonl, under "stzoo". The same rows give the same bytes.
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
    """The path of a mined file to write.

    Raises:
        RecipeError: If its suffix is unknown.
    """
    if Path(path).suffix not in SUFFIXES:
        raise RecipeError(
            f"{path} has an unknown suffix; expected a name that ends in {' or '.join(SUFFIXES)}."
        )
    return Path(path)


def write_training(path: str | Path, rows: Iterable[Mined], made: dict[str, Any]) -> Path:
    """Streams mined rows to a file, which is written completely or not at all, and returns the path.

    Args:
        path: Path that ends in .parquet or .jsonl.
        rows: The rows, which are consumed one by one. Lists with an unscored passage get no scores.
        made: Metadata on how they were made, as JSON values; `TrainingSet.made` when the file is read.

    Raises:
        RecipeError: If the suffix is unknown.
        DataError: If there is no row, or a score is not finite.
        OutputError: If the disk is full or the folder cannot be written.
    """
    path = check_mined_name(path)
    filed = map(_filed, rows)
    first = next(filed, None)
    if first is None:
        raise DataError(f"there is no row to write to {path}: no negative was found for any query.")
    about = json.dumps(made, ensure_ascii=False, allow_nan=False)
    with atomic_file(path) as draft:
        write = _write_parquet if path.suffix == ".parquet" else _write_jsonl
        write(draft, chain([first], filed), about)
    return path


def read_made(path: str | Path) -> dict[str, Any] | None:
    """The metadata of a mined file; None for other files. At most the first row is read.

    Raises:
        DataError: If the file does not exist or cannot be read.
    """
    return made_of(open_table(Path(path), False))


def made_of(table: Table) -> dict[str, Any] | None:
    """The metadata of a table; see `read_made`."""
    if table.metadata is not None:
        made = table.metadata.get(MADE.encode())
        with contextlib.suppress(ValueError):
            made = None if made is None else parse_json(made.decode())
    else:
        row = next((row for _, row in table.read()), None)
        made = row.get(MADE) if isinstance(row, dict) else None
    if not isinstance(made, dict | None):
        raise DataError(
            f"{table.file}: {MADE!r} is not a JSON object; expected the metadata that stzoo mine writes."
        )
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
        raise DataError(f"query {query!r} has a score that is not finite: {scores}; expected finite scores.")
    # The shortest decimals that give the same float32; the same in both formats.
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
