"""The one reader of rows: of jsonl, txt, csv, tsv and Parquet files, and of Arrow tables.

Rows are streamed, so that memory does not grow with the file, and each comes with its location for messages.
A bad row is an error, unless the caller skips it. A damaged file is always an error: what follows the damage
is unknown.
"""

import contextlib
import csv
import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stzoo.data.row_location import RowLocation
from stzoo.errors import DataError, abbreviated, quoted
from stzoo.utils.inputs import check_is_file, open_input, parse_json
from stzoo.utils.messages import counted
from stzoo.utils.progress import progress_bar

BATCH_ROWS = 500
_NO_PYTHON_VALUE = (ValueError, ArithmeticError, LookupError, TypeError, NotImplementedError)

Rows = Iterator[tuple[RowLocation, dict[str, Any]]]
Progress = bool | None | Callable[[float], object]
OnBad = Callable[[DataError], None]
Columns = Callable[[pa.Schema], list[str]]


def refuse(error: DataError) -> None:
    """Raises the error of a bad row."""
    raise error


def read_rows(
    path: Path,
    progress: Progress = None,
    *,
    suffix: str = "",
    columns: Columns | None = None,
    on_bad: OnBad = refuse,
) -> Rows:
    """Streams the rows of a file.

    Args:
        path: Path of the file, gzipped if its name ends in .gz. Text files are UTF-8; a byte order mark and
            blank lines are skipped.
        progress: True for a progress bar on stderr after two seconds, None to show it on a terminal only; or
            a function that is called with the share read so far, 0 to 1.
        suffix: How the rows are written, a key of `READERS`; by default the file's own suffix.
        columns: Chooses the columns to read by a Parquet file's schema; by default all are read.
        on_bad: Called with the error of a row that cannot be read. By default it is raised; if the function
            returns, the row is skipped.

    Yields:
        Each row's location and its values by column. A line of .txt has the column "text".

    Raises:
        DataError: If the file cannot be read to its end.
    """
    return READERS[suffix or row_suffix(path)](path, progress, on_bad, columns)


def row_suffix(path: Path) -> str:
    """The key of `READERS` that a file's name ends in, before any .gz; "" if there is none."""
    name = path.name.lower()
    plain = name.removesuffix(".gz")
    return next((suffix for suffix in READERS if (name if suffix == PARQUET else plain).endswith(suffix)), "")


def read_lines(
    path: Path, progress: Progress = None, on_bad: OnBad = refuse
) -> Iterator[tuple[RowLocation, str]]:
    """Streams the lines of a UTF-8 file that are not blank, without their line breaks; see `read_rows`."""
    for number, line in _decoded_lines(path, progress, on_bad):
        text = line.rstrip("\r\n")
        if text and not text.isspace():
            yield RowLocation(path, number), text


def _decoded_lines(path: Path, progress: Progress, on_bad: OnBad) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        size = path.stat().st_size
        with (
            open_input(path) as raw,
            gzip.open(raw) if path.suffix.lower() == ".gz" else raw as file,
            _reported(path.name, progress, size, "B") as report,
        ):
            for number, line in enumerate(file, 1):
                if not number % 1000 and raw.seekable():  # a pipe is not
                    report(raw.tell() / max(size, 1))
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    found = f"byte {error.start + 1} of the line is not UTF-8"
                    on_bad(DataError.at(path, number, found, "UTF-8 text"))
                else:
                    yield number, text
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path} is damaged after line {number} ({error}); expected a whole gzip file. Fetch or compress "
            "it again."
        ) from error
    except OSError as error:
        after = f" after line {number}" if number else ""
        raise DataError(f"{path} cannot be read{after}: {error.strerror or error}.") from error


def read_jsonl(
    path: Path, progress: Progress = None, on_bad: OnBad = refuse, _: Columns | None = None
) -> Rows:
    """Streams the JSON objects of a file with one object per line, whatever its name; see `read_rows`."""
    for at, text in read_lines(path, progress, on_bad):
        try:
            row = parse_json(text)
        except ValueError as error:
            reason = (
                f"{error.msg} at character {error.pos + 1}" if isinstance(error, JSONDecodeError) else error
            )
            on_bad(
                at.error(
                    f"invalid JSON ({reason})",
                    "one JSON object per line, not a document over several lines",
                )
            )
            continue
        if isinstance(row, dict):
            yield at, row
        else:
            on_bad(at.error(f"a JSON {type(row).__name__}", "a JSON object"))


def _read_texts(path: Path, progress: Progress, on_bad: OnBad, _: Columns | None) -> Rows:
    for at, text in read_lines(path, progress, on_bad):
        yield at, {"text": text}


def _read_csv(delimiter: str, path: Path, progress: Progress, on_bad: OnBad, _: Columns | None) -> Rows:
    lines = (text for _, text in _decoded_lines(path, progress, on_bad))
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    line = 0
    try:
        names = next(filter(None, rows), [])
        line = rows.line_num
        for fields in rows:
            at, line = RowLocation(path, line + 1), rows.line_num
            if len(fields) == len(names):
                yield at, dict(zip(names, fields, strict=True))
            elif fields:
                on_bad(at.error(counted(len(fields), "field"), f"{len(names)}, as in the header"))
    except csv.Error as error:
        expected = "closed quotes; or use jsonl or Parquet"
        raise DataError.at(path, line + 1, f"an invalid row of csv ({error})", expected) from None


# Arrow tables


def _read_parquet(path: Path, progress: Progress, on_bad: OnBad, columns: Columns | None) -> Rows:
    with open_parquet(path) as opened:
        names = columns(opened.schema_arrow) if columns else None
        batches = opened.iter_batches(BATCH_ROWS, columns=names)
        yield from read_tables(path, batches, opened.metadata.num_rows, progress, on_bad)


def read_dataset(name: str | Path, dataset: Any, progress: Progress = None, on_bad: OnBad = refuse) -> Rows:
    """Streams the rows of a `datasets.Dataset`.

    Args:
        name: Its path or id, for messages.
        dataset: The data set.
        progress: See `read_rows`.
        on_bad: See `read_rows`.

    Raises:
        DataError: If its files are damaged.
    """
    tables = _checked(name, dataset.with_format("arrow").iter(BATCH_ROWS))
    yield from read_tables(name, tables, len(dataset), progress, on_bad)


def read_tables(
    name: str | Path, tables: Iterable[Any], total: int, progress: Progress, on_bad: OnBad
) -> Rows:
    """Streams the rows of Arrow tables or record batches; see `read_rows`.

    Args:
        name: Where they are from, for messages.
        tables: The tables.
        total: Number of rows in all, or 0 if it is unknown.
        progress: See `read_rows`.
        on_bad: See `read_rows`.
    """
    done = 0
    with _reported(Path(name).name, progress, total, "row") as report:
        for table in tables:
            try:
                rows = table.to_pylist()
            except _NO_PYTHON_VALUE:
                yield from _row_by_row(name, table, done, on_bad)
            else:
                for line, row in enumerate(rows, done + 1):
                    yield RowLocation(name, line), row
            done += len(table)
            report(done / total if total else 0)


def _row_by_row(name: str | Path, table: Any, done: int, on_bad: OnBad) -> Rows:
    for place in range(len(table)):
        at = RowLocation(name, done + place + 1)
        try:
            row = {column: _value(table, column, place) for column in table.schema.names}
        except ValueError as error:
            expected = "a value that Python can hold; change it, or leave the column out of the file"
            on_bad(at.error(str(error), expected))
        else:
            yield at, row


def _value(table: Any, column: str, row: int) -> Any:
    try:
        return table.column(column)[row].as_py()
    except UnicodeDecodeError:
        raise ValueError(f"a string that is not UTF-8 in {abbreviated(column)}") from None
    except _NO_PYTHON_VALUE as error:  # e.g. a date in the year 20000
        raise ValueError(f"a value in {abbreviated(column)} that cannot be read ({error})") from None


def check_column_names(path: object, names: Sequence[str]) -> None:
    """Refuses repeated names, as only one column of each name would be read.

    Raises:
        DataError: If a name is repeated.
    """
    for place, name in enumerate(names):
        if name in names[:place]:
            raise DataError(f"{path} has two columns named {quoted(name)}; expected each name once.")


@contextlib.contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file, and explains errors that occur while it is open.

    Raises:
        DataError: If it is damaged, or two columns have the same name.
    """
    try:
        check_is_file(path)
        # With a buffer it reads a column piece by piece, not a whole row group at once.
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as opened:
            check_column_names(path, opened.schema_arrow.names)
            yield opened
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); expected a whole Parquet file.") from error


def _checked(name: object, tables: Iterable[Any]) -> Iterator[Any]:
    """The tables of a mapped file, validated: reading a value at a damaged offset would kill the process."""
    for table in tables:
        try:
            table.validate(full=True)
        except pa.ArrowException as error:
            raise DataError(f"{name} is damaged ({error}). Write or fetch it again.") from None
        yield table


@contextlib.contextmanager
def _reported(name: str, progress: Progress, total: int, unit: str) -> Iterator[Callable[[float], object]]:
    """A function that takes the share read so far."""
    if callable(progress):
        yield progress
        return
    hidden = None if progress is None else not progress
    options = dict(unit=unit, unit_scale=True, delay=2, disable=hidden)
    with progress_bar(total=total, desc=f"Reading {name}", **options) as bar:
        yield lambda share: bar.update(int(share * total) - bar.n)


PARQUET = ".parquet"
READERS: dict[str, Callable[[Path, Progress, OnBad, Columns | None], Rows]] = {
    ".jsonl": read_jsonl,
    ".json": read_jsonl,
    ".txt": _read_texts,
    ".csv": partial(_read_csv, ","),
    ".tsv": partial(_read_csv, "\t"),
    PARQUET: _read_parquet,
}
