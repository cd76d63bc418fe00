"""Exact search: encode, compare every query with every passage, keep the k best.

The order is trec_eval's: score descending, then document id descending (as text). Ties are settled before the
cut at k, so what is kept depends on the scores and ids alone, not on chunks or file order.

Unlike beir's exact search (https://github.com/beir-cellar/beir, beir/retrieval/search/dense/exact_search.py):
- a document under the query's own id is dropped only where the set shares ids between queries and documents;
- ties straddling the cut are settled by id, not by heap order;
- sums run in float64 and are rounded to float32 (as trec_eval keeps scores), so that equal vectors tie
  wherever they lie in the corpus; a float32 matrix product gives them differences in the last bit.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import ModelError, RecipeError, ShapeError
from .judged import JudgedSet

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Run = dict[str, dict[str, float]]

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
QUERIES_AT_ONCE = 128


def retrieve(
    model: Any, judged: JudgedSet, k: int = 1000, *, batch_size: int = 32, progress: bool | None = None
) -> Run:
    """Finds the k nearest passages of each judged query with a sentence-transformers model.

    Queries go through the model's own encode_query and passages through its encode_document (its prompts, its
    Router), and they are compared by its own similarity.

    Args:
        model: a SentenceTransformer.
        judged: what to search.
        k: passages kept a query.
        batch_size: texts encoded at once.
        progress: True for progress bars on stderr; None shows them on a terminal only.

    Returns:
        float32 scores by document id by query id, best first.

    Raises:
        ModelError: if vectors are not finite, or queries and passages are not encoded alike.
    """
    import numpy as np

    bars = sys.stderr.isatty() if progress is None else progress
    options = dict(batch_size=batch_size, show_progress_bar=bars, convert_to_numpy=True)
    queries = np.asarray(model.encode_query(list(judged.queries.values()), **options), dtype=np.float32)
    passages = np.asarray(model.encode_document(judged.passages, **options), dtype=np.float32)
    if queries.ndim != 2 or queries.shape[1:] != passages.shape[1:]:
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
        progress=bars,
    )


def top_k(
    query_vectors: "np.ndarray",
    corpus_vectors: "np.ndarray",
    query_ids: Sequence[str],
    corpus_ids: Sequence[str],
    k: int,
    *,
    drop_self: bool,
    similarity: str = "dot",
    chunk: int = 16384,
    progress: bool = False,
) -> Run:
    """Compares every query with every passage and keeps the k best of each query.

    Args:
        query_vectors: float32 [Q, D].
        corpus_vectors: float32 [N, D].
        query_ids: Q ids.
        corpus_ids: N unique ids.
        k: passages kept a query; all of them where k exceeds N.
        drop_self: True to leave out the document whose id is the query's.
        similarity: one of SIMILARITIES; distances count negative.
        chunk: passages compared at once; bounds the memory (12 * 128 * chunk bytes), never the result.
        progress: True for a progress bar on stderr.

    Returns:
        float32 scores by document id by query id, best first.

    Raises:
        ModelError: if a vector holds NaN or infinity, or the similarity is not one of SIMILARITIES.
        ShapeError: if ids and vectors, or the two widths, do not agree.
        RecipeError: if k is below 1.
    """
    import torch
    from tqdm import tqdm

    Q, N, D = len(query_ids), len(corpus_ids), query_vectors.shape[-1]
    if query_vectors.shape != (Q, D) or corpus_vectors.shape != (N, D):
        raise ShapeError(
            f"queries {query_vectors.shape} for {Q} ids, corpus {corpus_vectors.shape} for {N} "
            "ids; expected [Q, D] and [N, D]."
        )
    if similarity not in SIMILARITIES:
        raise ModelError(
            f"the similarity {similarity!r} cannot be searched; known: {', '.join(SIMILARITIES)}."
        )
    queries, corpus = torch.as_tensor(query_vectors), torch.as_tensor(corpus_vectors)
    for vectors, what in ((queries, "query"), (corpus, "passage")):
        broken = ~vectors.isfinite().all(1)
        if broken.any():
            raise ModelError(
                f"{int(broken.sum())} of {len(vectors)} {what} vectors are not finite (the first: number "
                f"{int(broken.nonzero()[0]) + 1}). The model is broken, or its precision is too low."
            )

    ranking = Ranking(corpus_ids, k, drop_self=drop_self)
    blocks = _prepare(queries, similarity).split(QUERIES_AT_ONCE)
    best: list[Tensor | None] = [None] * len(blocks)
    with tqdm(total=Q * N, desc="Search", unit_scale=True, leave=False, disable=not progress) as bar:
        for start in range(0, N, chunk):
            passages = _prepare(corpus[start : start + chunk], similarity)
            for i, block in enumerate(blocks):
                scores = _compare(block, passages, similarity)
                best[i] = ranking.merge(best[i], scores, start)
                bar.update(scores.numel())
    run: Run = {}
    for i, keys in enumerate(best):
        assert keys is not None, "a corpus is never empty"
        run |= ranking.run(query_ids[i * QUERIES_AT_ONCE :][: len(keys)], keys)
    return run


def _prepare(vectors: "Tensor", similarity: str) -> "Tensor":
    """float64 [·, D], of unit length where the similarity is cosine."""
    import torch

    vectors = vectors.double()
    return torch.nn.functional.normalize(vectors) if similarity == "cosine" else vectors


def _compare(queries: "Tensor", passages: "Tensor", similarity: str) -> "Tensor":
    """float32 [Q, C] scores of prepared vectors, higher is nearer."""
    import torch

    if similarity in ("euclidean", "manhattan"):
        # The matrix-product form would give equal vectors a distance that is not quite 0.
        norm = 2.0 if similarity == "euclidean" else 1.0
        return -torch.cdist(queries, passages, p=norm, compute_mode="donot_use_mm_for_euclid_dist").float()
    return (queries @ passages.T).float()


class Ranking:
    """Keeps the k best documents of each query while scores arrive in chunks.

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
        import torch

        if k < 1:
            raise RecipeError(f"k is {k}; expected at least 1.")
        self.k, self.drop_self = k, drop_self
        order = sorted(range(len(corpus_ids)), key=corpus_ids.__getitem__)
        self.ascending = [corpus_ids[i] for i in order]
        self.ranks = torch.empty(len(order), dtype=torch.int64)
        self.ranks[torch.tensor(order)] = torch.arange(len(order))

    def merge(self, best: "Tensor | None", scores: "Tensor", start: int) -> "Tensor":
        """Takes the next chunk in.

        Args:
            best: int64 [Q, <=k+1] keys kept so far, or None.
            scores: float32 [Q, C], without NaN.
            start: place of the chunk's first document in the corpus.

        Returns:
            int64 [Q, <=k+1] keys, best first once they are cut.
        """
        import torch

        keep = self.k + self.drop_self
        ranks = self.ranks[start : start + scores.shape[1]]
        if scores.shape[1] <= keep:
            keys = _keys(scores, ranks)
        else:
            values, columns = scores.topk(keep + 1)
            keys = _keys(values[:, :keep], ranks[columns[:, :keep]])
            # topk chooses freely among equals: where they straddle the cut, choose by key instead.
            tied = values[:, keep - 1] == values[:, keep]
            if tied.any():
                keys[tied] = _keys(scores[tied], ranks).topk(keep).values
        keys = keys if best is None else torch.cat([best, keys], 1)
        return keys if keys.shape[1] <= keep else keys.topk(keep).values

    def run(self, query_ids: Sequence[str], best: "Tensor") -> Run:
        """Turns int64 [Q, <=k+1] keys into float32 scores by document id by query id, best first."""
        import torch

        best = best.sort(descending=True).values
        bits = (best >> 32).to(torch.int32)
        scores = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32).tolist()
        ranks = (best & 0xFFFFFFFF).tolist()
        run: Run = {}
        for query, row_ranks, row_scores in zip(query_ids, ranks, scores, strict=True):
            found = ((self.ascending[rank], score) for rank, score in zip(row_ranks, row_scores, strict=True))
            kept = [
                (document, score) for document, score in found if not (self.drop_self and document == query)
            ]
            run[query] = dict(kept[: self.k])
        return run


def _keys(scores: "Tensor", ranks: "Tensor") -> "Tensor":
    """int64 keys of float32 scores and int64 ranks below 2**32: they sort by score, then by rank."""
    import torch

    bits = (scores + 0.0).view(torch.int32)  # + 0.0 makes -0.0 the same as 0.0
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32) + ranks


def in_order(found: Mapping[str, float]) -> list[str]:
    """One query's document ids in trec_eval's order: float32 score descending, then id descending."""
    import numpy as np

    scores = dict(zip(found, np.fromiter(found.values(), np.float32, len(found)).tolist(), strict=True))
    return sorted(found, key=lambda document: (scores[document], document), reverse=True)
