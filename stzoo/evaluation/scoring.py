"""Scores of a run, computed by ir-measures, and the paired test of two systems.

A score is the mean over all judged queries; a query without results scores 0. For every measure, ties are
broken as in trec_eval: by float32 score descending, then by document id descending.

Unlike beir's EvaluateRetrieval.evaluate, which averages over the queries with results, drops documents with
the query's id in every data set, and breaks ties for MRR by the order of the dict.
Unlike ir-measures on its own, whose provider of RR@10 also breaks ties by the order of the dict.
"""

import math
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from stzoo.data.qrels import GRADE, MAX_GRADE, Qrels
from stzoo.data.ranking import Ranked, rank
from stzoo.data.texts import indices_of
from stzoo.data.trec import Run
from stzoo.errors import DataError, quoted
from stzoo.evaluation.measures import MEASURES, Measure

RESAMPLES = 9999
QUERIES_AT_ONCE = 500  # limits the memory: a result takes about 220 bytes


@dataclass(frozen=True)
class Scores:
    """The scores of a run.

    Attributes:
        mean: Mean over all judged queries by measure ("nDCG@10"); for counts such as NumRet, the sum.
        per_query: Scores by measure and query id.
    """

    mean: dict[str, float]
    per_query: dict[str, dict[str, float]]


def score(qrels: Qrels, run: Run, measures: Sequence[Measure] = MEASURES) -> Scores:
    """Scores a run.

    Args:
        qrels: Grades by query id and document id; grades above 0 are relevant.
        run: Scores by query id and document id, in any order; queries without judgements are ignored.
        measures: Measures to compute; `parse_measures` makes them from names.

    Raises:
        DataError: If there are no judgements, a grade is not a whole number up to MAX_GRADE, or a score or a
            measure's value is not a finite number.
    """
    import ir_measures

    if not qrels:
        raise DataError("there are no judgements; expected at least one judged query.")
    names = {ir_measures.parse_measure(measure.ir): measure.name for measure in measures}
    per_query = {name: dict.fromkeys(qrels, 0.0) for name in names.values()}
    # Measures with parameters are computed one by one: ir-measures uses the gains of one nDCG for the next.
    plain = [measure for measure in names if not measure.params.keys() - {"cutoff"}]
    groups = [group for group in (plain, *([measure] for measure in names if measure not in plain)) if group]
    queries, ranked_run = list(qrels), rank(run)
    judged = indices_of((document for grades in qrels.values() for document in grades), ranked_run.corpus_ids)
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        batch = queries[start : start + QUERIES_AT_ONCE]
        grades, ranked = _number(batch, qrels, ranked_run, judged)
        for group in groups:
            try:
                for metric in ir_measures.iter_calc(group, grades, ranked):
                    per_query[names[metric.measure]][batch[int(metric.query_id)]] = float(metric.value)
            except subprocess.CalledProcessError as error:
                raise DataError(
                    f"{group[0]} is computed by gdeval, which supports only grades up to 4. Leave it out."
                ) from error
    mean = {}
    for name, values in per_query.items():
        for query, value in values.items():
            if not math.isfinite(value):
                raise DataError(
                    f"{name} of query {quoted(query)} is {value}; check the measure's parameters."
                )
        mean[name] = overall(name, values.values())
    return Scores(mean, per_query)


def overall(name: str, values: Iterable[float]) -> float:
    """Aggregates a measure's scores over queries: their mean, or the sum for counts such as NumRet."""
    total = _aggregator(name)
    for value in values:
        total.add(value)
    return float(total.result())


def is_sum(name: str) -> bool:
    """True for counts such as NumRet, for which `Scores.mean` has the sum over queries."""
    from ir_measures.measures.base import SumAgg

    return isinstance(_aggregator(name), SumAgg)


def _aggregator(name: str) -> Any:
    import ir_measures

    return ir_measures.measures.registry.get(re.split(r"\W", name)[0], ir_measures.nDCG).aggregator()


def _number(
    queries: Sequence[str], qrels: Qrels, run: Ranked, places: Mapping[str, int]
) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, float]]]:
    """Grades and scores by numbers for ids and without ties, which all providers of ir-measures read alike.

    gdeval reads numbers only. The score of a document is its rank from the end.
    """
    grades, ranked = {}, {}
    for i, query in enumerate(queries):
        for grade in qrels[query].values():
            if not isinstance(grade, Integral) or abs(grade) > MAX_GRADE:
                raise DataError(f"query {quoted(query)} has the grade {quoted(grade)}; expected {GRADE}.")
        ranks = {place: number for number, place in enumerate(run.results(query)[0].tolist())}
        judged = enumerate(qrels[query].items(), len(ranks))
        grades[str(i)] = {
            str(ranks.get(places.get(document, -1), other)): grade for other, (document, grade) in judged
        }
        if ranks:
            ranked[str(i)] = {str(number): float(len(ranks) - number) for number in ranks.values()}
    return grades, ranked


@dataclass(frozen=True)
class PairedTest:
    """The difference of two systems on the same queries, and its test.

    Attributes:
        difference: Mean of b - a.
        p_value: Two-sided p-value of the paired randomisation test.
        low: Lower end of the 95 % bootstrap interval of the difference.
        high: Upper end of the interval.
        queries: Number of queries.
    """

    difference: float
    p_value: float
    low: float
    high: float
    queries: int


def paired_test(a: Mapping[str, float], b: Mapping[str, float], *, seed: int = 0) -> PairedTest:
    """Tests whether the scores of system b differ from those of system a.

    The randomisation test flips the signs of the queries' differences: all 2**n combinations if they are at
    most 9999, or else 9999 random ones. The interval is the percentile bootstrap with 9999 resamples.

    Args:
        a: Scores by query id, e.g. `Scores.per_query["nDCG@10"]`.
        b: Scores of the other system on the same queries.
        seed: Random seed; the same seed gives the same result.

    Raises:
        DataError: If the queries differ, or there are fewer than two.

    Source: Smucker, Allan, Carterette, CIKM 2007 (https://doi.org/10.1145/1321440.1321528).
    """
    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        raise DataError(
            f"two systems can only be compared on the same queries, but {len(odd)} differ, e.g. "
            f"{quoted(odd[0])}."
        )
    if len(a) < 2:
        raise DataError(f"a paired test needs at least two queries; got {len(a)}.")
    differences = np.array([b[query] - a[query] for query in a])
    batch = max(1, min(1000, 2_000_000 // len(a)))  # draws at once: 16 MB per array
    # With pairs (difference, 0), scipy's exchange within pairs flips signs.
    tested = stats.permutation_test(
        (differences, np.zeros_like(differences)),
        lambda x, y, axis: np.mean(x - y, axis=axis).round(12),  # or equal sums differ in the last bit
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=batch,
        rng=np.random.default_rng(seed),
    )
    interval = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=batch,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return PairedTest(
        float(differences.mean()), float(tested.pvalue), float(interval.low), float(interval.high), len(a)
    )


def paired_p_values(scores: NDArray[Any], *, seed: int = 0) -> NDArray[Any]:
    """P-values of the randomisation test of `paired_test` for all pairs of systems, by the same random signs.

    There are 200 random signs or more per pair, so that the smallest p-value times the number of pairs, as
    Holm's rule has it, is at most 0.01.

    Args:
        scores: float64 [S, Q], scores of S systems on Q queries.
        seed: Random seed.

    Returns:
        float64 [S, S].
    """
    systems, queries = scores.shape
    draws = max(RESAMPLES, 200 * systems * (systems - 1) // 2)
    exact = 2**queries <= RESAMPLES
    if exact:
        draws = 2**queries
    rng = np.random.default_rng(seed)
    sums = scores.sum(axis=1)
    observed = sums[:, None] - sums
    least = observed - 1e-9 * (1 + abs(observed))  # equal but for rounding
    reached = np.zeros((systems, systems))
    batch = max(1, min(draws, 4_000_000 // max(queries, systems**2)))  # limits the memory
    for start in range(0, draws, batch):
        size = min(batch, draws - start)
        if exact:
            numbers = np.arange(start, start + size)
            flipped = (numbers[:, None] >> np.arange(queries) & 1).astype(np.uint8)
        else:
            octets = rng.integers(0, 256, (size, -(-queries // 8)), dtype=np.uint8)
            flipped = np.unpackbits(octets, axis=1, count=queries)
        drawn = sums - 2 * (flipped.astype(float) @ scores.T)
        reached += (drawn[:, :, None] - drawn[:, None, :] >= least).sum(axis=0)
    p_values = reached / draws if exact else (reached + 1) / (draws + 1)
    two_sided: NDArray[Any] = np.minimum(1.0, 2 * np.minimum(p_values, p_values.T))
    return two_sided


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted by Holm's step-down rule, in the order given."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for smaller, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - smaller) * p_values[i]))
        adjusted[i] = highest
    return adjusted
