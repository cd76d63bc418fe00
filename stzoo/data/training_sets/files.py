"""Rows of the files that training data come in, whatever they hold: jsonl, Parquet, csv, tsv, `datasets`.

What a file is, is told by its first bytes or line; .gz alone goes by the name.
"""

import contextlib
import csv
import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from tqdm import tqdm

from stzoo.data.corpus_sources import is_hub_id, load_hub
from stzoo.data.texts import numbered_lines, numbered_objects
from stzoo.data.training_sets.columns import Given
from stzoo.data.training_sets.formats import is_header, unknown_form
from stzoo.data.training_sets.values import RowLocation
from stzoo.errors import DataError, StzooError, first_line
from stzoo.utils.inputs import (
    arrow_rows,
    check_column_names,
    check_tables,
    open_input,
    open_parquet,
    user_path,
)

PLAIN = (".jsonl", ".csv", ".tsv")
IN_FOLDERS = (".parquet", *PLAIN, *(f"{suffix}.gz" for suffix in PLAIN))
# In a folder a .json file is most often a record or settings, so it is read only when it is named.
SUFFIXES = (*IN_FOLDERS, ".json", ".json.gz")
BATCH_ROWS = 500

Row = dict[str, Any] | list[str]  # by column; or fields without names
Rows = Callable[[], Iterator[tuple[int, Row]]]


@dataclass(frozen=True)
class Table:
    """A file, or another stretch of rows.

    Attributes:
        file: for messages.
        read: yields its rows with their line or number, from 1; the same each time.
        names: of its columns; None if each row has its own.
        metadata: of a Parquet file's schema.
    """

    file: Path
    read: Rows
    names: Sequence[str] | None = None
    metadata: dict[bytes, bytes] | None = None


def find_tables(data: str | Path, split: str, progress: bool | None, given: Given) -> list[Table]:
    """The tables of a file, a folder of files (in name order), a folder of `datasets`, or a Hub id.

    Args:
        data: as the user gave it.
        split: of a `datasets` folder or Hub data set that has several; in a folder of files those are read
            whose names begin with it, or all if none does.
        progress: see `stzoo.data.texts.numbered_lines`.
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
    number, first = next(numbered_lines(path, False), (0, ""))
    if not first:
        raise DataError(f"{path} is empty; expected rows of training data.")
    if first.lstrip().startswith("{"):
        return Table(path, lambda: numbered_objects(path, progress))
    mark = "\t" if "\t" in first else ","
    try:
        names = next(csv.reader([first], delimiter=mark, strict=True))
    except csv.Error:  # a quote that is text, in triples
        names = first.split(mark)
    if is_header(names, given or {}):
        check_column_names(path, names)
        return Table(path, lambda: _csv(path, mark, progress), names)
    if mark == ",":
        raise unknown_form(f"the line {first[:40]!r}", RowLocation(path, number))
    return Table(path, lambda: ((line, text.split(mark)) for line, text in numbered_lines(path, progress)))


def _csv(path: Path, mark: str, progress: bool | None) -> Iterator[tuple[int, Row]]:
    off = None if progress is None else not progress
    options = dict(unit="B", unit_scale=True, delay=2, leave=False, disable=off)
    line = 0
    try:
        with (
            open_input(path) as raw,
            gzip.open(raw) if path.suffix == ".gz" else raw as file,
            tqdm(total=path.stat().st_size, desc=f"Reading {path.name}", **options) as bar,
        ):
            rows = csv.reader(
                (text.decode("utf-8-sig" if number == 0 else "utf-8") for number, text in enumerate(file)),
                delimiter=mark,
                strict=True,
            )
            names = next(filter(None, rows), [])
            line = rows.line_num
            for number, fields in enumerate(rows):
                if number % 1000 == 0:
                    bar.update(raw.tell() - bar.n)
                first, line = line + 1, rows.line_num
                if not fields:
                    continue
                if len(fields) != len(names):
                    found = f"{len(fields)} fields"
                    raise DataError.at(path, first, found, f"{len(names)}, as the header has")
                yield first, dict(zip(names, fields, strict=True))
    except csv.Error as error:
        expected = "one whose quotes are closed; or use jsonl or Parquet"
        raise DataError.at(path, line + 1, f"no row of csv ({error})", expected) from None
    except UnicodeDecodeError:
        raise DataError.at(path, line + 1, "bytes that are not UTF-8", "UTF-8 text") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read after line {line}: {error}.") from error


def _parquet(path: Path, progress: bool | None) -> Table:
    def read() -> Iterator[tuple[int, Row]]:
        with open_parquet(path) as opened:
            yield from _rows(path, opened.iter_batches(BATCH_ROWS), opened.metadata.num_rows, progress)

    with open_parquet(path) as opened:
        schema = opened.schema_arrow
        return Table(path, read, schema.names, schema.metadata or {})


def _saved(path: Path, split: str, progress: bool | None) -> Table:
    with _explained(path):
        found = datasets.load_from_disk(str(path))
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise DataError(f"{path} has no split {split!r}. Splits there: {', '.join(sorted(found))}.")
        found = found[split]
    else:
        _refuse_split(path, split)
    return _dataset(path, found, progress)


def _dataset(path: Path, found: Any, progress: bool | None) -> Table:
    def read() -> Iterator[tuple[int, Row]]:
        with _explained(path):
            tables = check_tables(path, found.with_format("arrow").iter(BATCH_ROWS))
            yield from _rows(path, tables, len(found), progress)

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


def _rows(path: Path, tables: Any, total: int, progress: bool | None) -> Iterator[tuple[int, Row]]:
    off = None if progress is None else not progress
    done = 0
    with tqdm(total=total, desc=f"Reading {path.name}", delay=2, leave=False, disable=off) as bar:
        for table in tables:
            yield from arrow_rows(path, table, done + 1)
            done += len(table)
            bar.update(len(table))
