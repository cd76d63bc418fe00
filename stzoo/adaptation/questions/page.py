"""questions.html: some queries with their passages. The page has no scripts and loads nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stzoo.utils.pages import html_template

TEMPLATE = Path(__file__).parent / "questions.html.j2"
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
    return html_template(TEMPLATE).render(record=record, examples=examples, longest=LONGEST)
