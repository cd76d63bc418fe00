"""Ways to search with a model: exact search over its vectors, over smaller vectors, or by a FAISS index.

A model's vectors are saved in embedding stores, one per corpus and one per set of queries. An interrupted run
resumes from them, and another split, k, precision or index does not encode the corpus again.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from stzoo.data.beir import RetrievalDataset
from stzoo.data.ranking import Ranked
from stzoo.retrieval.search.faiss_build import empty, set_parameters
from stzoo.retrieval.search.faiss_index import open_index, recall
from stzoo.retrieval.search.retriever import Retriever
from stzoo.retrieval.store import PRECISIONS, Store, quantise

RECALL_SAMPLE = 1000  # the first queries, on which an index is compared with exact search
DEPTHS = (10, 100, 1000)


@dataclass(frozen=True)
class Retrieved:
    """A system's results on a data set.

    Attributes:
        run: The results.
        cost: Those measured of encode_s and search_s (seconds to encode the documents and to search),
            ms_per_query (mean time to encode a query and search), vector_bytes and index_bytes.
        run_info: More to record in the result file, e.g. an index's recall against exact search.
        notes: Notes on these results for readers of the scores.
    """

    run: Ranked
    cost: dict[str, float] = field(default_factory=dict)
    run_info: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class System:
    """Anything that retrieves documents for the queries of a data set.

    Attributes:
        name: Name under which its results are saved.
        revision: Revision of the model, or version of the library.
        meta: Content of model_meta.json.
        settings: What the scores depend on besides the model and the data.
        run_info: More to record in the result file, e.g. the device.
        retrieve: Function that searches a data set.
        notes: Function that returns notes on the system for readers of its scores on a data set.
    """

    name: str
    revision: str
    meta: dict[str, Any]
    settings: dict[str, Any]
    run_info: dict[str, Any]
    retrieve: Callable[[RetrievalDataset], Retrieved]
    notes: Callable[[RetrievalDataset], list[str]] = lambda _: []


@dataclass(frozen=True)
class Dense:
    """A model and the ways to search with it.

    Attributes:
        retriever: The model and its embedding stores.
        k: Number of results per query.
    """

    retriever: Retriever
    k: int

    def systems(
        self, precisions: Sequence[str], indexes: Sequence[str], run_info: dict[str, Any]
    ) -> list[System]:
        """Exact search with each precision, then each FAISS index over the full vectors."""
        opened = self.retriever.opened
        settings = {"k": self.k, **opened.settings}
        ways: list[tuple[str, dict[str, Any], Callable[[RetrievalDataset], Retrieved]]] = []
        for precision in precisions:
            if precision == PRECISIONS[0]:
                ways.append(("", {}, self.exact))
            else:
                ways.append((f" ({precision})", {"precision": precision}, partial(self.smaller, precision)))
        for index in indexes:
            factory, _, params = index.strip().partition(" ")
            untrained = empty(factory, opened.model.get_embedding_dimension(), opened.similarity)
            if params:
                set_parameters(untrained, factory, params)  # reports mistakes before anything is encoded
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
                {**opened.meta, "name": opened.name + label, **variant},
                settings | variant,
                run_info,
                retrieve,
                self.retriever.notes,
            )
            for label, variant, retrieve in ways
        ]

    def exact(self, judged: RetrievalDataset) -> Retrieved:
        """Exact search over the full vectors."""
        return self._search(judged, self.retriever.documents(judged))

    def smaller(self, precision: str, judged: RetrievalDataset) -> Retrieved:
        """Search over vectors of a smaller precision, quantised from the full ones."""
        full = self.retriever.documents(judged)
        folder = full.folder.with_name(f"{full.folder.name}-{precision}")
        return self._search(judged, quantise(full, folder, precision))

    def indexed(self, factory: str, search_params: str | None, judged: RetrievalDataset) -> Retrieved:
        """Search by a FAISS index; `run_info` has its recall against exact search."""
        retriever, opened = self.retriever, self.retriever.opened
        queries, documents = retriever.queries(judged), retriever.documents(judged)
        index = open_index(
            documents.folder / "indexes",
            documents,
            factory,
            similarity=opened.similarity,
            memory_gib=retriever.memory_gib,
            progress=retriever.progress,
        )
        ids = list(judged.queries)
        start = time.monotonic()
        run = index.search(
            queries[:],
            ids,
            judged.corpus_ids,
            self.k,
            drop_self=judged.shares_ids,
            search_params=search_params,
            progress=retriever.progress,
        )
        seconds = time.monotonic() - start
        sample = ids[:RECALL_SAMPLE]
        exact = retriever.top_k(judged, queries[: len(sample)], sample, documents, self.k)
        run_info = {
            "recall_against_exact": {f"@{k}": round(recall(exact, run, k), 5) for k in DEPTHS if k <= self.k},
            "recall_queries": len(sample),
            "index_seconds": index.metadata["seconds"],
        }
        return Retrieved(run, _cost(queries, documents, seconds) | {"index_bytes": index.nbytes}, run_info)

    def _search(self, judged: RetrievalDataset, documents: Store) -> Retrieved:
        queries = self.retriever.queries(judged)
        start = time.monotonic()
        run = self.retriever.top_k(judged, queries[:], list(judged.queries), documents, self.k)
        return Retrieved(run, _cost(queries, documents, time.monotonic() - start))


def _cost(queries: Store, documents: Store, seconds: float) -> dict[str, float]:
    return {
        "encode_s": round(documents.seconds, 2),
        "search_s": round(seconds, 3),
        "ms_per_query": round(1000 * (queries.seconds + seconds) / len(queries), 3),
        "vector_bytes": documents.nbytes,
    }
