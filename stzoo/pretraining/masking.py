"""Which tokens a masked LM hides and what each position may see, drawn for a whole batch at once.

Whole-word hiding: a row has a budget of tokens, max(1, round(rate * length)), special tokens counted in its
length. The words are shuffled and gone through; a word that would exceed the budget is passed over.
Enhanced decoding draws a pool of such masks for each row; every position sees the row through one of them.

Everything runs on the device that the inputs are on and draws from torch's default generator of that device.
The draws depend on the shape of the batch: a passage padded otherwise, or among other passages, gets other
masks, of the same distribution.

Source: RetroMAE (https://arxiv.org/abs/2205.12035, sections 3.1 to 3.3), and as its authors run it:
https://github.com/staoxiao/RetroMAE @ee37587, src/pretrain/data.py, over the collator of transformers 4.

Unlike:
    - A word is what the tokenizer split off before it cut the pieces, not what a "##" continues, so that
      byte-level BPE and Unigram tokenizers have words too. With BERT's WordPiece the two are the same.
    - A word longer than its row's whole budget would never be hidden by that rule, and where words are not
      separated by spaces that may be the whole sentence. Each token of it is taken for a word of its own.
    - There is no further cap of 512 hidden tokens a passage.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stzoo.errors import ModelError, RecipeError, ShapeError

if TYPE_CHECKING:
    from transformers import BatchEncoding


def word_numbers(encodings: "BatchEncoding", special_ids: Collection[int] = ()) -> Tensor:
    """Numbers the words of a tokenized batch, for the collator.

    Args:
        encodings: what a fast tokenizer returned for a list of B texts, padded to one length T.
        special_ids: token ids that are no words even where a text spells them out ("title [SEP] text").

    Returns:
        int64 [B, T] on the CPU, the number of the word that a token is a piece of, ascending within a row;
        -1 for special tokens and padding.

    Raises:
        ModelError: if the tokenizer does not know which word a token came from.
        ShapeError: if the texts are not padded to one length.
    """
    pieces = getattr(encodings, "encodings", None)
    if not pieces:
        raise ModelError(
            "Whole words cannot be told from these encodings. They must be what a fast tokenizer (one with a "
            "tokenizer.json) returned for the texts, not passed on through tokenizer.pad or a plain dict."
        )
    if len(lengths := {len(row) for row in pieces}) > 1:
        raise ShapeError(
            f"The texts have {min(lengths)} to {max(lengths)} tokens; expected one length. "
            "Call the tokenizer with padding=True."
        )
    numbers = np.array([row.word_ids for row in pieces], dtype=np.float64)  # None becomes NaN
    words = np.nan_to_num(numbers, nan=-1).astype(np.int64)
    if special_ids:
        words[np.isin([row.ids for row in pieces], list(special_ids))] = -1
    return torch.from_numpy(words)


def hide_words(words: Tensor, attention: Tensor, rate: float, *, draws: int | None = None) -> Tensor:
    """Hides whole words at random until each row's budget, max(1, round(rate * length)) tokens, is spent.

    A run of one number is a word. At the end no word that is left fits into what is left of the budget, so
    the budget is spent to the last token wherever enough words of one token are there.

    Args:
        words: int64 [B, T], the word each token belongs to; negative for special tokens and padding, which
            are never hidden.
        attention: bool [B, T], True where there is a token, special ones included; its sum is the length.
        rate: the share of a row's tokens to hide, above 0 and at most 1.
        draws: how many independent masks to draw for each row; None for one without a dimension of its own.

    Returns:
        bool [B, T], or [B, draws, T]: True where a token is hidden.

    Raises:
        ShapeError: if words and attention differ in shape.
        RecipeError: if the rate is out of range.
    """
    _agree(words=words, attention=attention)
    budget = _budget(attention, rate).unsqueeze(1)
    ordinary = words >= 0
    starts = _starts(words)
    slot, lengths = _slots(starts, ordinary)
    slot, lengths = _slots(starts | (ordinary & (lengths.gather(1, slot) > budget)), ordinary)

    shape = (len(words), draws or 1, words.shape[1])
    # whole numbers sort faster than floats; two equal ones, one pair of words in 2**31, stay in any order
    keys = torch.randint(2**31 - 1, shape, dtype=torch.int32, device=words.device)
    order = keys.argsort(-1)
    taken = _take(lengths.unsqueeze(1).expand(shape).gather(-1, order), budget.unsqueeze(1))
    by_slot = torch.zeros_like(taken).scatter_(-1, order, taken)
    hidden = by_slot.gather(-1, slot.unsqueeze(1).expand(shape)) & ordinary.unsqueeze(1)
    return hidden if draws else hidden.squeeze(1)


def hide_keywords(words: Tensor, rate: float, weights: Tensor) -> Tensor:
    """Hides words drawn by their weights until at least max(1, round(rate * ordinary tokens)) are hidden.

    Words are drawn one after another without replacement, each time with chances proportional to the weights
    of those left. The word that reaches the budget is hidden whole, so it may exceed it by all but one of its
    tokens; where words are not separated by spaces, that may be the whole sentence. Each word gets a random
    key, an exponential variate over its weight; in the order of their keys the words are such a draw.

    Args:
        words: int64 [B, T], the word each token belongs to; negative for special tokens and padding, which
            are never hidden. A run of one number is a word.
        rate: the share of a row's ordinary tokens to hide, above 0 and at most 1.
        weights: float [B, T], above 0, the weight of each token's word; read at the word's first token.

    Returns:
        bool [B, T], True where a token is hidden.

    Raises:
        ShapeError: if words and weights differ in shape.
        RecipeError: if the rate is out of range.

    Source: MASTER (https://arxiv.org/abs/2212.07841), as its authors run it with weights of 1 over a word's
    frequency in the corpus: https://github.com/microsoft/SimXNS @0163380, MASTER/pretrain/data.py. The keys:
    Efraimidis and Spirakis, 2006 (https://doi.org/10.1016/j.ipl.2005.11.003).

    Unlike:
        - The budget is not capped at 512 tokens a passage.
    """
    _agree(words=words, weights=weights)
    ordinary = words >= 0
    budget = _budget(ordinary, rate).unsqueeze(1)
    starts = _starts(words)
    slot, lengths = _slots(starts, ordinary)

    # by word, not by token; 0 for no word
    weights = torch.zeros_like(weights).scatter_add_(1, slot, torch.where(starts, weights, 0))
    order = (torch.empty_like(weights).exponential_() / weights).argsort(1)
    drawn = lengths.gather(1, order)
    taken = drawn.cumsum(1, dtype=torch.int32) - drawn < budget
    by_slot = torch.zeros_like(taken).scatter_(1, order, taken)
    return by_slot.gather(1, slot) & ordinary


def visibility(words: Tensor, attention: Tensor, rate: float, pool: int = 256) -> Tensor:
    """What each position sees in enhanced decoding: the passage through a mask of its own, never itself.

    A row of n tokens draws min(n, pool) whole-word masks, and each of its positions takes one of them at
    random. Special tokens are seen from everywhere but themselves, so [CLS], the bottleneck, is too.

    Args:
        words: int64 [B, T], the word each token belongs to; negative for special tokens and padding.
        attention: bool [B, T], True where there is a token.
        rate: the share of a row's tokens that each mask hides, above 0 and at most 1.
        pool: the most masks drawn for one row.

    Returns:
        bool [B, T, T]: True where position i may look at position j. Padding is not seen, and sees nothing:
        its rows are all False.

    Raises:
        ShapeError: if words and attention differ in shape.
        RecipeError: if the rate is out of range.
    """
    attention = attention.bool()
    tokens = words.shape[1]
    hidden = hide_words(words, attention, rate, draws=min(tokens, pool))
    masks = attention.sum(1, keepdim=True).clamp(1, pool)
    choice = torch.randint(2**31 - 1, words.shape, device=words.device) % masks
    visible = ~hidden.gather(1, choice.unsqueeze(2).expand(-1, -1, tokens))
    visible &= attention.unsqueeze(1) & attention.unsqueeze(2)
    visible.diagonal(dim1=1, dim2=2).fill_(False)
    return visible


def corrupt(ids: Tensor, hidden: Tensor, mask_id: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Puts [MASK] on 80 % of the hidden tokens, a random token on 10 %, and leaves 10 % as they are.

    Args:
        ids: int64 [B, T], left as they are.
        hidden: bool [B, T], True where the token is to be rebuilt.
        mask_id: id of [MASK].
        vocab_size: number of entries that a random token is drawn from, special ones included.

    Returns:
        int64 [B, T], the corrupted ids, and int64 [B, T], the labels: the original id where hidden, else
        -100.

    Raises:
        ShapeError: if ids and hidden differ in shape.

    Source: BERT (https://arxiv.org/abs/1810.04805, section 3.1).

    Unlike:
        - RetroMAE's code leaves a hidden [UNK] as it is and does not ask for it; here it is a token like any
          other.
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
            f"{one} is {list(first.shape)} and {other} {list(second.shape)}; expected one shape."
        )


def check_rates(**rates: float) -> None:
    """Refuses shares of tokens to hide that are not above 0 and at most 1.

    Raises:
        RecipeError: it names the option.
    """
    for option, rate in rates.items():
        if not 0 < rate <= 1:
            raise RecipeError(f"{option} is {rate}; expected a share above 0 and at most 1.")


def _budget(attention: Tensor, rate: float) -> Tensor:
    """Tokens to hide in each row, int32 [B]: the share of those for which `attention` is True."""
    check_rates(rate=rate)
    # looked up in a table made on the CPU, because not every device has the float64 that Python rounds in
    lengths = torch.arange(attention.shape[1] + 1, dtype=torch.float64, device="cpu")
    table = (lengths * rate).round().clamp(min=1).int()
    return table.to(attention.device)[attention.sum(1)]


def _starts(words: Tensor) -> Tensor:
    """Tells where words begin: bool [B, T], True at the first token of each."""
    starts = words >= 0
    starts[:, 1:] &= words[:, 1:] != words[:, :-1]
    return starts


def _slots(starts: Tensor, ordinary: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers a row's words from 0: each token's number, int64 [B, T]; each number's tokens, int32 [B, T]."""
    slot = (starts.cumsum(1) - 1).clamp(min=0)
    return slot, torch.zeros_like(slot, dtype=torch.int32).scatter_add_(1, slot, ordinary.int())


def _take(lengths: Tensor, budget: Tensor) -> Tensor:
    """Goes through words in the order given and takes each that still fits, in rounds, not word by word.

    Within a round, the waiting words up to the first that does not fit are the ones that word by word would
    have taken. That first one is longer than what is left, and so is done with; hence the longest waiting
    word gets shorter with each round, and a few rounds are all it takes.

    Args:
        lengths: int32 [..., W], tokens of each word; 0 for no word.
        budget: int32 [..., 1].

    Returns:
        bool [..., W], True where the word is taken.
    """
    taken = torch.zeros_like(lengths, dtype=torch.bool)
    left, waiting = budget, lengths > 0
    while waiting.any():
        fits = waiting & ((lengths * waiting).cumsum(-1, dtype=torch.int32) <= left)
        taken |= fits
        left = left - (lengths * fits).sum(-1, keepdim=True, dtype=torch.int32)
        waiting &= ~fits & (lengths <= left)
    return taken
