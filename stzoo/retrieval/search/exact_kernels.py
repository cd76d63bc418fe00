"""The two passes of exact search over a chunk of passages: selecting candidate pairs, and scoring them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from stzoo.data.ranking import Best
from stzoo.errors import ModelError
from stzoo.models.onednn import product

DISTANCES = ("euclidean", "manhattan")
SIMILARITIES = ("cosine", "dot", *DISTANCES)
SHORTEST = 1e-12  # sentence-transformers' lower bound for the length of a vector under cosine
SMALL = 2.0**-40  # vectors may be divided in float32 by more than this and less than its inverse
PIECE = 2**15  # numbers of vectors scored at once in the second pass, so that they stay in the cache
Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]  # int64 rows, ascending, int64 columns, float32 scores


@dataclass(frozen=True)
class Side:
    """Queries or passages: float32 vectors [n, D] and their float64 norms [n]."""

    vectors: np.ndarray
    norms: np.ndarray

    def __getitem__(self, rows: slice) -> "Side":
        return Side(self.vectors[rows], self.norms[rows])


def checked(vectors: np.ndarray, what: str, begin: int = 0) -> Side:
    """Checks that vectors are finite, and computes their norms.

    Args:
        vectors: [n, D], converted to float32.
        what: "query" or "passage", for the error message.
        begin: Number of vectors before these, for the error message.

    Raises:
        ModelError: If a vector has NaN or infinity.
    """
    vectors = np.asarray(vectors, np.float32)
    norms, step = np.empty(len(vectors)), _rows_per_piece(vectors)
    for start in range(0, len(norms), step):
        piece = vectors[start : start + step].astype(np.float64, "C")
        np.einsum("pd,pd->p", piece, piece, out=norms[start : start + step])
    broken = np.flatnonzero(~np.isfinite(norms))
    if len(broken):
        raise ModelError(
            f"NaN or infinity in {len(broken)} of {len(vectors)} {what} vectors"
            f"{f' after the first {begin}' if begin else ''} (the first: number {begin + broken[0] + 1}). "
            "The model is damaged, or needs a higher precision (--dtype float32)."
        )
    return Side(vectors, np.sqrt(norms))


class Chunk:
    """Passages to compare queries with.

    The first pass compares vectors in float32, with rough scores in units of its own: under cosine and dot,
    products of vectors that are at most 1 long; under manhattan, negative distances of such vectors; under
    euclidean q.d - d.d / 2, which is highest for the nearest, as q.q - 2 (q.d - d.d / 2) is the square of the
    distance. Vectors become 1 long by dividing the queries, which are fewer, for the passages too, unless
    that might overflow or underflow.

    Args:
        side: The passages.
        begin: Number of passages before these.
        similarity: One of SIMILARITIES.
        longest: The norm of the longest query.
        device: Torch device of the first pass's matrix product.
    """

    def __init__(self, side: Side, begin: int, similarity: str, longest: float, device: str):
        self.side, self.begin, self.similarity = side, begin, similarity
        self.device = "cpu" if similarity == "manhattan" else device
        self.unit = max(float(side.norms.max()), longest if similarity in DISTANCES else 0.0) or 1.0
        lengths = np.maximum(side.norms, SHORTEST) if similarity == "cosine" else np.array([self.unit])
        # a vector below the lower bound of lengths may be subnormal
        shortest = side.norms[side.norms > 0].min(initial=np.inf) if similarity == "cosine" else self.unit
        self.usual = similarity == "manhattan" or (shortest > SMALL and self.unit < 1 / SMALL)
        if self.usual:
            rough = np.require(side.vectors, requirements=["C", "W"])
        else:
            rough = divided(side.vectors, lengths[:, None])
        self.rough = torch.from_numpy(rough).to(self.device)
        self.bias = self.factors = None  # of the columns of a product, float32 [n]
        if similarity == "euclidean":
            self.bias = torch.from_numpy(-0.5 * (side.norms / self.unit) ** 2).to(self.rough)
        elif similarity == "cosine" and self.usual:
            self.factors = torch.from_numpy(self.unit / lengths).to(self.rough)

    @np.errstate(over="ignore")
    def merge(self, queries: Side, kept: np.ndarray, best: Best, tile: int) -> np.ndarray:
        """Adds the passages to the best of some queries.

        Args:
            queries: Queries to compare.
            kept: int64 [Q, width], the keys of the best so far.
            best: What keeps the best.
            tile: Number of passages compared at once.

        Returns:
            int64 [Q, width], the keys of the best with these passages, unordered.
        """
        first = FirstPass(self, queries)
        (Q, width), N = kept.shape, len(self.side.norms)
        select = _select if self.device == "cpu" else _select_on_device
        limit = first.limit(best.worst(kept))
        waiting: list[Pairs] = []
        count, room = 0, 2 * Q * width
        for start in range(0, N, tile):
            rows, columns, scores = select(first.scores(start, start + tile), limit, first.slack, width)
            waiting.append((rows, columns + start, scores))
            count += len(rows)
            last = start + tile >= N
            if count <= room and not last:
                continue
            # Raise the limit to the best by rough scores, and drop what is below.
            rows, columns, scores = map(np.concatenate, zip(*waiting, strict=True))
            order = np.argsort(rows.astype(np.uint16), kind="stable")
            rows, columns, scores = rows[order], columns[order], scores[order]
            roughly = best.merge(kept, rows, columns + self.begin, first.full(scores, rows))
            limit = first.limit(best.worst(roughly))
            near = np.flatnonzero(scores >= limit[rows])
            waiting, count = [(rows[near], columns[near], scores[near])], len(near)
            if last or count > 2 * Q * width:
                rows, columns, _ = waiting.pop()
                exact = scores_of(queries, self.side, rows, columns, self.similarity)
                kept, count = best.merge(kept, rows, columns + self.begin, exact), 0
            room = count + Q * width
        return kept


class FirstPass:
    """Rough scores of some queries with the passages of a chunk."""

    def __init__(self, chunk: Chunk, queries: Side):
        self.chunk = chunk
        D, similarity = queries.vectors.shape[1], chunk.similarity
        lengths = np.full(len(queries.norms), chunk.unit)  # of what a query is divided by
        if similarity not in DISTANCES:
            lengths = np.maximum(queries.norms, SHORTEST if similarity == "cosine" else 1e-100)
        self.unit = np.ones_like(lengths)  # a score is so many times a rough score
        if similarity != "cosine":
            self.unit = lengths * (chunk.unit if similarity == "dot" else 1)
        self.half_squares = 0.5 * (queries.norms / lengths) ** 2
        if similarity == "manhattan":
            self.queries = torch.from_numpy(queries.vectors)
        else:
            by = lengths * chunk.unit if chunk.usual else lengths
            self.queries = torch.from_numpy(divided(queries.vectors, by[:, None])).to(chunk.device)
        # For vectors of length 1 or less, a sum of D products has an error of at most D * 2**-24 in any
        # order of addition, half as much again if it begins with a bias of -1/2, and does not overflow. 32
        # more for rounding vectors, scores and limits. Manhattan's distances, up to 2 sqrt(D), are added in
        # float64. 2**-148 is for scores that float32 rounds to a multiple of 2**-149.
        roundings = {"manhattan": 64 * D**0.5, "euclidean": 1.5 * D + 32}.get(similarity, D + 32)
        error = 2.0**-24 * roundings + 2.0**-148 / self.unit
        self.slack = 2 * error  # of two scores that are compared

    def scores(self, start: int, stop: int) -> Tensor:
        """Float32 [Q, stop - start], the rough scores of passages."""
        passages = self.chunk.rough[start:stop]
        if self.chunk.similarity == "manhattan":
            far = cdist(self.queries, passages, "cityblock")
            return torch.from_numpy(far).div_(-self.chunk.unit).float()
        bias, factors = self.chunk.bias, self.chunk.factors
        scores = product(self.queries, passages, None if bias is None else bias[start:stop])
        return scores if factors is None else scores.mul_(factors[start:stop])

    def full(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """float32 [P], the scores that rough scores are for."""
        scores = scores.astype(np.float64)
        if self.chunk.similarity == "euclidean":
            scores = -np.sqrt(np.maximum(2 * (self.half_squares[rows] - scores), 0))
        return (scores * self.unit[rows]).astype(np.float32)

    def limit(self, worst: np.ndarray) -> np.ndarray:
        """float32 [Q], the least rough scores of pairs whose score may reach the `worst` kept."""
        # A score that overflows float32 is infinite, and others may be as large.
        least = np.minimum(worst, np.finfo(np.float32).max, dtype=np.float64) / self.unit
        if self.chunk.similarity == "euclidean":
            least = self.half_squares - 0.5 * least**2
        return (least - self.slack).astype(np.float32)


def scores_of(
    queries: Side, passages: Side, rows: np.ndarray, columns: np.ndarray, similarity: str
) -> np.ndarray:
    """Second pass: float32 [P], the scores of pairs; a higher score is nearer."""
    sums = _sums(queries.vectors, passages.vectors, rows, columns, similarity)
    if similarity == "cosine":
        sums /= np.maximum(queries.norms, SHORTEST)[rows] * np.maximum(passages.norms, SHORTEST)[columns]
    elif similarity in DISTANCES:
        sums = -(np.sqrt(sums) if similarity == "euclidean" else sums)
    with np.errstate(over="ignore"):
        return sums.astype(np.float32)


def divided(vectors: np.ndarray, by: Any) -> np.ndarray:
    """float32 quotients, computed in float64 without a float64 copy."""
    out = np.empty_like(vectors)
    return np.divide(vectors, by, out=out, dtype=np.float64, casting="same_kind")


def _select(scores: Tensor, limit: np.ndarray, slack: np.ndarray, width: int) -> Pairs:
    """The pairs of scores [Q, C] that reach the `limit` [Q] of their row.

    If they are many, the limit is raised, in place, to the row's `slack` below its `width` best.
    """
    array = scores.numpy()
    near = array >= limit[:, None]
    if np.count_nonzero(near) > 2 * width * len(array) and width < array.shape[1]:
        best = np.partition(array, -width, axis=1)[:, -width]
        np.maximum(limit, best - slack, out=limit, casting="same_kind")
        near = array >= limit[:, None]
    found = np.flatnonzero(near)
    return *np.divmod(found, array.shape[1]), array.ravel()[found]


def _select_on_device(scores: Tensor, limit: np.ndarray, slack: np.ndarray, width: int) -> Pairs:
    """`_select` on the device of the scores."""

    def near() -> Tensor:
        return scores >= torch.from_numpy(limit).to(scores)[:, None]

    found = near()
    if int(found.sum()) > 2 * width * len(scores) and width < scores.shape[1]:
        best = scores.topk(width, sorted=False).values.amin(1).cpu().numpy()
        np.maximum(limit, best - slack, out=limit, casting="same_kind")
        found = near()
    rows, columns = found.nonzero(as_tuple=True)
    return rows.cpu().numpy(), columns.cpu().numpy(), scores[rows, columns].cpu().numpy()


def _sums(
    left: np.ndarray, right: np.ndarray, rows: np.ndarray, columns: np.ndarray, similarity: str
) -> np.ndarray:
    """float64 [P], the sum behind the score of each pair of a row of `left` and a row of `right`.

    A pair's sum depends only on its two vectors, as einsum adds all contiguous rows in the same order.
    """
    if len(rows) > len(left):
        left = left.astype(np.float64)  # once instead of pair by pair
    sums = np.empty(len(rows))
    step = _rows_per_piece(left)
    for start in range(0, len(rows), step):
        here = slice(start, start + step)
        a = left.take(rows[here], 0).astype(np.float64, copy=False)
        b = right.take(columns[here], 0).astype(np.float64)
        if similarity in DISTANCES:
            a -= b
            b = np.sign(a) if similarity == "manhattan" else a
        np.einsum("pd,pd->p", a, b, out=sums[here])
    return sums


def _rows_per_piece(vectors: np.ndarray) -> int:
    return PIECE // vectors.shape[1] + 1


@contextmanager
def one_thread_each(number: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads, in each of which torch works on one thread."""
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(number, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


@contextmanager
def full_precision() -> Iterator[None]:
    """Keeps a GPU from rounding float32 factors to TF32, even if the training has allowed it."""
    settings = torch.backends.cuda.matmul
    name, exact = ("fp32_precision", "ieee") if hasattr(settings, "fp32_precision") else ("allow_tf32", False)
    before = getattr(settings, name)
    setattr(settings, name, exact)
    try:
        yield
    finally:
        setattr(settings, name, before)
