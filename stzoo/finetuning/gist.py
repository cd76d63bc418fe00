"""GIST, the loss with a guide model, and the guide, which the collator needs, too."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Literal

import torch
from sentence_transformers.util import cos_sim
from torch import Tensor
from torch import distributed as dist

from stzoo.finetuning.candidates import Candidates, Similarity, gathered
from stzoo.finetuning.losses import Contrastive
from stzoo.models.loading import load_plain
from stzoo.models.names import model_source, source_identity
from stzoo.plugins import builders, manager


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
            columns = [gathered(column) for column in columns]
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
