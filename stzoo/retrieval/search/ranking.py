"""Collects the k best documents of each query, with ties broken as in trec_eval."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from stzoo.data.texts import Texts
from stzoo.errors import RecipeError

EMPTY = -(2**63)  # a key below that of any score


class Ranking:
    """Keeps the k best documents of each query as scores arrive.

    A score and its document are packed into an int64 key: the score's bits, in a form that sorts as integers,
    above the rank of the document's id. All keys of a query differ, so the largest keys are the best
    documents, with ties broken as in trec_eval.

    Args:
        corpus_ids: N unique ids.
        k: Number of documents to keep per query.
        drop_self: True drops the document whose id is the query's.

    Raises:
        RecipeError: If k is below 1.
    """

    def __init__(self, corpus_ids: Sequence[str], k: int, *, drop_self: bool):
        if k < 1:
            raise RecipeError(f"k is {k}; expected at least 1.")
        self.corpus_ids, self.k, self.drop_self = corpus_ids, k, drop_self
        self.width = min(k + drop_self, len(corpus_ids))  # with room for the query itself
        texts = corpus_ids if isinstance(corpus_ids, Texts) else Texts(corpus_ids)
        self.ascending = texts.sort_order().astype(np.uint32)
        self.ranks = np.empty_like(self.ascending)
        self.ranks[self.ascending] = np.arange(len(texts), dtype=np.uint32)

    def none(self, queries: int) -> np.ndarray:
        """int64 [queries, width], the keys of queries without documents."""
        return np.full((queries, self.width), EMPTY)

    def worst(self, kept: np.ndarray) -> np.ndarray:
        """float32 [Q], the lowest score kept for each query; -inf if it has room for more."""
        least = kept.min(1)
        return np.where(least == EMPTY, np.float32("-inf"), _unpacked(least))

    def merge(
        self, kept: np.ndarray, rows: np.ndarray, documents: np.ndarray, scores: np.ndarray
    ) -> np.ndarray:
        """Adds documents.

        Args:
            kept: int64 [Q, width], the keys so far.
            rows: int64 [P], ascending, the queries of the documents.
            documents: int64 [P], positions in the corpus; each query gets a document only once.
            scores: float32 [P], without NaN.

        Returns:
            int64 [Q, width], the best keys, unordered.
        """
        counts = np.bincount(rows, minlength=len(kept))
        both = np.full((len(kept), self.width + counts.max(initial=0)), EMPTY)
        both[:, : self.width] = kept
        first = self.width - np.cumsum(counts) + counts
        both[rows, np.arange(len(rows)) + first[rows]] = _packed(scores, self.ranks[documents])
        return np.partition(both, -self.width, axis=1)[:, -self.width :]

    def run(self, query_ids: Sequence[str], kept: np.ndarray) -> "Ranked":
        """The results of int64 [Q, width] keys, which are sorted in place."""
        kept.sort(axis=1)
        return Ranked(self, query_ids, kept[:, ::-1])


class Ranked(Mapping[str, dict[str, float]]):
    """float32 scores by query id and document id, best first.

    A query's results are unpacked on each access, as dicts for all would take ten times the memory.
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
        documents = [ids[i] for i in self._ranking.ascending[keys & 0xFFFFFFFF].tolist()]
        scores = dict(zip(documents, _unpacked(keys).tolist(), strict=True))
        if self._ranking.drop_self:
            scores.pop(query, None)
        if len(scores) > self._ranking.k:
            scores.popitem()
        return scores

    def arrays(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """The results of consecutive queries as arrays, which include a query's own document.

        Args:
            rows: Rows of the queries, in the order in which they were given.

        Returns:
            int64 [q, W] positions in the corpus, best first, padded with -1; float32 [q, W] scores.
        """
        keys = self._keys[rows]
        indices = self._ranking.ascending[keys & 0xFFFFFFFF].astype(np.int64)
        return np.where(keys == EMPTY, -1, indices), _unpacked(keys)


def _packed(scores: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """int64 keys of float32 scores and ranks below 2**32, which sort by score and then by rank."""
    bits = (scores + np.float32(0)).view(np.int32)  # + 0 turns -0.0 into 0.0
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) << 32) + ranks


def _unpacked(keys: np.ndarray) -> np.ndarray:
    """The float32 scores of int64 keys."""
    bits = (keys >> 32).astype(np.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32)
