"""Rows as documents: of csv, tsv, jsonl, json and Parquet files, lists, data frames and Arrow tables.

A row has a "text", and may have a "title", an "_id" or "id", and "metadata" (an object), as in a BEIR corpus.
Further columns are ignored.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from stzoo.data.documents.find import File, check_size
from stzoo.data.documents.sections import Document, Section, clean
from stzoo.data.object_rows import object_rows
from stzoo.data.row_location import RowLocation
from stzoo.data.rows import OnBad, Rows, read_rows
from stzoo.errors import DataError, abbreviated
from stzoo.utils.inputs import open_input, parse_json

ROLES = ("text", "title", "id")
_EXPECTED = 'a column "text" (or the column to read, by --columns text=COLUMN)'
_BEGINNING = 1 << 12  # bytes

Progress = Callable[[float], object]


class RowReader:
    """Reads rows as documents.

    Args:
        columns: The columns of unusual names by role: text, title, id.
        max_bytes: Limit of JSON documents, which are read at once.
    """

    def __init__(self, columns: Mapping[str, list[str]], max_bytes: int) -> None:
        self.max_bytes = max_bytes
        named = {role: names[0] for role, names in columns.items()}
        self.text, self.title = named.get("text", "text"), named.get("title", "title")
        self.ids = [named["id"]] if "id" in named else ["_id", "id"]
        self.needed = [*self.ids, self.title, self.text, "metadata"]

    def file(self, file: File, progress: Progress, on_bad: OnBad) -> Iterator[Document]:
        """The documents of a file. Their ids begin with its name, unless it is the source.

        Args:
            file: The file.
            progress: Called with the share read so far.
            on_bad: Called with the error of a row that is left out.

        Raises:
            DataError: If the file cannot be read, or has no column with texts.
        """
        rows = self._of_json(file, on_bad) if file.kind == "json" and file.path.suffix == ".json" else None
        if rows is None:
            rows = read_rows(file.path, progress, columns=self._columns, on_bad=on_bad)
        yield from self._documents(rows, file.name, "" if file.is_source else f"{file.name}:", on_bad)

    def data(self, source: Any, progress: Progress, on_bad: OnBad) -> Iterator[Document]:
        """The documents of a list, data frame, Arrow table or `datasets.Dataset`.

        Raises:
            DataError: If it is none of these, or has no texts.
        """
        name = type(source).__name__
        rows = object_rows(source, columns=self._of, progress=progress, on_bad=on_bad)
        yield from self._documents(rows, name, "", on_bad, numbered=True)

    def _columns(self, schema: pa.Schema) -> list[str]:
        return self._of(schema.names)

    def _of(self, names: Iterable[str]) -> list[str]:
        names = list(map(str, names))
        if self.text not in names:
            listed = abbreviated(", ".join(names)) or "none"
            raise DataError(f"no column {self.text!r} (there are: {listed}); expected {_EXPECTED}")
        return [name for name in self.needed if name in names]

    def _of_json(self, file: File, on_bad: OnBad) -> Rows | None:
        """The rows of a JSON document: a list of objects, or one object; None if it has one per line."""
        with open_input(file.path) as opened:
            beginning = opened.read(_BEGINNING)
            if beginning.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"[":
                if re.match(rb"\s*\{\s*(\n|\Z)", beginning):
                    raise DataError(
                        "a single JSON object; expected a list of objects, or one object per line"
                    )
                return None
            check_size(file.size, self.max_bytes)
            opened.seek(0)
            try:
                values = parse_json(opened.read().decode("utf-8-sig"))
            except ValueError as error:
                raise DataError(f"not JSON ({error})") from None
        return _checked(file.path, values, on_bad)

    def _documents(
        self, rows: Rows, name: str, prefix: str, on_bad: OnBad, *, numbered: bool = False
    ) -> Iterator[Document]:
        for number, (at, row) in enumerate(rows, 1):
            if number == 1 and self.text not in row:
                self._of(row)
            try:
                document = self._document(at, row, name, prefix, numbered)
            except DataError as error:
                on_bad(error)
            else:
                yield document

    def _document(
        self, at: RowLocation, row: dict[str, Any], name: str, prefix: str, numbered: bool
    ) -> Document:
        if self.text not in row:
            raise at.error(f"no {self.text!r}", _EXPECTED)
        text = at.text(row[self.text], self.text)
        title = at.optional_text(row.get(self.title) or "", self.title)
        key = next((key for key in self.ids if row.get(key) is not None), None)
        if key is not None:
            row_id = prefix + at.id(row, key)
        else:
            row_id = str(at.line) if numbered else f"{name}:{at.line}"
        metadata = row.get("metadata")
        text = clean(text).strip()
        return Document(
            row_id,
            " ".join(clean(title).split()),
            [Section((), text)] if text else [],
            is_row=True,
            metadata=metadata if isinstance(metadata, dict) else {},
        )


def _checked(path: Path, values: Any, on_bad: OnBad) -> Rows:
    for number, value in enumerate(values, 1):
        at = RowLocation(path, number)
        if isinstance(value, dict):
            yield at, value
        else:
            on_bad(at.error(f"a JSON {type(value).__name__}", "a JSON object"))
