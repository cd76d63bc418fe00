"""Cuts documents into passages of a limited size.

A passage is of one section, and a longer section is cut by semantic-text-splitter into passages of about
equal size, at the highest level that fits: paragraphs, sentences, words; in Markdown at its blocks first. A
section of less than an eighth of the limit is merged with its neighbour under the same heading, never across
a top-level one; then the headings below the one that they share are part of the text.
"""

import copy
import math
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Any, NamedTuple
from urllib.parse import quote

from stzoo.data.documents.sections import Document, Section, library
from stzoo.data.words import words

BETWEEN = " > "  # the headings of a title
_CHARACTERS = 8  # are one token at least, so that long strings without words count
_MARK = re.compile(r"[^\w\s]")
_SMALL = 8  # times smaller than the limit

Count = Callable[[str], int]


class Passage(NamedTuple):
    """A passage.

    Attributes:
        id: The document's name and the passage's number from 1, "leave.md#3"; the name alone for a row that
            is one passage. White space in the name of a file is as in a URL, "sick%20leave.md#3", as
            the files of rankings cannot have any.
        title: The headings above it, "Handbook > Leave", or the document's title.
        text: Its text.
    """

    id: str
    title: str
    text: str


def count_words(text: str) -> int:
    """The number of words and punctuation marks, or an eighth of the characters if that is more."""
    return max(len(words(text)) + len(_MARK.findall(text)), len(text) // _CHARACTERS)


def token_counter(tokenizer: Any) -> Count:
    """A function that counts the tokens of a text, without special tokens.

    Args:
        tokenizer: A fast tokenizer of transformers.
    """
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_truncation()
    backend.no_padding()
    return lambda text: len(backend.encode(text, add_special_tokens=False).ids)


class PassageSplitter:
    """Cuts documents into passages.

    Args:
        limit: Maximum size of a passage's text.
        count: Size of a text.
        split_rows: False to keep rows as they are.

    Raises:
        MissingExtraError: If semantic-text-splitter is not installed.
    """

    def __init__(self, limit: int, count: Count = count_words, *, split_rows: bool = True) -> None:
        self.limit, self.count, self.split_rows = limit, count, split_rows
        splitters = library("semantic_text_splitter", "semantic-text-splitter")
        self._splitters = {True: splitters.MarkdownSplitter, False: splitters.TextSplitter}

    def passages(self, document: Document) -> Iterator[Passage]:
        """The passages of a document, in order."""
        if document.is_row and not self.split_rows:
            pieces = [(document.title, section.text) for section in document.sections]
        else:
            pieces = [
                (BETWEEN.join(headings) or document.title, piece)
                for headings, text in self._merged(document.sections)
                for piece in self._cut(text, document.markdown)
            ]
        for number, (title, text) in enumerate(pieces, 1):
            whole = document.is_row and len(pieces) == 1
            name = document.name
            if not document.is_row:
                name = re.sub(r"[\s%]", lambda found: quote(found[0]), name)
            yield Passage(name if whole else f"{name}#{number}", title, text)

    def _merged(self, sections: Sequence[Section]) -> Iterator[tuple[tuple[str, ...], str]]:
        group: list[Section] = []
        for section in sections:
            if group and not self._fits(group, section):
                yield _joined(group)
                group = []
            group.append(section)
        if group:
            yield _joined(group)

    def _fits(self, group: list[Section], section: Section) -> bool:
        if not section.top or group[0].top != section.top:
            return False
        headings = [one.headings for one in (*group, section)]
        if len(_shared(headings)) < max(1, min(map(len, headings)) - 1):
            return False
        before, after = _joined(group)[1], section.text
        least = self.limit / _SMALL
        if len(before) + len(after) > self.limit * 64 or min(self.count(before), self.count(after)) >= least:
            return False
        return self.count(_joined([*group, section])[1]) <= self.limit

    def _cut(self, text: str, markdown: bool) -> list[str]:
        size = self.count(text)
        if size <= self.limit:
            return [text]
        pieces = math.ceil(size / self.limit)
        capacity = min(self.limit, math.ceil(size / pieces)), self.limit
        found: list[str] = self._splitters[markdown].from_callback(self.count, capacity).chunks(text)
        return found


def _shared(headings: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The first headings, as far as all have the same."""
    same = takewhile(lambda level: len(set(level)) == 1, zip(*headings, strict=False))
    return tuple(level[0] for level in same)


def _joined(group: list[Section]) -> tuple[tuple[str, ...], str]:
    """The headings that the sections share, and their texts under their further headings."""
    shared = _shared([section.headings for section in group])
    texts, above = [], shared
    for section in group:
        new = section.headings[len(_shared([above, section.headings])) :]
        texts.append("\n".join((*new, section.text)))
        above = section.headings
    return shared, "\n\n".join(texts)
