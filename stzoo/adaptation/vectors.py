"""Helpers for vectors in memory."""

import numpy as np

from stzoo.retrieval.store import Store

READ_ROWS = 10_000  # vectors to read from a store at once
QUERIES_AT_ONCE = 256


def read_rows(store: Store, numbers: np.ndarray) -> np.ndarray:
    """Some vectors of a store, float32 [n, D]; `numbers` is ascending int64 [n]."""
    rows = np.empty((len(numbers), store.shape[1]), np.float32)
    for first in range(0, len(store), READ_ROWS):
        here = slice(*np.searchsorted(numbers, [first, first + READ_ROWS]))
        if here.start < here.stop:
            rows[here] = store[first : first + READ_ROWS][numbers[here] - first]
    return rows


def unit(vectors: np.ndarray) -> np.ndarray:
    """The vectors with length 1, float32."""
    lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return np.ascontiguousarray(vectors / lengths, dtype=np.float32)


def ndcg(queries: np.ndarray, documents: np.ndarray, sources: np.ndarray) -> float:
    """Mean nDCG@10 of queries with one relevant passage each; of tied passages, the relevant one is first.

    Args:
        queries: float32 [Q, D].
        documents: float32 [N, D].
        sources: int64 [Q], the number of the relevant passage of each query.
    """
    gains = []
    for first in range(0, len(queries), QUERIES_AT_ONCE):
        rows = slice(first, first + QUERIES_AT_ONCE)
        similarities = queries[rows] @ documents.T
        own = similarities[np.arange(len(similarities)), sources[rows]]
        ranks = (similarities > own[:, None]).sum(1)
        gains.append(np.where(ranks < 10, 1 / np.log2(ranks + 2.0), 0.0))
    return float(np.concatenate(gains).mean())
