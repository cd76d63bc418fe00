"""Scores of a run, by ir-measures, and the paired test of two systems.

A score is the mean over all judged queries; a query without results scores 0. Ties are broken as trec_eval
breaks them (float32 score descending, then document id descending) for every measure alike.

Unlike beir's EvaluateRetrieval.evaluate: it averages over the queries that have results, drops a document
under the query's id in every set, and breaks the ties of MRR by the order of the dict.
Unlike ir-measures left alone: it takes RR@10 from a provider that breaks ties by the order of the dict, too.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .errors import DataError, RecipeError
from .judged import Qrels
from .search import Run, in_order


class Measure(NamedTuple):
    """A measure by its three names: ours, that of ir-measures, and the key in mteb's results."""

    name: str
    ir: str
    mteb: str


MEASURES = (
    Measure("nDCG@10", "nDCG@10", "ndcg_at_10"),
    Measure("MRR@10", "RR@10", "mrr_at_10"),
    Measure("MAP@100", "AP@100", "map_at_100"),
    Measure("Recall@100", "R@100", "recall_at_100"),
    Measure("Recall@1000", "R@1000", "recall_at_1000"),
    Measure("P@10", "P@10", "precision_at_10"),
)
_SPELT = {"RR": "MRR", "AP": "MAP", "R": "Recall"}  # ours where it is not that of ir-measures
_MTEB = {"nDCG": "ndcg", "RR": "mrr", "AP": "map", "R": "recall", "P": "precision"}


def parse_measures(text: str) -> tuple[Measure, ...]:
    """Measures by any name that ir-measures knows, or by ours, with spaces between: "nDCG@10 RR@10 R@1000".

    Raises:
        RecipeError: if a name is unknown, or there is none.
    """
    import ir_measures

    found = []
    for word in text.split():
        ours, at, cut = word.partition("@")
        ir = {spelt: name for name, spelt in _SPELT.items()}.get(ours, ours) + at + cut
        try:
            ir = str(ir_measures.parse_measure(ir))
        except (NameError, ValueError, SyntaxError, KeyError, TypeError, AssertionError):
            raise RecipeError(
                f"the measure {word!r} is unknown; expected names of ir-measures, e.g. nDCG@10 RR@10 R@1000 "
                "(https://ir-measur.es/en/latest/measures.html)."
            ) from None
        plain = re.fullmatch(r"(nDCG|RR|AP|R|P)@(\d+)", ir)
        name = f"{_SPELT.get(plain[1], plain[1])}@{plain[2]}" if plain else ir
        found.append(Measure(name, ir, f"{_MTEB[plain[1]]}_at_{plain[2]}" if plain else ir))
    if not found:
        raise RecipeError("the list of measures is empty.")
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Scores:
    """What a run scores.

    Attributes:
        mean: over all judged queries, 0 to 1, by the measure's name ("nDCG@10").
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
        DataError: if there are no judgements, or a score is NaN.
    """
    import ir_measures

    if not qrels:
        raise DataError("there are no judgements to score by.")
    untied = {}
    for query in qrels:
        found = run.get(query, {})
        if any(value != value for value in found.values()):
            raise DataError(f"the run has NaN among the scores of query {query!r}.")
        # Scores without ties, so that all of ir-measures' providers see one order.
        untied[query] = {document: float(-place) for place, document in enumerate(in_order(found))}
    names = {ir_measures.parse_measure(measure.ir): measure.name for measure in measures}
    per_query: dict[str, dict[str, float]] = {measure.name: dict.fromkeys(qrels, 0.0) for measure in measures}
    for metric in ir_measures.iter_calc(list(names), qrels, untied):
        per_query[names[metric.measure]][metric.query_id] = float(metric.value)
    return Scores({name: sum(values.values()) / len(qrels) for name, values in per_query.items()}, per_query)


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
    import numpy as np
    from scipy import stats

    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        raise DataError(
            f"two systems can be compared on the same queries only; {len(odd)} differ, e.g. {odd[0]!r}."
        )
    if len(a) < 2:
        raise DataError(f"a paired test needs at least two queries; got {len(a)}.")
    differences = np.array([b[query] - a[query] for query in a])
    # One sample whose pairs are (difference, 0): scipy's exchange within pairs then flips signs.
    tested = stats.permutation_test(
        (differences, np.zeros_like(differences)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    interval = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=9999,
        batch=1000,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return PairedTest(
        float(differences.mean()), float(tested.pvalue), float(interval.low), float(interval.high), len(a)
    )
