"""Search for negatives, with a dense model or with BM25."""

from functools import cached_property
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np

from stzoo.data.beir import RetrievalDataset
from stzoo.data.ranking import Ranked
from stzoo.errors import ModelError
from stzoo.retrieval import bm25
from stzoo.retrieval.search.exact_kernels import checked, scores_of
from stzoo.retrieval.search.retriever import Retriever
from stzoo.retrieval.store import Store

ROWS = 8192  # vectors read at once


class Searcher(Protocol):
    """Protocol of classes that find passages for the queries of a data set.

    Attributes:
        metadata: What results depend on, apart from the data set: "name", "revision" and settings.
    """

    metadata: dict[str, Any]

    @property
    def query_bytes(self) -> int:
        """Memory per query during a search, in bytes, without its results."""
        ...

    def find(
        self, first: int, last: int, k: int, rows: np.ndarray, indices: np.ndarray
    ) -> tuple[Ranked, np.ndarray]:
        """Searches for a range of queries, and scores given pairs.

        Args:
            first: Index of the first query, in the order of the data set.
            last: Index after the last query.
            k: Number of passages to find per query.
            rows: Queries of the pairs to score, counted from `first`, int64 [P], ascending.
            indices: Indices of the passages of the pairs, int64 [P].

        Returns:
            The results, and the scores of the pairs, float32 [P].
        """
        ...

    def tokens(self, place: int) -> tuple[int, ...]:
        """The token ids of a passage; () if the searcher has no tokens."""
        ...


class Dense:
    """Searches the embedding store of a model, which is filled at the first search.

    Args:
        retriever: The model and the folder of its stores.
        judged: The data set to search.
    """

    def __init__(self, retriever: Retriever, judged: RetrievalDataset):
        opened = retriever.opened
        self.metadata = {"name": opened.name, "revision": opened.revision, **opened.settings}
        self._retriever, self._judged, self._ids = retriever, judged, list(judged.queries)

    @cached_property
    def _stores(self) -> tuple[Store, Store]:
        self._retriever.notes(self._judged)  # shows them to the user
        queries, documents = self._retriever.queries(self._judged), self._retriever.documents(self._judged)
        if queries.shape[1] != documents.shape[1]:
            raise ModelError(
                f"{self._retriever.opened.given} encodes queries in dimension {queries.shape[1]} and "
                f"passages in dimension {documents.shape[1]}; expected vectors of the same dimension."
            )
        return queries, documents

    @property
    def query_bytes(self) -> int:
        """See `Searcher`: the vector, and what the search derives from it."""
        return 12 * self._stores[0].shape[1]

    def find(
        self, first: int, last: int, k: int, rows: np.ndarray, indices: np.ndarray
    ) -> tuple[Ranked, np.ndarray]:
        """See `Searcher`. The store is read twice, chunk by chunk."""
        queries, documents = self._stores
        vectors = queries[first:last]
        results = self._retriever.top_k(self._judged, vectors, self._ids[first:last], documents, k)
        return results, self._scores(vectors, documents, rows, indices)

    def tokens(self, place: int) -> tuple[int, ...]:
        """See `Searcher`."""
        read = self._retriever.opened.model.preprocess([self._judged.passages[place]])
        return tuple(read["input_ids"].flatten().tolist()) if "input_ids" in read else ()

    def _scores(
        self, vectors: np.ndarray, documents: Store, rows: np.ndarray, indices: np.ndarray
    ) -> np.ndarray:
        queries = checked(vectors, "query")
        order = np.argsort(indices, kind="stable")
        starts = np.arange(0, len(documents) + ROWS, ROWS)
        bounds = np.searchsorted(indices[order], starts)
        scores = np.empty(len(indices), np.float32)
        for start, here, there in zip(starts.tolist(), bounds[:-1], bounds[1:], strict=False):
            if here < there:
                pairs = order[here:there]
                passages = checked(documents[start : start + ROWS], "passage", start)
                scores[pairs] = scores_of(
                    queries, passages, rows[pairs], indices[pairs] - start, self._retriever.opened.similarity
                )
        return scores


class Lexical:
    """Searches the passages of a data set with BM25; they are indexed at the first search.

    Args:
        judged: The data set to search.
        language: Language of the passages, a code or an English name, or "none"; None detects it.
        progress: True for progress bars on stderr.

    Raises:
        RecipeError: If the language is unknown.
    """

    query_bytes = 0

    def __init__(self, judged: RetrievalDataset, language: str | None = None, *, progress: bool = False):
        self._language = bm25.choose_language(language, judged.passages, judged.name)
        settings = bm25.settings_of(self._language)
        self.metadata = {"name": bm25.NAME, "revision": version("bm25s"), **settings}
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
        self, first: int, last: int, k: int, rows: np.ndarray, indices: np.ndarray
    ) -> tuple[Ranked, np.ndarray]:
        """See `Searcher`."""
        asked = {query: self._judged.queries[query] for query in self._ids[first:last]}
        results = self._index.retrieve(asked, k, drop_self=self._judged.shares_ids)
        scores = np.empty(len(indices), np.float32)
        bounds = np.searchsorted(rows, np.arange(len(asked) + 1))
        for text, here, there in zip(asked.values(), bounds[:-1], bounds[1:], strict=True):
            if here < there:
                scores[here:there] = self._index.scores(text, indices[here:there])
        return results, scores

    def tokens(self, place: int) -> tuple[int, ...]:  # noqa: ARG002 - the protocol has it
        """See `Searcher`."""
        return ()
