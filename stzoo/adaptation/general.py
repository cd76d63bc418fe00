"""A general check: how well an adapted model finds what is not the user's."""

from functools import cached_property
from typing import Any

import numpy as np

from stzoo.adaptation.query_map import apply
from stzoo.adaptation.vectors import ndcg, unit
from stzoo.data import pydocs
from stzoo.models.encode import encode

QUERIES, PASSAGES = 200, 1000


class GeneralCheck:
    """Summaries of docstrings of Python's library, which are to find the rest of their docstrings.

    Args:
        base: The base model, a SentenceTransformer.
        adapted: The model whose queries are weighted; the same as `base` if they are not.
        options: Options of `encode`.
    """

    def __init__(self, base: Any, adapted: Any, **options: Any):
        self._base, self._adapted, self._options = base, adapted, options

    @cached_property
    def before(self) -> float:
        """Mean nDCG@10 of the base, one relevant passage per query."""
        return self._score(self._queries(self._base))

    def score(self, query_map: np.ndarray) -> float:
        """The same with weighted queries, and a map of their vectors."""
        return self._score(apply(query_map, self._weighted))

    @cached_property
    def _weighted(self) -> np.ndarray:
        return self._queries(self._adapted)

    @cached_property
    def _chosen(self) -> dict[str, pydocs.Pair]:
        pairs = {pair.passage_id: pair for pair in pydocs.pairs() if pair.split == "test"}
        return dict(list(pairs.items())[:QUERIES])

    def _queries(self, model: Any) -> np.ndarray:
        texts = [pair.query for pair in self._chosen.values()]
        return encode(model, texts, role="query", desc="General check", **self._options)

    @cached_property
    def _passages(self) -> np.ndarray:
        pairs = [*self._chosen.values(), *pydocs.pairs()]
        texts = list({pair.passage_id: pair.passage for pair in pairs}.values())[:PASSAGES]
        return unit(encode(self._base, texts, role="document", desc="General check", **self._options))

    def _score(self, queries: np.ndarray) -> float:
        return ndcg(queries, self._passages, np.arange(len(queries)))
