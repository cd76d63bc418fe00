"""What is scored: a model by exact search over its vectors, over smaller ones, or through a FAISS index.

A model's vectors lie in embedding stores, one a corpus and one a set of queries, so that a stopped run goes
on, and neither another split nor another k, precision or index encodes the corpus again.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from stzoo.data.beir import RetrievalDataset
from stzoo.data.trec import Run
from stzoo.retrieval.search.faiss_build import empty, set_parameters
from stzoo.retrieval.search.faiss_index import open_index, recall
from stzoo.retrieval.search.retriever import Retriever
from stzoo.retrieval.store import PRECISIONS, Store, quantise

RECALL_SAMPLE = 1000  # queries, the first
DEPTHS = (10, 100, 1000)


@dataclass(frozen=True)
class Found:
    """What a system found.

    Attributes:
        run: its results.
        cost: what was measured of encode_s (documents), search_s (seconds), ms_per_query (encoding and search
            of all queries, divided by their number), vector_bytes, index_bytes.
        facts: more for the result, e.g. an index's recall against exact search.
        notes: what a reader of the scores should know of the results, besides the notes of the data.
    """

    run: Run
    cost: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class System:
    """Anything that turns a judged set into a run.

    Attributes:
        name: what its results are filed under.
        revision: of the model or library.
        meta: for model_meta.json.
        settings: what the scores depend on beside model and data.
        how: what else to note, e.g. the device.
        retrieve: finds.
        notes: what a reader of its scores on a set should know of the system.
    """

    name: str
    revision: str
    meta: dict[str, Any]
    settings: dict[str, Any]
    how: dict[str, Any]
    retrieve: Callable[[RetrievalDataset], Found]
    notes: Callable[[RetrievalDataset], list[str]] = lambda _: []


@dataclass(frozen=True)
class Dense:
    """One model and the ways in which it is searched.

    Attributes:
        retriever: the model and its stores.
        k: documents kept a query.
    """

    retriever: Retriever
    k: int

    def systems(self, precisions: Sequence[str], indexes: Sequence[str], how: dict[str, Any]) -> list[System]:
        """Exact search with each precision, then each FAISS index, built on the full vectors."""
        opened = self.retriever.opened
        settings = {"k": self.k, **opened.settings}
        ways: list[tuple[str, dict[str, Any], Callable[[RetrievalDataset], Found]]] = []
        for precision in precisions:
            if precision == PRECISIONS[0]:
                ways.append(("", {}, self.exact))
            else:
                ways.append((f" ({precision})", {"precision": precision}, partial(self.smaller, precision)))
        for index in indexes:
            factory, _, params = index.strip().partition(" ")
            made = empty(factory, opened.model.get_embedding_dimension(), opened.similarity)
            if params:
                set_parameters(made, factory, params)  # what is wrong is said before anything is encoded
            ways.append(
                (
                    f" ({index.strip()})",
                    {"index": index.strip()},
                    partial(self.indexed, factory, params or None),
                )
            )
        return [
            System(
                opened.name + label,
                opened.revision,
                {**opened.meta, "name": opened.name + label, **about},
                settings | about,
                how,
                retrieve,
                self.retriever.notes,
            )
            for label, about, retrieve in ways
        ]

    def exact(self, judged: RetrievalDataset) -> Found:
        """Exact search over full vectors."""
        return self._search(judged, self.retriever.documents(judged))

    def smaller(self, precision: str, judged: RetrievalDataset) -> Found:
        """Search over vectors of a smaller precision, made from the full ones."""
        full = self.retriever.documents(judged)
        folder = full.folder.with_name(f"{full.folder.name}-{precision}")
        return self._search(judged, quantise(full, folder, precision))

    def indexed(self, factory: str, search_params: str | None, judged: RetrievalDataset) -> Found:
        """Search through a FAISS index; its recall against exact search is among the facts."""
        retriever, opened = self.retriever, self.retriever.opened
        queries, documents = retriever.queries(judged), retriever.documents(judged)
        built = open_index(
            documents.folder / "indexes",
            documents,
            factory,
            similarity=opened.similarity,
            memory_gib=retriever.memory_gib,
            progress=retriever.progress,
        )
        ids = list(judged.queries)
        begun = time.monotonic()
        run = built.search(
            queries[:],
            ids,
            judged.corpus_ids,
            self.k,
            drop_self=judged.shares_ids,
            search_params=search_params,
            progress=retriever.progress,
        )
        seconds = time.monotonic() - begun
        sample = ids[:RECALL_SAMPLE]
        exact = retriever.top_k(judged, queries[: len(sample)], sample, documents, self.k)
        facts = {
            "recall_against_exact": {f"@{k}": round(recall(exact, run, k), 5) for k in DEPTHS if k <= self.k},
            "recall_queries": len(sample),
            "index_seconds": built.facts["seconds"],
        }
        return Found(run, _cost(queries, documents, seconds) | {"index_bytes": built.nbytes}, facts)

    def _search(self, judged: RetrievalDataset, documents: Store) -> Found:
        queries = self.retriever.queries(judged)
        begun = time.monotonic()
        run = self.retriever.top_k(judged, queries[:], list(judged.queries), documents, self.k)
        return Found(run, _cost(queries, documents, time.monotonic() - begun))


def _cost(queries: Store, documents: Store, seconds: float) -> dict[str, float]:
    return {
        "encode_s": round(documents.seconds, 2),
        "search_s": round(seconds, 3),
        "ms_per_query": round(1000 * (queries.seconds + seconds) / len(queries), 3),
        "vector_bytes": documents.nbytes,
    }
