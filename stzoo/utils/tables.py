"""The one look of tables, in the terminal and in notebooks."""

from collections.abc import Sequence
from html import escape
from io import StringIO
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 200  # of a printed table at most, in characters


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
    """A result that prints as a table, in a notebook as one of HTML, and that pandas can take."""

    def rows(self) -> list[dict[str, Any]]:
        """The rows, all with the same columns. Columns of texts come before those of numbers."""
        raise NotImplementedError

    def to_pandas(self) -> Any:
        """The rows as a pandas.DataFrame."""
        from pandas import DataFrame  # which datasets needs, and which is slow to import

        return DataFrame(self.rows())

    def __rich__(self) -> Table:
        rows = self.rows()
        numbers = [name for name, value in rows[0].items() if _is_number(value)] if rows else []
        texts = [name for name in rows[0] if name not in numbers] if rows else []
        table = new_table(*texts, numbers=numbers)
        for row in rows:
            table.add_row(*(Text(_shown(row[name])) for name in [*texts, *numbers]))
        return table

    def __str__(self) -> str:
        file = StringIO()
        console = Console(
            file=file, width=WIDTH, color_system=None, markup=False, emoji=False, highlight=False
        )
        console.print(self)
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines()).strip("\n")

    def _repr_html_(self) -> str:
        rows = self.rows()
        head = "".join(f"<th>{escape(name)}</th>" for name in rows[0]) if rows else ""
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(_shown(value))}</td>" for value in row.values()) + "</tr>"
            for row in rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)
