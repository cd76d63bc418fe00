"""Finding the results of several systems by folder or name, and checking that their scores are comparable."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from stzoo.errors import DataError, OutputError, RecipeError, suggest
from stzoo.evaluation.bench.results import Result, read
from stzoo.evaluation.measures import parse_measures
from stzoo.utils.inputs import user_path

SHOWN = 8  # names of systems in a message
DatasetSplit = tuple[str, str]  # data set, split
Rows = dict[DatasetSplit, Result]  # the results of one system


def find_system(system: str, output: str | Path | None, stored: Sequence[Result]) -> Rows:
    """Finds the results of one system.

    Args:
        system: Folder of its results, or its name.
        output: Folder from which `stored` was read; None if `stored` is empty.
        stored: Results in which to find the system by name.

    Raises:
        DataError: If there is no such system, or there are several.
    """
    rows = [result for result in stored if result.model == system]
    if not rows and user_path(system).is_dir():
        rows = read(system)
    if not rows and output is None:
        raise DataError(
            f"there is no folder {system}; expected the results of one system, OUTPUT/<model>/<revision>, or "
            f"its name together with OUTPUT as results (--results).{_nearby(system)}"
        )
    if not rows:
        known = sorted({result.model for result in stored})
        raise DataError(
            f"there is no system {system!r} in {output}, nor a folder with that name{suggest(system, known)} "
            f"Known: {', '.join(known)}."
        )
    systems = dict.fromkeys((result.model, result.revision, result.path.parent) for result in rows)
    if len(systems) > 1:
        several = "; ".join(f"{model} {revision} in {folder}" for model, revision, folder in systems)
        raise DataError(f"{system} has results of several systems. Give the folder of one: {several}.")
    return {(result.dataset, result.split): result for result in rows}


def _nearby(system: str) -> str:
    """A sentence on the results in the nearest existing folder of a path, or in results/; "" if none."""
    above = next(parent for parent in user_path(system).parents if parent.is_dir())
    folder = Path("results") if above.resolve() == Path.cwd() else above
    if folder.resolve() == folder.resolve().parent or not folder.is_dir():
        return ""
    try:
        known = sorted({result.model for result in read(folder)})
    except (DataError, OutputError):
        return ""
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return f" With --results {folder} these can be named: {', '.join(known[:SHOWN])}{more}."


def label(systems: Sequence[Rows], arguments: Sequence[str]) -> list[str]:
    """Labels for systems: their names if all differ, or else names with revisions, or else folders.

    Raises:
        RecipeError: If a system is given twice.
    """
    firsts = [next(iter(rows.values())) for rows in systems]
    if len({(one.model, one.revision, one.path.resolve().parent) for one in firsts}) < len(firsts):
        raise RecipeError(f"a system is given twice: {', '.join(arguments)}. Give each once.")
    names = [first.model for first in firsts]
    revised = [f"{first.model} ({first.revision[:12]})" for first in firsts]
    folders = [str(first.path.parent) for first in firsts]
    return next(labels for labels in (names, revised, folders) if len(set(labels)) == len(firsts))


def choose(systems: Sequence[Rows], datasets: Sequence[str]) -> list[Rows]:
    """The results on the given data sets only.

    Raises:
        DataError: If no system has results on one of them.
    """
    known = sorted({dataset for rows in systems for dataset, _ in rows})
    for name in datasets:
        if name not in known:
            raise DataError(
                f"no system has results on {name!r}{suggest(name, known)} Known: {', '.join(known)}."
            )
    return [{key: row for key, row in rows.items() if key[0] in datasets} for rows in systems]


def shared(a: Rows, b: Rows) -> list[DatasetSplit]:
    """The data sets and splits that two systems share, after checking that their scores are comparable.

    Raises:
        DataError: If they share none, or results on one are of different data or another depth k.
    """
    common = [key for key in a if key in b]
    if not common:
        one, other = (", ".join(f"{name} ({split})" for name, split in rows) or "none" for rows in (a, b))
        raise DataError(
            f"two systems have no data set in common: {one} against {other}. Score both with `stzoo bench`."
        )
    for dataset, split in common:
        one_result, other_result = a[dataset, split], b[dataset, split]
        k, other_k = (row.details["settings"].get("k") for row in (one_result, other_result))
        if one_result.corpus != other_result.corpus:
            differ = "were scored on different corpora"
        elif one_result.data != other_result.data:
            differ = "were scored on different queries or judgements"
        elif k != other_k:
            differ = f"have {k} and {other_k} results per query"
        elif {row.details.get("self_hits_dropped") for row in (one_result, other_result)} == {True, False}:
            differ = "differ in whether a document with the query's own id counts"
        else:
            continue
        raise DataError(
            f"{one_result.path} and {other_result.path} ({split}) {differ}, so they cannot be compared. "
            "Score both on the same data with `stzoo bench`."
        )
    return common


def measure_name(measure: str, results: Iterable[Result]) -> str:
    """The name of a measure in the results, from any of its names.

    Raises:
        RecipeError: If the measure is unknown.
    """
    if all(measure in result.scores.per_query for result in results):
        return measure
    return parse_measures(measure)[0].name


def scores_of(result: Result, measure: str) -> Mapping[str, float]:
    """The scores of a measure by query id.

    Raises:
        DataError: If the measure was not scored.
    """
    if measure not in result.scores.per_query:
        known = ", ".join(result.scores.per_query)
        raise DataError(
            f"{result.path} has no {measure}, only {known}. Score it with `stzoo bench --measures`."
        )
    return result.scores.per_query[measure]
