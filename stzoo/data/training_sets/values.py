"""Values of a row, read so that what is wrong with them is said with file and line."""

from pathlib import Path
from typing import Any, NamedTuple

from stzoo.data.beir import as_text
from stzoo.errors import DataError, abbreviated, quoted
from stzoo.utils.inputs import parse_json

MOST = 3.4028235e38  # the largest float32, as it is written


class RowLocation(NamedTuple):
    """Where a row stands."""

    file: Path
    line: int

    def error(self, found: str, expected: str) -> DataError:
        """The error that names the place."""
        return DataError.at(self.file, self.line, found, expected)

    def text(self, value: object, key: str) -> str:
        """A value that must be text."""
        if value is None:
            raise self.error(f"null in {key}", "text")
        return as_text(value, key, self.file, self.line)

    def texts(self, value: object, key: str) -> list[str]:
        """A value that is text or a list of texts; none for null or "" itself."""
        if value is None or value == "":
            return []
        texts: list[Any] = value if isinstance(value, list) else [value]
        try:
            "".join(texts).encode()  # all at once, as most are text
        except (TypeError, UnicodeEncodeError):
            return [self.text(one, key) for one in texts]
        return texts

    def number_list(self, value: Any, key: str) -> list[float]:
        """A number or a list of them, in csv as JSON; [] for null, "" or an empty list."""
        if isinstance(value, str) and value:  # of csv
            try:
                value = parse_json(value)
            except ValueError:
                raise self.error(f"the {key} {quoted(value)}", "a number, or [a list of them]") from None
        if value is None or value in ("", []):
            return []
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(one, int | float) and -MOST <= one <= MOST for one in values):
            raise self.error(f"the {key} {abbreviated(str(values), 40)}", "finite numbers")
        return list(map(float, values))

    def numbers(self, value: Any, key: str, passages: int) -> list[float | None]:
        """Numbers of as many passages, or a lone one for one; all None for null, "" or an empty list."""
        found = self.number_list(value, key)
        if found and len(found) != passages:
            raise self.error(f"{len(found)} {key} for {passages} passages", "one number a passage")
        return [*found] or [None] * passages
