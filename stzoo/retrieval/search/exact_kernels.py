"""The two passes of exact search over a chunk of passages: selecting candidate pairs, and scoring them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.spatial.distance import cdist

from stzoo.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

DISTANCES = ("euclidean", "manhattan")
SIMILARITIES = ("cosine", "dot", *DISTANCES)
SHORTEST = 1e-12  # sentence-transformers' lower bound for the length of a vector under cosine
PIECE = 2**15  # numbers of vectors scored at once in the second pass, so that they stay in the cache


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
    each = np.arange(len(vectors))
    norms = np.sqrt(_sums(vectors, vectors, each, each, "dot"))
    broken = np.flatnonzero(~np.isfinite(norms))
    if len(broken):
        raise ModelError(
            f"NaN or infinity in {len(broken)} of {len(vectors)} {what} vectors"
            f"{f' after the first {begin}' if begin else ''} (the first: number {begin + broken[0] + 1}). "
            "The model is damaged, or needs a higher precision (--dtype float32)."
        )
    return Side(vectors, norms)


class Chunk:
    """Passages prepared for the first pass.

    Args:
        side: The passages.
        similarity: One of SIMILARITIES.
        device: Torch device of the first pass's matrix product.
    """

    def __init__(self, side: Side, similarity: str, device: str):
        self.side, self.similarity = side, similarity
        self.longest = float(side.norms.max()) or 1.0
        if similarity in DISTANCES:
            self.rough, device = side.vectors.astype(np.float64), "cpu"
        else:
            lengths = np.maximum(side.norms, SHORTEST)[:, None] if similarity == "cosine" else self.longest
            self.rough = divided(side.vectors, lengths)
        self.moved = None if device == "cpu" else torch.from_numpy(self.rough).to(device)

    def near(
        self, queries: Side, worst: np.ndarray, width: int, buffer: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """First pass: all pairs that may be among the `width` best of their query.

        Args:
            queries: Queries to compare.
            worst: float32 [Q], the lowest score kept for each query; -inf if it has fewer than `width`.
            width: Number of passages kept per query.
            buffer: float32, at least [Q, C], working memory.

        Returns:
            int64 [P] rows, ascending, and int64 [P] columns.
        """
        scores = buffer[: len(queries.norms), : len(self.side.norms)]
        # A score that overflows float32 is infinite, and others may be as large.
        least = np.minimum(worst, np.finfo(np.float32).max, dtype=np.float64)
        D, tiny = self.side.vectors.shape[1], 2.0**-149
        with np.errstate(over="ignore"):
            if self.similarity in DISTANCES:
                metric = "cityblock" if self.similarity == "manhattan" else "euclidean"
                far = cdist(queries.vectors, self.rough, metric)
                np.negative(far, out=scores, casting="same_kind")
                # this differs from the second pass only by rounding to float32
                slack = 2.0**-22 * D**0.5 * (queries.norms + self.longest) + tiny
                return _select(scores, least - slack, 2 * slack, width)
            if self.similarity == "cosine":
                lengths, reach = np.maximum(queries.norms, SHORTEST), np.ones(len(scores))
            else:
                lengths = np.maximum(queries.norms, 1e-100)
                reach = lengths * self.longest
            # For vectors of length 1 or less, a sum of D products has an error of at most D * 2**-24 in any
            # order of addition, and does not overflow. 32 more for rounding vectors, scores and limits.
            slack = 2.0**-24 * (D + 32) + tiny / reach
            least = least / reach - slack
            rough = divided(queries.vectors, lengths[:, None])
            if self.moved is not None:
                product = torch.from_numpy(rough).to(self.moved.device) @ self.moved.T
                return _select_on_device(product, least, 2 * slack, width)
            np.matmul(rough, self.rough.T, out=scores)
            return _select(scores, least, 2 * slack, width)


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


def _select(
    scores: np.ndarray, least: np.ndarray, slack: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the scores [Q, C] that reach the `least` [Q] of their row.

    If they are many, those more than the row's `slack` below its `width` best are dropped.
    """
    near = scores >= least.astype(np.float32)[:, None]
    if np.count_nonzero(near) > 2 * width * len(scores) and width < scores.shape[1]:
        best = np.partition(scores, -width, axis=1)[:, -width]
        near = scores >= np.maximum(least, best - slack).astype(np.float32)[:, None]
    return np.divmod(np.flatnonzero(near), scores.shape[1])


def _select_on_device(
    scores: "Tensor", least: np.ndarray, slack: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """`_select` on the device of the scores."""

    def column(values: np.ndarray) -> "Tensor":
        return torch.as_tensor(values, dtype=torch.float32, device=scores.device)[:, None]

    limit = column(least)
    near = scores >= limit
    if int(near.sum()) > 2 * width * len(scores) and width < scores.shape[1]:
        best = scores.topk(width, sorted=False).values.amin(1, keepdim=True)
        near = scores >= torch.maximum(limit, best - column(slack))
    rows, columns = near.nonzero(as_tuple=True)
    return rows.cpu().numpy(), columns.cpu().numpy()


def _sums(
    left: np.ndarray, right: np.ndarray, rows: np.ndarray, columns: np.ndarray, similarity: str
) -> np.ndarray:
    """float64 [P], the sum behind the score of each pair of a row of `left` and a row of `right`.

    A pair's sum depends only on its two vectors, as einsum adds all contiguous rows in the same order.
    """
    sums = np.empty(len(rows))
    step = PIECE // left.shape[1] + 1
    for start in range(0, len(rows), step):
        here = slice(start, start + step)
        a = left.take(rows[here], 0).astype(np.float64)
        b = right.take(columns[here], 0).astype(np.float64)
        if similarity in DISTANCES:
            a -= b
            b = np.sign(a) if similarity == "manhattan" else a
        np.einsum("pd,pd->p", a, b, out=sums[here])
    return sums


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
