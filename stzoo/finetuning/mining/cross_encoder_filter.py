"""Filters candidates by the scores of a cross-encoder, scoring only as many as needed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stzoo.models.cross_encoder import Teacher


@dataclass(frozen=True)
class Verdict:
    """A teacher's decision on the candidates of a query.

    Attributes:
        positives: Scores of the query's positives, float32.
        taken: Positions of the accepted candidates in the given order, int64.
        scores: Scores of the accepted candidates, float32.
        removed: Number of rejected candidates.
    """

    positives: np.ndarray
    taken: np.ndarray
    scores: np.ndarray
    removed: int


def verdicts(
    teacher: Teacher,
    passages: Sequence[str],
    queries: Sequence[str],
    positives: Sequence[np.ndarray],
    ordered: Sequence[np.ndarray],
    mined: int,
    margin: float | None,
) -> list[Verdict]:
    """Selects for each query the first candidates that the teacher accepts.

    Candidates are scored in rounds: each round scores as many candidates of all queries as are still missing.

    Args:
        teacher: Teacher that scores pairs.
        passages: Passages of the corpus.
        queries: Texts of Q queries.
        positives: Indices of the positives of each query, int64; a query without positives has no candidates.
        ordered: Indices of the candidates of each query, int64, in order of preference.
        mined: Maximum number of candidates to select per query.
        margin: Accepts candidates that score at least this much below the best positive; None accepts all.
    """

    def score(pairs: list[tuple[int, int]]) -> list[float]:
        texts = [queries[query] for query, _ in pairs]
        return teacher.score(texts, [passages[place] for _, place in pairs]).tolist()

    answers = [(query, place) for query, indices in enumerate(positives) for place in indices.tolist()]
    ends = np.cumsum([len(indices) for indices in positives])
    of_positives = np.split(np.array(score(answers), np.float32), ends[:-1])
    limits = [
        np.inf if margin is None or not len(scores) else float(scores.max()) - margin
        for scores in of_positives
    ]
    seen = [0] * len(queries)
    taken: list[dict[int, float]] = [{} for _ in queries]
    while True:
        asked = [
            (query, at)
            for query, indices in enumerate(ordered)
            for at in range(seen[query], min(seen[query] + mined - len(taken[query]), len(indices)))
        ]
        if not asked:
            break
        scores = score([(query, int(ordered[query][at])) for query, at in asked])
        for (query, at), value in zip(asked, scores, strict=True):
            seen[query] = at + 1
            if value <= limits[query]:
                taken[query][at] = value
    return [
        Verdict(
            of_positives[query],
            np.fromiter(accepted, np.int64, len(accepted)),
            np.fromiter(accepted.values(), np.float32, len(accepted)),
            seen[query] - len(accepted),
        )
        for query, accepted in enumerate(taken)
    ]
