"""Takes queries from the passage itself, without a model: its title, sentences, spans and keywords.

A passage's own words are not what people ask for, and a retriever that is trained on them learns to match
words, as BM25 does. Still, in our tests it learned more from them than from the queries of a small language
model.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from math import log
from typing import Any

import numpy as np

from stzoo.adaptation.questions.answers import MAX_WORDS, MIN_WORDS
from stzoo.adaptation.questions.generator import MOST_AT_ONCE, Answer, Passage
from stzoo.data.languages import stop_words
from stzoo.data.words import search_terms, words

STYLES = ("title", "sentence", "keywords", "span")
KEYWORDS = (3, 6)  # from, to
SPAN = (6, 12)  # words, from, to
_SENTENCE = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])")  # noqa: RUF001 - Chinese and Japanese signs


class FromText:
    """Takes queries from the passage itself.

    Args:
        sample: Some passages of the corpus, whose words are counted for the keywords.
        language: Language of most passages, a code of `stzoo.data.languages`.
    """

    name = "none"
    copies = True
    stored_at_once = MOST_AT_ONCE

    def __init__(self, sample: Sequence[str], language: str):
        self.usage: Counter[str] = Counter()
        self._stop = stop_words(language)
        self._texts, self._found_in = len(sample), Counter[str]()
        for text in sample:
            self._found_in.update(set(search_terms(text)))
        self.metadata: dict[str, Any] = {"queries": "none", "language": language}

    def styles(self, passage: Passage) -> Sequence[str]:
        """See `stzoo.adaptation.questions.generator.Generator`."""
        return STYLES if passage.title else STYLES[1:]

    def estimate(self, passages: Sequence[Passage], visits: int, per_passage: int) -> str:  # noqa: ARG002
        """See `stzoo.adaptation.questions.generator.Generator`."""
        return ""

    def generate(
        self, passages: Sequence[Passage], styles: Sequence[Sequence[str]], seeds: Sequence[int]
    ) -> Iterator[tuple[int, list[Answer]]]:
        """See `stzoo.adaptation.questions.generator.Generator`."""
        for at, (passage, asked, seed) in enumerate(zip(passages, styles, seeds, strict=True)):
            random = np.random.default_rng(seed)
            yield at, [Answer(self._query(passage, style, random)) for style in asked]

    def _query(self, passage: Passage, style: str, random: np.random.Generator) -> str:
        text = " ".join((passage.text or passage.full).split())
        if style == "title":
            return passage.title
        if style == "keywords":
            return self._keywords(passage.full, int(random.integers(*KEYWORDS, endpoint=True)))
        if style == "sentence":
            found = [one for one in _SENTENCE.split(text) if MIN_WORDS < len(words(one)) <= MAX_WORDS]
            if found:  # the first one as often as all others
                return found[0 if random.random() < 0.5 else int(random.integers(len(found)))]
        length = int(random.integers(*SPAN, endpoint=True))
        pieces, joint = (text.split(), " ") if len(text.split()) >= SPAN[1] else (list(text), "")
        length *= 1 if joint else 2
        first = int(random.integers(max(1, len(pieces) - length + 1)))
        return joint.join(pieces[first : first + length]).strip()

    def _keywords(self, text: str, number: int) -> str:
        """The words of a text that are frequent in it and rare in the corpus, in the order of the text."""
        terms = [term for term in search_terms(text) if term not in self._stop and not term.isdigit()]
        counts = Counter(terms)
        weights = {
            term: count * log((1 + self._texts) / (1 + self._found_in[term]))
            for term, count in counts.items()
        }
        best = sorted(weights, key=lambda term: -weights[term])[:number]
        return " ".join(sorted(best, key=terms.index))
