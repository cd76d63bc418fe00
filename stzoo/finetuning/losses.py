"""Losses for fine-tuning: the weighted sum of sentence-transformers' losses on the same embeddings.

A batch has B queries with C candidates each: a positive, then hard negatives. The passages are embedded in
order of length, which saves padding, and are reordered afterwards.

Unlike sentence-transformers, whose losses take one column of the data set for each candidate:
- a passage that is known to answer a query is never its negative, in any row of the batch, and neither is
  one that the model reads as the same tokens as the query's positive;
- several losses share one forward pass;
- all losses cache gradients (https://arxiv.org/abs/2101.06983) if a batch is larger than a mini-batch;
  otherwise nothing is embedded twice.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from sentence_transformers.sentence_transformer.losses import (
    CoSENTLoss,
    DistillKLDivLoss,
    MarginMSELoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.util import cos_sim, dot_score, pairwise_cos_sim, pairwise_dot_score
from torch import Tensor, nn
from torch import distributed as dist

from stzoo.errors import ModelError, RecipeError
from stzoo.models.loading import load_plain
from stzoo.models.names import model_source, source_identity
from stzoo.plugins import builders, manager

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
            ids, tokens = _gathered(ids), tokens if tokens is None else _gathered(tokens)
        self.false_negative = known_positives(ids, candidates.positives, offset, tokens)
        return self.loss.compute_loss_from_embeddings(vectors, None)  # type: ignore[arg-type]

    def _without_positives(self, queries: Tensor, passages: Tensor) -> Tensor:
        assert self.false_negative is not None
        return self.comparison.every(queries, passages).masked_fill(self.false_negative, float("-inf"))


def _gathered(values: Tensor) -> Tensor:
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


class GIST(Contrastive):
    """Contrastive loss without the negatives that a guide model finds closer to the query than its positive.

    Args:
        comparison: How queries and passages are compared.
        guide: Path to the folder of the guide, a SentenceTransformer, or its Hub id.
        margin: A negative is left out if its similarity, by the guide, is above that of the positive less
            this margin.
        margin_strategy: "absolute", or "relative" for a margin in shares of the positive's similarity.

    Source: sentence-transformers' GISTEmbedLoss without `contrast_anchors` and `contrast_positives`.
    Unlike it: the guide reads the texts with its own tokenizer and prompts, and the known positives of a
        query are left out, too.
    """

    def __init__(
        self,
        comparison: Similarity,
        guide: str,
        margin: float = 0.0,
        margin_strategy: Literal["absolute", "relative"] = "absolute",
    ):
        super().__init__(comparison)
        self._guide = (open_guide(guide),)  # in a tuple, so that it is neither trained nor saved
        self.margin, self.relative = margin, margin_strategy == "relative"

    @property
    def guide(self) -> Any:
        """The guide, a SentenceTransformer."""
        return self._guide[0]

    def forward(self, vectors: list[Tensor], candidates: Candidates) -> Tensor:
        """Computes the loss in nats, a float scalar; arguments as in `Contrastive`."""
        assert candidates.guide is not None
        queries, *columns = candidates.guide
        offset = 0
        if self.comparison.cross_device and dist.is_initialized():
            offset = dist.get_rank() * len(queries)
            columns = [_gathered(column) for column in columns]
        similar = cos_sim(queries, torch.cat(columns))
        rows = torch.arange(len(queries), device=queries.device)
        positive = similar[rows, offset + rows][:, None]
        margin = self.margin * positive.abs() if self.relative else self.margin
        self.too_similar = similar > positive - margin
        self.too_similar[rows, offset + rows] = False
        return super().forward(vectors, candidates)

    def _without_positives(self, queries: Tensor, passages: Tensor) -> Tensor:
        return super()._without_positives(queries, passages).masked_fill(self.too_similar, float("-inf"))


def open_guide(name: str) -> Any:
    """Loads the guide of `GIST`, which the collator and the loss share."""
    source = model_source(name)
    return _load_guide(source, **source_identity(source))


@lru_cache(maxsize=1)
def _load_guide(source: str, **_: str) -> Any:  # the identity, so that a folder that changed is loaded again
    return load_plain(source, device="cpu").eval()


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


class RankingLoss(CachedLossMixin, nn.Module):
    """Weighted sum of losses over queries and their candidates.

    Args:
        model: The SentenceTransformer to train.
        terms: Losses by name; each is a module with `forward(vectors, candidates)`.
        factors: Weight of each loss, by name.
        mini_batch_size: Number of texts embedded at a time.
    """

    def __init__(
        self, model: Any, terms: Mapping[str, nn.Module], factors: Mapping[str, float], mini_batch_size: int
    ):
        super().__init__()
        self.model = model
        self.terms = nn.ModuleDict(terms)
        self.factors = dict(factors)
        self.mini_batch_size = mini_batch_size
        self.log_sums: dict[str, tuple[Tensor, Tensor]] = {}  # by loss: sum and number of batches
        self.last: dict[str, Tensor] = {}  # unweighted losses of the last batch

    def forward(self, features: Iterable[dict[str, Tensor]], labels: dict[str, Tensor]) -> Tensor:
        """Computes the loss, a float scalar.

        Args:
            features: Features of B queries, and of B * C passages in any order. If a loss has a guide, then
                also its features of the same texts.
            labels: "places", the index of each candidate among the passages, int64 [B, C]; and the fields of
                `Candidates`.
        """
        features, of_guide = list(features)[:2], list(features)[2:]
        if of_guide:
            labels = labels | self._guide(of_guide)
        if labels["places"].numel() > self.mini_batch_size:
            return self.forward_cached(features, labels)  # type: ignore[arg-type]
        embeddings = [self.model(part)["sentence_embedding"].float() for part in features]
        ends = [[vectors.detach().requires_grad_()] for vectors in embeddings]
        loss = self.calculate_loss(ends, labels, with_backward=torch.is_grad_enabled())
        if not torch.is_grad_enabled():
            return loss
        slope = sum((vectors * end.grad).sum() for vectors, (end,) in zip(embeddings, ends, strict=True))
        return loss.detach() + slope - slope.detach()

    def _guide(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The guide's vectors of queries and passages, as entries of the labels."""
        guide = next(term.guide for term in self.terms.values() if isinstance(term, GIST))
        vectors = {}
        for name, part in zip(("guide_queries", "guide_passages"), features, strict=True):
            ids = part["input_ids"]
            guide.to(ids.device)
            slices = [
                slice(start, start + self.mini_batch_size)
                for start in range(0, len(ids), self.mini_batch_size)
            ]
            with torch.no_grad():
                encoded = [
                    guide({k: v[one] if isinstance(v, Tensor) else v for k, v in part.items()})
                    for one in slices
                ]
            vectors[name] = torch.cat([one["sentence_embedding"].float() for one in encoded])
        return vectors

    def embed_minibatch(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        """Embeds in float32, since half precision would lose small gradients of the embeddings."""
        vectors, state = super().embed_minibatch(*args, **kwargs)
        return vectors.float(), state

    def calculate_loss(  # type: ignore[override]
        self, reps: list[list[Tensor]], labels: dict[str, Tensor], *, with_backward: bool = False
    ) -> Tensor:
        """Computes the loss from the mini-batches of embeddings of queries and passages; see `forward`."""
        queries, passages = map(torch.cat, reps)
        columns = passages[labels["places"].T]  # [C, B, D]
        guide = None
        if "guide_queries" in labels:
            guide = [labels["guide_queries"], *labels["guide_passages"][labels["places"].T]]
        candidates = Candidates(
            labels["ids"], labels["positives"], labels.get("scores"), labels.get("tokens"), guide
        )
        vectors = [queries, *columns]
        losses = {name: term(vectors, candidates) for name, term in self.terms.items()}
        self.last = {name: loss.detach() for name, loss in losses.items()}
        for name, loss in losses.items():
            total, count = self.log_sums.get(name, (torch.zeros_like(loss), torch.tensor(0)))
            self.log_sums[name] = total + loss.detach(), count + 1
        loss = torch.stack([self.factors[name] * one for name, one in losses.items()]).sum()
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss

    def means(self) -> dict[str, float]:
        """Means of the unweighted losses since the last call, by name."""
        sums, self.log_sums = self.log_sums, {}
        return {name: float(total) / int(count) for name, (total, count) in sums.items()}


def make_loss(
    model: Any,
    weights: Mapping[str, float],
    options: Mapping[str, Mapping[str, Any]],
    *,
    temperature: float,
    mini_batch_size: int,
    cross_device: bool = False,
    matryoshka: Iterable[int] = (),
) -> nn.Module:
    """Builds the loss of a model from the names of its parts.

    Args:
        model: SentenceTransformer that compares by cosine or dot product.
        weights: Weights by loss name.
        options: Options by loss name.
        temperature: Divisor of the similarities.
        mini_batch_size: Number of texts embedded at a time.
        cross_device: True if passages on other devices are negatives, too.
        matryoshka: Dimensions at which the loss is computed and summed; the full dimension is added if it is
            missing.

    Raises:
        ModelError: If the model compares by another similarity.
        RecipeError: If a weight, an option or a dimension is invalid.
        UnknownNameError: If there is no loss of a given name.
    """
    if model.similarity_fn_name not in SIMILARITIES:
        raise ModelError(
            f"the model's similarity is {model.similarity_fn_name}; expected {' or '.join(SIMILARITIES)}. "
            "Set similarity (--similarity)."
        )
    for name, weight in weights.items():
        if not weight > 0:
            raise RecipeError(f"losses.{name} is {weight}; expected a weight above 0.")
    for name in options:
        if name not in weights:
            raise RecipeError(
                f"loss_options has {name!r}, which is not among the losses: {', '.join(weights)}."
            )
        if not isinstance(options[name], Mapping):
            raise RecipeError(
                f"loss_options.{name} is {options[name]!r}; expected a mapping of option names to values."
            )
    comparison = Similarity(model.similarity_fn_name, temperature, cross_device)
    terms = {name: manager.build("loss", name, comparison, **options.get(name, {})) for name in weights}
    loss = RankingLoss(model, terms, weights, mini_batch_size)
    dims = sorted(set(matryoshka), reverse=True)
    if not dims:
        return loss
    width = model.get_embedding_dimension()
    if dims[-1] < 1 or dims[0] > width:
        raise RecipeError(f"matryoshka is {sorted(dims)}; expected dimensions from 1 to the model's {width}.")
    return MatryoshkaLoss(model, loss, dims if dims[0] == width else [width, *dims])


def needs_scores(weights: Iterable[str]) -> bool:
    """True if any of the named losses learns from scores, such as a teacher's."""
    return any(getattr(loss, "needs_scores", False) for loss in _builders(weights))


def needs_negatives(weights: Iterable[str]) -> bool:
    """True if any of the named losses needs hard negatives: those that learn from scores, except CoSENT."""
    losses = _builders(weights)
    return any(getattr(one, "needs_negatives", getattr(one, "needs_scores", False)) for one in losses)


def guide_of(weights: Iterable[str], options: Mapping[str, Mapping[str, Any]]) -> Any:
    """The guide of the named losses, a SentenceTransformer, or None."""
    name = _guide_name(weights, options)
    return open_guide(name) if name else None


def guide_identity(weights: Iterable[str], options: Mapping[str, Mapping[str, Any]]) -> dict[str, str] | None:
    """What the record of a run knows the guide of the named losses by, or None; see `source_identity`."""
    name = _guide_name(weights, options)
    return source_identity(model_source(name)) if name else None


def _guide_name(weights: Iterable[str], options: Mapping[str, Mapping[str, Any]]) -> str | None:
    gist = next((one for one in weights if builders.resolve(manager.find("loss", one)) is GIST), None)
    name = options.get(gist, {}).get("guide") if gist else None
    return name if isinstance(name, str) else None


def _builders(weights: Iterable[str]) -> list[Any]:
    return [builders.resolve(manager.find("loss", name)) for name in weights]


def means(loss: nn.Module) -> dict[str, float]:
    """Means of the parts of a loss from `make_loss` since the last call; {} if it has a single part."""
    inner = loss.loss if isinstance(loss, MatryoshkaLoss) else loss
    assert isinstance(inner, RankingLoss)
    parts = inner.means()
    return parts if len(parts) > 1 else {}
