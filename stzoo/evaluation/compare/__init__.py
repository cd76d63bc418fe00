"""compare(): the first system against each of the others, query by query, on every data set that both have.

1. The results of each system are found; those of other data or another depth k are refused.
2. Each data set and other system makes one paired test (`paired_test`). The p-values of all of
   them together are adjusted by Holm's step-down rule: if no two systems differed in truth, "they differ"
   would be said anywhere at all in at most 5 % of comparisons.
3. The effect size is Cohen's d for paired samples (d_z): the mean difference over the standard deviation of
   the differences (n - 1). A query is won or lost where the difference is beyond 1e-9.

With several data sets the mean over them stands beside, each set counting the same; its interval is the
stratified bootstrap (queries drawn again within each set). It is no test and has no part in Holm's family.
The smallest p-value that the 9999 random draws of one test can give is 0.0002.

Source: Holm, Scandinavian Journal of Statistics 6, 1979; Smucker, Allan, Carterette, CIKM 2007.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import stats
from tqdm import tqdm

from stzoo.data import registry
from stzoo.data.rows import read_jsonl
from stzoo.errors import DataError, RecipeError
from stzoo.evaluation.bench.results import read
from stzoo.evaluation.compare.result import Average, Comparison, Example, Pair
from stzoo.evaluation.compare.systems import (
    Place,
    Rows,
    choose,
    find_system,
    label,
    measure_name,
    scores_of,
    shared,
)
from stzoo.evaluation.scoring import is_sum, paired_test
from stzoo.evaluation.settings import CompareSettings
from stzoo.utils.inputs import user_path

TIE = 1e-9  # smaller differences are of rounding
RESAMPLES = 9999
NO_TEXTS = "Results hold no query texts: name the BEIR folder, or the parent of several, by data (--data)."

_Scores = Mapping[str, float]  # by query id


def compare(
    systems: Sequence[str | Path],
    *,
    results: str | Path | None = None,
    measure: str = "nDCG@10",
    datasets: Sequence[str] | str | None = None,
    data: str | Path | None = None,
    examples: int = 5,
    seed: int = 0,
    progress: bool | None = None,
) -> Comparison:
    """Compares the first system with each of the others by the scores of single queries.

    Args:
        systems: folders of one system's results (OUTPUT/<model>/<revision>, or OUTPUT/<model> where it holds
            one revision), or, with `results`, names of models; the first is the baseline.
        results: an --output of `stzoo bench`, in which systems are looked up by name.
        measure: one that was scored.
        datasets: names of data sets or suites, a list or with commas between; None for all that two systems
            share.
        data: the BEIR folder, or the parent of several, that has the texts of the queries.
        examples: how many of the largest gains and losses to keep.
        seed: of the random draws.
        progress: True for progress bars on stderr; None shows them on a terminal only.

    Raises:
        DataError: if a system, measure or data set is not there, two systems share none, or their results
            come from other data or another depth k.
        RecipeError: if there are fewer than two systems, one is given twice, or the measure is unknown.
    """
    settings = CompareSettings.check(locals())
    given = settings.systems
    if len(given) < 2:
        raise RecipeError(f"compare needs at least two systems; got {', '.join(given) or 'none'}.")
    if data is not None and not user_path(data).is_dir():
        raise DataError(f"{data} is not there; expected a BEIR folder, or the parent of several.")
    stored = read(results) if results is not None else []
    found = [find_system(system, results, stored) for system in given]
    labels = label(found, given)
    if settings.datasets is not None:
        found = choose(found, registry.expand(settings.datasets))
    others = [(name, rows, shared(found[0], rows)) for name, rows in zip(labels[1:], found[1:], strict=True)]
    places = [place for place in found[0] if any(place in common for _, _, common in others)]
    measure = measure_name(measure, (result for rows in found for result in rows.values()))

    def scores(rows: Rows, place: Place) -> tuple[_Scores, _Scores]:
        return scores_of(found[0][place], measure), scores_of(rows[place], measure)

    notes = _notes(labels[0], found[0], others)
    if is_sum(measure):
        notes.append(f"{measure} is a sum over queries; what is compared is its mean over queries.")
    pairs = []
    bars = sys.stderr.isatty() if progress is None else progress
    for place in tqdm(places, desc="Comparing", leave=False, disable=not bars):
        texts = {}
        if data is not None and examples:
            texts = _texts(user_path(data), place[0], found[0][place].scores.per_query[measure], bars)
            if not texts:
                notes.append(f"{place[0]}: {data} has no queries.jsonl of it, so its texts are not shown.")
        for name, rows, common in others:
            if place in common:
                pairs.append(_pair(place, name, *scores(rows, place), texts, examples, seed))
    if data is None and examples:
        notes.append(NO_TEXTS)
    adjusted = holm([pair.test.p_value for pair in pairs])
    return Comparison(
        measure=measure,
        baseline=labels[0],
        systems=tuple(labels[1:]),
        pairs=tuple(replace(pair, p_holm=p) for pair, p in zip(pairs, adjusted, strict=True)),
        averages=tuple(
            _average(name, [scores(rows, place) for place in common], seed)
            for name, rows, common in others
            if len(common) > 1
        ),
        notes=tuple(dict.fromkeys(notes)),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted by Holm's step-down rule, in the order given."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def _pair(
    place: Place, name: str, a: _Scores, b: _Scores, texts: Mapping[str, str], examples: int, seed: int
) -> Pair:
    test = paired_test(a, b, seed=seed)
    gain = {query: b[query] - a[query] for query in a}
    spread = float(np.std(list(gain.values()), ddof=1))
    ordered = sorted(gain, key=lambda query: (-gain[query], query))
    won = [query for query in ordered if gain[query] > TIE]
    lost = sorted((query for query in gain if gain[query] < -TIE), key=lambda query: (gain[query], query))
    gains, losses = (
        tuple(Example(query, texts.get(query), a[query], b[query]) for query in queries[:examples])
        for queries in (won, lost)
    )
    return Pair(
        *place,
        system=name,
        baseline_mean=_mean(a),
        system_mean=_mean(b),
        test=test,
        p_holm=test.p_value,  # adjusted once all pairs are there
        effect=test.difference / spread if spread > TIE else None,
        won=len(won),
        tied=len(gain) - len(won) - len(lost),
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


def _notes(baseline: str, rows: Rows, others: Sequence[tuple[str, Rows, list[Place]]]) -> list[str]:
    """Data sets that only one system has, and what the results note of the data."""
    notes = []
    for name, other, common in others:
        for owner, own in ((baseline, rows), (name, other)):
            left = [f"{dataset} ({split})" for dataset, split in own if (dataset, split) not in common]
            if left:
                notes.append(f"{name} against {baseline}: only {owner} has {', '.join(left)}.")
        for place in common:
            for result in (rows[place], other[place]):
                notes += [f"{place[0]} ({place[1]}): {note}" for note in result.facts.get("notes", ())]
    return notes


def _texts(data: Path, dataset: str, queries: _Scores, bars: bool) -> dict[str, str]:
    """Texts of the queries, from the queries.jsonl of the folder that has the data set's name."""
    entry = registry.find(dataset)
    names = [dataset, *(entry.names if entry else ())]
    # the results of one task of several over a corpus are named FOLDER-TASK
    names += [dataset[:place] for place, letter in enumerate(dataset) if letter == "-"]
    folders = [data / name for name in names] + ([data] if data.resolve().name in names else [])
    for file in (folder / name for folder in folders for name in ("queries.jsonl", "queries.jsonl.gz")):
        if file.is_file():
            rows = ((str(row.get("_id")), str(row.get("text"))) for _, row in read_jsonl(file, bars))
            return {query: text for query, text in rows if query in queries}
    return {}
