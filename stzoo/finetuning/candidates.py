"""What a loss sees of a batch: the candidates of its queries, and how queries and passages are compared."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from sentence_transformers.util import cos_sim, dot_score, pairwise_cos_sim, pairwise_dot_score
from torch import Tensor
from torch import distributed as dist

SIMILARITIES = {"cosine": (cos_sim, pairwise_cos_sim), "dot": (dot_score, pairwise_dot_score)}


class Candidates(NamedTuple):
    """The candidates of a batch's queries.

    Attributes:
        ids: Indices of the passages in the training set, int64 [B, C]; the positive comes first.
        positives: All known positives of each query, int64 [B, P], padded with -1.
        scores: Scores of a teacher, float32 [B, C]; None if the data have none.
        tokens: Keys that are equal for passages that the model reads as the same tokens, int64 [B, C]; None
            if unknown.
        guide: Vectors of a guide model for [queries, *candidates], each float [B, D]; None without a guide.
    """

    ids: Tensor
    positives: Tensor
    scores: Tensor | None = None
    tokens: Tensor | None = None
    guide: list[Tensor] | None = None


@dataclass(frozen=True)
class Similarity:
    """How queries and passages are compared.

    Attributes:
        similarity: "cosine" or "dot".
        temperature: Divisor of the similarities.
        cross_device: True if passages on other devices are negatives, too.
    """

    similarity: str
    temperature: float = 1.0
    cross_device: bool = False

    def every(self, queries: Tensor, passages: Tensor) -> Tensor:
        """Similarities of each query with each passage, float [Q, N], divided by the temperature."""
        return SIMILARITIES[self.similarity][0](queries, passages) / self.temperature

    def pairwise(self, queries: Tensor, passages: Tensor) -> Tensor:
        """Similarities of each query with the passage in its row, float [Q], divided by the temperature."""
        return SIMILARITIES[self.similarity][1](queries, passages) / self.temperature


def gathered(values: Tensor) -> Tensor:
    """The rows of all devices in order, [W, C]."""
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def known_positives(ids: Tensor, positives: Tensor, offset: int = 0, tokens: Tensor | None = None) -> Tensor:
    """Finds the passages that must not be negatives of a query.

    Args:
        ids: Indices of the passages in all rows, including those on other devices, int64 [W, C].
        positives: Known positives of the queries on this device, int64 [B, P], padded with -1.
        offset: Number of rows before the first row of this device.
        tokens: Keys that are equal for passages that the model reads as the same tokens, int64 [W, C]; None
            if unknown.

    Returns:
        True for passages that answer the query, or that the model reads as the same tokens as the positive
        of its row, other than that positive itself; bool [B, C * W], ordered by candidate and then by row, as
        in the losses of sentence-transformers.
    """
    excluded = torch.zeros(len(positives), ids.numel(), dtype=torch.bool, device=ids.device)
    flat = ids.T.reshape(-1)
    for column in positives.T:
        excluded |= flat[None] == column[:, None]
    rows = torch.arange(len(positives), device=ids.device)
    if tokens is not None:
        flat = tokens.T.reshape(-1)
        excluded |= flat[None] == flat[offset + rows][:, None]
    excluded[rows, offset + rows] = False
    return excluded
