"""What functions return that write a file or folder with a record: a Path that knows its record."""

from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stzoo.utils.tables import Tabular

if TYPE_CHECKING:
    _Path = Path
else:
    _Path = type(Path())  # Path itself cannot be subclassed before Python 3.12


class Counts(dict[str, int], Tabular):
    """Numbers by name; printed, a table."""

    __repr__ = Tabular.__repr__

    def rows(self) -> list[dict[str, Any]]:
        """A row for each name."""
        return [{"": name.replace("_", " "), "number": number} for name, number in self.items()]


class Recorded(_Path):
    """A file or folder. It is a Path, so it can be given wherever a path can; printed, its path.

    Items are those of the record: `made["counts"]` is `made.record["counts"]`.
    """

    @property
    def path(self) -> Path:
        """The file or folder, as a plain Path."""
        return Path(self)

    @cached_property
    def record(self) -> dict[str, Any]:
        """How it was made; {} if that is not recorded."""
        raise NotImplementedError

    @property
    def counts(self) -> Counts:
        """How many of what was found, kept and left out."""
        return Counts(self.record["counts"])

    def __contains__(self, name: str) -> bool:
        return name in self.record

    __iter__ = None  # a path is no sequence, although it has items

    def __getitem__(self, name: str) -> Any:
        return self.record[name]

    def _repr_html_(self) -> str:
        counts = self.record.get("counts")
        return f"<p>{escape(str(self))}</p>{Counts(counts)._repr_html_() if counts else ''}"
