"""The page of the demo: one HTML file that works offline."""

from pathlib import Path
from typing import TYPE_CHECKING

from stzoo.utils.files import atomic_file
from stzoo.utils.pages import html_template

if TYPE_CHECKING:
    from stzoo.cli.demo import Demo


def write_page(made: "Demo") -> None:
    """Writes the page to `made.page`."""
    text = html_template(Path(__file__).parent / "demo.html.j2").render(made=made)
    with atomic_file(made.page) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")
