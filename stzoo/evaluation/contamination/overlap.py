"""Finds texts of a small set that occur, whole or in part, in a stream of other texts.

The small set (test data) is indexed; the stream (training data) is read once in batches, so memory does not
grow with it. Texts are compared by their words after NFKC and case folding; in scripts without spaces between
words, each character is a word. A text is found by

exact    if another text has the same words in the same order;
ngram    if another text shares an n-gram of words with it; the similarity is the share of its distinct
         n-grams that the other text has. N-grams are compared by 64-bit hashes;
minhash  if the word sets of both have a Jaccard similarity of at least the threshold. MinHash LSH
         (datasketch) proposes candidates, whose similarity is then computed from the words themselves.

Texts that cannot reach the threshold skip LSH: those with too few or too many words for any
indexed text, and those with too small a share of words in the index.

Source: Broder, SEQUENCES 1997; 13 words as in Brown et al., 2020 (https://arxiv.org/abs/2005.14165, app. C).
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from typing import NamedTuple

import numpy as np

from stzoo.data import words as any_words
from stzoo.data.near_copies import SetIndex, datasketch_module

WITHOUT_MINHASH = "minhash=False, --no-minhash"


class Match(NamedTuple):
    """An indexed text that matches a text of the batch.

    Attributes:
        text: Position of the text in the batch.
        found: Position of the indexed text.
        how: "exact", "ngram" or "minhash".
        similarity: 0 to 1, as described above.
    """

    text: int
    found: int
    how: str
    similarity: float


def words(text: str) -> list[str]:
    """The words by which a text is compared."""
    return any_words.words(unicodedata.normalize("NFKC", text).casefold())


class Index:
    """An index of texts to be found.

    Args:
        texts: Texts of the test data.
        ngram: Number of words in an n-gram.
        jaccard: Threshold of MinHash, above 0 and up to 1; None skips MinHash.

    Raises:
        MissingExtraError: If MinHash is used and datasketch is not installed.
    """

    def __init__(self, texts: Sequence[str], ngram: int, jaccard: float | None) -> None:
        self.ngram, self.jaccard = ngram, jaccard
        lists = [words(text) for text in texts]
        self.ids = {word: i for i, word in enumerate(dict.fromkeys(chain.from_iterable(lists)))}
        self.whole = defaultdict(list)
        for i, text_words in enumerate(lists):
            if text_words:
                self.whole[tuple(text_words)].append(i)
        self.factors = np.random.default_rng(0).integers(
            2**64 - 1, size=ngram, dtype=np.uint64, endpoint=True
        )
        # pairs of n-gram (by its hash) and text, each pair once, sorted by hash
        owners, hashes = self._ngrams(lists, self._word_ids(lists))
        pairs = np.unique(np.stack([hashes, owners.astype(np.uint64)]), axis=1)
        self.hashes, self.owners = pairs[0], pairs[1].astype(np.int64)
        self.ngram_counts = np.bincount(self.owners, minlength=len(lists))
        if jaccard is not None:
            self._index_sets([frozenset(text_words) for text_words in lists], jaccard)

    def find(self, texts: Sequence[str]) -> Iterator[Match]:
        """The indexed texts that match a batch of texts; a pair that matches exactly is yielded once."""
        lists = [words(text) for text in texts]
        word_ids = self._word_ids(lists)
        exact = set()
        ends = np.cumsum([len(text_words) for text_words in lists])
        unknown = np.diff(np.concatenate([[0], np.cumsum(word_ids < 0)])[ends], prepend=0)
        for text in np.flatnonzero(unknown == 0).tolist():
            for found in self.whole.get(tuple(lists[text]), ()):
                exact.add((text, found))
                yield Match(text, found, "exact", 1.0)

        shared: Counter[tuple[int, int]] = Counter()
        owners, hashes = self._ngrams(lists, word_ids)
        lows, highs = (np.searchsorted(self.hashes, hashes, side) for side in ("left", "right"))
        hit = highs > lows
        for text, low, high in np.unique(np.stack([owners, lows, highs], 1)[hit], axis=0).tolist():
            shared.update((text, found) for found in self.owners[low:high].tolist())
        for (text, found), count in shared.items():
            if (text, found) not in exact:
                yield Match(text, found, "ngram", count / int(self.ngram_counts[found]))

        if self.jaccard is not None:
            for text, word_set in enumerate(map(set, lists)):
                for found, similarity in self._similar(word_set):
                    if (text, found) not in exact:
                        yield Match(text, found, "minhash", similarity)

    def _word_ids(self, lists: Sequence[list[str]]) -> np.ndarray:
        """The ids of all words, int64, text after text; -1 for words that are not in the index."""
        count = sum(map(len, lists))
        return np.fromiter(map(self.ids.get, chain.from_iterable(lists), repeat(-1)), np.int64, count)

    def _ngrams(self, lists: Sequence[list[str]], word_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The text's position (int64 [R]) and the hash (uint64 [R]) of each n-gram of known words."""
        text_of = np.repeat(np.arange(len(lists)), [len(text_words) for text_words in lists])
        unknown = np.concatenate([[0], np.cumsum(word_ids < 0)])
        last = len(word_ids) - self.ngram + 1
        starts = np.arange(max(last, 0))
        ends = starts + self.ngram
        starts = starts[(unknown[ends] == unknown[starts]) & (text_of[ends - 1] == text_of[starts])]
        ngrams = word_ids[starts[:, None] + np.arange(self.ngram)].astype(np.uint64)
        return text_of[starts], (ngrams * self.factors).sum(axis=1, dtype=np.uint64)

    def _index_sets(self, sets: list[frozenset[str]], jaccard: float) -> None:
        self.sets, self.known = sets, frozenset(self.ids)
        self.index = SetIndex(jaccard, datasketch_module(WITHOUT_MINHASH, "contamination"))
        for i, word_set in enumerate(sets):
            if word_set:
                self.index.lsh.insert(i, self.index.minhash(word_set))
        sizes = [len(word_set) for word_set in sets]
        self.min_size, self.max_size = min(sizes, default=0) * jaccard, max(sizes, default=0) / jaccard

    def _similar(self, word_set: set[str]) -> Iterator[tuple[int, float]]:
        assert self.jaccard is not None
        if not self.min_size <= len(word_set) <= self.max_size or not word_set:
            return
        if len(word_set & self.known) < self.jaccard * len(word_set):
            return
        for found in self.index.lsh.query(self.index.minhash(word_set)):
            both = len(word_set & self.sets[found])
            similarity = both / (len(word_set) + len(self.sets[found]) - both)
            if similarity >= self.jaccard:
                yield found, similarity
