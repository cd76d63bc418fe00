"""compare(): compare the first system with each other one, query by query, on the data sets that both have.

1. Find the results of each system; results of different data or of another depth k are refused.
2. Run one paired test (`paired_test`) per data set and other system, and adjust all p-values together by
   Holm's step-down rule: if no systems really differed, at most 5 % of comparisons would report a difference
   anywhere.
3. The effect size is Cohen's d for paired samples (d_z): the mean difference divided by the standard
   deviation of the differences (n - 1). A query is won or lost if the difference exceeds 1e-9.

With several data sets, the mean over them is reported as well, each data set with the same weight. Its
interval is the stratified bootstrap, which resamples the queries within each data set. It is not a test and
takes no part in Holm's adjustment. The smallest p-value that 9999 random draws can give is 0.0002.

Source: Holm, Scandinavian Journal of Statistics 6, 1979; Smucker, Allan, Carterette, CIKM 2007.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from stzoo.data import registry
from stzoo.data.find_datasets import locate
from stzoo.errors import DataError, RecipeError
from stzoo.evaluation.bench.results import Result, read
from stzoo.evaluation.compare.result import Average, Comparison, Example, Pair
from stzoo.evaluation.compare.systems import (
    DatasetSplit,
    Rows,
    choose,
    find_system,
    label,
    measure_name,
    scores_of,
    shared,
)
from stzoo.evaluation.query_texts import query_texts
from stzoo.evaluation.scoring import holm, is_sum, paired_test
from stzoo.evaluation.settings import CompareSettings
from stzoo.utils.messages import show_progress
from stzoo.utils.progress import STAGES, progress_bar
from stzoo.utils.public import public

TIE = 1e-9  # smaller differences are rounding errors
RESAMPLES = 9999
NO_TEXTS = (
    "Results do not include query texts; to show them, give the data set or its folder as data (--data)."
)

_Scores = Mapping[str, float]  # by query id


@public()
def compare(
    systems: Any,
    *,
    results: Any = None,
    measure: str = "nDCG@10",
    datasets: Sequence[str] | str | None = None,
    data: Any = None,
    examples: int = 5,
    seed: int = 0,
    progress: bool | None = None,
) -> Comparison:
    """Compares the first system with each of the others by their scores on single queries.

    Args:
        systems: Folders with the results of one system (OUTPUT/<model>/<revision>, or OUTPUT/<model> if it
            has one revision), or, with `results`, names of models. The first system is the baseline. Or the
            results of one call of `stzoo.bench`, all of whose systems are compared, or a list of results of
            several calls.
        results: An --output of `stzoo bench` in which to find systems by name, or what `stzoo.bench`
            returned.
        measure: Measure to compare; it must have been scored.
        datasets: Data sets or suites, as a list or separated by commas; None for all that two systems share.
        data: The BEIR folder with the texts of the queries, or the parent of several; or the dicts (corpus,
            queries, qrels). None takes the data sets that `stzoo.bench` has read for results that it
            returned.
        examples: Number of largest gains and losses to report.
        seed: Random seed.
        progress: True shows progress bars on stderr; None shows them on a terminal only.

    Raises:
        DataError: If a system, measure or data set is missing, two systems share no data set, or their
            results are of different data or another depth k.
        RecipeError: If there are fewer than two systems, one is given twice, or the measure is unknown.
    """
    if _are_results(systems):
        systems, results = list(dict.fromkeys(result.model for result in systems)), systems
    given = results if _are_results(results) else None
    results = None if given else results
    several = systems if isinstance(systems, list | tuple) else []
    several = [part for one in several for part in (_by_system(one) if _are_results(one) else [one])]
    objects = {place: list(one) for place, one in enumerate(several) if _are_results(one)}
    if objects:
        systems = [objects[place][0].model if place in objects else one for place, one in enumerate(several)]
    settings = CompareSettings.check(locals())
    arguments, data = settings.systems, settings.data
    if len(arguments) < 2:
        raise RecipeError(f"compare needs at least two systems; got {', '.join(arguments) or 'none'}.")
    data = None if data is None else locate(data)
    if data is not None and not data.is_dir():
        raise DataError(f"{data} does not exist; expected a BEIR folder, or the parent of several.")
    stored = list(given or (read(results) if results is not None else []))
    where = "the results" if given else results
    found = [find_system(system, where, objects.get(place, stored)) for place, system in enumerate(arguments)]
    labels = label(found, arguments)
    if settings.datasets is not None:
        found = choose(found, registry.expand(settings.datasets))
    baseline = found[0]
    others = [(name, rows, shared(baseline, rows)) for name, rows in zip(labels[1:], found[1:], strict=True)]
    splits = [split for split in baseline if any(split in common for _, _, common in others)]
    measure = measure_name(measure, (result for rows in found for result in rows.values()))

    def scores(rows: Rows, split: DatasetSplit) -> tuple[_Scores, _Scores]:
        return scores_of(baseline[split], measure), scores_of(rows[split], measure)

    notes = _notes(labels[0], baseline, others)
    if is_sum(measure):
        notes.append(f"{measure} is a sum over queries; the comparison uses its mean over queries.")
    pairs = []
    show_bars = show_progress(progress)
    for split in progress_bar(splits, desc="Comparing", bar_format=STAGES, disable=not show_bars):
        texts = {}
        if examples and (folder := data or baseline[split].folder):
            texts = query_texts(folder, split[0], baseline[split].scores.per_query[measure], show_bars)
        if examples and not texts:
            missing = f"{split[0]}: its queries.jsonl is not in {settings.data}, so its texts are not shown."
            notes.append(NO_TEXTS if data is None else missing)
        for name, rows, common in others:
            if split in common:
                pairs.append(_pair(split, name, *scores(rows, split), texts, examples, seed))
    adjusted = holm([pair.test.p_value for pair in pairs])
    return Comparison(
        measure=measure,
        baseline=labels[0],
        systems=tuple(labels[1:]),
        pairs=tuple(replace(pair, p_holm=p) for pair, p in zip(pairs, adjusted, strict=True)),
        averages=tuple(
            _average(name, [scores(rows, split) for split in common], seed)
            for name, rows, common in others
            if len(common) > 1
        ),
        notes=tuple(dict.fromkeys(notes)),
    )


def changed_queries(a: _Scores, b: _Scores) -> tuple[list[str], list[str]]:
    """The queries on which b is better and those on which it is worse, largest differences first."""
    gain = {query: b[query] - a[query] for query in a}
    ordered = sorted(gain, key=lambda query: (-abs(gain[query]), query))
    return [one for one in ordered if gain[one] > TIE], [one for one in ordered if gain[one] < -TIE]


def _by_system(results: Sequence[Result]) -> list[list[Result]]:
    """The results of each system, in the order of their first ones."""
    by_system: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        by_system.setdefault((result.model, result.revision), []).append(result)
    return list(by_system.values())


def _are_results(given: Any) -> bool:
    """True for what `stzoo.bench` returns, or a list of such results."""
    return isinstance(given, list | tuple) and bool(given) and all(isinstance(one, Result) for one in given)


def _pair(
    split: DatasetSplit, name: str, a: _Scores, b: _Scores, texts: Mapping[str, str], examples: int, seed: int
) -> Pair:
    test = paired_test(a, b, seed=seed)
    spread = float(np.std([b[query] - a[query] for query in a], ddof=1))
    won, lost = changed_queries(a, b)
    gains, losses = (
        tuple(Example(query, texts.get(query), a[query], b[query]) for query in queries[:examples])
        for queries in (won, lost)
    )
    return Pair(
        *split,
        system=name,
        baseline_mean=_mean(a),
        system_mean=_mean(b),
        test=test,
        p_holm=test.p_value,  # adjusted when all pairs are tested
        effect=test.difference / spread if spread > TIE else None,
        won=len(won),
        tied=len(a) - len(won) - len(lost),
        lost=len(lost),
        gains=gains,
        losses=losses,
    )


def _average(name: str, sets: Sequence[tuple[_Scores, _Scores]], seed: int) -> Average:
    interval = stats.bootstrap(
        [np.array([b[query] - a[query] for query in a]) for a, b in sets],
        lambda *drawn, axis: sum(np.mean(differences, axis=axis) for differences in drawn) / len(drawn),
        n_resamples=RESAMPLES,
        batch=max(1, min(1000, 2_000_000 // max(len(a) for a, _ in sets))),
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    a, b = (sum(map(_mean, side)) / len(sets) for side in zip(*sets, strict=True))
    return Average(name, len(sets), a, b, float(interval.low), float(interval.high))


def _mean(scores: _Scores) -> float:
    return sum(scores.values()) / len(scores)


def _notes(baseline: str, rows: Rows, others: Sequence[tuple[str, Rows, list[DatasetSplit]]]) -> list[str]:
    """Notes on data sets that only one system has, and the notes of the results."""
    notes = []
    for name, other_rows, common in others:
        for system, results in ((baseline, rows), (name, other_rows)):
            only = [f"{dataset} ({split})" for dataset, split in results if (dataset, split) not in common]
            if only:
                notes.append(f"{name} against {baseline}: only {system} has {', '.join(only)}.")
        for dataset, split in common:
            for result in (rows[dataset, split], other_rows[dataset, split]):
                notes += [f"{dataset} ({split}): {note}" for note in result.details.get("notes", ())]
    return notes
