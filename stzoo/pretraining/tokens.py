"""Texts as token ids, with the number of the word that each token belongs to."""

from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from stzoo.errors import ModelError

T = TypeVar("T")


class Tokens(NamedTuple):
    """A text as its tokens, special tokens included.

    Attributes:
        ids: int [T], token ids.
        words: int [T], the number of the word that a token belongs to; -1 for special tokens.
        truncated: True if the text has more tokens.
    """

    ids: np.ndarray
    words: np.ndarray
    truncated: bool = False


def tokenize(tokenizer: Any, texts: list[str], max_tokens: int) -> list[Tokens]:
    """Tokenises texts without padding.

    Args:
        tokenizer: A fast tokenizer. It uses all cores, unless TOKENIZERS_PARALLELISM forbids it.
        texts: Texts to tokenise.
        max_tokens: Number of tokens, special tokens included, to which each text is truncated.

    Raises:
        ModelError: If the tokenizer is not a fast one.
    """
    if not texts:
        return []
    encoded = tokenizer(
        texts,
        truncation=True,
        max_length=max_tokens,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    if not encoded.encodings:
        raise ModelError(
            f"A {type(tokenizer).__name__} was given; expected a fast tokenizer (one with a tokenizer.json), "
            "which knows the word that a token belongs to."
        )
    pieces = encoded.encodings
    ids = np.concatenate([np.array(piece.ids, dtype=np.int32) for piece in pieces])
    numbers = np.concatenate([np.array(piece.word_ids, dtype=np.float64) for piece in pieces])
    numbers[np.isnan(numbers)] = -1  # None, of special tokens
    for special in (tokenizer.cls_token_id, tokenizer.sep_token_id):
        numbers[ids == special] = -1  # a text may contain them literally ("title [SEP] text")
    words = numbers.astype(np.int32)
    tokens, first = [], 0
    for piece in pieces:
        last = first + len(piece)
        truncated = last - first == max_tokens and bool(piece.overflowing)
        tokens.append(Tokens(ids[first:last], words[first:last], truncated))
        first = last
    return tokens


def pad_tokens(tokenizer: Any, texts: list[Tokens]) -> dict[str, Tensor]:
    """Pads texts to the longest of them, on the padding side of their tokenizer.

    Args:
        tokenizer: The tokenizer that made them.
        texts: B texts.

    Returns:
        int64 [B, T] tensors input_ids, attention_mask (1 where there is a token) and words (-1 for special
        tokens and padding).
    """
    lengths = np.array([[len(text.ids)] for text in texts])
    filled = np.arange(lengths.max()) < lengths
    if tokenizer.padding_side == "left":
        filled = filled[:, ::-1]
    padded = {"attention_mask": filled.astype(np.int64)}
    for name, values, fill in (
        ("input_ids", [text.ids for text in texts], tokenizer.pad_token_id),
        ("words", [text.words for text in texts], -1),
    ):
        padded[name] = np.full(filled.shape, fill, dtype=np.int64)
        padded[name][filled] = np.concatenate(values)
    return {name: torch.from_numpy(array) for name, array in padded.items()}


def flatten(values: list[T] | list[list[T]], empty: T) -> tuple[list[T], int | None]:
    """Flattens the values of a view, one or a list per row, to values of which each row has as many.

    Args:
        values: A value per row, or a list of values per row.
        empty: What follows the values of a row that has fewer than another.

    Returns:
        The values, and how many each row has; None if they were no lists.
    """
    if not isinstance(values[0], list):
        return values, None  # type: ignore[return-value]
    size = max(1, *map(len, values))  # type: ignore[arg-type]
    return [value for row in values for value in [*row, *[empty] * (size - len(row))]], size  # type: ignore
