"""questions.html: some queries with their passages. The page has no scripts and loads nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

TEMPLATE = "questions.html.j2"
LONGEST = 1500  # characters of a passage


@dataclass(frozen=True)
class Example:
    """A query with its passage.

    Attributes:
        text: The query.
        style: Its style.
        id: Id of the passage.
        passage: Text of the passage.
    """

    text: str
    style: str
    id: str
    passage: str


def render(record: dict[str, Any], examples: list[Example]) -> str:
    """The page.

    Args:
        record: What questions.json has.
        examples: Queries to show.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(record=record, examples=examples, longest=LONGEST)
