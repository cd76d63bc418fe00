"""A cross-encoder as the judge of candidates: it scores no more of them than are needed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stzoo.models.cross_encoder import Teacher


@dataclass(frozen=True)
class Verdict:
    """What a teacher says of one query.

    Attributes:
        positives: float32, the scores of its positives.
        taken: int64, which of its candidates stand, in the order in which they were given.
        scores: float32, theirs.
        removed: how many candidates it turned away.
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
    """Takes the first candidates of each query that stand before the teacher.

    They are scored in rounds, in each as many as are still missing, of all queries together.

    Args:
        teacher: scores pairs.
        passages: of the corpus.
        queries: Q texts.
        positives: of each query, int64 places; where there are none, it has no candidates either.
        ordered: of each query, int64 places of its candidates, in the order in which they are taken.
        mined: candidates that a query gets at most.
        margin: a candidate stands if it scores at least this much less than the best positive; None: always.
    """

    def score(pairs: list[tuple[int, int]]) -> list[float]:
        texts = [queries[query] for query, _ in pairs]
        return teacher.score(texts, [passages[place] for _, place in pairs]).tolist()

    answers = [(query, place) for query, found in enumerate(positives) for place in found.tolist()]
    ends = np.cumsum([len(found) for found in positives])
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
            for query, places in enumerate(ordered)
            for at in range(seen[query], min(seen[query] + mined - len(taken[query]), len(places)))
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
            np.fromiter(found, np.int64, len(found)),
            np.fromiter(found.values(), np.float32, len(found)),
            seen[query] - len(found),
        )
        for query, found in enumerate(taken)
    ]
