"""The order of all systems over all data sets, with significance letters."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from stzoo.evaluation.letters import significance_letters
from stzoo.evaluation.report.data import Group
from stzoo.evaluation.report.suites import Suite


@dataclass(frozen=True)
class Leaderboard:
    """All systems, best first.

    Attributes:
        systems: The systems; those without results on `sets` are last.
        sets: Names of the data sets that all systems share; or of the one with most systems, if they share
            none.
        shared: True if all systems have results on `sets`.
        means: Mean over `sets` by system.
        letters: Systems that share a letter do not differ.
    """

    systems: list[str]
    sets: list[str]
    shared: bool
    means: dict[str, float]
    letters: dict[str, str]


def leaderboard(groups: Sequence[Group], systems: Sequence[str], measure: str, seed: int) -> Leaderboard:
    """Ranks all systems by their mean over the data sets that they share."""
    shared = [group for group in groups if len(group.rows) == len(systems)]
    sets = shared or [max(groups, key=lambda group: (len(group.rows), group.data.queries))]
    scores = [{row.system: row.result.scores for row in group.rows} for group in sets]
    means = {system: fmean(one[system].mean[measure] for one in scores) for system in scores[0]}
    ranked = sorted(means, key=lambda system: (-means[system], system))
    letters = significance_letters(
        [[one[system].per_query[measure] for one in scores] for system in ranked], seed=seed
    )
    return Leaderboard(
        systems=ranked + [system for system in systems if system not in means],
        sets=[group.name for group in sets],
        shared=bool(shared),
        means=means,
        letters=dict(zip(ranked, letters, strict=True)),
    )


def set_letters(group: Group, measure: str, seed: int) -> list[str]:
    """The letters of a data set's systems, in the order of its rows."""
    return significance_letters([[row.result.scores.per_query[measure]] for row in group.rows], seed=seed)


def first_pair(group: Group, baseline: str, other: str = "") -> tuple[int, int] | None:
    """The two systems of a data set to compare first, as indices of its rows; None if there are no two.

    The baseline (BM25, or the base of adapt) is compared with the best other system, as the two best systems
    are often variants of one model; without a baseline, the two best are compared.

    Args:
        group: The data set.
        baseline: Name of the baseline.
        other: Name of the system to compare it with; the best one by default.
    """
    names = [row.system for row in group.rows]
    if len(names) < 2:
        return None
    if baseline not in names:
        return 1, 0
    a = names.index(baseline)
    return a, names.index(other) if other in names else int(a == 0)


def suite_letters(suite: Suite, measure: str, seed: int) -> list[str]:
    """The letters of a suite's systems, in the order of its rows."""
    scores = [[row.result.scores.per_query[measure] for row in members] for members in suite.members]
    return significance_letters(scores, suite.weights, seed=seed)
