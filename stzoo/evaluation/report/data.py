"""What a report shows: results grouped by the data they were scored on, with 95 % intervals.

A group holds what was scored on the same corpus, queries and judgements. Results of other data under the same
name stand apart, with a warning. Training runs may be shown beside them.
"""

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from stzoo.errors import DataError, RecipeError
from stzoo.evaluation.bench.results import Result, read
from stzoo.evaluation.report.intervals import Interval, interval, resampled
from stzoo.evaluation.report.suites import Suite, suites
from stzoo.evaluation.scoring import is_sum
from stzoo.training.history import History, read_history

COST = {  # by key in a result's facts: what it is, and its unit
    "encode_s": ("Encoding", "s"),
    "search_s": ("Search", "s"),
    "ms_per_query": ("Per query", "ms"),
    "vector_bytes": ("Vectors", "bytes"),
    "index_bytes": ("Index", "bytes"),
}
OTHER_DATA = (
    "other data goes by the same name; its corpus, queries or judgements differ, so its scores do not "
    "compare with these."
)
# of a result's facts, those that the report shows in a place of their own; the others say how it was made
_APART = {
    *("fingerprint", "settings", "documents", "queries", "judgements", "self_hits_dropped", "seconds"),
    *("notes", "system_notes", "cost", "recall_against_exact", "recall_queries", "measures", "date"),
    "versions",
}


@dataclass(frozen=True, eq=False)
class Row:
    """A result, and what the report adds to it.

    Attributes:
        result: as it was read.
        system: the model's name, with its revision where the name has several.
        file: the result's, below the folder that was read.
        date: when it was made, in ISO form.
        made: by what: device, versions and whatever else the file says of it.
        intervals: 95 % interval by measure; None where the scores of the queries give none.
        drawn: float64 [RESAMPLES], the shown measure's mean over each resample; None likewise.
    """

    result: Result
    system: str
    file: str
    date: str
    made: dict[str, Any]
    intervals: dict[str, Interval]
    drawn: NDArray[Any] | None

    @property
    def cost(self) -> dict[str, float]:
        """What was measured of COST."""
        found = self.result.facts.get("cost") or {}
        return {key: found[key] for key in COST if found.get(key) is not None}

    @property
    def recall(self) -> str:
        """How much of exact search an index finds, by depth; empty where there is no index."""
        found = self.result.facts.get("recall_against_exact") or {}
        return ", ".join(f"{value:.4f} {depth}" for depth, value in found.items())


@dataclass(frozen=True)
class Group:
    """Results on the same data, the best first.

    Attributes:
        name: data set and split; where several data have that name, which of them.
        rows: the results.
        warnings: what a reader must know before comparing them.
    """

    name: str
    rows: list[Row]
    warnings: list[str]

    @property
    def data(self) -> Result:
        """Any one of the results, for what all share: data set, split, counts, fingerprints."""
        return self.rows[0].result


@dataclass(frozen=True)
class Page:
    """All that a report shows.

    Attributes:
        folder: that was read.
        measure: shown and ranked by.
        groups: by data set and split.
        suites: those that some system covers in full.
        left_out: results that are not shown, and why.
        runs: training runs by name, in the order given.
    """

    folder: Path
    measure: str
    groups: list[Group]
    suites: list[Suite]
    left_out: list[str]
    runs: dict[str, History]

    @property
    def warnings(self) -> list[str]:
        """All that a reader must know before comparing."""
        by_text: dict[str, list[str]] = {}
        for group in self.groups:
            for text in group.warnings:
                by_text.setdefault(text, []).append(group.name)
        return [*self.left_out, *(f"{'; '.join(names)}: {text}" for text, names in by_text.items())]

    @property
    def rows(self) -> list[Row]:
        """Of all groups."""
        return [row for group in self.groups for row in group.rows]

    @property
    def systems(self) -> list[str]:
        """As the first suite ranks them, then by name."""
        ranked = [system for suite in self.suites for system, _, _ in suite.rows]
        return list(dict.fromkeys([*ranked, *sorted({row.system for row in self.rows}, key=str.lower)]))

    @property
    def measures(self) -> list[str]:
        """All there are, the shown one first."""
        return list(dict.fromkeys([self.measure, *(name for row in self.rows for name in row.intervals)]))


def gather(folder: Path, measure: str, *, seed: int, progress: bool, runs: Sequence[str | Path] = ()) -> Page:
    """Reads the results under a folder and makes of them what a report shows.

    Args:
        folder: an --output of bench, or a folder of several.
        measure: to show and rank by, in any spelling that `parse_measures` knows.
        seed: of the resamples.
        progress: True for a progress bar on stderr.
        runs: folders of training runs.

    Raises:
        DataError: if there are no results, none has the measure, two on the same data have other queries, or
            a folder holds no training run.
    """
    histories = _histories(runs)
    found = read(folder)
    measure = _spelt(measure, found)
    left_out = []
    sets: dict[tuple[str, str], dict[tuple[str, str], dict[tuple[str, str], Result]]] = {}
    for result in found:
        path = result.path.relative_to(folder)
        if measure not in result.scores.mean:
            left_out.append(f"{path} is left out: it has no {measure}.")
            continue
        same = sets.setdefault((result.dataset, result.split), {}).setdefault(result.data, {})
        twin = same.setdefault((result.model, result.revision), result)
        if twin is not result:
            left_out.append(
                f"{path} is left out: {twin.path.relative_to(folder)} is of the same model and data."
            )
    systems = {(result.model, result.revision) for result in found}
    ambiguous = {model for model, count in Counter(model for model, _ in systems).items() if count > 1}
    groups = []
    for (dataset, split), by_data in tqdm(sets.items(), desc="intervals", leave=False, disable=not progress):
        for number, members in enumerate(by_data.values(), 1):
            name, warnings = f"{dataset} ({split})", []
            if len(by_data) > 1:
                name += f", data {number} of {len(by_data)}"
                warnings.append(OTHER_DATA)
            rows = _rows(list(members.values()), folder, measure, seed, ambiguous)
            groups.append(Group(name, rows, warnings + _notes(rows)))
    every = [row for group in groups for row in group.rows]
    return Page(folder, measure, groups, suites(every, measure), left_out, histories)


def _histories(runs: Sequence[str | Path]) -> dict[str, History]:
    """The runs by the name of their folder; by the whole path where several have that name."""
    names = Counter(Path(run).resolve().name for run in runs)
    by_name = {}
    for run in runs:
        name = Path(run).resolve().name
        by_name[name if names[name] == 1 else str(run)] = read_history(run)
    return by_name


def _spelt(measure: str, found: Sequence[Result]) -> str:
    """The measure as the results spell it."""
    from stzoo.evaluation.measures import parse_measures

    names = list(dict.fromkeys(name for result in found for name in result.scores.mean))
    if measure in names:
        return measure
    try:
        known = [parsed.name for parsed in parse_measures(measure)]
    except RecipeError:
        known = []
    if len(known) != 1 or known[0] not in names:
        raise DataError(f"no result has the measure {measure!r}; expected one of {', '.join(names)}.")
    return known[0]


def _rows(found: Sequence[Result], folder: Path, measure: str, seed: int, ambiguous: set[str]) -> list[Row]:
    """One group's results with their intervals, the best first."""
    drawn = _drawn(found, [seed, zlib.crc32("".join(found[0].data).encode())])
    rows = []
    for place, result in enumerate(found):
        own = {name: drawn.get((place, name)) for name in result.scores.mean}
        rows.append(
            Row(
                result,
                f"{result.model} ({result.revision[:12]})" if result.model in ambiguous else result.model,
                result.path.relative_to(folder).as_posix(),
                result.facts["date"],
                {key: value for key, value in result.facts.items() if key not in _APART}
                | result.facts["versions"],
                {name: None if draws is None else interval(draws) for name, draws in own.items()},
                own[measure],
            )
        )
    return sorted(rows, key=lambda row: (-row.result.scores.mean[measure], row.system))


def _drawn(found: Sequence[Result], seed: Any) -> dict[tuple[int, str], NDArray[Any]]:
    """Float64 [RESAMPLES] by place in `found` and measure, where there are two queries or more."""
    first: dict[str, Result] = {}
    alike: dict[tuple[str, ...], list[tuple[int, str]]] = {}  # by queries, which may differ by measure
    for place, result in enumerate(found):
        for name, scores in result.scores.per_query.items():
            known = first.setdefault(name, result)
            if scores.keys() != known.scores.per_query[name].keys():
                raise DataError(
                    f"{result.path}: {name} is of other queries than in {known.path}, on the same data."
                )
            alike.setdefault(tuple(known.scores.per_query[name]), []).append((place, name))
    drawn: dict[tuple[int, str], NDArray[Any]] = {}
    for queries, places in alike.items():
        if len(queries) > 1:
            rows = [
                [found[place].scores.per_query[name][query] for query in queries] for place, name in places
            ]
            sums = [[len(queries) if is_sum(name) else 1] for _, name in places]
            drawn |= zip(places, resampled(np.array(rows), seed) * np.array(sums), strict=True)
    return drawn


def _notes(rows: Sequence[Row]) -> list[str]:
    """Each note of the results once, with the systems it is of where it is not of all."""
    by_note: dict[str, list[str]] = {}
    for row in rows:
        for note in row.result.facts.get("notes") or ():
            by_note.setdefault(note, []).append(row.system)
    return [
        note if len(of) == len(rows) else f"{note} (Noted for {', '.join(of)}.)"
        for note, of in by_note.items()
    ]
