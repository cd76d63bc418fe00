import copy
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stzoo.errors import DataError
from stzoo.metrics import MEASURES, paired_test, score

# Ids beyond ASCII: Python orders text by code point, trec_eval by UTF-8 bytes, which is the same order.
DOCUMENTS = [f"d{i}" for i in range(22)] + ["é", "ﬁ", "\U0001d538"]
QUERIES = [f"q{i}" for i in range(4)]
grades = st.dictionaries(st.sampled_from(DOCUMENTS), st.integers(-1, 3), min_size=1)
qrels_of_all = st.fixed_dictionaries(dict.fromkeys(QUERIES, grades))
# Five scores over up to 25 documents: ties are the rule. 1 + 1e-9 is 1 in float32.
found = st.dictionaries(st.sampled_from(DOCUMENTS), st.sampled_from([0.0, -1.5, 1.0, 1.0 + 1e-9, 7.25]))
runs_of_all = st.fixed_dictionaries({query: found.filter(bool) for query in QUERIES})


def by_hand(grades, ranked):
    """The measures from their definitions, over documents already in order."""
    relevant = [document for document, grade in grades.items() if grade > 0]
    hits = [document in relevant for document in ranked]
    gains = [max(grades.get(document, 0), 0) for document in ranked[:10]]
    best = sorted((max(grade, 0) for grade in grades.values()), reverse=True)[:10]
    dcg, ideal = (sum(g / math.log2(i + 2) for i, g in enumerate(gs)) for gs in (gains, best))
    precisions = [sum(hits[: i + 1]) / (i + 1) for i in range(min(len(hits), 100)) if hits[i]]
    return {
        "nDCG@10": dcg / ideal if ideal else 0.0,
        "MRR@10": next((1 / (i + 1) for i, hit in enumerate(hits[:10]) if hit), 0.0),
        "MAP@100": sum(precisions) / len(relevant) if relevant else 0.0,
        "Recall@100": sum(hits[:100]) / len(relevant) if relevant else 0.0,
        "Recall@1000": sum(hits[:1000]) / len(relevant) if relevant else 0.0,
        "P@10": sum(hits[:10]) / 10,
    }


@given(qrels_of_all, st.fixed_dictionaries({}, optional=dict.fromkeys(QUERIES, found)))
@settings(deadline=None, max_examples=200)
def test_scores_are_those_of_the_definitions_with_ties_as_in_trec_eval(qrels, run):
    import numpy as np

    scores = score(qrels, run)
    for query in QUERIES:
        results = run.get(query, {})
        ranked = sorted(results, key=lambda document: (np.float32(results[document]), document), reverse=True)
        expected = by_hand(qrels[query], ranked)
        assert {name: values[query] for name, values in scores.per_query.items()} == pytest.approx(expected)
    for name, values in scores.per_query.items():
        assert scores.mean[name] == pytest.approx(sum(values.values()) / len(QUERIES))


@given(qrels_of_all, runs_of_all)
@settings(deadline=None, max_examples=100)
def test_scores_are_those_of_pytrec_eval(qrels, run):
    import pytrec_eval

    names = {
        "nDCG@10": "ndcg_cut_10",
        "MAP@100": "map_cut_100",
        "Recall@100": "recall_100",
        "Recall@1000": "recall_1000",
        "P@10": "P_10",
    }
    theirs = pytrec_eval.RelevanceEvaluator(qrels, set(names.values())).evaluate(run)
    ours = score(qrels, run).per_query
    for name, key in names.items():
        assert ours[name] == pytest.approx({query: theirs[query][key] for query in QUERIES}, abs=1e-12)


@given(qrels_of_all, runs_of_all)
@settings(deadline=None, max_examples=100)
def test_scores_are_those_of_beir_where_every_query_has_results(qrels, run):
    from beir.retrieval.evaluation import EvaluateRetrieval

    cuts = [10, 100, 1000]
    theirs = {}
    for part in EvaluateRetrieval.evaluate(qrels, copy.deepcopy(run), cuts):
        theirs |= part
    ours = score(qrels, run).mean
    # beir rounds to five digits
    for name in ("nDCG@10", "MAP@100", "Recall@100", "Recall@1000", "P@10"):
        assert ours[name] == pytest.approx(theirs[name.replace("nDCG", "NDCG")], abs=0.6e-5)


@given(qrels_of_all, st.fixed_dictionaries({query: st.permutations(DOCUMENTS) for query in QUERIES}))
@settings(deadline=None, max_examples=50)
def test_mrr_is_that_of_beir_where_nothing_ties(qrels, order):
    from beir.retrieval.evaluation import EvaluateRetrieval

    run = {
        query: {document: -float(i) for i, document in enumerate(ranked)} for query, ranked in order.items()
    }
    theirs = EvaluateRetrieval.evaluate_custom(qrels, copy.deepcopy(run), [10], "mrr")["MRR@10"]
    assert score(qrels, run).mean["MRR@10"] == pytest.approx(theirs, abs=0.6e-5)


def test_a_judged_query_without_results_counts_as_zero():
    qrels = {"a": {"d": 1}, "b": {"d": 1}, "c": {"d": 1}, "e": {"d": 0}}
    scores = score(qrels, {"a": {"d": 1.0}, "b": {}, "unjudged": {"d": 1.0}})
    assert scores.mean["nDCG@10"] == scores.mean["MRR@10"] == scores.mean["Recall@100"] == 0.25
    assert scores.per_query["nDCG@10"] == {"a": 1.0, "b": 0.0, "c": 0.0, "e": 0.0}


def test_scoring_leaves_its_input_alone():
    qrels, run = {"a": {"a": 1, "b": 0}}, {"a": {"b": 1.0, "a": 0.5}}
    before = copy.deepcopy((qrels, run))
    score(qrels, run)
    assert (qrels, run) == before


def test_every_measure_is_scored_under_its_name():
    scores = score({"a": {"d": 1}}, {"a": {"d": 1.0}})
    assert list(scores.mean) == list(scores.per_query) == [measure.name for measure in MEASURES]


def test_a_run_with_nan_or_nothing_judged_is_an_error():
    with pytest.raises(DataError, match="NaN among the scores of query 'a'"):
        score({"a": {"d": 1}}, {"a": {"d": float("nan")}})
    with pytest.raises(DataError, match="no judgements"):
        score({}, {})


def test_the_paired_test_finds_a_difference_that_is_there_and_none_that_is_not():
    import numpy as np

    random = np.random.default_rng(3)
    a = {f"q{i}": float(value) for i, value in enumerate(random.uniform(0.2, 0.8, 200))}
    noise = random.normal(0, 0.1, 200)
    better = {query: value + 0.05 + noise[i] for i, (query, value) in enumerate(a.items())}
    same = {query: value + noise[i] - noise.mean() for i, (query, value) in enumerate(a.items())}
    found = paired_test(a, better, seed=1)
    assert found.difference == pytest.approx(0.05 + noise.mean())
    assert found.p_value < 0.001
    assert 0 < found.low < found.difference < found.high
    none = paired_test(a, same, seed=1)
    assert none.p_value > 0.9
    assert none.low < 0 < none.high


def test_the_paired_test_agrees_with_students_on_many_queries():
    import numpy as np
    from scipy import stats

    random = np.random.default_rng(5)
    values = random.normal(0.012, 0.1, 300)
    found = paired_test(dict.fromkeys(range(300), 0.0), dict(enumerate(values)), seed=2)
    student = stats.ttest_1samp(values, 0)
    interval = student.confidence_interval(0.95)
    assert found.p_value == pytest.approx(student.pvalue, abs=0.015)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.0015)


def test_the_paired_test_is_exact_on_few_queries_and_fixed_by_its_seed():
    a, b = {"x": 0.0, "y": 0.0, "z": 0.0}, {"z": 0.1, "y": 0.2, "x": 0.3}
    found = paired_test(a, b)
    # one of the eight sign patterns reaches 0.6, and one -0.6
    assert found.p_value == pytest.approx(2 / 8)
    assert found == paired_test(a, b)
    assert paired_test(b, a).difference == pytest.approx(-found.difference)
    assert paired_test(a, a).p_value == 1.0
    many = {str(i): math.sin(i) for i in range(50)}
    zeros = dict.fromkeys(many, 0.0)
    assert paired_test(many, zeros, seed=4) == paired_test(many, zeros, seed=4)
    assert paired_test(many, zeros, seed=4) != paired_test(many, zeros, seed=5)


def test_the_paired_test_wants_the_same_queries():
    with pytest.raises(DataError, match=r"2 differ, e\.g\. 'a'"):
        paired_test({"a": 1.0, "c": 1.0}, {"b": 1.0, "c": 1.0})
    with pytest.raises(DataError, match="at least two"):
        paired_test({"a": 1.0}, {"a": 0.5})
