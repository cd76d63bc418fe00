"""The texts of training files, each with its location.

Of a BEIR folder, the split "train" is used: the judged queries and the passages relevant to them. Of another
folder, all files are used. Files are .jsonl(.gz), .parquet, .txt(.gz), .csv(.gz) and .tsv(.gz). In a JSON
object or a row of a table, each string except its id is a text, at any depth ({"query", "pos": [...], "neg":
[...]} or any other format); "title" and "text" of the same object are joined.
"""

import re
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from stzoo.data import corpus_sources
from stzoo.data.beir_layout import find_split, names_beir
from stzoo.data.qrels import read_judgements
from stzoo.data.rows import read_lines, read_rows, row_suffix
from stzoo.errors import DataError


class TrainingText(NamedTuple):
    """A text and its location.

    Attributes:
        file: Path of the file.
        line: Line or row, from 1.
        field: Path of the value in the row, e.g. "pos[0]"; "" for a line of text.
        text: The text.
    """

    file: str
    line: int
    field: str
    text: str

    @property
    def is_negative(self) -> bool:
        """True if the field's name says that it has negatives, e.g. neg or negative_1."""
        return re.match(r"([a-z]+_)?neg", self.field) is not None


class TrainingFile(NamedTuple):
    """A file, and the ids of the rows to use; None for all rows."""

    path: Path
    only: Collection[str] | None = None


def find_training(path: Path, bars: bool) -> list[TrainingFile]:
    """Finds the training files of a path, and reads the judgements of a BEIR folder.

    Args:
        path: Path of a file or folder, see the head of this module; FOLDER/TASK for one task of several.
        bars: True for progress bars on stderr.

    Raises:
        DataError: If it does not exist, has an unknown type, or is a BEIR folder without a split "train".
    """
    if names_beir(path):
        files = find_split(path, "train")
        judgements = read_judgements(files.qrels, read_lines(files.qrels, bars))
        relevant = {d for grades in judgements.values() for d, grade in grades.items() if grade > 0}
        return [TrainingFile(files.queries, judgements.keys()), TrainingFile(files.corpus, relevant)]
    return [TrainingFile(file) for source in corpus_sources.find(str(path)) for file in source.files]


def training_texts(file: TrainingFile, bars: bool) -> Iterator[TrainingText]:
    """Streams the texts of a file.

    Args:
        file: One of the results of `find_training`.
        bars: True for a progress bar on stderr.

    Raises:
        DataError: If it is damaged, or a line is invalid.
    """
    in_lines = row_suffix(file.path) == ".txt"
    for at, row in read_rows(file.path, bars, columns=partial(_text_columns, file.path)):
        if file.only is None or str(row.get("_id", row.get("id"))) in file.only:
            for field, text in _strings(row):
                yield TrainingText(str(file.path), at.line, "" if in_lines else field, text)


def _text_columns(file: Path, schema: pa.Schema) -> list[str]:
    columns = [field.name for field in schema if "string" in str(field.type)]
    if not columns:
        raise DataError(
            f"{file} has the columns {', '.join(schema.names) or 'none'}; expected at least one of text."
        )
    return columns


def _strings(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, list):
        for place, part in enumerate(value):
            yield from _strings(part, f"{field}[{place}]")
    elif isinstance(value, dict):
        title, text = value.get("title"), value.get("text")
        if isinstance(title, str) and isinstance(text, str):
            value = value | {"title": None, "text": f"{title} {text}"}
        for key, part in value.items():
            if key not in ("_id", "id"):
                yield from _strings(part, f"{field}.{key}" if field else key)
