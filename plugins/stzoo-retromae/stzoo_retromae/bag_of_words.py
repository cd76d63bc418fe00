"""DupMAE's loss over the bag of words, without holding the vocabulary scores of a batch.

A word's gradient reaches only the token at which the word scores best, so backward adds up one row per word
and passage, in place of two more products of all tokens with the whole vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from stzoo.models.onednn import product


def bag_of_words_loss(
    hidden: Tensor, scored: Tensor, bag: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Cross-entropy of the bag under the softmax of each word's best score (equations 8 and 9).

    Args:
        hidden: float [B, T, H], the hidden states.
        scored: bool [B, T], True where a token's scores count.
        bag: float [B, V], the share of each word of the vocabulary.
        weight: float [V, H]. The scores of a token are hidden @ weight.T + bias.
        bias: float [V], or None.

    Returns:
        float32 scalar in nats, the mean over the passages.
    """
    loss: Tensor = _BagOfWords.apply(hidden, scored, bag, weight, bias)
    return loss


class _BagOfWords(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, scored: Tensor, bag: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
        with torch.autocast(device, enabled=False):
            read, matrix = hidden.to(dtype), weight.to(dtype)
            lowest = torch.finfo(dtype).min
            best, where = [], []
            for states, counts in zip(read, scored, strict=True):
                scores = product(matrix, states)  # [V, T], so that the maximum is over neighbours
                values, places = scores.masked_fill_(~counts, lowest).max(1)
                best.append(values.float())
                where.append(places)
            scores = torch.stack(best)
            scores = scores if bias is None else scores + bias
            nats = scores.log_softmax(1)
            # a passage without a scored token has the same score for each word, and no gradient
            outer = (nats.exp() * bag.sum(1, keepdim=True) - bag) * (scored.any(1, keepdim=True) / len(bag))
            ctx.save_for_backward(hidden, weight, outer, torch.stack(where))
            ctx.has_bias = bias is not None
            return -(bag * nats).sum(1).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, outer, where = ctx.saved_tensors
        outer = outer * factor
        at_hidden = torch.zeros_like(hidden, dtype=weight.dtype)
        at_weight = None
        for states, words, places in zip(at_hidden, outer, where, strict=True):
            states.index_add_(0, places, weight * words.unsqueeze(1))
        if ctx.needs_input_grad[3]:
            rows = torch.arange(len(where), device=where.device).unsqueeze(1) * hidden.shape[1] + where
            at_weight = functional.embedding_bag(
                rows.T.contiguous(),
                hidden.flatten(0, 1).to(weight.dtype),
                mode="sum",
                per_sample_weights=outer.T.contiguous(),
            )
        at_bias = outer.sum(0) if ctx.has_bias else None
        return at_hidden.to(hidden.dtype), None, None, at_weight, at_bias
