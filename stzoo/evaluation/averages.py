"""Means over the data sets of a suite."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from stzoo.data import registry
from stzoo.evaluation.bench.results import Result


@dataclass(frozen=True)
class Average:
    """A model's mean over all data sets of a suite.

    Attributes:
        model: Name of the model.
        revision: Revision of the model.
        suite: Name of the suite in the registry.
        sets: Data sets averaged over; a suite among them counts once, with its mean.
        measure: Name of the measure, e.g. "nDCG@10".
        value: The mean.
        notes: Notes of the results averaged.
    """

    model: str
    revision: str
    suite: str
    sets: tuple[str, ...]
    measure: str
    value: float
    notes: tuple[str, ...] = ()


def averages(results: Sequence[Result], measure: str = "nDCG@10") -> list[Average]:
    """Means by model and suite, for models with results on the official split of every data set of the suite.

    A suite with a missing data set has no average, nor has one with two different scores for a data set.
    """
    systems: dict[tuple[str, str], dict[str, set[float]]] = {}
    notes: dict[tuple[str, str], dict[str, list[str]]] = {}
    for result in results:
        entry, system = registry.find(result.dataset), (result.model, result.revision)
        if entry and result.split == entry.split and measure in result.scores.mean:
            scores = systems.setdefault(system, {})
            scores.setdefault(entry.name, set()).add(result.scores.mean[measure])
            notes.setdefault(system, {})[entry.name] = list(result.details.get("notes", ()))
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
        values = scores.get(name, set())
        return next(iter(values)) if len(values) == 1 else None
    means = [_mean(member, scores) for member in members]
    return None if None in means else fmean(mean for mean in means if mean is not None)
