"""Scores of a run, by ir-measures, and the paired test of two systems.

A score is the mean over all judged queries; a query without results scores 0. Ties are broken as trec_eval
breaks them (float32 score descending, then document id descending) for every measure alike.

Unlike beir's EvaluateRetrieval.evaluate: it averages over the queries that have results, drops a document
under the query's id in every set, and breaks the ties of MRR by the order of the dict.
Unlike ir-measures left alone: it takes RR@10 from a provider that breaks ties by the order of the dict, too.
"""

import math
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from scipy import stats

from stzoo.data.qrels import GRADE, MAX_GRADE, Qrels
from stzoo.data.trec import Run, in_order
from stzoo.errors import DataError, quoted
from stzoo.evaluation.measures import MEASURES, Measure

QUERIES_AT_ONCE = 500  # bounds the memory: a result takes some 220 bytes


@dataclass(frozen=True)
class Scores:
    """What a run scores.

    Attributes:
        mean: over all judged queries, by the measure's name ("nDCG@10"); of NumRet and its like, the sum.
        per_query: score by query id by the measure's name.
    """

    mean: dict[str, float]
    per_query: dict[str, dict[str, float]]


def score(qrels: Qrels, run: Run, measures: Sequence[Measure] = MEASURES) -> Scores:
    """Scores a run.

    Args:
        qrels: grade by document id by query id; above 0 is relevant.
        run: score by document id by query id; queries that are not judged are left out.
        measures: see `parse_measures`.

    Raises:
        DataError: if there are no judgements, a grade is not a whole number up to MAX_GRADE, or a score or a
            measure's value is no number.
    """
    import ir_measures

    if not qrels:
        raise DataError("there are no judgements to score by.")
    named = {ir_measures.parse_measure(measure.ir): measure.name for measure in measures}
    per_query = {name: dict.fromkeys(qrels, 0.0) for name in named.values()}
    # Measures with parameters go alone: ir-measures lends the gains of one nDCG to the next.
    plain = [measure for measure in named if not measure.params.keys() - {"cutoff"}]
    groups = [group for group in (plain, *([measure] for measure in named if measure not in plain)) if group]
    queries = list(qrels)
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        some = queries[start : start + QUERIES_AT_ONCE]
        grades, ranked = _plain(some, qrels, run)
        for group in groups:
            try:
                for metric in ir_measures.iter_calc(group, grades, ranked):
                    per_query[named[metric.measure]][some[int(metric.query_id)]] = float(metric.value)
            except subprocess.CalledProcessError as error:
                raise DataError(
                    f"{group[0]} is computed by gdeval, which takes grades up to 4 only."
                ) from error
    mean = {}
    for name, values in per_query.items():
        for query, value in values.items():
            if not math.isfinite(value):
                raise DataError(f"{name} of query {quoted(query)} is {value}: its parameters do not hold.")
        mean[name] = overall(name, values.values())
    return Scores(mean, per_query)


def overall(name: str, values: Iterable[float]) -> float:
    """What a measure's scores by query come to: their mean, or of NumRet and its like their sum."""
    total = _aggregator(name)
    for value in values:
        total.add(value)
    return float(total.result())


def is_sum(name: str) -> bool:
    """True of NumRet and its like, of which `Scores.mean` has the sum over queries."""
    from ir_measures.measures.base import SumAgg

    return isinstance(_aggregator(name), SumAgg)


def _aggregator(name: str) -> Any:
    import ir_measures

    return ir_measures.measures.registry.get(re.split(r"\W", name)[0], ir_measures.nDCG).aggregator()


def _plain(
    queries: Sequence[str], qrels: Qrels, run: Run
) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, float]]]:
    """Judgements and results in a form that all of ir-measures' providers read alike.

    Numbers stand for names, as gdeval reads no others, and no scores tie.
    """
    grades, ranked = {}, {}
    for i, query in enumerate(queries):
        found = run.get(query, {})
        if any(value != value for value in found.values()):
            raise DataError(f"the run has NaN among the scores of query {quoted(query)}.")
        for grade in qrels[query].values():
            if not isinstance(grade, Integral) or abs(grade) > MAX_GRADE:
                raise DataError(f"query {quoted(query)} has the grade {quoted(grade)}; expected {GRADE}.")
        places = {document: str(place) for place, document in enumerate(in_order(found))}
        judged = enumerate(qrels[query].items(), len(places))
        grades[str(i)] = {places.get(document, str(place)): grade for place, (document, grade) in judged}
        if found:
            ranked[str(i)] = {place: float(len(places) - int(place)) for place in places.values()}
    return grades, ranked


@dataclass(frozen=True)
class PairedTest:
    """How two systems differ on the same queries.

    Attributes:
        difference: mean of b - a.
        p_value: two-sided, of the paired randomisation test.
        low: lower end of the 95 % bootstrap interval of the difference.
        high: its upper end.
        queries: how many pairs.
    """

    difference: float
    p_value: float
    low: float
    high: float
    queries: int


def paired_test(a: Mapping[str, float], b: Mapping[str, float], *, seed: int = 0) -> PairedTest:
    """Tests whether system b differs from system a, given each one's score by query id.

    The randomisation test flips the sign of each query's difference (all 2**n ways where they are at most
    9999, else 9999 random ones); the interval is the bootstrap's percentiles over 9999 resamples.

    Args:
        a: score by query id, e.g. `Scores.per_query["nDCG@10"]`.
        b: likewise, over the same queries.
        seed: of the random draws; the same seed gives the same figures.

    Raises:
        DataError: if the queries differ, or are fewer than two.
    Source: Smucker, Allan, Carterette, CIKM 2007 (https://doi.org/10.1145/1321440.1321528).
    """
    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        raise DataError(
            f"two systems can be compared on the same queries only; {len(odd)} differ, e.g. {quoted(odd[0])}."
        )
    if len(a) < 2:
        raise DataError(f"a paired test needs at least two queries; got {len(a)}.")
    differences = np.array([b[query] - a[query] for query in a])
    batch = max(1, min(1000, 2_000_000 // len(a)))  # draws at once: 16 MB an array
    # One sample whose pairs are (difference, 0): scipy's exchange within pairs then flips signs.
    tested = stats.permutation_test(
        (differences, np.zeros_like(differences)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        batch=batch,
        rng=np.random.default_rng(seed),
    )
    interval = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=9999,
        batch=batch,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return PairedTest(
        float(differences.mean()), float(tested.pvalue), float(interval.low), float(interval.high), len(a)
    )
