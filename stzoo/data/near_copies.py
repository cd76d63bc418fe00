"""MinHash LSH of datasketch: finds sets of words that are almost the same.

LSH's bands are chosen so that a pair exactly at the threshold becomes a candidate with a probability of at
least 0.99.

Source: Broder, SEQUENCES 1997.
"""

import hashlib
import zlib
from collections.abc import Collection
from typing import Any, NamedTuple

from stzoo.data.words import same_text_key, words
from stzoo.errors import MissingExtraError

PERMUTATIONS = 128
RECALL = 0.99  # of LSH, for pairs exactly at the threshold
SHINGLE = 3  # words


def datasketch_module(without: str, extra: str) -> Any:
    """Imports datasketch.

    Args:
        without: How to do without it, for the message.
        extra: The extra of stzoo that installs it.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        import datasketch
    except ImportError:
        raise MissingExtraError(f"datasketch, for MinHash ({without} does without it),", extra) from None
    return datasketch


class SetIndex:
    """An LSH index of sets of words.

    Args:
        jaccard: Threshold, above 0 and up to 1.
        datasketch: The module.
    """

    def __init__(self, jaccard: float, datasketch: Any) -> None:
        # more rows per band give fewer false candidates
        rows = PERMUTATIONS // 2
        while rows > 1 and 1 - (1 - jaccard**rows) ** (PERMUTATIONS // rows) < RECALL:
            rows -= 1
        self.lsh = datasketch.MinHashLSH(num_perm=PERMUTATIONS, params=(PERMUTATIONS // rows, rows))
        self._blank = datasketch.MinHash(num_perm=PERMUTATIONS, hashfunc=zlib.crc32)

    def minhash(self, word_set: Collection[str]) -> Any:
        """The MinHash of a set of words."""
        minhash = self._blank.copy()
        minhash.update_batch(map(str.encode, word_set))
        return minhash


class Copy(NamedTuple):
    """A text that is left out.

    Attributes:
        id: Its id.
        of: Id of the earlier text that it copies.
        similarity: 1.0 for an exact copy, otherwise the Jaccard similarity as MinHash estimates it.
    """

    id: str
    of: str
    similarity: float


class CopyFinder:
    """Finds copies of earlier texts in a stream; it keeps about 5 KB per text, and not the texts.

    An exact copy looks the same (`same_text_key`). A near-copy has almost the same sequences of three words:
    their Jaccard similarity, as estimated from MinHashes (standard error at most 0.04), is at least the
    threshold.

    Args:
        jaccard: Threshold of near-copies; None finds exact copies only.

    Raises:
        MissingExtraError: If near-copies are looked for and datasketch is not installed.
    """

    def __init__(self, jaccard: float | None) -> None:
        self.jaccard = jaccard
        self._first: dict[bytes, str] = {}
        self._index = (
            None
            if jaccard is None
            else SetIndex(jaccard, datasketch_module('copies="exact", --copies exact', "documents"))
        )
        self._minhashes: dict[str, Any] = {}

    def find(self, text_id: str, text: str) -> Copy | None:
        """The earlier text that this one copies; None if it is new, which is then remembered."""
        key = hashlib.blake2b(same_text_key(text).encode(), digest_size=16).digest()
        if (first := self._first.get(key)) is not None:
            return Copy(text_id, first, 1.0)
        if self._index is not None and (shingles := _shingles(text)):
            minhash = self._index.minhash(shingles)
            near = [
                (self._minhashes[found].jaccard(minhash), found) for found in self._index.lsh.query(minhash)
            ]
            similarity, first = max(near, default=(0.0, None))
            if first is not None and similarity >= (self.jaccard or 0):
                return Copy(text_id, first, round(float(similarity), 4))
            self._index.lsh.insert(text_id, minhash)
            self._minhashes[text_id] = minhash
        self._first[key] = text_id
        return None


def _shingles(text: str) -> set[str]:
    found = words(text)
    return (
        {" ".join(found[i : i + SHINGLE]) for i in range(max(1, len(found) - SHINGLE + 1))}
        if found
        else set()
    )
