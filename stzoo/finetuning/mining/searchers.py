"""Who searches for negatives."""

from functools import cached_property
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np

from stzoo.data.beir import RetrievalDataset
from stzoo.errors import ModelError
from stzoo.retrieval import bm25
from stzoo.retrieval.search.exact_kernels import checked, scores_of
from stzoo.retrieval.search.ranking import Ranked
from stzoo.retrieval.search.retriever import Retriever
from stzoo.retrieval.store import Store

ROWS = 8192  # vectors read at once


class Searcher(Protocol):
    """What finds passages for the queries of a judged set.

    Attributes:
        facts: what its results depend on beside the judged set: "name", "revision" and its settings.
    """

    facts: dict[str, Any]

    @property
    def query_bytes(self) -> int:
        """Memory that a query takes while it is searched, beside its results."""
        ...

    def find(
        self, first: int, last: int, k: int, rows: np.ndarray, places: np.ndarray
    ) -> tuple[Ranked, np.ndarray]:
        """Searches for some queries.

        Args:
            first: number of the first, in the order of the judged set's queries.
            last: behind the last.
            k: passages found a query.
            rows: int64 [P], ascending; with `places` the pairs to score, counted from `first`.
            places: int64 [P], of passages.

        Returns:
            the results, and float32 [P], the scores of the pairs.
        """
        ...

    def tokens(self, place: int) -> tuple[int, ...]:
        """The token ids that a passage is read as; () if it is not read as tokens."""
        ...


class Dense:
    """A model that searches its embedding store, which is filled when the first search is made.

    Args:
        retriever: the model and where its stores lie.
        judged: what is searched.
    """

    def __init__(self, retriever: Retriever, judged: RetrievalDataset):
        opened = retriever.opened
        self.facts = {"name": opened.name, "revision": opened.revision, **opened.settings}
        self._retriever, self._judged, self._ids = retriever, judged, list(judged.queries)

    @cached_property
    def _stores(self) -> tuple[Store, Store]:
        self._retriever.notes(self._judged)  # shown to the user
        queries, documents = self._retriever.queries(self._judged), self._retriever.documents(self._judged)
        if queries.shape[1] != documents.shape[1]:
            raise ModelError(
                f"{self._retriever.opened.given} encodes queries as {queries.shape[1]} numbers and passages "
                f"as {documents.shape[1]}; expected vectors of one width."
            )
        return queries, documents

    @property
    def query_bytes(self) -> int:
        """See `Searcher`: the vector, and what search makes of it."""
        return 12 * self._stores[0].shape[1]

    def find(
        self, first: int, last: int, k: int, rows: np.ndarray, places: np.ndarray
    ) -> tuple[Ranked, np.ndarray]:
        """See `Searcher`. The store is read twice, chunk by chunk."""
        queries, documents = self._stores
        vectors = queries[first:last]
        found = self._retriever.top_k(self._judged, vectors, self._ids[first:last], documents, k)
        assert isinstance(found, Ranked)
        return found, self._scores(vectors, documents, rows, places)

    def tokens(self, place: int) -> tuple[int, ...]:
        """See `Searcher`."""
        read = self._retriever.opened.model.preprocess([self._judged.passages[place]])
        return tuple(read["input_ids"].flatten().tolist()) if "input_ids" in read else ()

    def _scores(
        self, vectors: np.ndarray, documents: Store, rows: np.ndarray, places: np.ndarray
    ) -> np.ndarray:
        queries = checked(vectors, "query")
        order = np.argsort(places, kind="stable")
        starts = np.arange(0, len(documents) + ROWS, ROWS)
        bounds = np.searchsorted(places[order], starts)
        scores = np.empty(len(places), np.float32)
        for start, here, there in zip(starts.tolist(), bounds[:-1], bounds[1:], strict=False):
            if here < there:
                pairs = order[here:there]
                passages = checked(documents[start : start + ROWS], "passage", start)
                scores[pairs] = scores_of(
                    queries, passages, rows[pairs], places[pairs] - start, self._retriever.opened.similarity
                )
        return scores


class Lexical:
    """BM25 over a judged set's passages, which are indexed when the first search is made.

    Args:
        judged: what is searched.
        language: of the passages, a code or an English name, or "none"; None detects it.
        progress: True for progress bars on stderr.

    Raises:
        RecipeError: if the language is not known.
    """

    query_bytes = 0

    def __init__(self, judged: RetrievalDataset, language: str | None = None, *, progress: bool = False):
        self._language = bm25.choose_language(language, judged.passages, judged.name)
        settings = bm25.settings_of(self._language)
        self.facts = {"name": bm25.NAME, "revision": version("bm25s"), **settings}
        self._judged, self._progress = judged, progress
        self._ids = list(judged.queries)

    @cached_property
    def _index(self) -> bm25.Lexical:
        return bm25.Lexical(
            self._judged.corpus_ids,
            self._judged.passages,
            language=self._language,
            progress=self._progress,
        )

    def find(
        self, first: int, last: int, k: int, rows: np.ndarray, places: np.ndarray
    ) -> tuple[Ranked, np.ndarray]:
        """See `Searcher`."""
        asked = {query: self._judged.queries[query] for query in self._ids[first:last]}
        found = self._index.retrieve(asked, k, drop_self=self._judged.shares_ids)
        assert isinstance(found, Ranked)
        scores = np.empty(len(places), np.float32)
        bounds = np.searchsorted(rows, np.arange(len(asked) + 1))
        for text, here, there in zip(asked.values(), bounds[:-1], bounds[1:], strict=True):
            if here < there:
                scores[here:there] = self._index.scores(text, places[here:there])
        return found, scores

    def tokens(self, place: int) -> tuple[int, ...]:  # noqa: ARG002 - as of others
        """See `Searcher`."""
        return ()
