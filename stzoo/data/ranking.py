"""Rankings: the k best documents of each query, in trec_eval's order.

The order is by float32 score descending, then by document id descending (as text). Every ranking is ordered
once: that of a search by `Ranking`, that of another system by `rank`. Measures, run files and mining read
the result, a `Ranked`.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain

import numpy as np

from stzoo.data.texts import Texts, indices_of
from stzoo.data.trec import Run
from stzoo.errors import DataError, RecipeError, quoted

EMPTY = -(2**63)  # a key below that of any score
RANK = 0xFFFFFFFF  # the bits of a key that are the rank of the document's id


class Best:
    """Keeps the best documents of each query as scores arrive.

    A score and its document are packed into an int64 key: the score's bits, in a form that sorts as integers,
    above the rank of the document's id. All keys of a query differ, so the largest keys are the best
    documents, with ties broken as in trec_eval.

    Args:
        ranks: uint32 [N], the rank of each document's id.
        width: Number of documents to keep per query.
    """

    def __init__(self, ranks: np.ndarray, width: int):
        self.ranks, self.width = ranks, width

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
        return self._best(both)

    def join(self, kept: np.ndarray, more: np.ndarray) -> np.ndarray:
        """int64 [Q, width], the best of int64 [Q, width] and [Q, any] keys of different documents."""
        return self._best(np.concatenate((kept, more), axis=1))

    def _best(self, keys: np.ndarray) -> np.ndarray:
        return np.partition(keys, -self.width, axis=1)[:, -self.width :]


class Ranking(Best):
    """Keeps the k best documents of each query, by their ids; see `Best`.

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
        texts = corpus_ids if isinstance(corpus_ids, Texts) else Texts(corpus_ids)
        self.ascending = texts.sort_order().astype(np.uint32)
        ranks = np.empty_like(self.ascending)
        ranks[self.ascending] = np.arange(len(texts), dtype=np.uint32)
        super().__init__(ranks, min(k + drop_self, len(corpus_ids)))  # with room for the query itself

    def run(self, query_ids: Sequence[str], kept: np.ndarray) -> "Ranked":
        """The results of int64 [Q, width] keys, which are sorted in place."""
        kept.sort(axis=1)
        return Ranked(self, query_ids, kept[:, ::-1])


class Ranked(Mapping[str, dict[str, float]]):
    """float32 scores by query id and document id, best first.

    A query's results are unpacked on each access, as dicts for all would take ten times the memory.

    Attributes:
        corpus_ids: N unique ids, among which are those of all documents found.
    """

    def __init__(self, ranking: Ranking, query_ids: Sequence[str], keys: np.ndarray):
        self._ranking, self._keys, self.corpus_ids = ranking, keys, ranking.corpus_ids
        self._rows = {query: row for row, query in enumerate(query_ids)}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __getitem__(self, query: str) -> dict[str, float]:
        if query not in self._rows:
            raise KeyError(query)
        indices, scores = self.results(query)
        return dict(zip((self.corpus_ids[i] for i in indices.tolist()), scores.tolist(), strict=True))

    def results(self, query: str, *, own: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """A query's results as arrays, which are empty for unknown queries.

        Args:
            query: Id of the query.
            own: True keeps the query's own document, in addition to k others, where `drop_self` drops it.

        Returns:
            int64 [n] positions in the corpus, best first; float32 [n] scores.
        """
        keys = self._keys[self._rows[query]] if query in self._rows else np.empty(0, np.int64)
        keys = keys[keys != EMPTY]
        indices = self._documents(keys)
        if self._ranking.drop_self and not own:
            kept = np.flatnonzero(indices != self._own.get(query, -1))[: self._ranking.k]
            indices, keys = indices[kept], keys[kept]
        return indices, _unpacked(keys)

    def documents(self) -> set[str]:
        """Ids of the documents found for any query."""
        found = self._documents(np.unique(self._keys[self._keys != EMPTY] & RANK))
        return {self.corpus_ids[i] for i in found.tolist()}

    @cached_property
    def _own(self) -> dict[str, int]:
        return indices_of(self._rows, self.corpus_ids)

    def _documents(self, keys: np.ndarray) -> np.ndarray:
        return self._ranking.ascending[keys & RANK].astype(np.int64)


def rank(run: Run, k: int | None = None, *, drop_self: bool = False) -> Ranked:
    """Orders a run, unless it is `Ranked`.

    Args:
        run: Scores by query id and document id, in any order.
        k: Number of documents to keep per query; None keeps all.
        drop_self: True drops the document whose id is the query's.

    Raises:
        DataError: If a score is NaN.
        RecipeError: If k is below 1.
    """
    if isinstance(run, Ranked):
        return run
    ids = list(dict.fromkeys(chain.from_iterable(run.values())))
    places = {document: place for place, document in enumerate(ids)}
    longest = max(map(len, run.values()), default=0)
    ranking = Ranking(ids, max(longest, 1) if k is None else k, drop_self=drop_self)
    kept = ranking.none(len(run))
    for row, (query, found) in enumerate(run.items()):
        with np.errstate(over="ignore"):  # values beyond float32 become infinite, as in trec_eval
            scores = np.fromiter(found.values(), np.float64, len(found)).astype(np.float32)
        if np.isnan(scores).any():
            raise DataError(f"the run has NaN among the scores of query {quoted(query)}; expected numbers.")
        indices = np.fromiter(map(places.__getitem__, found), np.int64, len(found))
        one = slice(row, row + 1)
        kept[one] = ranking.merge(kept[one], np.zeros_like(indices), indices, scores)
    return ranking.run(list(run), kept)


def _packed(scores: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """int64 keys of float32 scores and ranks below 2**32, which sort by score and then by rank."""
    bits = (scores + np.float32(0)).view(np.int32)  # + 0 turns -0.0 into 0.0
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) << 32) + ranks


def _unpacked(keys: np.ndarray) -> np.ndarray:
    """The float32 scores of int64 keys."""
    bits = (keys >> 32).astype(np.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32)
