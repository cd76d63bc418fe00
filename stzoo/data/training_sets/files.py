"""Files of training data: jsonl, Parquet, csv, tsv, and folders of `datasets`.

A file's type is recognised by its first bytes or line, except that gzipped files need a name in .gz.
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

from stzoo.data.corpus_names import is_hub_id
from stzoo.data.corpus_sources import load_hub
from stzoo.data.row_location import RowLocation
from stzoo.data.rows import PARQUET, check_column_names, open_parquet, read_dataset, read_lines, read_rows
from stzoo.data.training_sets.columns import Given
from stzoo.data.training_sets.formats import is_header, unknown_form
from stzoo.errors import DataError, StzooError, first_line
from stzoo.utils.inputs import open_input, user_path

PLAIN = (".jsonl", ".csv", ".tsv")
IN_FOLDERS = (".parquet", *PLAIN, *(f"{suffix}.gz" for suffix in PLAIN))
# A .json file in a folder is usually a record or settings, so it is read only if it is named.
SUFFIXES = (*IN_FOLDERS, ".json", ".json.gz")

Row = dict[str, Any] | list[str]  # values by column, or fields without column names
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
    """Finds the tables of a file, a folder of files (in name order), a folder of `datasets`, or a Hub id.

    Args:
        data: Path or Hub id, as the user gave it.
        split: Split of a `datasets` folder or Hub data set. In a folder of files, the files whose names begin
            with it are read, or all files if none does.
        progress: See `stzoo.data.rows.read_rows`.
        given: Columns by role, from the option.

    Raises:
        DataError: If it does not exist, or has nothing that can be read.
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
            f"there is no file or folder {data}; expected a file, a folder, or the id of a data set on the "
            "Hub (org/name or org/name:config:split)."
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
            f"{folder} has no training data of a known type ({', '.join(IN_FOLDERS)}); expected some in the "
            "folder itself (subfolders are not searched)."
        )
    of_split = [name for name in found if re.match(rf"{re.escape(split)}(?![A-Za-z])", name)]
    if not of_split:
        _refuse_split(folder, split)
    return [folder / name for name in of_split or found]


def _refuse_split(path: Path, split: str) -> None:
    if split != "train":
        raise DataError(
            f"{path} has no splits, but the split is {split!r}; expected a BEIR folder or a data set with "
            "splits, or no split."
        )


def open_table(path: Path, progress: bool | None, given: Given | None = None) -> Table:
    """The table of a file; see `find_tables`."""
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
    """Turns errors of `datasets` into DataErrors; for a damaged folder it raises many kinds."""
    try:
        yield
    except StzooError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(
            f"{path} cannot be read by `datasets` ({reason}); expected a folder written by save_to_disk."
        ) from error
