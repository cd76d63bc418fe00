"""Torch modes in which an objective is checked: without dropout, and with its cross-entropies observed."""

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from stzoo.pretraining.objective import Objective

DROPOUT = {
    *(functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d),
    *(functional.alpha_dropout, functional.feature_alpha_dropout, torch.dropout),
}
CROSS_ENTROPY = {functional.cross_entropy, functional.nll_loss}


class WithoutDropout(TorchFunctionMode):
    """Disables dropout, so that all other random choices show."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in DROPOUT:
            return args[0] if args else kwargs["input"]
        if "dropout_p" in kwargs:  # argument of scaled_dot_product_attention
            kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)


class CrossEntropies(WithoutDropout):
    """Reports each cross-entropy over the vocabulary, with the name of its loss, logits and targets."""

    def __init__(self, objective: Objective):
        super().__init__()
        self.vocabulary = {len(objective.backbone.tokenizer), objective.backbone.config.vocab_size}
        self.name = ""

        def mlm_losses(read: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
            """`Objective.mlm_losses` by plain cross-entropies, which can be observed."""
            losses = {}
            for name, (hidden, labels) in read.items():
                self.name = f"the loss {name!r}"
                labelled = labels != -100
                logits = objective.backbone.logits(hidden[labelled])
                total = functional.cross_entropy(logits, labels[labelled], reduction="sum")
                losses[name] = total / labelled.sum().clamp(min=1)
            self.name = ""
            return losses

        objective.mlm_losses = mlm_losses  # type: ignore[method-assign]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in CROSS_ENTROPY:
            named = dict(zip(("input", "target"), args, strict=False)) | (kwargs or {})
            logits, targets = named["input"], named["target"]
            axis = min(1, logits.dim() - 1)
            if logits.shape[axis] in self.vocabulary and not targets.is_floating_point():
                rows = logits.movedim(axis, -1).reshape(-1, logits.shape[axis])[targets.reshape(-1) >= 0]
                name = self.name or f"the cross-entropy at {_caller()}"
                self.report(name, rows, targets.reshape(-1)[targets.reshape(-1) >= 0])
        return super().__torch_function__(func, types, args, kwargs)

    def report(self, name: str, logits: Tensor, targets: Tensor) -> None:
        """Gets the float [N, V] logits and int64 [N] targets of one cross-entropy, without ignored ones."""
        raise NotImplementedError


class Hits(CrossEntropies):
    """Counts how often the highest logit of each cross-entropy over the vocabulary is its target."""

    def __init__(self, objective: Objective):
        super().__init__(objective)
        self.counts: dict[str, list[int]] = {}

    def report(self, name: str, logits: Tensor, targets: Tensor) -> None:
        """See `CrossEntropies`."""
        count = self.counts.setdefault(name, [0, 0])
        count[0] += int((logits.detach().argmax(-1) == targets).sum())
        count[1] += len(targets)

    def accuracies(self) -> dict[str, float]:
        """The share of hits of each cross-entropy since the last call."""
        counts, self.counts = self.counts, {}
        return {name: hits / max(of, 1) for name, (hits, of) in counts.items()}


class Sight(CrossEntropies):
    """Counts how often a cross-entropy reads the embedding of the word that it predicts.

    With the bottleneck detached, the gradient of a word's logits with respect to an embedded word is nonzero
    exactly if they can see it. As no training is needed, this finds faults that a model learns slowly.
    """

    def __init__(self, objective: Objective, batch: Mapping[str, Mapping[str, Any]]):
        super().__init__(objective)
        # a word that occurs twice may be seen at its other position
        rows = [row for view in batch.values() for row in view["input_ids"].tolist()]
        self.twice = {token for row in rows for token, times in Counter(row).items() if times > 1}
        self.embedded: list[tuple[Tensor, Tensor]] = []
        self.counts: dict[str, list[int]] = {}

    def report(self, name: str, logits: Tensor, targets: Tensor) -> None:
        """See `CrossEntropies`."""
        leaves = [leaf for _, leaf in self.embedded]
        count = self.counts.setdefault(name, [0, 0])
        probe = torch.linspace(1, 2, logits.shape[1])
        for row, target in zip(logits, targets, strict=True):
            if int(target) in self.twice:
                continue
            gradients = torch.autograd.grad(row @ probe, leaves, retain_graph=True, allow_unused=True)
            count[0] += any(
                gradient is not None and bool(gradient[ids == target].any())
                for gradient, (ids, _) in zip(gradients, self.embedded, strict=True)
            )
            count[1] += 1


def _caller() -> str:
    """File and line of the code that called torch."""
    frame: Any = sys._getframe(1)
    inside = (str(Path(torch.__file__).parent), __file__)
    while frame.f_back and frame.f_code.co_filename.startswith(inside):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
