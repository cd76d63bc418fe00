"""A general check: whether an adapted model still works on other texts."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stzoo.adaptation.query_map import apply
from stzoo.adaptation.vectors import ndcg, unit
from stzoo.data import pydocs
from stzoo.data.beir import RetrievalDataset
from stzoo.models.encode import encode
from stzoo.retrieval.search.retriever import Retriever

NAME = "general-check"
QUERIES, PASSAGES = 200, 1000


class GeneralCheck:
    """Summaries of docstrings of Python's library, which are to find the rest of their docstrings.

    Args:
        retriever: The base model; the vectors of the passages are kept in its stores.
        adapted: The model whose queries are weighted.
    """

    def __init__(self, retriever: Retriever, adapted: Any):
        self._retriever, self._adapted = retriever, adapted

    @cached_property
    def before(self) -> float:
        """Mean nDCG@10 of the base, one relevant passage per query."""
        return self._score(self._queries(self._retriever.opened.model))

    def score(self, query_map: np.ndarray) -> float:
        """The same with weighted queries, and a map of their vectors."""
        return self._score(apply(query_map, self._weighted))

    @cached_property
    def _weighted(self) -> np.ndarray:
        return self._queries(self._adapted)

    @cached_property
    def _chosen(self) -> dict[str, pydocs.Pair]:
        pairs = {
            pair.passage_id: pair for pair in pydocs.pairs() if pair.split == "train"
        }  # the demo scores the test queries
        return dict(list(pairs.items())[:QUERIES])

    def _queries(self, model: Any) -> np.ndarray:
        return encode(model, [pair.query for pair in self._chosen.values()], role="query")

    @cached_property
    def _passages(self) -> np.ndarray:
        pairs = [*self._chosen.values(), *pydocs.pairs()]
        rests = dict(list({pair.passage_id: pair.passage for pair in pairs}.items())[:PASSAGES])
        data = RetrievalDataset(
            name=NAME, folder=Path(NAME), corpus_ids=list(rests), passages=list(rests.values())
        )
        return unit(self._retriever.documents(data)[:])

    def _score(self, queries: np.ndarray) -> float:
        return ndcg(queries, self._passages, np.arange(len(queries)))
