"""Cross-entropy over the vocabulary, without holding the scores of all tokens.

The scores of a chunk of tokens, their softmax and the gradients that follow from it are computed in one pass,
and only the gradients are kept. Memory therefore does not grow with tokens * vocabulary, the scores are read
while they are in the cache, and backward has no product left to compute. Several losses that share the
vocabulary's weights are computed together, because each pass over gradients of that size takes time.

Source: the fused linear cross-entropy of Liger Kernel (https://arxiv.org/abs/2410.10989, section 3.2).

Unlike:
    - It takes several losses at once, and counts the tokens whose best score is their target.
    - It is made of PyTorch's own operations and runs on any device.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stzoo.models.onednn import product

CHUNK = 2**24  # scores computed at once, 64 MiB in float32; more is not faster


def vocabulary_losses(
    hidden: Tensor,
    targets: Tensor,
    sizes: Sequence[int],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scales: Sequence[float] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Mean cross-entropies of several groups of tokens under softmax(hidden @ weight.T + bias).

    Under autocast, scores are computed in its dtype, and sums in float32.

    Args:
        hidden: float [N, H], the tokens of all losses, one loss after the other.
        targets: int64 [N], the index of the right word.
        sizes: Number of tokens of each loss; may be 0. Their sum is N.
        weight: float [V, H].
        bias: float [V], or None.
        scales: The factors, other than 0, that the losses will be multiplied by before they are added up.
            With other factors results are the same, but backward computes the products again. None for 1.

    Returns:
        For each loss, a float32 scalar in nats (0 with a gradient of 0 if it has no tokens), and the number
        of tokens whose target has the best score, an int64 scalar.
    """
    known = list(scales or [1.0] * len(sizes))
    if weight.device.type == "cpu":
        groups = [(hidden, targets, list(sizes), known)]
    else:  # comparing the scales would make the CPU wait for the device
        parts = zip(hidden.split(list(sizes)), targets.split(list(sizes)), sizes, strict=True)
        groups = [(part, words, [size], [1.0]) for part, words, size in parts]
    losses: list[Tensor] = []
    hits: list[Tensor] = []
    for part, words, counts, factors in groups:
        means, hit = _VocabularyLosses.apply(
            part, words, weight, bias, counts, factors, torch.is_grad_enabled()
        )
        losses += means.unbind()
        hits += hit.unbind()
    return losses, hits


class _VocabularyLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        sizes: list[int],
        scales: list[float],
        is_grad_enabled: bool,
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        ctx.dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
        ctx.sizes, ctx.scales = sizes, torch.tensor(scales, device=hidden.device)
        needs = ctx.needs_input_grad if is_grad_enabled else (False,) * 4
        with torch.autocast(device, enabled=False):
            nats, hits, gradients = _chunked(
                hidden, targets, weight, bias, _rows(ctx.scales, sizes), needs, ctx.dtype
            )
        ctx.save_for_backward(hidden, targets, weight, bias, *gradients)
        counts = torch.tensor([max(size, 1) for size in sizes], device=hidden.device)
        means = torch.stack([part.sum() for part in nats.split(sizes)]) / counts
        hit = torch.stack([part.sum() for part in hits.split(sizes)])
        ctx.mark_non_differentiable(hit)
        return means, hit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, targets, weight, bias, *gradients = ctx.saved_tensors
        factors = outer / ctx.scales
        factor = factors[0]
        if len(ctx.sizes) > 1 and not torch.allclose(factors, factor, rtol=1e-6, atol=0):
            with torch.autocast(hidden.device.type, enabled=False):
                _, _, gradients = _chunked(
                    hidden, targets, weight, bias, _rows(outer, ctx.sizes), ctx.needs_input_grad, ctx.dtype
                )
            factor = torch.ones_like(factor)
        if hidden.device.type != "cpu" or factor != 1:
            gradients = [None if one is None else one * factor for one in gradients]
        inputs = (hidden, weight, bias)
        at_hidden, at_weight, at_bias = (
            None if one is None or given is None else one.to(given.dtype)
            for one, given in zip(gradients, inputs, strict=True)
        )
        return at_hidden, None, at_weight, at_bias, None, None, None


def _rows(scales: Tensor, sizes: list[int]) -> Tensor:
    """Each token's share of the total loss, float32 [N, 1]: the scale of its loss / the number of tokens."""
    shares = [scale.expand(size, 1) / size for scale, size in zip(scales, sizes, strict=True)]
    return torch.cat(shares)


def _chunked(
    hidden: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shares: Tensor,
    needs: Sequence[bool],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Nats float32 [N], hits bool [N], and the needed float32 gradients at hidden, weight and bias."""
    count, vocabulary = len(hidden), len(weight)
    matrix, read = weight.to(dtype), hidden.to(dtype)
    offset = None if bias is None else bias.to(dtype)
    nats, hits = hidden.new_empty(count, dtype=torch.float32), targets.new_empty(count, dtype=torch.bool)
    at_hidden = torch.empty_like(hidden, dtype=torch.float32) if needs[0] else None
    at_weight = torch.zeros_like(weight, dtype=torch.float32) if needs[2] else None
    at_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs[3] else None
    unit = shares.max() if dtype == torch.float16 and count else 1.0  # in float16, shares of 1 / N would be 0
    shares = shares / unit
    size = min(max(1, CHUNK // vocabulary), count)
    each = torch.arange(size, device=hidden.device)
    for start in range(0, count, max(size, 1)):
        here = slice(start, start + size)
        target, share = targets[here].unsqueeze(1), shares[here]
        scores = product(read[here], matrix, offset)
        right, best = scores.gather(1, target), scores.amax(1, keepdim=True)
        p = torch.softmax(scores, 1, out=scores)
        # log p of the best word is exact; that of the target may be 0 in its dtype
        nats[here] = (best.float() - right.float() - p.amax(1, keepdim=True).float().log()).squeeze(1)
        hits[here] = (right >= best).squeeze(1)
        p[each[: len(p)], target.squeeze(1)] -= 1
        if at_hidden is not None:
            at_hidden[here] = product(p, matrix.T) * share
        if at_weight is not None:
            at_weight += product(p.T, (read[here] * share).to(dtype).T)
        if at_bias is not None:
            at_bias += torch.mm(share.T.to(dtype), p).squeeze(0)
    gradients = [at_hidden, at_weight, at_bias]
    if dtype == torch.float16:
        gradients = [None if one is None else one * unit for one in gradients]
    return nats, hits, gradients
