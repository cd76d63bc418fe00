"""Losses for fine-tuning: those of sentence-transformers, on the embeddings of queries and candidates.

`ranking_loss` has their weighted sum, `gist` the one with a guide model.
"""

import torch
from sentence_transformers.sentence_transformer.losses import (
    CoSENTLoss,
    DistillKLDivLoss,
    MarginMSELoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor, nn
from torch import distributed as dist

from stzoo.errors import RecipeError
from stzoo.finetuning.candidates import Candidates as Candidates  # plugins import it from here
from stzoo.finetuning.candidates import Similarity as Similarity
from stzoo.finetuning.candidates import gathered, known_positives


class Contrastive(nn.Module):
    """Contrastive loss that finds each query's positive among all passages of the batch (InfoNCE).

    Args:
        comparison: How queries and passages are compared.

    Source: sentence-transformers' MultipleNegativesRankingLoss.
    Unlike it: the known positives of a query are excluded from its negatives.
    """

    needs_scores = False

    def __init__(self, comparison: Similarity):
        super().__init__()
        self.comparison = comparison
        self.false_negative: Tensor | None = None
        self.loss = MultipleNegativesRankingLoss(
            None,  # type: ignore[arg-type]  # it only receives embeddings
            scale=1.0,
            similarity_fct=self._without_positives,
            gather_across_devices=comparison.cross_device,
        )

    def forward(self, vectors: list[Tensor], candidates: Candidates) -> Tensor:
        """Computes the loss in nats, a float scalar, from [queries, *candidates], each float [B, D]."""
        ids, tokens, offset = candidates.ids, candidates.tokens, 0
        if self.comparison.cross_device and dist.is_initialized():
            offset = dist.get_rank() * len(ids)
            ids, tokens = gathered(ids), tokens if tokens is None else gathered(tokens)
        self.false_negative = known_positives(ids, candidates.positives, offset, tokens)
        return self.loss.compute_loss_from_embeddings(vectors, None)  # type: ignore[arg-type]

    def _without_positives(self, queries: Tensor, passages: Tensor) -> Tensor:
        assert self.false_negative is not None
        return self.comparison.every(queries, passages).masked_fill(self.false_negative, float("-inf"))


class KL(nn.Module):
    """KL divergence between the student's and the teacher's distributions over a query's candidates.

    Args:
        comparison: How queries and passages are compared.
        teacher_temperature: Divisor of the teacher's scores.

    Source: sentence-transformers' DistillKLDivLoss, a mean over queries. The released code of RetroMAE also
        divides by the number of candidates.
    """

    needs_scores = True

    def __init__(self, comparison: Similarity, teacher_temperature: float = 1.0):
        super().__init__()
        if not teacher_temperature > 0:
            raise RecipeError(
                f"loss_options.kl.teacher_temperature is {teacher_temperature}; expected above 0."
            )
        self.loss = DistillKLDivLoss(
            None,  # type: ignore[arg-type]
            similarity_fct=comparison.pairwise,
            teacher_temperature=teacher_temperature,
        )

    def forward(self, vectors: list[Tensor], candidates: Candidates) -> Tensor:
        """Computes the loss in nats, a float scalar; arguments as in `Contrastive`."""
        return self.loss.compute_loss_from_embeddings(vectors, candidates.scores)  # type: ignore[arg-type]


class MarginMSE(nn.Module):
    """Squared error between the student's and the teacher's margins of positive over negatives.

    See https://arxiv.org/abs/2010.02666.

    Args:
        comparison: How queries and passages are compared.

    Source: sentence-transformers' MarginMSELoss.
    Unlike it: similarities are first divided by the temperature, as in the other losses. Otherwise cosines,
        whose margins are at most 2, could not reach those of a cross-encoder.
    """

    needs_scores = True

    def __init__(self, comparison: Similarity):
        super().__init__()
        self.loss = MarginMSELoss(None, similarity_fct=comparison.pairwise)  # type: ignore[arg-type]

    def forward(self, vectors: list[Tensor], candidates: Candidates) -> Tensor:
        """Computes the mean squared error, a float scalar; arguments as in `Contrastive`."""
        return self.loss.compute_loss_from_embeddings(vectors, candidates.scores)  # type: ignore[arg-type]


class CoSENT(nn.Module):
    """Ranks all pairs of a query and a candidate in the batch by their scores.

    A pair with a higher score must have a higher similarity, so that the loss also learns from pairs without
    negatives, such as those of data with graded similarity.

    Args:
        comparison: How queries and passages are compared.

    Source: sentence-transformers' CoSENTLoss; its scale is 1 / temperature.
    """

    needs_scores = True
    needs_negatives = False

    def __init__(self, comparison: Similarity):
        super().__init__()
        self.loss = CoSENTLoss(None, scale=1.0, similarity_fct=comparison.pairwise)  # type: ignore[arg-type]

    def forward(self, vectors: list[Tensor], candidates: Candidates) -> Tensor:
        """Computes the loss in nats, a float scalar; arguments as in `Contrastive`."""
        assert candidates.scores is not None
        queries, *columns = vectors
        pairs = [queries.repeat(len(columns), 1), torch.cat(columns)]
        return self.loss.compute_loss_from_embeddings(pairs, candidates.scores.T.reshape(-1))
