"""A row's place in its file, and its values, checked so that messages name file and line."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from stzoo.errors import DataError, abbreviated, quoted
from stzoo.utils.inputs import parse_json
from stzoo.utils.messages import counted

MAX_FLOAT32 = 3.4028235e38  # in decimal notation


class RowLocation(NamedTuple):
    """Where a row is.

    Attributes:
        file: Path of the file, or id of a data set on the Hub.
        line: Line of a text file, or row of a table, from 1.
    """

    file: str | Path
    line: int

    def error(self, found: str, expected: str) -> DataError:
        """The error that names the location."""
        return DataError.at(self.file, self.line, found, expected)

    def id(self, row: dict[str, Any], key: str) -> str:
        """The id under a key: text or a whole number, without white space around it.

        Raises:
            DataError: If there is no id, or it is blank or of another type.
        """
        value = row.get(key)
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            found = f"the {key} {_shown(value)}" if key in row else f"no {key}"
            raise self.error(found, f'a "{key}" that is text or a whole number')
        return self.optional_text(str(value).strip(), key)

    def objects(self, row: dict[str, Any], key: str) -> list[dict[str, Any]]:
        """The list of objects under a key; empty if the key is missing or null.

        Raises:
            DataError: If the value is of another type.
        """
        value = row.get(key) or []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.error(f"the {key} {_shown(value)}", f'"{key}": [{{…}}, …]')
        return value

    def text(self, value: object, key: str) -> str:
        """A value that must be text.

        Raises:
            DataError: If it is null, of another type, or not valid Unicode.
        """
        if value is None:
            raise self.error(f"null in {key}", "text")
        return self.optional_text(value, key)

    def optional_text(self, value: object, key: str) -> str:
        """A value that is text, or null, which becomes "".

        Raises:
            DataError: If it is of another type, or not valid Unicode.
        """
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.error(f"a {key} of type {type(value).__name__}", "text or null")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.error(f"half of a surrogate pair in the {key}", "whole characters") from None
        return value

    def texts(self, value: object, key: str) -> list[str]:
        """A value that is text or a list of texts; [] for null or "".

        Raises:
            DataError: If it is of another type, or not valid Unicode.
        """
        if value is None or value == "":
            return []
        texts: list[Any] = value if isinstance(value, list) else [value]
        try:
            "".join(texts).encode()  # all at once, as most are text
        except (TypeError, UnicodeEncodeError):
            return [self.text(one, key) for one in texts]
        return texts

    def number_list(self, value: Any, key: str) -> list[float]:
        """A number or a list of numbers (as JSON in csv files); [] for null, "" or an empty list.

        Raises:
            DataError: If it is of another type, or a number is not a finite float32.
        """
        if isinstance(value, str) and value:  # of csv
            try:
                value = parse_json(value)
            except ValueError:
                raise self.error(f"the {key} {quoted(value)}", "a number, or [a list of them]") from None
        if value is None or value in ("", []):
            return []
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(one, int | float) and -MAX_FLOAT32 <= one <= MAX_FLOAT32 for one in values):
            raise self.error(f"the {key} {abbreviated(str(values), 40)}", "finite numbers")
        return list(map(float, values))

    def numbers(self, value: Any, key: str, passages: int) -> list[float | None]:
        """One number for each of the row's passages; all None for null, "" or an empty list.

        Raises:
            DataError: Also if there are more or fewer numbers than passages.
        """
        found = self.number_list(value, key)
        if found and len(found) != passages:
            raise self.error(
                f"{key} has {counted(len(found), 'number')} for {counted(passages, 'passage')}",
                "one number per passage",
            )
        return [*found] or [None] * passages


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)[:40]
