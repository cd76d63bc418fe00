"""What generates queries: a name, the styles that it knows, and one method."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

MOST_AT_ONCE = 10**9  # queries: those of a whole part

# What each style asks for, as the prompts say it. A generator from the text itself has styles of its own.
STYLES = {
    "question": "a question that the passage answers",
    "keywords": "a few keywords, as typed into a search box",
    "statement": "a short claim that the passage supports or refutes",
}


@dataclass(frozen=True)
class Passage:
    """A passage to generate queries for.

    Attributes:
        id: Its id.
        title: Its title; "" if it has none.
        text: Its text without the title.
        language: A code of `stzoo.data.languages`; "none" if it is unknown.
    """

    id: str
    title: str
    text: str
    language: str

    @property
    def full(self) -> str:
        """The title and the text, as models that search read them."""
        return f"{self.title} {self.text}".strip()

    def shortened(self, words: int) -> str:
        """The first words of the title and the text, in one line."""
        text = " ".join(self.full.split()[:words])
        return text[: words * 12]  # scripts without spaces


@dataclass(frozen=True)
class Answer:
    """What came back for one query.

    Attributes:
        text: The query; with a reason, the text that was rejected.
        reason: Why there is no query; "" if there is one.
    """

    text: str
    reason: str = ""


class Generator(Protocol):
    """Generates queries.

    Attributes:
        name: Name for the "by" of the queries.
        copies: True if the queries are meant to be parts of the passage.
        stored_at_once: Number of queries after which the answers are stored, at least; an interruption
            loses so many.
        usage: Counts of "requests", "cached", "tokens_in" and "tokens_out" since the start.
        metadata: What the answers depend on, apart from passages, styles and seeds; as JSON.
    """

    name: str
    copies: bool
    stored_at_once: int
    usage: Counter[str]
    metadata: dict[str, Any]

    def styles(self, passage: Passage) -> Sequence[str]:
        """The styles of the queries that it can generate for a passage."""
        ...

    def estimate(self, passages: Sequence[Passage], visits: int, per_passage: int) -> str:
        """A sentence about the cost of a run.

        Args:
            passages: A sample of the passages.
            visits: Number of passages to generate queries for.
            per_passage: Number of queries for each of them.

        Returns:
            The sentence; "" if there is nothing to say.
        """
        ...

    def generate(
        self, passages: Sequence[Passage], styles: Sequence[Sequence[str]], seeds: Sequence[int]
    ) -> Iterator[tuple[int, list[Answer]]]:
        """Generates queries.

        Args:
            passages: N passages.
            styles: The styles of the queries for each passage.
            seeds: A seed for each passage.

        Yields:
            The index of each passage, in any order, with one answer per style.

        Raises:
            StzooError: If no more answers can be had.
        """
        ...
