"""The page of the demo: one HTML file that works offline."""

from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from stzoo.utils.files import atomic_file

if TYPE_CHECKING:
    from stzoo.cli.demo import Demo


def write_page(made: "Demo") -> None:
    """Writes the page to `made.page`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("demo.html.j2").render(made=made)
    with atomic_file(made.page) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")
