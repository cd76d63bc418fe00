"""Exact search: compare every query with every passage, keep the k best.

The order is trec_eval's: score descending, then document id descending (as text). Ties are settled before the
cut at k, so what is kept depends on the scores and ids alone, not on chunks, threads, device or file order.

How it is fast and exact at once: a float32 matrix product compares all pairs, tile by tile, and is right to
within a bound that is known. Only pairs that it puts within that bound of the k-th best so far are scored for
good: in float64, each by itself, always in the same order of addition, then rounded to float32 (as trec_eval
keeps scores). So equal vectors tie wherever they lie, and after the first tiles few pairs come that near.

Unlike beir's exact search (https://github.com/beir-cellar/beir, beir/retrieval/search/dense/exact_search.py):
- a document under the query's own id is dropped only where the set shares ids between queries and documents;
- ties straddling the cut are settled by id, not by heap order;
- no score is taken from a float32 matrix product, whose last bits depend on where a vector lies.
"""

import math
import sys
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from stzoo.data.beir import RetrievalDataset
from stzoo.data.trec import Run
from stzoo.errors import ModelError, RecipeError, ShapeError
from stzoo.models.encode import encode
from stzoo.retrieval.search.exact_kernels import (
    PIECE,
    SIMILARITIES,
    Chunk,
    checked,
    full_precision,
    scores_of,
)
from stzoo.retrieval.search.ranking import Ranking

QUERIES, PASSAGES, FEWEST = 128, 16384, 1024  # of a tile; its scores stay in a core's share of the cache
PAIR_BYTES = 96  # of all arrays for a pair of a tile if every pair went through the second pass


class Vectors(Protocol):
    """float32 [N, D] of which slices of rows can be taken: an array, or a store on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """N, D."""
        ...

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """float32 [rows, D]."""
        ...


def retrieve(
    model: Any,
    judged: RetrievalDataset,
    k: int = 1000,
    *,
    batch_tokens: int | None = None,
    memory_gib: float = 2.0,
    progress: bool | None = None,
) -> Run:
    """Finds the k nearest passages of each judged query with a sentence-transformers model.

    Queries go through the model's own encode_query and passages through its encode_document (its prompts, its
    Router), and they are compared by its own similarity.

    Args:
        model: a SentenceTransformer.
        judged: what to search.
        k: passages kept a query.
        batch_tokens: tokens encoded at once, padding included; None suits the device.
        memory_gib: bound on the memory of the search, see `top_k`.
        progress: True for progress bars on stderr; None shows them on a terminal only.

    Returns:
        float32 scores by document id by query id, best first.

    Raises:
        ModelError: if vectors are not finite, or queries and passages are not encoded alike.
    """
    bars = sys.stderr.isatty() if progress is None else progress
    questions = list(judged.queries.values())
    queries = encode(
        model, questions, role="query", task=judged.task, batch_tokens=batch_tokens, progress=bars
    )
    passages = encode(model, judged.passages, role="document", batch_tokens=batch_tokens, progress=bars)
    if queries.shape[1] != passages.shape[1]:
        raise ModelError(
            f"the model encodes queries as {list(queries.shape)} and passages as {list(passages.shape)}; "
            "expected one vector a text, of one width."
        )
    return top_k(
        queries,
        passages,
        list(judged.queries),
        judged.corpus_ids,
        k,
        drop_self=judged.shares_ids,
        similarity=model.similarity_fn_name,
        memory_gib=memory_gib,
        device="cuda" if model.device.type == "cuda" else "cpu",
        progress=bars,
    )


def top_k(
    query_vectors: np.ndarray,
    corpus_vectors: Vectors,
    query_ids: Sequence[str],
    corpus_ids: Sequence[str],
    k: int,
    *,
    drop_self: bool,
    similarity: str = "dot",
    memory_gib: float = 2.0,
    device: str = "cpu",
    progress: bool = False,
) -> Run:
    """Compares every query with every passage and keeps the k best of each query.

    It works on as many threads as torch has been given, and sets numpy's linear algebra to one each.

    Args:
        query_vectors: float32 [Q, D].
        corpus_vectors: float32 [N, D]; a store is read once, chunk by chunk.
        query_ids: Q ids.
        corpus_ids: N unique ids.
        k: passages kept a query; all of them where k exceeds N.
        drop_self: True to leave out the document whose id is the query's.
        similarity: one of SIMILARITIES; distances count negative.
        memory_gib: GiB that chunks of passages, their float32 copies and norms and, for each thread, a block
            of queries with its scores, candidates and their keys may take at most. Beside it come the inputs,
            the result (8 bytes a kept document) and the order of the ids (8 bytes a document; while they are
            sorted, a copy of the ids as UTF-8 and 8 bytes more). It bounds the memory, never the result.
        device: of torch; a GPU does the float32 product (of all similarities but manhattan).
        progress: True for a progress bar on stderr.

    Returns:
        float32 scores by document id by query id, best first; a query's are unpacked when they are asked for.

    Raises:
        ModelError: if a vector holds NaN or infinity, or the similarity is not one of SIMILARITIES.
        ShapeError: if ids and vectors, or the two widths, do not agree.
        RecipeError: if k is below 1, or memory_gib too small for one query.
    """
    from concurrent.futures import ThreadPoolExecutor

    Q, N, D = len(query_ids), len(corpus_ids), query_vectors.shape[-1]
    if query_vectors.shape != (Q, D) or tuple(corpus_vectors.shape) != (N, D):
        raise ShapeError(
            f"queries {query_vectors.shape} for {Q} ids, corpus {corpus_vectors.shape} for {N} "
            "ids; expected [Q, D] and [N, D]."
        )
    if similarity not in SIMILARITIES:
        raise ModelError(
            f"the similarity {similarity!r} cannot be searched; known: {', '.join(SIMILARITIES)}."
        )
    ranking = Ranking(corpus_ids, k, drop_self=drop_self)
    threads, block, size = _sizes(memory_gib, torch.get_num_threads(), Q, N, D, ranking.width)
    queries = checked(query_vectors, "query")
    kept = ranking.none(Q)
    buffers = [np.empty((block, size), np.float32) for _ in range(threads)]

    def search(thread: int) -> None:
        for start in range(thread * block, Q, threads * block):
            here = slice(start, start + block)
            few = queries[here]
            rows, columns = chunk.near(few, ranking.worst(kept[here]), ranking.width, buffers[thread])
            scores = scores_of(few, chunk.side, rows, columns, similarity)
            kept[here] = ranking.merge(kept[here], rows, columns + begin, scores)

    with (
        tqdm(total=Q * N, desc="Search", unit_scale=True, leave=False, disable=not progress) as bar,
        ThreadPoolExecutor(threads) as pool,
        threadpool_limits(1, user_api="blas"),
        full_precision(),
    ):
        for begin in range(0, N, size):
            side = checked(corpus_vectors[begin : begin + size], "passage", begin)
            chunk = Chunk(side, similarity, device)
            list(pool.map(search, range(threads)))
            bar.update(Q * len(side.norms))
    return ranking.run(query_ids, kept)


def _sizes(
    memory_gib: float, threads: int, queries: int, passages: int, width: int, kept: int
) -> tuple[int, int, int]:
    """Threads, queries a block and passages a chunk that fit into memory_gib.

    Raises:
        RecipeError: if not even one query and the smallest chunk do.
    """
    block = min(QUERIES, max(1, -(-queries // threads)))
    chunk, least = max(1, min(PASSAGES, passages)), min(FEWEST, passages)
    threads = min(threads, max(1, -(-queries // block)))
    while True:
        tile = block * (24 * width + 32 * kept + PAIR_BYTES * chunk) + 48 * PIECE
        need = ((12 * width + 24) * chunk + threads * tile) / 2**30
        if need <= memory_gib:
            return threads, block, chunk
        if chunk > least:
            chunk = max(least, chunk // 2)
        elif threads > 1:
            threads -= 1
        elif block > 1:
            block //= 2
        else:
            least_gib = math.ceil(need * 1e4) / 1e4
            raise RecipeError(
                f"memory_gib is {memory_gib:g}; expected at least {least_gib:g} for vectors of {width} "
                f"numbers and {kept} documents kept a query."
            )
