"""Exact search: compare every query with every passage and keep the k best.

Results are in trec_eval's order: by score descending, then by document id descending (as text). Ties are
broken before the cut at k, so the results depend only on scores and ids, not on chunks, threads, device or
file order.

It is fast because it has two passes. A float32 matrix product compares all pairs, tile by tile, with a known
error bound. Pairs within that bound of the k-th best so far wait until the end of a chunk of passages; those
still within it then are scored again: in float64, one by one, always in the same order of addition, and then
rounded to float32, as trec_eval does. So equal vectors tie wherever they are, and few pairs reach the second
pass. faiss.knn takes more time for the product alone on AMD CPUs with AVX-512; see stzoo/models/onednn.py.

Unlike beir's exact search (https://github.com/beir-cellar/beir, beir/retrieval/search/dense/exact_search.py):
- a document with the query's own id is dropped only if queries and documents of the data set share ids;
- ties across the cut are broken by id, not by heap order;
- no score is taken from a float32 matrix product, whose last bits depend on a vector's position.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from stzoo.data.beir import RetrievalDataset
from stzoo.data.ranking import Best, Ranked, Ranking
from stzoo.errors import ModelError, RecipeError, ShapeError
from stzoo.retrieval.search.exact_kernels import (
    PIECE,
    SIMILARITIES,
    Chunk,
    Side,
    checked,
    full_precision,
    one_thread_each,
)
from stzoo.retrieval.store import Store
from stzoo.utils.distributed import gathered, own_share
from stzoo.utils.messages import counted, notify, show_progress
from stzoo.utils.progress import progress_bar
from stzoo.utils.workers import applied, has_workers, started

QUERIES, MIN_QUERIES, TILE = 256, 64, 2048  # compared at once, so that scores stay in a core's cache
PASSAGES, MIN_PASSAGES = 65536, 1024  # per chunk
PAIRS = 10**9  # which one process compares in the time in which workers start
BLOCKS = 128  # of passages, at most, that workers search one by one
PAIR_BYTES = 128  # of all arrays per pair that waits for the second pass


class Vectors(Protocol):
    """float32 [N, D] that can be sliced by rows: an array, or a store on disk."""

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
    share: bool = False,
) -> Ranked:
    """Finds the k nearest passages of each judged query with a sentence-transformers model.

    Queries are encoded by the model's encode_query and passages by its encode_document, with its prompts and
    its Router, and compared by its similarity.

    Args:
        model: A SentenceTransformer.
        judged: The data set to search.
        k: Number of results per query.
        batch_tokens: Maximum number of tokens per batch, padding included; None chooses one for the device.
        memory_gib: Memory limit of the search in GiB; see `top_k`.
        progress: True shows progress bars on stderr; None shows them on a terminal only.
        share: True if each process of a training encodes a part of the texts; all must call this together.

    Returns:
        float32 scores by query id and document id, best first.

    Raises:
        ModelError: If vectors are not finite, or queries and passages have different dimensions.
    """
    from stzoo.models.encode import encode  # takes seconds, and Ray's workers that search do not need it

    show_bars = show_progress(progress)

    def vectors(texts: Sequence[str], role: str, task: str = "") -> np.ndarray:
        ours = own_share(texts) if share else texts
        found = encode(model, ours, role=role, task=task, batch_tokens=batch_tokens, progress=show_bars)
        return gathered(found) if share else found

    queries = vectors(list(judged.queries.values()), "query", judged.task)
    passages = vectors(judged.passages, "document")
    if queries.shape[1] != passages.shape[1]:
        raise ModelError(
            f"the model encodes queries as {list(queries.shape)} and passages as {list(passages.shape)}; "
            "expected vectors of the same dimension."
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
        progress=show_bars,
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
) -> Ranked:
    """Finds the k nearest passages of each query, exactly.

    It runs on as many threads as torch uses, each of which compares other queries. Workers of another engine
    (see `stzoo.utils.workers`) search a store block by block, and read it for themselves.

    Args:
        query_vectors: float32 [Q, D].
        corpus_vectors: float32 [N, D]; a store is read once, chunk by chunk.
        query_ids: Q ids.
        corpus_ids: N unique ids.
        k: Number of results per query; all N passages if k exceeds N.
        drop_self: True drops the document whose id is the query's.
        similarity: One of SIMILARITIES; the score of a distance is its negative.
        memory_gib: Memory limit in GiB for chunks of passages with their copies and norms and, per thread, a
            block of queries with its scores and candidates. Inputs, results (8 bytes per document kept) and
            the order of the ids (8 bytes per document; while sorting, 8 more and a copy of the ids) come on
            top. The limit never changes the result.
        device: Torch device of the float32 product; manhattan always runs on the CPU.
        progress: True shows a progress bar on stderr.

    Returns:
        float32 scores by query id and document id, best first. A query's results are unpacked on access.

    Raises:
        ModelError: If a vector has NaN or infinity, or the similarity is not one of SIMILARITIES.
        ShapeError: If ids and vectors, or the dimensions of queries and passages, do not match.
        RecipeError: If k is below 1, or memory_gib is too small for one query.
    """
    Q, N, D = len(query_ids), len(corpus_ids), query_vectors.shape[-1]
    if query_vectors.shape != (Q, D) or tuple(corpus_vectors.shape) != (N, D):
        raise ShapeError(
            f"query vectors have the shape {list(query_vectors.shape)} and corpus vectors "
            f"{list(corpus_vectors.shape)}; expected [{Q}, D] and [{N}, D], one vector per id."
        )
    if similarity not in SIMILARITIES:
        raise ModelError(
            f"the similarity {similarity!r} is not supported; expected one of {', '.join(SIMILARITIES)}."
        )
    ranking = Ranking(corpus_ids, k, drop_self=drop_self)
    compare = _Compare(checked(query_vectors, "query"), similarity, memory_gib, device)
    bar = progress_bar(total=Q * N, desc="Search", unit=" pairs", unit_scale=True, disable=not progress)
    with bar:
        if has_workers() and isinstance(corpus_vectors, Store) and N > PASSAGES and Q * N > PAIRS:
            kept = _by_workers(compare, corpus_vectors, ranking, bar)
        else:
            kept = compare.nearest(corpus_vectors, ranking, bar=bar)
    return ranking.run(query_ids, kept)


@dataclass(frozen=True)
class _Compare:
    """Compares queries with passages."""

    queries: Side
    similarity: str
    memory_gib: float
    device: str

    def nearest(self, passages: Vectors, best: Best, begin: int = 0, bar: Any = None) -> np.ndarray:
        """The nearest passages of each query.

        Args:
            passages: float32 [N, D].
            best: What keeps the best of the N passages.
            begin: Number of passages before these.
            bar: Progress bar to advance.

        Returns:
            int64 [Q, width], their keys.
        """
        (N, D), Q = passages.shape, len(self.queries.norms)
        threads, block, size = _sizes(self.memory_gib, torch.get_num_threads(), Q, N, D, best.width)
        longest = float(self.queries.norms.max(initial=0))
        kept = best.none(Q)

        def search(start: int) -> None:
            here = slice(start, start + block)
            kept[here] = chunk.merge(self.queries[here], kept[here], best, TILE)

        with one_thread_each(threads) as pool, full_precision():
            for start in range(0, N, size):
                side = checked(passages[start : start + size], "passage", begin + start)
                chunk = Chunk(side, start, self.similarity, longest, self.device)
                list(pool.map(search, range(0, Q, block)))
                if bar is not None:
                    bar.update(Q * len(side.norms))
        return kept

    def on(self, device: str | None) -> "_Compare":
        """See `stzoo.utils.workers.on_device`."""
        return replace(self, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))


@dataclass(frozen=True)
class _CompareRows:
    """Compares queries with rows of a store, which each worker reads for itself."""

    compare: _Compare
    store: Store

    def __call__(self, block: tuple[int, Best]) -> np.ndarray | None:
        """The nearest rows of each query; None on a machine that does not have these rows of the store."""
        begin, best = block
        if not self.store.has(begin, begin + len(best.ranks)):
            return None
        return self.search(begin, best)

    def search(self, begin: int, best: Best) -> np.ndarray:
        """The nearest rows of each query."""
        return self.compare.nearest(_Rows(self.store, begin, begin + len(best.ranks)), best, begin)

    def on(self, device: str | None) -> "_CompareRows":
        """See `stzoo.utils.workers.on_device`."""
        return replace(self, compare=self.compare.on(device))


@dataclass(frozen=True)
class _Rows:
    """Rows `begin` to `end` of a store, counted from 0."""

    store: Store
    begin: int
    end: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.end - self.begin, self.store.shape[1]

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        start, stop, _ = rows.indices(self.end - self.begin)
        return self.store[self.begin + start : self.begin + stop]


def _by_workers(compare: _Compare, store: Store, ranking: Ranking, bar: Any) -> np.ndarray:
    """`_Compare.nearest` for all rows of a store, by the workers of the current engine."""
    N, Q = len(store), len(compare.queries.norms)
    kept, size = ranking.none(Q), PASSAGES * -(-N // (PASSAGES * BLOCKS))
    compare_rows = _CompareRows(compare, replace(store, folder=store.folder.absolute()))

    def block(number: int) -> tuple[int, Best]:
        begin = number * size
        return begin, Best(ranking.ranks[begin : begin + size], ranking.width)

    alone = False
    with started(compare_rows) as workers:
        for number, found in applied(workers, ((one, block(one)) for one in range(-(-N // size)))):
            if found is None:
                if not alone:
                    notify(
                        f"a worker cannot read {store.folder}, so this process searches in its place. "
                        "Workers search if their machines share this folder."
                    )
                alone, found = True, compare_rows.search(*block(number))
            kept = ranking.join(kept, found)
            bar.update(Q * min(size, N - number * size))
    return kept


def _sizes(
    memory_gib: float, threads: int, queries: int, passages: int, width: int, kept: int
) -> tuple[int, int, int]:
    """The numbers of threads, queries per block and passages per chunk that fit into memory_gib.

    Raises:
        RecipeError: If not even one query and the smallest chunk fit.
    """
    block = min(QUERIES, max(1, -(-queries // threads)))
    chunk, least = max(1, min(PASSAGES, passages)), min(MIN_PASSAGES, passages)
    threads = min(threads, max(1, -(-queries // block)))
    while True:
        pairs = 3 * kept + min(TILE, chunk)
        tile = block * (24 * width + 32 * kept + PAIR_BYTES * pairs) + 48 * PIECE
        need = ((8 * width + 40) * chunk + threads * tile) / 2**30
        if need <= memory_gib:
            return threads, block, chunk
        if block > MIN_QUERIES:
            block //= 2
        elif chunk > least:
            chunk = max(least, chunk // 2)
        elif threads > 1:
            threads -= 1
        elif block > 1:
            block //= 2
        else:
            least_gib = math.ceil(need * 1e4) / 1e4
            raise RecipeError(
                f"memory_gib is {memory_gib:g}; expected at least {least_gib:g} for vectors of dimension "
                f"{width} and {counted(kept, 'result')} per query."
            )
