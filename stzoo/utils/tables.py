"""The one look of tables, in the terminal and in notebooks."""

from collections.abc import Iterable, Sequence
from html import escape
from io import StringIO
from pathlib import Path
from typing import IO, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.markup import escape as rich_escape
from rich.table import Table
from rich.text import Text

from stzoo.errors import OutputError
from stzoo.utils.files import atomic_file, write_json
from stzoo.utils.inputs import user_path

WIDTH = 200  # of a printed table at most, in characters
TEXT = 160  # characters of a text in a table that is shown; `rows` and what is saved have all


def text_console(file: IO[str], width: int | None, **options: Any) -> Console:
    """A console of rich that writes to a file. In Jupyter, rich would display the text and write nothing."""
    return Console(file=file, width=width, force_jupyter=False, **options)


def new_table(*texts: str, numbers: Sequence[str] = (), title: str | None = None) -> Table:
    """Returns an empty table.

    Args:
        texts: Headings of the first columns, whose cells wrap.
        numbers: Headings of the further columns, which are aligned to the right and never wrap.
        title: Printed above the table.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for heading in texts:
        table.add_column(heading, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


class Tabular:
    """A result that prints as a table, in a notebook as one of HTML, and that pandas can take.

    A subclass that is a list, a dict or a dataclass must take `__repr__` from here, if it is to be shown as a
    table at Python's prompt too.
    """

    def rows(self) -> list[dict[str, Any]]:
        """The rows, all with the same columns. Columns of texts come before those of numbers."""
        raise NotImplementedError

    def save(self, path: str | Path) -> Path:
        """Writes the result as JSON or, if the name ends in .csv, its table as CSV, and returns the path.

        Raises:
            OutputError: If the name has another ending, or the file cannot be written.
        """
        path = user_path(path, OutputError)
        if path.suffix.lower() not in (".csv", ".json"):
            raise OutputError(f"{path} ends in {path.suffix or 'no suffix'}; expected .json or .csv.")
        if path.suffix.lower() == ".json":
            write_json(path, self.to_json())
            return path
        with atomic_file(path) as draft:
            self.to_pandas().to_csv(draft, index=False)
        return path

    def to_json(self) -> Any:
        """What `save` writes: by default the rows."""
        return self.rows()

    def to_pandas(self) -> Any:
        """The rows as a pandas.DataFrame."""
        from pandas import DataFrame  # which datasets needs, and which is slow to import

        return DataFrame(self.rows())

    def __rich__(self) -> RenderableType:
        return self.table()

    def table(self) -> Table:
        """The rows as a table of rich."""
        rows = self.rows()
        numbers = [name for name in rows[0] if _is_numeric(row[name] for row in rows)] if rows else []
        texts = [name for name in rows[0] if name not in numbers] if rows else []
        table = new_table(*map(rich_escape, texts), numbers=[*map(rich_escape, numbers)])
        for row in rows:
            table.add_row(*(Text(_shown(row[name])) for name in [*texts, *numbers]))
        return table

    def __str__(self) -> str:
        file = StringIO()
        console = text_console(file, WIDTH, color_system=None, emoji=False, highlight=False)
        console.print(self)
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines()).strip("\n")

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        rows = self.rows()
        head = "".join(f"<th>{escape(name)}</th>" for name in rows[0]) if rows else ""
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(_shown(value))}</td>" for value in row.values()) + "</tr>"
            for row in rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _is_numeric(values: Iterable[Any]) -> bool:
    """True if all values are numbers, apart from missing ones."""
    found = [value for value in values if value is not None]
    return bool(found) and all(isinstance(one, int | float) and not isinstance(one, bool) for one in found)


def _shown(value: Any) -> str:
    """Four decimals, or three significant digits of what would lose them, such as a learning rate.

    Integers have separators of thousands.
    """
    if isinstance(value, float):
        return f"{value:.3g}" if 0 < abs(value) < 0.001 else f"{value:.4f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else cut(str(value), TEXT)


def cut(text: str, most: int) -> str:
    """A text in one line of at most so many characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
