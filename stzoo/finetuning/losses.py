"""What fine-tuning minimises: sentence-transformers' own losses, summed over one pass of embeddings.

A batch is B queries with C candidates each: a positive, then its hard negatives. Its passages are embedded in
an order of their own (by length, so that little padding is computed on), and put in their places afterwards.

Unlike sentence-transformers, whose losses take one column of the data set for each candidate:
- a passage that is known to answer a query is never its negative, in whichever row of the batch it stands;
  nor is one that the model reads as the same tokens as the query's positive;
- several losses share one pass;
- with all losses, gradients are cached (https://arxiv.org/abs/2101.06983) where a batch is larger than a
  mini-batch; where it is not, nothing is embedded twice.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from sentence_transformers.sentence_transformer.losses import (
    DistillKLDivLoss,
    MarginMSELoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.util import cos_sim, dot_score, pairwise_cos_sim, pairwise_dot_score
from torch import Tensor, nn
from torch import distributed as dist

from stzoo.errors import ModelError, RecipeError
from stzoo.plugins import manager

SIMILARITIES = {"cosine": (cos_sim, pairwise_cos_sim), "dot": (dot_score, pairwise_dot_score)}


class Candidates(NamedTuple):
    """What is known of a batch's passages.

    Attributes:
        ids: int64 [B, C], which passage of the training set stands where; the positive first.
        positives: int64 [B, P], all known positives of each query, filled up with -1.
        scores: float32 [B, C], a teacher's; None where the data has none.
        tokens: int64 [B, C], equal for passages that the model reads as the same tokens; None if not known.
    """

    ids: Tensor
    positives: Tensor
    scores: Tensor | None = None
    tokens: Tensor | None = None


@dataclass(frozen=True)
class Similarity:
    """How queries and passages are compared.

    Attributes:
        similarity: cosine or dot.
        temperature: similarities are divided by it.
        cross_device: True if the passages on other devices are negatives, too.
    """

    similarity: str
    temperature: float = 1.0
    cross_device: bool = False

    def every(self, queries: Tensor, passages: Tensor) -> Tensor:
        """Float [Q, N], each query with each passage, divided by the temperature."""
        return SIMILARITIES[self.similarity][0](queries, passages) / self.temperature

    def pairwise(self, queries: Tensor, passages: Tensor) -> Tensor:
        """Float [Q], each query with the passage in its place, divided by the temperature."""
        return SIMILARITIES[self.similarity][1](queries, passages) / self.temperature


class Contrastive(nn.Module):
    """Finds each query's positive among all passages of the batch (InfoNCE).

    Args:
        comparison: how they are compared.

    Unlike sentence-transformers' MultipleNegativesRankingLoss, which does the work: known positives of a
        query are left out of its negatives.
    """

    needs_scores = False

    def __init__(self, comparison: Similarity):
        super().__init__()
        self.comparison = comparison
        self.false_negative: Tensor | None = None
        self.loss = MultipleNegativesRankingLoss(
            None,  # type: ignore[arg-type]  # it is given embeddings only
            scale=1.0,
            similarity_fct=self._without_positives,
            gather_across_devices=comparison.cross_device,
        )

    def forward(self, vectors: list[Tensor], candidates: Candidates) -> Tensor:
        """Float scalar in nats: vectors are those of the queries, then of each candidate, float [B, D]."""
        ids, tokens, own = candidates.ids, candidates.tokens, 0
        if self.comparison.cross_device and dist.is_initialized():
            own = dist.get_rank() * len(ids)
            ids, tokens = _gathered(ids), tokens if tokens is None else _gathered(tokens)
        self.false_negative = known_positives(ids, candidates.positives, own, tokens)
        return self.loss.compute_loss_from_embeddings(vectors, None)  # type: ignore[arg-type]

    def _without_positives(self, queries: Tensor, passages: Tensor) -> Tensor:
        assert self.false_negative is not None
        return self.comparison.every(queries, passages).masked_fill(self.false_negative, float("-inf"))


def _gathered(values: Tensor) -> Tensor:
    """[W, C], the rows of all devices in their order."""
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def known_positives(ids: Tensor, positives: Tensor, own: int = 0, tokens: Tensor | None = None) -> Tensor:
    """Which passages must not be a query's negatives.

    Args:
        ids: int64 [W, C], the passages of all rows, those on other devices included.
        positives: int64 [B, P], the known positives of this device's queries, filled up with -1.
        own: number of rows before the first of this device.
        tokens: int64 [W, C], equal for passages that the model reads as the same tokens; None if not known.

    Returns:
        bool [B, C * W], True where the passage answers the query, or is read as the positive of its row is,
        and is not that positive itself;
        candidate after candidate, as the losses of sentence-transformers put them.
    """
    found = torch.zeros(len(positives), ids.numel(), dtype=torch.bool, device=ids.device)
    flat = ids.T.reshape(-1)
    for column in positives.T:
        found |= flat[None] == column[:, None]
    rows = torch.arange(len(positives), device=ids.device)
    if tokens is not None:
        flat = tokens.T.reshape(-1)
        found |= flat[None] == flat[own + rows][:, None]
    found[rows, own + rows] = False
    return found


class KL(nn.Module):
    """Brings the student's distribution over a query's candidates to the teacher's.

    Args:
        comparison: how queries and passages are compared.
        teacher_temperature: the teacher's scores are divided by it.

    Source: sentence-transformers' DistillKLDivLoss, a mean over queries. Released RetroMAE divides by the
        number of candidates as well.
    """

    needs_scores = True

    def __init__(self, comparison: Similarity, teacher_temperature: float = 1.0):
        super().__init__()
        if not teacher_temperature > 0:
            raise RecipeError(f"loss_options.kl.teacher_temperature is {teacher_temperature}; expected > 0.")
        self.loss = DistillKLDivLoss(
            None,  # type: ignore[arg-type]
            similarity_fct=comparison.pairwise,
            teacher_temperature=teacher_temperature,
        )

    def forward(self, vectors: list[Tensor], candidates: Candidates) -> Tensor:
        """Float scalar in nats; vectors as those of `Contrastive`."""
        return self.loss.compute_loss_from_embeddings(vectors, candidates.scores)  # type: ignore[arg-type]


class MarginMSE(nn.Module):
    """Brings the student's margins between positive and negatives to the teacher's (arXiv 2010.02666).

    Args:
        comparison: how queries and passages are compared.

    Source: sentence-transformers' MarginMSELoss.
    Unlike it: similarities are divided by the temperature first, as in the other losses. Cosines, whose
        margins are 2 at most, cannot reach a cross-encoder's otherwise.
    """

    needs_scores = True

    def __init__(self, comparison: Similarity):
        super().__init__()
        self.loss = MarginMSELoss(None, similarity_fct=comparison.pairwise)  # type: ignore[arg-type]

    def forward(self, vectors: list[Tensor], candidates: Candidates) -> Tensor:
        """Float scalar, the mean squared error; vectors as those of `Contrastive`."""
        return self.loss.compute_loss_from_embeddings(vectors, candidates.scores)  # type: ignore[arg-type]


class RankingLoss(CachedLossMixin, nn.Module):
    """The weighted sum of losses over queries and their candidates.

    Args:
        model: a SentenceTransformer.
        terms: losses by name, each a module `forward(vectors, candidates)`.
        factors: weight of each.
        mini_batch_size: texts embedded at a time.
    """

    def __init__(
        self, model: Any, terms: Mapping[str, nn.Module], factors: Mapping[str, float], mini_batch_size: int
    ):
        super().__init__()
        self.model = model
        self.terms = nn.ModuleDict(terms)
        self.factors = dict(factors)
        self.mini_batch_size = mini_batch_size
        self.log_sums: dict[str, tuple[Tensor, Tensor]] = {}  # of each loss: sum and number of batches
        self.last: dict[str, Tensor] = {}  # of the last batch, without their weights

    def forward(self, features: Iterable[dict[str, Tensor]], labels: dict[str, Tensor]) -> Tensor:
        """The loss.

        Args:
            features: of B queries, and of B * C passages in any order.
            labels: `places`, int64 [B, C], where among the passages each candidate is; and the fields of
                `Candidates`.
        """
        features = list(features)
        if labels["places"].numel() > self.mini_batch_size:
            return self.forward_cached(features, labels)  # type: ignore[arg-type]
        made = [self.model(part)["sentence_embedding"].float() for part in features]
        ends = [[vectors.detach().requires_grad_()] for vectors in made]
        loss = self.calculate_loss(ends, labels, with_backward=torch.is_grad_enabled())
        if not torch.is_grad_enabled():
            return loss
        slope = sum((vectors * end.grad).sum() for vectors, (end,) in zip(made, ends, strict=True))
        return loss.detach() + slope - slope.detach()

    def embed_minibatch(self, *given: Any, **named: Any) -> tuple[Tensor, Any]:
        """The host's in float32: in half precision, small gradients of embeddings would be lost."""
        vectors, state = super().embed_minibatch(*given, **named)
        return vectors.float(), state

    def calculate_loss(  # type: ignore[override]
        self, reps: list[list[Tensor]], labels: dict[str, Tensor], *, with_backward: bool = False
    ) -> Tensor:
        """The loss of embeddings, mini-batch by mini-batch, of queries and passages; see `forward`."""
        queries, passages = map(torch.cat, reps)
        columns = passages[labels["places"].T]  # [C, B, D]
        candidates = Candidates(
            labels["ids"], labels["positives"], labels.get("scores"), labels.get("tokens")
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
        """Each loss, without its weight, as a mean since the last call."""
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
    """Builds the loss of a model by the names of its parts.

    Args:
        model: a SentenceTransformer that compares by cosine or dot product.
        weights: of the losses, by name.
        options: of the losses, by name.
        temperature: similarities are divided by it.
        mini_batch_size: texts embedded at a time.
        cross_device: True if the passages on other devices are negatives, too.
        matryoshka: dimensions, at each of which the whole is computed and summed; the vectors' own counts,
            too.

    Raises:
        ModelError: if the model compares otherwise.
        RecipeError: if a weight, an option or a dimension does not hold.
        UnknownNameError: if there is no loss of a name.
    """
    if model.similarity_fn_name not in SIMILARITIES:
        raise ModelError(
            f"the model compares by {model.similarity_fn_name}; expected {' or '.join(SIMILARITIES)}."
        )
    for name, weight in weights.items():
        if not weight > 0:
            raise RecipeError(f"losses.{name} is {weight}; expected a weight above 0.")
    for name in options:
        if name not in weights:
            raise RecipeError(f"loss_options.{name}: losses has no {name!r}, only {', '.join(weights)}.")
        if not isinstance(options[name], Mapping):
            raise RecipeError(f"loss_options.{name} is {options[name]!r}; expected options by name.")
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
    """True if one of the losses of these names learns from a teacher's scores."""
    builders: list[Callable[..., Any]] = [manager.resolve(manager.find("loss", name)) for name in weights]
    return any(getattr(builder, "needs_scores", False) for builder in builders)


def means(loss: nn.Module) -> dict[str, float]:
    """The parts of what `make_loss` made, as means since the last call; {} if there is one part only."""
    inner = loss.loss if isinstance(loss, MatryoshkaLoss) else loss
    assert isinstance(inner, RankingLoss)
    found = inner.means()
    return found if len(found) > 1 else {}
