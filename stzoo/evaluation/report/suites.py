"""Leaderboards by suite: averages over all data sets of a suite, never over some of them.

The interval resamples the queries within each data set and averages as the suite does. Systems that were
scored on other data with the same names get a table of their own.
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
    """Systems by their mean over all data sets of a suite, best first.

    Attributes:
        name: Name of the suite, and a number if its data sets exist with different data.
        sets: Data sets averaged over; a suite among them counts once, with its mean.
        rows: System, mean and interval.
        members: For each row, the results that are averaged.
        weights: Weight of each of these in the mean.
        missing: For each system with only some of the data sets, how many are missing, e.g. "2 of 13".
    """

    name: str
    sets: tuple[str, ...]
    rows: list[tuple[str, float, Interval]]
    members: list[list["Row"]]
    weights: list[float]
    missing: dict[str, str]


def suites(rows: Iterable["Row"], measure: str) -> list[Suite]:
    """The suites that some system covers, those with most systems first."""
    rows = list(rows)
    scored: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        entry = registry.find(row.result.dataset)
        if entry and row.result.split == entry.split:
            scored.setdefault((row.result.model, row.result.revision), {}).setdefault(entry.name, row)
    tables: dict[tuple[str, tuple[Any, ...]], list[tuple[tuple[str, float, Interval], list[Row]]]] = {}
    for average in averages([row.result for row in rows], measure):
        by_name = scored[average.model, average.revision]
        members = [by_name[name] for name in registry.expand([average.suite])]
        has_draws = all(row.drawn is not None for row in members)
        span = interval(_drawn(average.suite, by_name)) if has_draws else None
        line = (members[0].system, average.value, span)
        data = tuple(row.result.data for row in members)
        tables.setdefault((average.suite, data), []).append((line, members))
    total, seen, leaderboards = Counter(name for name, _ in tables), Counter[str](), []
    for (name, _), lines in tables.items():
        seen[name] += 1
        number = f", data {seen[name]} of {total[name]}" if total[name] > 1 else ""
        lines.sort(key=lambda line: (-line[0][1], line[0][0]))
        leaderboards.append(
            Suite(
                name + number,
                registry.suites()[name],
                [line for line, _ in lines],
                [members for _, members in lines],
                [_weight(name, member) for member in registry.expand([name])],
                _missing(name, scored.values()),
            )
        )
    return sorted(leaderboards, key=lambda suite: (-len(suite.rows), -len(suite.sets)))


def _drawn(name: str, by_name: Mapping[str, "Row"]) -> NDArray[Any]:
    """Resampled means of a data set, or their mean over the data sets of a suite, float64 [RESAMPLES]."""
    members = registry.suites().get(name)
    if members is None:
        return np.asarray(by_name[name].drawn)
    return np.mean([_drawn(member, by_name) for member in members], axis=0)


def _weight(name: str, member: str) -> float:
    """The weight of a data set in the mean over a suite."""
    members = registry.suites().get(name)
    if members is None:
        return float(name == member)
    return sum(_weight(one, member) for one in members) / len(members)


def _missing(name: str, scored: Iterable[Mapping[str, "Row"]]) -> dict[str, str]:
    sets = registry.expand([name])
    missing = {next(iter(rows.values())).system: sum(one not in rows for one in sets) for rows in scored}
    return {system: f"{count} of {len(sets)}" for system, count in missing.items() if 0 < count < len(sets)}
