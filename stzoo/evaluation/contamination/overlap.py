"""Finds the texts of a small set that stand, whole or in part, in a stream of other texts.

The small set (of a test) is indexed; the stream (of training) is gone through once in batches, so memory
does not grow with it. Texts are compared as their words after NFKC and case folding; where a
script puts no spaces between words each character is one. A text is found

exact    if another has the same words in the same order;
ngram    if another shares a run of n words with it; the similarity is the share of its different runs that
         the other has. Runs are compared by 64-bit hashes;
minhash  if the sets of words of both have a Jaccard similarity of at least the threshold. MinHash LSH
         (datasketch) names candidates, whose similarity is then computed from the words themselves.

LSH's bands are chosen so that a pair right at the threshold becomes a candidate with a probability of at
least 0.99. Texts that cannot reach the threshold do not come to it: those of too few or too many words for
any text of the index, and those of which too small a share of words is in the index. That loses nothing.

Source: Broder, SEQUENCES 1997; 13 words as in Brown et al., 2020 (https://arxiv.org/abs/2005.14165, app. C).
"""

import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple

import numpy as np

from stzoo.data import words as any_words
from stzoo.errors import MissingExtraError

PERMUTATIONS = 128
RECALL = 0.99  # of LSH, right at the threshold


class Match(NamedTuple):
    """A text of the index that another shares words with.

    Attributes:
        text: place of the other in the batch.
        found: place of the indexed text.
        how: "exact", "ngram" or "minhash".
        similarity: 0 to 1; see the head of this module.
    """

    text: int
    found: int
    how: str
    similarity: float


def words(text: str) -> list[str]:
    """The words that a text is compared by."""
    return any_words.words(unicodedata.normalize("NFKC", text).casefold())


def datasketch_module() -> Any:
    """Imports datasketch.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import datasketch
    except ImportError:
        needed = "datasketch, for MinHash (minhash=False, --no-minhash goes without),"
        raise MissingExtraError(needed, "contamination") from None
    return datasketch


class Index:
    """Texts that are to be found.

    Args:
        texts: those of the test.
        ngram: words of a run.
        jaccard: threshold of MinHash, above 0 and up to 1; None leaves MinHash out.

    Raises:
        MissingExtraError: if MinHash is wanted and datasketch is not installed.
    """

    def __init__(self, texts: Sequence[str], ngram: int, jaccard: float | None) -> None:
        self.ngram, self.jaccard = ngram, jaccard
        lists = [words(text) for text in texts]
        self.ids = {word: place for place, word in enumerate(dict.fromkeys(chain.from_iterable(lists)))}
        self.whole = defaultdict(list)
        for place, of_text in enumerate(lists):
            if of_text:
                self.whole[tuple(of_text)].append(place)
        self.factors = np.random.default_rng(0).integers(
            2**64 - 1, size=ngram, dtype=np.uint64, endpoint=True
        )
        # all runs by their hashes, each once a text that holds it
        holders, hashes = self._runs(lists, self._numbers(lists))
        runs = np.unique(np.stack([hashes, holders.astype(np.uint64)]), axis=1)
        self.hashes, self.holders = runs[0], runs[1].astype(np.int64)
        self.run_counts = np.bincount(self.holders, minlength=len(lists))
        if jaccard is not None:
            self._index_sets([frozenset(of_text) for of_text in lists], jaccard)

    def find(self, texts: Sequence[str]) -> Iterator[Match]:
        """What of the index stands in a batch of texts; a pair found "exact" is not found otherwise."""
        lists = [words(text) for text in texts]
        numbers = self._numbers(lists)
        exact = set()
        ends = np.cumsum([len(of_text) for of_text in lists])
        strange = np.diff(np.concatenate([[0], np.cumsum(numbers < 0)])[ends], prepend=0)
        for text in np.flatnonzero(strange == 0).tolist():
            for found in self.whole.get(tuple(lists[text]), ()):
                exact.add((text, found))
                yield Match(text, found, "exact", 1.0)

        shared: Counter[tuple[int, int]] = Counter()
        holders, hashes = self._runs(lists, numbers)
        lows, highs = (np.searchsorted(self.hashes, hashes, side) for side in ("left", "right"))
        hit = highs > lows
        for text, low, high in np.unique(np.stack([holders, lows, highs], 1)[hit], axis=0).tolist():
            shared.update((text, found) for found in self.holders[low:high].tolist())
        for (text, found), count in shared.items():
            if (text, found) not in exact:
                yield Match(text, found, "ngram", count / int(self.run_counts[found]))

        if self.jaccard is not None:
            for text, of_text in enumerate(map(set, lists)):
                for found, similarity in self._alike(of_text):
                    if (text, found) not in exact:
                        yield Match(text, found, "minhash", similarity)

    def _numbers(self, lists: Sequence[list[str]]) -> np.ndarray:
        """Numbers of all words, one text after the other; -1 for those that the index does not have."""
        count = sum(map(len, lists))
        return np.fromiter(map(self.ids.get, chain.from_iterable(lists), repeat(-1)), np.int64, count)

    def _runs(self, lists: Sequence[list[str]], numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The text's place (int64 [R]) and the hash (uint64 [R]) of each run of words of the index."""
        text_of = np.repeat(np.arange(len(lists)), [len(of_text) for of_text in lists])
        strange = np.concatenate([[0], np.cumsum(numbers < 0)])
        last = len(numbers) - self.ngram + 1
        starts = np.arange(max(last, 0))
        ends = starts + self.ngram
        starts = starts[(strange[ends] == strange[starts]) & (text_of[ends - 1] == text_of[starts])]
        runs = numbers[starts[:, None] + np.arange(self.ngram)].astype(np.uint64)
        return text_of[starts], (runs * self.factors).sum(axis=1, dtype=np.uint64)

    def _index_sets(self, sets: list[frozenset[str]], jaccard: float) -> None:
        datasketch = datasketch_module()
        self.sets, self.known = sets, frozenset(self.ids)
        # the more rows a band, the fewer candidates that are none
        rows = PERMUTATIONS // 2
        while rows > 1 and 1 - (1 - jaccard**rows) ** (PERMUTATIONS // rows) < RECALL:
            rows -= 1
        self.lsh = datasketch.MinHashLSH(num_perm=PERMUTATIONS, params=(PERMUTATIONS // rows, rows))
        self.blank = datasketch.MinHash(num_perm=PERMUTATIONS, hashfunc=zlib.crc32)
        for place, of_text in enumerate(sets):
            if of_text:
                self.lsh.insert(place, self._minhash(of_text))
        sizes = [len(of_text) for of_text in sets]
        self.least, self.most = min(sizes, default=0) * jaccard, max(sizes, default=0) / jaccard

    def _minhash(self, of_text: Collection[str]) -> Any:
        hashed = self.blank.copy()
        hashed.update_batch(map(str.encode, of_text))
        return hashed

    def _alike(self, of_text: set[str]) -> Iterator[tuple[int, float]]:
        assert self.jaccard is not None
        if not self.least <= len(of_text) <= self.most or not of_text:
            return
        if len(of_text & self.known) < self.jaccard * len(of_text):
            return
        for found in self.lsh.query(self._minhash(of_text)):
            both = len(of_text & self.sets[found])
            similarity = both / (len(of_text) + len(self.sets[found]) - both)
            if similarity >= self.jaccard:
                yield found, similarity
