"""Fusion: one ranking from several rankings of the same queries, such as those of BM25 and of a model.

A document's score is the weighted mean of its scores in the rankings, which are made comparable first:

min-max   (score - lowest) / (highest - lowest), from 0 to 1
z-score   (score - mean) / standard deviation, over the query's results
rrf       1 / (60 + rank), which ignores the scores (reciprocal rank fusion)

A document that a ranking lacks gets 0 from it by rrf, and otherwise the lowest score of the query's results,
which is an upper bound of its score. BM25's lowest is 0 by min-max: the score of a passage that shares no
word with the query. So a single hit of BM25 counts fully. By z-score, equal scores add nothing.
Exact scores of such documents would need the index and the vectors, and change nDCG@10 by less than 0.01 at
the default weight (benchmarks/fusion.py).

min-max is invariant to the scale of a ranking's scores, and to a shift where its lowest score is not given;
z-score is invariant to both, rrf to anything that keeps the order.

Sources: Cormack, Clarke and Büttcher 2009, "Reciprocal rank fusion outperforms Condorcet and individual rank
learning methods" (rrf, k = 60); Bruch, Gai and Ingber 2023, "An analysis of fusion functions for hybrid
retrieval" (weighted means of scores by min-max and z-score, and known lowest scores).
"""

from collections.abc import Sequence
from itertools import chain
from typing import Literal, get_args

import numpy as np

from stzoo.data.ranking import Ranked, Ranking
from stzoo.data.texts import Texts
from stzoo.errors import DataError, RecipeError, check_known, quoted

Method = Literal["min-max", "z-score", "rrf"]
METHODS: tuple[str, ...] = get_args(Method)
METHOD: Method = "min-max"
WEIGHT = 0.5  # of BM25
DEPTH = 1000  # results per ranking to fuse
RRF_K = 60


def fuse(
    rankings: Sequence[Ranked],
    weights: Sequence[float] | None = None,
    *,
    method: Method = METHOD,
    lowest: Sequence[float | None] | None = None,
    k: int = DEPTH,
) -> Ranked:
    """Fuses rankings of the same queries.

        fused = fuse([bm25.retrieve(queries), dense], [0.3, 0.7], lowest=[0, None])

    Args:
        rankings: Two or more; their corpora may differ. A query that one of them lacks has no results there.
        weights: Weight of each ranking, at least 0; None weights them equally. They are scaled to a sum of 1.
            A ranking with the weight 0 is left out, with its documents.
        method: min-max, z-score or rrf.
        lowest: The lowest possible score of each ranking for min-max; None where it is unknown, to use the
            lowest of each query's results.
        k: Number of results to keep per query.

    Returns:
        float32 scores by query id and document id, best first. Ties are broken as everywhere, by document id.

    Raises:
        DataError: If a score is infinite, which only rrf can use.
        RecipeError: If an option is invalid.
    """
    check_known("fusion method", method, METHODS)
    weights = [1.0] * len(rankings) if weights is None else list(weights)
    lowest = [None] * len(rankings) if lowest is None else list(lowest)
    if len(rankings) < 2 or not len(rankings) == len(weights) == len(lowest):
        raise RecipeError(
            f"there are {len(rankings)} rankings, {len(weights)} weights and {len(lowest)} lowest scores; "
            "expected at least two rankings, with one of each."
        )
    if not (np.isfinite(weights).all() and min(weights) >= 0 and sum(weights) > 0):
        raise RecipeError(
            f"the weights are {weights}; expected numbers from 0, at least one of them above 0."
        )
    parts = [part for part in zip(rankings, weights, lowest, strict=True) if part[1] > 0]
    corpus_ids, positions = _shared_ids([part[0] for part in parts])
    ranking = Ranking(corpus_ids, k, drop_self=False)
    queries = list(dict.fromkeys(chain.from_iterable(rankings)))
    kept = ranking.none(len(queries))
    for row, query in enumerate(queries):
        found = []
        for (part, _, _), position in zip(parts, positions, strict=True):
            indices, scores = part.results(query)
            if method != "rrf" and not np.isfinite(scores).all():
                raise DataError(
                    f"the scores of query {quoted(query)} are not all finite, as {method} needs. Fuse by rrf."
                )
            found.append((indices if position is None else position[indices], scores.astype(np.float64)))
        documents = np.unique(np.concatenate([indices for indices, _ in found]))
        fused = np.zeros(len(documents))
        for (indices, scores), (_, weight, low) in zip(found, parts, strict=True):
            if len(indices):
                known, missing = _comparable(scores, method, low)
                values = np.full(len(documents), missing)
                values[np.searchsorted(documents, indices)] = known
                fused += weight / sum(weights) * values
        one = slice(row, row + 1)
        kept[one] = ranking.merge(kept[one], np.zeros_like(documents), documents, fused.astype(np.float32))
    return ranking.run(queries, kept)


def fuse_bm25(
    bm25: Ranked, dense: Ranked, *, weight: float = WEIGHT, method: Method = METHOD, k: int = DEPTH
) -> Ranked:
    """Fuses BM25, with a weight from 0 to 1, and a model, with the rest; see `fuse`."""
    return fuse([bm25, dense], [weight, 1 - weight], method=method, lowest=[0.0, None], k=k)


def _comparable(scores: np.ndarray, method: str, low: float | None) -> tuple[np.ndarray, float]:
    """The comparable scores of a query's results, best first, and that of all other documents."""
    if method == "rrf":
        return 1 / (RRF_K + np.arange(1.0, len(scores) + 1)), 0.0
    if method == "min-max":
        start = scores[-1] if low is None else min(low, scores[-1])
        spread = scores[0] - start
    else:
        start, spread = scores.mean(), scores.std() if scores[0] > scores[-1] else 0.0
    if not spread > 0:
        return np.zeros_like(scores), 0.0
    known = (scores - start) / spread
    return known, 0.0 if method == "min-max" else float(known[-1])


def _shared_ids(rankings: Sequence[Ranked]) -> tuple[Sequence[str], list[np.ndarray | None]]:
    """The ids of all rankings, and the positions among them of each one's own; None if all are the same."""
    first = rankings[0].corpus_ids
    if all(ranking.corpus_ids is first for ranking in rankings):
        return first, [None] * len(rankings)
    ids = dict.fromkeys(chain.from_iterable(ranking.corpus_ids for ranking in rankings))
    place = {document: i for i, document in enumerate(ids)}
    positions = [
        np.fromiter((place[document] for document in ranking.corpus_ids), np.int64) for ranking in rankings
    ]
    return Texts(ids), [*positions]
