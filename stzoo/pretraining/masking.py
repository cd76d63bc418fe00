"""Whole-word masks and the visibility of enhanced decoding, drawn for a whole batch at once.

Whole-word masking: a row has a budget of max(1, round(rate * length)) tokens, where the length includes
special tokens. The words are visited in random order, and a word that would exceed the budget is skipped.
Enhanced decoding draws a pool of such masks for each row; every position sees the row through one of them.

Everything runs on the device of the inputs and draws from torch's default generator of that device. The
draws depend on the shape of the batch: with other padding, or among other passages, a passage gets other
masks from the same distribution.

Source: RetroMAE (https://arxiv.org/abs/2205.12035, sections 3.1 to 3.3), and as its authors run it:
https://github.com/staoxiao/RetroMAE @ee37587, src/pretrain/data.py, over the collator of transformers 4.

Unlike:
    - A word is what the tokenizer's pre-tokenizer splits off, not what a "##" continues, so byte-level BPE
      and Unigram tokenizers have words too. With BERT's WordPiece the two are the same.
    - A word longer than its row's whole budget would never be masked by that rule, and in languages without
      spaces that may be a whole sentence. Each token of such a word counts as a word.
    - There is no further cap of 512 masked tokens per passage.
"""

from itertools import count

import numpy as np
import torch
from torch import Tensor

from stzoo.errors import RecipeError, ShapeError

ROUNDS = 16  # on a GPU, for the words after the first that does not fit; 4 are enough for English


def hide_words(words: Tensor, attention: Tensor, rate: float, *, draws: int | None = None) -> Tensor:
    """Masks random whole words until each row's budget of max(1, round(rate * length)) tokens is spent.

    Neighbouring tokens with the same number form a word. In the end none of the remaining words fits into the
    remaining budget, so the budget is spent to the last token if there are enough words of one token.

    Args:
        words: int64 [B, T], the word that each token belongs to; negative for special tokens and padding,
            which are never masked.
        attention: bool [B, T], True where there is a token, special tokens included; its sum is the length.
        rate: Share of a row's tokens to mask, above 0 and at most 1.
        draws: Number of independent masks to draw for each row; None for a single one without that dimension.

    Returns:
        bool [B, T], or [B, draws, T]: True where a token is masked.

    Raises:
        ShapeError: If words and attention differ in shape.
        RecipeError: If the rate is out of range.
    """
    _agree(words=words, attention=attention)
    budget = _budget(attention, rate).unsqueeze(1)
    ordinary = words >= 0
    starts = word_starts(words)
    slot, lengths = _slots(starts, ordinary)
    slot, lengths = _slots(starts | (ordinary & (lengths.gather(1, slot) > budget)), ordinary)
    if lengths.device.type == "cpu":  # another device would have to be waited for
        lengths = lengths[:, : int(slot.max()) + 1]

    by_slot = _hidden_words(lengths, budget, draws or 1)
    hidden = by_slot.gather(-1, slot.unsqueeze(1).expand(-1, by_slot.shape[1], -1)) & ordinary.unsqueeze(1)
    return hidden if draws else hidden.squeeze(1)


def hide_keywords(words: Tensor, rate: float, weights: Tensor) -> Tensor:
    """Masks words sampled by weight until at least max(1, round(rate * ordinary tokens)) tokens are masked.

    Words are drawn one by one without replacement, with probabilities proportional to the weights of the
    remaining words. The word that reaches the budget is masked whole, so it may exceed the budget by all but
    one of its tokens; in languages without spaces, that may be a whole sentence. Each word gets a random key,
    an exponential variate divided by its weight; sorted by these keys, the words are such a sample.

    Args:
        words: int64 [B, T], the word that each token belongs to; negative for special tokens and padding,
            which are never masked. Neighbouring tokens with the same number form a word.
        rate: Share of a row's ordinary tokens to mask, above 0 and at most 1.
        weights: float [B, T], above 0, the weight of each token's word; read at the word's first token.

    Returns:
        bool [B, T], True where a token is masked.

    Raises:
        ShapeError: If words and weights differ in shape.
        RecipeError: If the rate is out of range.

    Source: MASTER (https://arxiv.org/abs/2212.07841), as its authors run it, with the inverse of a word's
    frequency in the corpus as its weight: https://github.com/microsoft/SimXNS @0163380,
    MASTER/pretrain/data.py. The keys: Efraimidis and Spirakis, 2006
    (https://doi.org/10.1016/j.ipl.2005.11.003).

    Unlike:
        - The budget is not capped at 512 tokens per passage.
    """
    _agree(words=words, weights=weights)
    ordinary = words >= 0
    budget = _budget(ordinary, rate).unsqueeze(1)
    starts = word_starts(words)
    slot, lengths = _slots(starts, ordinary)

    # by word instead of by token; 0 where there is no word
    weights = torch.zeros_like(weights).scatter_add_(1, slot, torch.where(starts, weights, 0))
    order = (torch.empty_like(weights).exponential_() / weights).argsort(1)
    drawn = lengths.gather(1, order)
    taken = drawn.cumsum(1, dtype=torch.int32) - drawn < budget
    by_slot = torch.zeros_like(taken).scatter_(1, order, taken)
    return by_slot.gather(1, slot) & ordinary


def visibility(words: Tensor, attention: Tensor, rate: float, pool: int = 256) -> Tensor:
    """Draws what each position sees in enhanced decoding: the passage through its own mask, never itself.

    A row of n tokens draws min(n, pool) whole-word masks, and each of its positions uses a random one of
    them. Special tokens, and with them [CLS], the bottleneck, are visible from every position but their own.

    Args:
        words: int64 [B, T], the word that each token belongs to; negative for special tokens and padding.
        attention: bool [B, T], True where there is a token.
        rate: Share of a row's tokens that each mask hides, above 0 and at most 1.
        pool: Maximum number of masks drawn for one row.

    Returns:
        bool [B, T, T]: True where position i may attend to position j. Padding is not visible and sees
        nothing: its rows are all False.

    Raises:
        ShapeError: If words and attention differ in shape.
        RecipeError: If the rate is out of range.
    """
    attention = attention.bool()
    tokens = words.shape[1]
    hidden = hide_words(words, attention, rate, draws=min(tokens, pool))
    masks = attention.sum(1, keepdim=True).clamp(1, pool)
    choice = torch.randint(2**31 - 1, words.shape, device=words.device) % masks
    # copies whole rows, which a gather would copy token by token
    first = torch.arange(len(words), device=words.device).unsqueeze(1) * hidden.shape[1]
    visible = ~hidden.flatten(0, 1).index_select(0, (first + choice).flatten()).view(*words.shape, tokens)
    visible &= attention.unsqueeze(1) & attention.unsqueeze(2)
    visible.diagonal(dim1=1, dim2=2).fill_(False)
    return visible


def corrupt(ids: Tensor, hidden: Tensor, mask_id: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Replaces 80 % of the hidden tokens by [MASK] and 10 % by a random token, and keeps the other 10 %.

    Args:
        ids: int64 [B, T], left unchanged.
        hidden: bool [B, T], True where the token is to be predicted.
        mask_id: Id of [MASK].
        vocab_size: Number of entries that a random token is drawn from, special tokens included.

    Returns:
        The corrupted ids int64 [B, T], and the labels int64 [B, T]: the original id where hidden, else -100.

    Raises:
        ShapeError: If ids and hidden differ in shape.

    Source: BERT (https://arxiv.org/abs/1810.04805, section 3.1).

    Unlike:
        - RetroMAE's code keeps a hidden [UNK] and does not predict it; here it is a token like any other.
    """
    _agree(ids=ids, hidden=hidden)
    lot = torch.rand(ids.shape, device=ids.device)
    random_ids = torch.randint(vocab_size, ids.shape, device=ids.device)
    corrupted = torch.where(hidden & (lot < 0.8), mask_id, ids)
    corrupted = torch.where(hidden & (lot >= 0.9), random_ids, corrupted)
    return corrupted, torch.where(hidden, ids, -100)


def _agree(**tensors: Tensor) -> None:
    (one, first), (other, second) = tensors.items()
    if first.shape != second.shape:
        raise ShapeError(
            f"{one} has the shape {list(first.shape)} and {other} {list(second.shape)}; expected the same "
            "shape."
        )


def check_rates(**rates: float) -> None:
    """Refuses a masking rate that is not above 0 and at most 1.

    Args:
        rates: Rates by the name of the option.

    Raises:
        RecipeError: If a rate is out of range; the message names the option.
    """
    for option, rate in rates.items():
        if not 0 < rate <= 1:
            raise RecipeError(f"{option} is {rate}; expected a share above 0 and at most 1.")


def _budget(attention: Tensor, rate: float) -> Tensor:
    """The number of tokens to mask in each row, int32 [B]: a share of those where `attention` is True."""
    check_rates(rate=rate)
    # looked up in a table made on the CPU, because Python rounds in float64, which some devices lack
    lengths = torch.arange(attention.shape[1] + 1, dtype=torch.float64, device="cpu")
    table = (lengths * rate).round().clamp(min=1).int()
    return table.to(attention.device)[attention.sum(1)]


def word_starts(words: Tensor) -> Tensor:
    """Marks where words begin: bool [B, T], True at the first token of each word."""
    starts = words >= 0
    starts[:, 1:] &= words[:, 1:] != words[:, :-1]
    return starts


def _slots(starts: Tensor, ordinary: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers a row's words from 0: each token's number, int64 [B, T]; each number's tokens, int32 [B, T]."""
    slot = (starts.cumsum(1) - 1).clamp(min=0)
    return slot, torch.zeros_like(slot, dtype=torch.int32).scatter_add_(1, slot, ordinary.int())


def _hidden_words(lengths: Tensor, budget: Tensor, draws: int) -> Tensor:
    """Selects words in random order, each if it still fits into the row's budget.

    Args:
        lengths: int32 [B, W], number of tokens of each word, at most the row's budget; 0 where there is none.
        budget: int32 [B, 1], number of tokens to mask, at least 1.
        draws: Number of selections per row.

    Returns:
        bool [B, draws, W], True where the word is selected.
    """
    # A key is a random number followed by the word's, so that sorted keys are the words in random order.
    # Two words have the same random number, and are then not in random order, once in 2**21 pairs.
    shape = (len(lengths), draws, lengths.shape[1])
    bits = (shape[-1] - 1).bit_length()
    kind = torch.int32 if bits <= 10 else torch.int64
    keys = torch.randint(torch.iinfo(kind).max, shape, dtype=kind, device=lengths.device)
    keys &= -(2**bits)
    keys |= torch.arange(shape[-1], dtype=kind, device=lengths.device)
    ordered = _sorted(keys)
    order = (ordered & (2**bits - 1)).long()

    spread = lengths.unsqueeze(1).expand(shape).gather(-1, order)
    total = spread.cumsum(-1, dtype=torch.int32)
    budget = budget.unsqueeze(1).expand(*shape[:2], 1).contiguous()
    last = (
        torch.searchsorted(total, budget, right=True) - 1
    )  # of the words before the first that does not fit
    hidden = keys <= ordered.gather(-1, last)
    left = budget - total.gather(-1, last)
    later = torch.arange(shape[-1], device=lengths.device)
    if lengths.device.type == "cpu":  # few rows have budget left for the words after that
        rows = left.squeeze(-1).nonzero(as_tuple=True)
        more = _take(spread[rows] * (later > last[rows]), left[rows])
        hidden[rows] |= torch.zeros_like(more).scatter_(-1, order[rows], more)
        return hidden
    more = _take(spread * (later > last), left)
    return hidden | torch.zeros_like(more).scatter_(-1, order, more)


def _sorted(keys: Tensor) -> Tensor:
    """Sorts the last dimension."""
    if keys.device.type == "cpu":  # numpy has vectorised kernels and, unlike torch, computes no indices
        return torch.from_numpy(np.sort(keys.numpy(), axis=-1))
    return keys.sort(-1).values


def _take(lengths: Tensor, budget: Tensor) -> Tensor:
    """Selects words in order, each if it still fits into the budget, in rounds instead of one by one.

    A round selects the waiting words up to the first that does not fit, the same words that going one by one
    would select. Every waiting word longer than the remaining budget is then dropped, so the longest waiting
    word gets shorter with each round, and a few rounds are enough.

    Args:
        lengths: int32 [..., W], number of tokens of each word; 0 where there is no word.
        budget: int32 [..., 1], number of tokens to mask.

    Returns:
        bool [..., W], True where the word is selected.
    """
    taken = torch.zeros_like(lengths, dtype=torch.bool)
    left, waiting = budget, lengths > 0
    # to ask whether a word is waiting would make the CPU wait for another device
    on_cpu = lengths.device.type == "cpu"
    for _ in count() if on_cpu else range(ROUNDS):
        if on_cpu and not waiting.any():
            break
        fits = waiting & ((lengths * waiting).cumsum(-1, dtype=torch.int32) <= left)
        taken |= fits
        left = left - (lengths * fits).sum(-1, keepdim=True, dtype=torch.int32)
        waiting &= ~fits & (lengths <= left)
    return taken
