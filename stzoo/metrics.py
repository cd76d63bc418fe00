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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .errors import DataError, RecipeError, nearest
from .judged import Qrels
from .search import Run, in_order


class Measure(NamedTuple):
    """A measure by its three names: ours, that of ir-measures, and the key in mteb's results."""

    name: str
    ir: str
    mteb: str

    @property
    def cutoff(self) -> int:
        """How many results of a query it looks at; 0 where it looks at all that there are."""
        found = re.search(r"@(\d+)$", self.name)  # IPrec@0.1 is no cutoff
        return int(found[1]) if found else 0


MEASURES = (
    Measure("nDCG@10", "nDCG@10", "ndcg_at_10"),
    Measure("MRR@10", "RR@10", "mrr_at_10"),
    Measure("MAP@100", "AP@100", "map_at_100"),
    Measure("Recall@100", "R@100", "recall_at_100"),
    Measure("Recall@1000", "R@1000", "recall_at_1000"),
    Measure("P@10", "P@10", "precision_at_10"),
)
QUERIES_AT_ONCE = 500  # bounds the memory: a result takes some 220 bytes
_SPELT = {"RR": "MRR", "AP": "MAP", "R": "Recall"}  # ours where it is not that of ir-measures
_MTEB = {"nDCG": "ndcg", "RR": "mrr", "AP": "map", "R": "recall", "P": "precision"}


def parse_measures(text: str) -> tuple[Measure, ...]:
    """Measures by any name that ir-measures knows, with spaces between: "nDCG@10 RR@10 R(rel=2)@1000".

    Raises:
        RecipeError: if there is none, a name is unknown or lacks a cutoff, nothing that is installed computes
            the measure, or it is not defined for every judged query.
    """
    import ir_measures

    found = []
    for word in re.findall(r"(?:\([^)]*\)|\S)+", text):
        try:
            measure = ir_measures.parse_measure(word)
        except (NameError, ValueError, SyntaxError, KeyError, TypeError, AssertionError):
            names = {name.lower(): name for name in ir_measures.measures.registry}
            near = nearest(re.split(r"\W", word)[0].lower(), names)
            raise RecipeError(
                f"the measure {word!r} is unknown"
                + (f"; did you mean {names[near]!r}?" if near else ".")
                + " Expected names of ir-measures, e.g. nDCG@10 RR@10 R@1000 "
                "(https://ir-measur.es/en/latest/measures.html)."
            ) from None
        if reason := _why_not(measure):
            raise RecipeError(f"the measure {word!r} cannot be used: {reason}.")
        ir = str(measure)
        plain = re.fullmatch(r"(nDCG|RR|AP|R|P)@(\d+)", ir)
        name = f"{_SPELT.get(plain[1], plain[1])}@{plain[2]}" if plain else ir
        found.append(Measure(name, ir, f"{_MTEB[plain[1]]}_at_{plain[2]}" if plain else ir))
    if not found:
        raise RecipeError("the list of measures is empty.")
    return tuple(dict.fromkeys(found))


def _why_not(measure: Any) -> str:
    """What keeps a measure from being computed, or ""."""
    import ir_measures
    from ir_measures.providers import registry

    known = measure.SUPPORTED_PARAMS
    for name, value in measure.params.items():
        if name not in known:
            return f"it takes no {name}, only {', '.join(known) or 'its name'}"
        if not known[name].validate(value) or isinstance(value, bool) is not (known[name].dtype is bool):
            expected = known[name].choices if known[name].dtype is str else known[name].dtype.__name__
            return f"{name} is {value!r}; expected {expected}"
    if missing := [name for name, about in known.items() if about.required and name not in measure.params]:
        example = f", as in {measure.NAME}@10" if missing == ["cutoff"] else ""
        return f"it needs {' and '.join(missing)}{example}"
    if measure.params.get("cutoff", 1) < 1:
        return "its cutoff must be at least 1"  # trec_eval would end the process
    if measure.NAME in {supported.NAME for supported in registry["pyndeval"].SUPPORTED_MEASURES}:
        return "it needs judgements by subtopic, which qrels of one grade a document do not hold"
    if measure.NAME == "Accuracy":
        return "it is undefined for queries without a relevant document found, so it has no mean over all"
    if not ir_measures.DefaultPipeline.supports(measure):
        ways = [
            f"{provider.NAME} ({provider.install_instructions()}) takes it with "
            + ", ".join(f"{name}={value}" for name, value in supported.params.items() if str(value) != "ANY")
            for provider in ir_measures.DefaultPipeline.providers
            for supported in provider.SUPPORTED_MEASURES
            if supported.NAME == measure.NAME
        ]
        return "; ".join(["nothing that is installed computes it", *ways])
    try:
        measure.calc_aggregate({"0": {"0": 1}}, {"0": {"0": 1.0}})
    except Exception as error:  # whatever its provider makes of parameters it cannot take
        return f"its provider refuses it ({error})"
    return ""


def wanted_measures(measures: str | None, k: int) -> tuple[Measure, ...]:
    """MEASURES that k results can give, and those asked for.

    Raises:
        RecipeError: if one asked for is unknown or looks deeper than k.
    """
    asked = parse_measures(measures) if measures else ()
    for measure in asked:
        if measure.cutoff > k:
            raise RecipeError(f"{measure.name} looks at more than the {k} results kept; give a larger k.")
    usual = (measure for measure in MEASURES if measure.cutoff <= k)
    found = tuple(dict.fromkeys((*usual, *asked)))
    if not found:
        raise RecipeError(f"k is {k}, and no usual measure looks at so few results; name some by --measures.")
    return found


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
        DataError: if there are no judgements, or a score or a measure's value is no number.
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
    for measure, name in named.items():
        total = measure.aggregator()
        for query, value in per_query[name].items():
            if not math.isfinite(value):
                raise DataError(f"{name} of query {query!r} is {value}: its parameters do not hold.")
            total.add(value)
        mean[name] = float(total.result())
    return Scores(mean, per_query)


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
            raise DataError(f"the run has NaN among the scores of query {query!r}.")
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
