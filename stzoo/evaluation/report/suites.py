"""Leaderboards by suite: averages over all sets of a suite, never over some of them.

The interval draws queries anew within each set and averages as the suite does. Systems whose sets have other
data, under whatever name, stand in a table of their own.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stzoo.data import registry
from stzoo.evaluation.averages import averages
from stzoo.evaluation.report.intervals import Interval, interval

if TYPE_CHECKING:
    from stzoo.evaluation.report.data import Row


@dataclass(frozen=True)
class Suite:
    """Systems by their mean over all sets of a suite, the best first.

    Attributes:
        name: of the suite; where its sets have several data, which of them.
        sets: what the mean is over; the name of a suite among them is its mean.
        rows: system, mean and its interval.
        missing: by system that has some sets of the suite but not all, what it lacks, e.g. "2 of 13".
    """

    name: str
    sets: tuple[str, ...]
    rows: list[tuple[str, float, Interval]]
    missing: dict[str, str]


def suites(rows: Iterable["Row"], measure: str) -> list[Suite]:
    """The suites that some system covers, those of most systems first."""
    rows = list(rows)
    scored: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        entry = registry.find(row.result.dataset)
        if entry and row.result.split == entry.split:
            scored.setdefault((row.result.model, row.result.revision), {}).setdefault(entry.name, row)
    tables: dict[tuple[str, tuple[Any, ...]], list[tuple[str, float, Interval]]] = {}
    for average in averages([row.result for row in rows], measure):
        own = scored[average.model, average.revision]
        members = [own[name] for name in registry.expand([average.suite])]
        sure = all(row.drawn is not None for row in members)
        drawn = interval(_drawn(average.suite, own)) if sure else None
        line = (members[0].system, average.value, drawn)
        data = tuple(row.result.data for row in members)
        tables.setdefault((average.suite, data), []).append(line)
    several, seen, found = Counter(name for name, _ in tables), Counter[str](), []
    for (name, _), lines in tables.items():
        seen[name] += 1
        which = f", data {seen[name]} of {several[name]}" if several[name] > 1 else ""
        lines.sort(key=lambda line: (-line[1], line[0]))
        found.append(Suite(name + which, registry.suites()[name], lines, _missing(name, scored.values())))
    return sorted(found, key=lambda suite: (-len(suite.rows), -len(suite.sets)))


def _drawn(name: str, own: Mapping[str, "Row"]) -> NDArray[Any]:
    """Float64 [RESAMPLES]: resampled means of a set, or their means over the sets of a suite."""
    members = registry.suites().get(name)
    if members is None:
        return np.asarray(own[name].drawn)
    return np.mean([_drawn(member, own) for member in members], axis=0)


def _missing(name: str, scored: Iterable[Mapping[str, "Row"]]) -> dict[str, str]:
    sets = registry.expand([name])
    lacking = {next(iter(own.values())).system: sum(one not in own for one in sets) for own in scored}
    return {system: f"{count} of {len(sets)}" for system, count in lacking.items() if 0 < count < len(sets)}
