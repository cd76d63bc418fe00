"""The one look of tables in the terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table


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
