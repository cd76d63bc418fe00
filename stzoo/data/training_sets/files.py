"""Rows of the files that training data come in, whatever they hold: jsonl, Parquet, csv, tsv, `datasets`.

What a file is, is told by its first bytes or line; .gz alone goes by the name.
"""

import contextlib
import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from stzoo.data.corpus_sources import is_hub_id, load_hub
from stzoo.data.row_location import RowLocation
from stzoo.data.rows import PARQUET, check_column_names, open_parquet, read_dataset, read_lines, read_rows
from stzoo.data.training_sets.columns import Given
from stzoo.data.training_sets.formats import is_header, unknown_form
from stzoo.errors import DataError, StzooError, first_line
from stzoo.utils.inputs import open_input, user_path

PLAIN = (".jsonl", ".csv", ".tsv")
IN_FOLDERS = (".parquet", *PLAIN, *(f"{suffix}.gz" for suffix in PLAIN))
# In a folder a .json file is most often a record or settings, so it is read only when it is named.
SUFFIXES = (*IN_FOLDERS, ".json", ".json.gz")

Row = dict[str, Any] | list[str]  # by column; or fields without names
Rows = Iterator[tuple[RowLocation, Row]]


@dataclass(frozen=True)
class Table:
    """A file, or another source of rows.

    Attributes:
        file: Its path, for messages.
        read: Streams its rows with their locations; the same rows each time.
        names: Names of its columns; None if each row has its own.
        metadata: Of a Parquet file's schema; None for other files.
    """

    file: Path
    read: Callable[[], Rows]
    names: Sequence[str] | None = None
    metadata: dict[bytes, bytes] | None = None


def find_tables(data: str | Path, split: str, progress: bool | None, given: Given) -> list[Table]:
    """The tables of a file, a folder of files (in name order), a folder of `datasets`, or a Hub id.

    Args:
        data: as the user gave it.
        split: of a `datasets` folder or Hub data set that has several; in a folder of files those are read
            whose names begin with it, or all if none does.
        progress: see `stzoo.data.rows.read_rows`.
        given: columns by role, as the user says.

    Raises:
        DataError: if it is not there, or holds nothing that can be read.
    """
    path = user_path(data)
    if path.exists() and not path.is_dir():
        _refuse_split(path, split)
        return [open_table(path, progress, given)]
    if path.is_dir():
        if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
            return [_saved(path, split, progress)]
        return [open_table(file, progress, given) for file in _files(path, split)]
    if not is_hub_id(str(data)) or str(data).lower().endswith(SUFFIXES):
        raise DataError(
            f"there is no file or folder {data}; expected one, or the id of a data set on the Hub "
            "(org/name or org/name:config:split)."
        )
    return [_dataset(Path(data), load_hub(str(data), split), progress)]


def _files(folder: Path, split: str) -> list[Path]:
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror or error}.") from error
    found = [name for name in names if name.lower().endswith(IN_FOLDERS) and not name.startswith(".")]
    if not found:
        raise DataError(
            f"{folder} has no training data of any known kind ({', '.join(IN_FOLDERS)}); expected some "
            "in the folder itself, as subfolders are not searched."
        )
    of_split = [name for name in found if re.match(rf"{re.escape(split)}(?![A-Za-z])", name)]
    if not of_split:
        _refuse_split(folder, split)
    return [folder / name for name in of_split or found]


def _refuse_split(path: Path, split: str) -> None:
    if split != "train":
        raise DataError(
            f"{path} has no splits, and {split!r} was asked for; expected a BEIR folder or a data set with "
            "splits, or the split left out."
        )


def open_table(path: Path, progress: bool | None, given: Given | None = None) -> Table:
    """The table that a file is; see `find_tables`."""
    try:
        with open_input(path) as file:
            if file.read(4) == b"PAR1":
                return _parquet(path, progress)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    at, first = next(read_lines(path, False), (RowLocation(path, 0), ""))
    if not first:
        raise DataError(f"{path} is empty; expected rows of training data.")
    if first.lstrip().startswith("{"):
        return Table(path, partial(read_rows, path, progress, suffix=".jsonl"))
    suffix, delimiter = (".tsv", "\t") if "\t" in first else (".csv", ",")
    try:
        names = next(csv.reader([first], delimiter=delimiter, strict=True))
    except csv.Error:  # a quote that is text, in triples
        names = first.split(delimiter)
    if is_header(names, given or {}):
        check_column_names(path, names)
        return Table(path, partial(read_rows, path, progress, suffix=suffix), names)
    if delimiter == ",":
        raise unknown_form(f"the line {first[:40]!r}", at)
    return Table(path, lambda: ((at, text.split(delimiter)) for at, text in read_lines(path, progress)))


def _parquet(path: Path, progress: bool | None) -> Table:
    with open_parquet(path) as opened:
        schema = opened.schema_arrow
    read = partial(read_rows, path, progress, suffix=PARQUET)
    return Table(path, read, schema.names, schema.metadata or {})


def _saved(path: Path, split: str, progress: bool | None) -> Table:
    with _explained(path):
        found = datasets.load_from_disk(str(path))
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise DataError(f"{path} has no split {split!r}. Available splits: {', '.join(sorted(found))}.")
        found = found[split]
    else:
        _refuse_split(path, split)
    return _dataset(path, found, progress)


def _dataset(path: Path, found: Any, progress: bool | None) -> Table:
    def read() -> Rows:
        with _explained(path):
            yield from read_dataset(path, found, progress)

    check_column_names(path, found.column_names)
    return Table(path, read, found.column_names)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Explains whatever `datasets` raises: of a damaged folder it may be anything."""
    try:
        yield
    except StzooError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(
            f"{path} cannot be read as a data set of `datasets` ({reason}); expected what save_to_disk wrote."
        ) from error
