"""What of all that is found is kept: the k best documents of each query, ties settled as trec_eval does."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from stzoo.data.texts import Texts
from stzoo.errors import RecipeError

EMPTY = -(2**63)  # a key below that of any score


class Ranking:
    """Keeps the k best documents of each query while scores arrive.

    A score and its document become one int64 key: the score's bits, made to sort as integers, above the rank
    of the document's id. No two keys of a query are equal, so choosing by key settles ties as trec_eval does.

    Args:
        corpus_ids: N unique ids.
        k: documents kept a query.
        drop_self: True to leave out the document whose id is the query's.

    Raises:
        RecipeError: if k is below 1.
    """

    def __init__(self, corpus_ids: Sequence[str], k: int, *, drop_self: bool):
        if k < 1:
            raise RecipeError(f"k is {k}; expected at least 1.")
        self.corpus_ids, self.k, self.drop_self = corpus_ids, k, drop_self
        self.width = min(k + drop_self, len(corpus_ids))  # a query may find itself beside its k
        texts = corpus_ids if isinstance(corpus_ids, Texts) else Texts(corpus_ids)
        self.ascending = texts.sort_order().astype(np.uint32)
        self.ranks = np.empty_like(self.ascending)
        self.ranks[self.ascending] = np.arange(len(texts), dtype=np.uint32)

    def none(self, queries: int) -> np.ndarray:
        """int64 [queries, width] keys of queries that have kept nothing yet."""
        return np.full((queries, self.width), EMPTY)

    def worst(self, kept: np.ndarray) -> np.ndarray:
        """float32 [Q], the least score that each query has kept; -inf if it can keep more."""
        least = kept.min(1)
        return np.where(least == EMPTY, np.float32("-inf"), _unpacked(least))

    def merge(
        self, kept: np.ndarray, rows: np.ndarray, documents: np.ndarray, scores: np.ndarray
    ) -> np.ndarray:
        """Takes more documents in.

        Args:
            kept: int64 [Q, width] keys.
            rows: int64 [P], ascending: whose document it is.
            documents: int64 [P] places in the corpus; none that a query has kept already.
            scores: float32 [P], without NaN.

        Returns:
            int64 [Q, width] keys, in no order.
        """
        counts = np.bincount(rows, minlength=len(kept))
        both = np.full((len(kept), self.width + counts.max(initial=0)), EMPTY)
        both[:, : self.width] = kept
        first = self.width - np.cumsum(counts) + counts
        both[rows, np.arange(len(rows)) + first[rows]] = _packed(scores, self.ranks[documents])
        return np.partition(both, -self.width, axis=1)[:, -self.width :]

    def run(self, query_ids: Sequence[str], kept: np.ndarray) -> "Ranked":
        """The results that int64 [Q, width] keys hold; the keys are sorted in place."""
        kept.sort(axis=1)
        return Ranked(self, query_ids, kept[:, ::-1])


class Ranked(Mapping[str, dict[str, float]]):
    """float32 scores by document id by query id, best first, unpacked anew whenever a query is asked for.

    Kept as dicts they would take ten times the memory.
    """

    def __init__(self, ranking: Ranking, query_ids: Sequence[str], keys: np.ndarray):
        self._ranking, self._keys = ranking, keys
        self._rows = {query: row for row, query in enumerate(query_ids)}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __getitem__(self, query: str) -> dict[str, float]:
        keys = self._keys[self._rows[query]]
        keys = keys[keys != EMPTY]
        ids = self._ranking.corpus_ids
        documents = [ids[place] for place in self._ranking.ascending[keys & 0xFFFFFFFF].tolist()]
        found = dict(zip(documents, _unpacked(keys).tolist(), strict=True))
        if self._ranking.drop_self:
            found.pop(query, None)
        if len(found) > self._ranking.k:
            found.popitem()
        return found

    def arrays(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """The results of consecutive queries as arrays; with drop_self a query's own document is still there.

        Args:
            rows: of the queries, in the order in which they were given.

        Returns:
            int64 [q, W] places in the corpus, best first, -1 behind the last; float32 [q, W] scores.
        """
        keys = self._keys[rows]
        places = self._ranking.ascending[keys & 0xFFFFFFFF].astype(np.int64)
        return np.where(keys == EMPTY, -1, places), _unpacked(keys)


def _packed(scores: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """int64 keys of float32 scores and ranks below 2**32: they sort by score, then by rank."""
    bits = (scores + np.float32(0)).view(np.int32)  # + 0 makes -0.0 the same as 0.0
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) << 32) + ranks


def _unpacked(keys: np.ndarray) -> np.ndarray:
    """float32 scores of int64 keys."""
    bits = (keys >> 32).astype(np.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32)
