"""The poolings of sentence-transformers, by the names that recipes use."""

from typing import Any

from sentence_transformers.sentence_transformer.modules import Pooling


def cls(dim: int) -> Any:
    """The first token's hidden state as the sentence vector, float [B, D]."""
    return Pooling(dim, "cls")


def mean(dim: int) -> Any:
    """The mean of all tokens' hidden states as the sentence vector, float [B, D]; padding is left out."""
    return Pooling(dim, "mean")


def max(dim: int) -> Any:  # noqa: A001 - the name that recipes and sentence-transformers use
    """The largest value of each dimension over all tokens as the sentence vector, float [B, D]."""
    return Pooling(dim, "max")
