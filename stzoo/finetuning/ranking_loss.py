"""The loss of fine-tuning: the weighted sum of sentence-transformers' losses on the same embeddings.

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
from typing import Any

import torch
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from torch import Tensor, nn

from stzoo.errors import ModelError, RecipeError
from stzoo.finetuning.candidates import SIMILARITIES, Candidates, Similarity
from stzoo.finetuning.gist import GIST
from stzoo.models.onednn import fast_linear
from stzoo.plugins import builders, manager


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
        with fast_linear(kwargs["sentence_feature"]["input_ids"].device):  # also in the backward pass
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


def _builders(weights: Iterable[str]) -> list[Any]:
    return [builders.resolve(manager.find("loss", name)) for name in weights]


def means(loss: nn.Module) -> dict[str, float]:
    """Means of the parts of a loss from `make_loss` since the last call; {} if it has a single part."""
    inner = loss.loss if isinstance(loss, MatryoshkaLoss) else loss
    assert isinstance(inner, RankingLoss)
    parts = inner.means()
    return parts if len(parts) > 1 else {}
