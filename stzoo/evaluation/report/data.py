"""The content of a report: results grouped by the data they were scored on, with 95 % intervals.

The results of a group have the same corpus, queries and judgements. Results of other data with the same name
form a group of their own, with a warning. Training runs may be shown as well.
"""

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stzoo.errors import DataError, RecipeError
from stzoo.evaluation.bench.results import Result, read
from stzoo.evaluation.report.intervals import Interval, interval, resampled
from stzoo.evaluation.report.suites import Suite, suites
from stzoo.evaluation.scoring import is_sum
from stzoo.training.history import History, read_history
from stzoo.utils.paths import shorten_paths
from stzoo.utils.progress import STAGES, progress_bar

COST = {  # title and unit, by key in a result's costs
    "encode_s": ("Encoding", "s"),
    "search_s": ("Search", "s"),
    "ms_per_query": ("Per query", "ms"),
    "vector_bytes": ("Vectors", "bytes"),
    "index_bytes": ("Index", "bytes"),
}
OTHER_DATA = (
    "other data has the same name; its corpus, queries or judgements differ, so its scores cannot be "
    "compared with these."
)
# those of a result's details that the report shows separately, not under "made with"
_SEPARATE = {
    *("fingerprint", "settings", "documents", "queries", "judgements", "self_hits_dropped", "seconds"),
    *("notes", "system_notes", "cost", "recall_against_exact", "recall_queries", "measures", "date"),
    "versions",
}


@dataclass(frozen=True, eq=False)
class Row:
    """A result with its intervals.

    Attributes:
        result: The result as read.
        system: Name of the model, with the revision if several revisions have results.
        file: Path to the result file, relative to the report's folder.
        date: Date of the result in ISO format.
        made: Device, versions and other details of how the result was made.
        intervals: 95 % interval by measure; None with fewer than two queries.
        drawn: float64 [RESAMPLES], the shown measure's mean over each resample; None with fewer than two
            queries.
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
        """The measured costs, by key of COST."""
        cost = self.result.details.get("cost") or {}
        return {key: cost[key] for key in COST if cost.get(key) is not None}

    @property
    def recall(self) -> str:
        """An index's recall against exact search, by depth; empty without an index."""
        recall = self.result.details.get("recall_against_exact") or {}
        return ", ".join(f"{value:.4f} {depth}" for depth, value in recall.items())


@dataclass(frozen=True)
class Group:
    """Results on the same data, best first.

    Attributes:
        name: Data set and split, and a number if different data have that name.
        rows: The results.
        warnings: Warnings about comparing them.
    """

    name: str
    rows: list[Row]
    warnings: list[str]

    @property
    def data(self) -> Result:
        """One of the results, for what all share: data set, split, counts, fingerprints."""
        return self.rows[0].result


@dataclass(frozen=True)
class Page:
    """The content of a report.

    Attributes:
        folder: Folder of the results, as given if that is relative, or else its name.
        measure: Measure to show and rank by.
        groups: Results by data set and split.
        suites: Averages over suites.
        left_out: Messages about results that are not shown.
        runs: Training runs by name, in the order given.
    """

    folder: str
    measure: str
    groups: list[Group]
    suites: list[Suite]
    left_out: list[str]
    runs: dict[str, History]

    @property
    def warnings(self) -> list[str]:
        """All warnings, each with the groups it is about."""
        by_text: dict[str, list[str]] = {}
        for group in self.groups:
            for text in group.warnings:
                by_text.setdefault(text, []).append(group.name)
        return [*self.left_out, *(f"{'; '.join(names)}: {text}" for text, names in by_text.items())]

    @property
    def rows(self) -> list[Row]:
        """The rows of all groups."""
        return [row for group in self.groups for row in group.rows]

    @property
    def systems(self) -> list[str]:
        """All systems: first as the suites rank them, then by name."""
        ranked = [system for suite in self.suites for system, _, _ in suite.rows]
        return list(dict.fromkeys([*ranked, *sorted({row.system for row in self.rows}, key=str.lower)]))

    @property
    def measures(self) -> list[str]:
        """All measures, the shown one first."""
        return list(dict.fromkeys([self.measure, *(name for row in self.rows for name in row.intervals)]))


def gather(folder: Path, measure: str, *, seed: int, progress: bool, runs: Sequence[str | Path] = ()) -> Page:
    """Reads the results under a folder and collects the content of a report.

    Args:
        folder: An --output of bench, or a folder of several.
        measure: Measure to show and rank by, in any spelling that `parse_measures` knows.
        seed: Random seed for the resamples.
        progress: True shows a progress bar on stderr.
        runs: Folders of training runs.

    Raises:
        DataError: If there are no results, none has the measure, two results on the same data have different
            queries, or a folder in `runs` is not a training run.
    """
    histories = _histories(runs)
    results = read(folder)
    measure = _find_measure(measure, results)
    left_out = []
    sets: dict[tuple[str, str], dict[tuple[str, str], dict[tuple[str, str], Result]]] = {}
    for result in results:
        path = result.path.relative_to(folder)
        if measure not in result.scores.mean:
            left_out.append(f"{path} is left out: it has no {measure}.")
            continue
        same = sets.setdefault((result.dataset, result.split), {}).setdefault(result.data, {})
        twin = same.setdefault((result.model, result.revision), result)
        if twin is not result:
            left_out.append(
                f"{path} is left out: {twin.path.relative_to(folder)} has the same model and data."
            )
    systems = {(result.model, result.revision) for result in results}
    ambiguous = {model for model, count in Counter(model for model, _ in systems).items() if count > 1}
    groups = []
    for (dataset, split), by_data in progress_bar(
        sets.items(), desc="Intervals", bar_format=STAGES, disable=not progress
    ):
        for number, members in enumerate(by_data.values(), 1):
            name, warnings = f"{dataset} ({split})", []
            if len(by_data) > 1:
                name += f", data {number} of {len(by_data)}"
                warnings.append(OTHER_DATA)
            rows = _rows(list(members.values()), folder, measure, seed, ambiguous)
            groups.append(Group(name, rows, warnings + _notes(rows)))
    all_rows = [row for group in groups for row in group.rows]
    return Page(shown_folder(folder), measure, groups, suites(all_rows, measure), left_out, histories)


def shown_folder(folder: Path) -> str:
    """The folder as given if it is relative, or else its name."""
    return folder.name if folder.is_absolute() else str(folder)


def _histories(runs: Sequence[str | Path]) -> dict[str, History]:
    """The runs by the name of their folder, with as many folders above it as tell them apart."""
    paths = [Path(run).resolve().parts for run in runs]
    by_name = {}
    for run, parts in zip(runs, paths, strict=True):
        depths = range(1, len(parts) + 1)
        depth = next(
            depth for depth in depths if len({one for one in paths if one[-depth:] == parts[-depth:]}) == 1
        )
        by_name["/".join(parts[-depth:])] = read_history(run)
    return by_name


def _find_measure(measure: str, results: Sequence[Result]) -> str:
    """The measure as the results spell it."""
    from stzoo.evaluation.measures import parse_measures

    names = list(dict.fromkeys(name for result in results for name in result.scores.mean))
    if measure in names:
        return measure
    try:
        known = [parsed.name for parsed in parse_measures(measure)]
    except RecipeError:
        known = []
    if len(known) != 1 or known[0] not in names:
        raise DataError(f"no result has the measure {measure!r}; expected one of {', '.join(names)}.")
    return known[0]


def _rows(results: Sequence[Result], folder: Path, measure: str, seed: int, ambiguous: set[str]) -> list[Row]:
    """One group's results with their intervals, best first."""
    drawn = _drawn(results, [seed, zlib.crc32("".join(results[0].data).encode())])
    rows = []
    for i, result in enumerate(results):
        means = {name: drawn.get((i, name)) for name in result.scores.mean}
        rows.append(
            Row(
                result,
                f"{result.model} ({result.revision[:12]})" if result.model in ambiguous else result.model,
                result.path.relative_to(folder).as_posix(),
                result.details["date"],
                {key: value for key, value in result.details.items() if key not in _SEPARATE}
                | result.details["versions"],
                {name: None if draws is None else interval(draws) for name, draws in means.items()},
                means[measure],
            )
        )
    return sorted(rows, key=lambda row: (-row.result.scores.mean[measure], row.system))


def _drawn(results: Sequence[Result], seed: Any) -> dict[tuple[int, str], NDArray[Any]]:
    """Resampled means, float64 [RESAMPLES], by index of the result and measure, if it has two queries."""
    first: dict[str, Result] = {}
    by_queries: dict[tuple[str, ...], list[tuple[int, str]]] = {}  # the queries may differ between measures
    for i, result in enumerate(results):
        for name, scores in result.scores.per_query.items():
            known = first.setdefault(name, result)
            if scores.keys() != known.scores.per_query[name].keys():
                raise DataError(
                    f"{result.path} has {name} scores of other queries than {known.path}, but the same data. "
                    f"Score it again with `stzoo bench --overwrite`."
                )
            by_queries.setdefault(tuple(known.scores.per_query[name]), []).append((i, name))
    drawn: dict[tuple[int, str], NDArray[Any]] = {}
    for queries, keys in by_queries.items():
        if len(queries) > 1:
            rows = [[results[i].scores.per_query[name][query] for query in queries] for i, name in keys]
            sums = [[len(queries) if is_sum(name) else 1] for _, name in keys]
            drawn |= zip(keys, resampled(np.array(rows), seed) * np.array(sums), strict=True)
    return drawn


def _notes(rows: Sequence[Row]) -> list[str]:
    """Each note of the results once, naming its systems unless all have it."""
    by_note: dict[str, list[str]] = {}
    for row in rows:
        for note in row.result.details.get("notes") or ():
            by_note.setdefault(shorten_paths(note), []).append(row.system)
    return [
        note if len(systems) == len(rows) else f"{note} (Noted for {', '.join(systems)}.)"
        for note, systems in by_note.items()
    ]
