"""The results of several systems, found by folder or by name, and whether their scores can be compared."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from stzoo.errors import DataError, RecipeError, suggest
from stzoo.evaluation.bench.results import Result, read
from stzoo.evaluation.measures import parse_measures
from stzoo.utils.inputs import user_path

Place = tuple[str, str]  # data set, split
Rows = dict[Place, Result]  # the results of one system


def find_system(given: str, output: str | Path | None, stored: Sequence[Result]) -> Rows:
    """The results of one system.

    Args:
        given: the folder of its results, or its name.
        output: where `stored` was read from; None if nothing was.
        stored: the results among which it is looked up by name.

    Raises:
        DataError: if there is no such system, or there are several.
    """
    rows = [result for result in stored if result.model == given]
    if not rows and user_path(given).is_dir():
        rows = read(given)
    if not rows and output is None:
        raise DataError(
            f"there is no folder {given}; expected one system's results, OUTPUT/<model>/<revision>, or its "
            "name together with OUTPUT as results (--results)."
        )
    if not rows:
        known = sorted({result.model for result in stored})
        raise DataError(
            f"there is no system {given!r} in {output}, nor a folder of that name{suggest(given, known)} "
            f"Known: {', '.join(known)}."
        )
    folders = {result.path.parent: f"{result.model} {result.revision}" for result in rows}
    if len(folders) > 1:
        several = "; ".join(f"{system} in {folder}" for folder, system in folders.items())
        raise DataError(f"{given} holds several systems. Give the folder of one: {several}.")
    return {(result.dataset, result.split): result for result in rows}


def label(found: Sequence[Rows], given: Sequence[str]) -> list[str]:
    """What to call each system: by name if that tells them apart, else with the revision, else by folder.

    Raises:
        RecipeError: if one is given twice.
    """
    firsts = [next(iter(rows.values())) for rows in found]
    if len({first.path.resolve().parent for first in firsts}) < len(firsts):
        raise RecipeError(f"a system is given twice: {', '.join(given)}.")
    names = [first.model for first in firsts]
    revised = [f"{first.model} ({first.revision[:12]})" for first in firsts]
    folders = [str(first.path.parent) for first in firsts]
    return next(labels for labels in (names, revised, folders) if len(set(labels)) == len(firsts))


def choose(found: Sequence[Rows], datasets: Sequence[str]) -> list[Rows]:
    """The results on some data sets only.

    Raises:
        DataError: if no system has one of them.
    """
    known = sorted({dataset for rows in found for dataset, _ in rows})
    for name in datasets:
        if name not in known:
            raise DataError(
                f"no system has results on {name!r}{suggest(name, known)} There are: {', '.join(known)}."
            )
    return [{place: row for place, row in rows.items() if place[0] in datasets} for rows in found]


def shared(a: Rows, b: Rows) -> list[Place]:
    """Data sets and splits of two systems, once it is sure that their scores can be compared.

    Raises:
        DataError: if there is none, or the results on one come from other data or another depth k.
    """
    places = [place for place in a if place in b]
    if not places:
        one, other = (", ".join(f"{name} ({split})" for name, split in rows) or "none" for rows in (a, b))
        raise DataError(
            f"two systems have no data set in common: {one} against {other}. Score both by `stzoo bench`."
        )
    for place in places:
        one_result, other_result = a[place], b[place]
        k, other_k = (row.facts["settings"].get("k") for row in (one_result, other_result))
        if one_result.corpus != other_result.corpus:
            differ = "were scored on different corpora"
        elif one_result.data != other_result.data:
            differ = "were scored on different queries or judgements"
        elif k != other_k:
            differ = f"keep {k} and {other_k} results a query"
        elif {row.facts.get("self_hits_dropped") for row in (one_result, other_result)} == {True, False}:
            differ = "differ in whether a document under the query's own id counts"
        else:
            continue
        raise DataError(
            f"{one_result.path} and {other_result.path} ({place[1]}) {differ}, so they cannot be compared. "
            "Score both on the same data by `stzoo bench`."
        )
    return places


def measure_name(measure: str, results: Iterable[Result]) -> str:
    """The name that results file a measure under, given that or another of its names.

    Raises:
        RecipeError: if it is no measure.
    """
    if all(measure in result.scores.per_query for result in results):
        return measure
    return parse_measures(measure)[0].name


def scores_of(result: Result, measure: str) -> Mapping[str, float]:
    """Scores by query id.

    Raises:
        DataError: if the measure was not scored.
    """
    if measure not in result.scores.per_query:
        known = ", ".join(result.scores.per_query)
        raise DataError(
            f"{result.path} has no {measure}, only {known}. Score it by `stzoo bench --measures`."
        )
    return result.scores.per_query[measure]
