"""The rows of lists, data frames, Arrow tables and `datasets.Dataset`s."""

from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

import pyarrow as pa

from stzoo.data.row_location import RowLocation
from stzoo.data.rows import OnBad, Progress, Rows, check_column_names, read_dataset, read_tables, refuse
from stzoo.errors import DataError, abbreviated

CORPUS = (
    "a list of texts or dicts, a pandas or polars frame, an Arrow table, a datasets.Dataset, or the path of "
    "a file or folder"
)


def object_rows(
    source: Any,
    expected: str = CORPUS,
    *,
    row: str = "a text, or a dict with a text",
    columns: Callable[[list[str]], list[str]] = list,
    progress: Progress = False,
    on_bad: OnBad = refuse,
) -> Rows:
    """Streams the rows of an object, as `stzoo.data.rows.read_rows` does those of a file.

    Args:
        source: A list (or another iterable) of texts and dicts, a dict of these by id, a pandas or polars
            frame, an Arrow table or reader, or a `datasets.Dataset`. A text is a row with the column "text".
        expected: What is accepted, for the message about another type.
        row: What an item of a list may be, for the message about another type.
        columns: Chooses the columns to read of a frame, table or data set by the names of all.
        progress: See `read_rows`.
        on_bad: See `read_rows`.

    Raises:
        DataError: If the object is of another type; the message does not show the object.
    """
    name = type(source).__name__
    if isinstance(source, Mapping) and all(isinstance(value, str | Mapping) for value in source.values()):
        return _of_list(name, (_row(key, value) for key, value in source.items()), row)
    if isinstance(source, Mapping) and isinstance(getattr(source, "column_names", None), Mapping):
        raise DataError(f"a {name} was given; expected one split of it, e.g. data['train'].")
    if hasattr(source, "select_columns") and hasattr(source, "__len__"):
        chosen = source.select_columns(columns(source.column_names))
        return read_dataset(name, chosen, progress, on_bad)
    if hasattr(source, "__arrow_c_stream__") and (hasattr(source, "columns") or hasattr(source, "schema")):
        try:
            reader = pa.RecordBatchReader.from_stream(source)
        except (
            pa.ArrowException,
            TypeError,
            ValueError,
            NotImplementedError,
        ) as error:  # of pandas, or Arrow
            reason = abbreviated(str(error.args[-1])).rstrip(".")  # the first one may show a value
            raise DataError(
                f"the {name} cannot be read as an Arrow table: {reason}. Expected columns of texts, numbers "
                "or lists, each with its own name."
            ) from None
        check_column_names(name, reader.schema.names)
        names = columns(reader.schema.names)
        tables = (batch.select(names) for batch in reader)
        total = len(source) if hasattr(source, "__len__") else 0
        return read_tables(name, tables, total, progress, on_bad)
    if isinstance(source, Iterable) and not isinstance(
        source, str | bytes | Mapping | Set
    ):  # a set has no order
        return _of_list(name, source, row)
    raise DataError(f"an object of type {name} was given; expected {expected}.")


def _row(key: Any, value: str | Mapping[str, Any]) -> dict[str, Any]:
    return {**({"text": value} if isinstance(value, str) else value), "_id": str(key)}


def _of_list(name: str, values: Iterable[Any], expected: str) -> Rows:
    for number, value in enumerate(values, 1):
        at = RowLocation(name, number)
        if isinstance(value, str):
            yield at, {"text": value}
        elif isinstance(value, Mapping):
            yield at, dict(value)
        else:
            kind = type(value).__name__
            raise at.error(f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}", expected)
