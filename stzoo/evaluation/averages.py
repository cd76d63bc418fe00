"""Means over suites of judged sets."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from stzoo.data import registry
from stzoo.evaluation.bench.results import Result


@dataclass(frozen=True)
class Average:
    """A model's mean over all sets of a suite.

    Attributes:
        model: its name.
        revision: of the model.
        suite: as the registry names it.
        sets: what is averaged; a suite among them counts as one, its mean.
        measure: e.g. "nDCG@10".
        value: the mean.
        notes: of the results it is made from.
    """

    model: str
    revision: str
    suite: str
    sets: tuple[str, ...]
    measure: str
    value: float
    notes: tuple[str, ...] = ()


def averages(results: Sequence[Result], measure: str = "nDCG@10") -> list[Average]:
    """Means by model and suite, where every set of the suite is there in its official split.

    A suite with a gap has no average. A set that is there twice with two scores is a gap as well.
    """
    systems: dict[tuple[str, str], dict[str, set[float]]] = {}
    notes: dict[tuple[str, str], dict[str, list[str]]] = {}
    for result in results:
        entry, system = registry.find(result.dataset), (result.model, result.revision)
        if entry and result.split == entry.split and measure in result.scores.mean:
            scores = systems.setdefault(system, {})
            scores.setdefault(entry.name, set()).add(result.scores.mean[measure])
            notes.setdefault(system, {})[entry.name] = list(result.facts.get("notes", ()))
    return [
        Average(
            *system,
            suite,
            members,
            measure,
            value,
            tuple(note for name in registry.expand([suite]) for note in notes[system][name]),
        )
        for system, scores in systems.items()
        for suite, members in registry.suites().items()
        if (value := _mean(suite, scores)) is not None
    ]


def _mean(name: str, scores: dict[str, set[float]]) -> float | None:
    members = registry.suites().get(name)
    if members is None:
        found = scores.get(name, set())
        return next(iter(found)) if len(found) == 1 else None
    values = [_mean(member, scores) for member in members]
    return None if None in values else fmean(value for value in values if value is not None)
