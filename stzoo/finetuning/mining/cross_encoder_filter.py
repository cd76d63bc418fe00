"""Filters candidates by the scores of a cross-encoder, scoring only as many as needed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import numpy as np

from stzoo.models.cross_encoder import Teacher


class Candidates(NamedTuple):
    """The texts that a teacher may be asked about.

    Attributes:
        query: The query.
        positives: Its positives; a query without any has no candidates.
        ordered: Its candidates in order of preference.
    """

    query: str
    positives: list[str]
    ordered: list[str]


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


@dataclass(frozen=True)
class CrossEncoderFilter:
    """Selects for each query the first candidates that a teacher accepts.

    Attributes:
        teacher: Teacher that scores pairs.
        mined: Maximum number of candidates to select per query.
        margin: Accepts candidates that score at least this much below the best positive; None accepts all.
    """

    teacher: Teacher
    mined: int
    margin: float | None

    def on(self, device: str | None) -> "CrossEncoderFilter":
        """See `stzoo.utils.workers.on_device`."""
        return replace(self, teacher=self.teacher.on(device))

    def __call__(self, given: Sequence[Candidates]) -> list[Verdict]:
        """Decides on the candidates of several queries.

        Candidates are scored in rounds: each round scores as many candidates of all queries as are still
        missing.
        """

        def score(pairs: Sequence[tuple[str, str]]) -> list[float]:
            return self.teacher.score([query for query, _ in pairs], [text for _, text in pairs]).tolist()

        answers = chain.from_iterable([(one.query, text) for text in one.positives] for one in given)
        ends = np.cumsum([len(one.positives) for one in given])
        of_positives = np.split(np.array(score(list(answers)), np.float32), ends[:-1])
        limits = [
            np.inf if self.margin is None or not len(scores) else float(scores.max()) - self.margin
            for scores in of_positives
        ]
        seen = [0] * len(given)
        taken: list[dict[int, float]] = [{} for _ in given]
        while True:
            asked = [
                (query, at)
                for query, one in enumerate(given)
                for at in range(
                    seen[query], min(seen[query] + self.mined - len(taken[query]), len(one.ordered))
                )
            ]
            if not asked:
                break
            scores = score([(given[query].query, given[query].ordered[at]) for query, at in asked])
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
