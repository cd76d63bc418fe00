import copy
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stzoo.errors import DataError, RecipeError
from stzoo.evaluation.measures import MEASURES, parse_measures
from stzoo.evaluation.scoring import paired_test, score

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
@settings(max_examples=200)
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
@settings(max_examples=100)
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
@settings(max_examples=100)
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
@settings(max_examples=50)
def test_mrr_is_that_of_beir_where_nothing_ties(qrels, order):
    from beir.retrieval.evaluation import EvaluateRetrieval

    run = {
        query: {document: -float(i) for i, document in enumerate(ranked)} for query, ranked in order.items()
    }
    theirs = EvaluateRetrieval.evaluate_custom(qrels, copy.deepcopy(run), [10], "mrr")["MRR@10"]
    assert score(qrels, run).mean["MRR@10"] == pytest.approx(theirs, abs=0.6e-5)


# Measures of beir that ir-measures has under another name, or has not.
@given(qrels_of_all, st.fixed_dictionaries({query: st.permutations(DOCUMENTS) for query in QUERIES}))
@settings(max_examples=50)
def test_beirs_top_k_accuracy_is_success_and_its_capped_recall_is_recall_up_to_the_cut(qrels, order):
    from beir.retrieval.evaluation import EvaluateRetrieval

    run = {query: {d: -float(i) for i, d in enumerate(ranked)} for query, ranked in order.items()}
    accuracy = EvaluateRetrieval.evaluate_custom(qrels, run, [1, 5], "top_k_accuracy")
    ours = score(qrels, run, parse_measures("Success@1 Success@5")).mean
    assert list(ours.values()) == pytest.approx(list(accuracy.values()), abs=0.6e-5)
    relevant = [sum(grade > 0 for grade in grades.values()) for grades in qrels.values()]
    assume(min(relevant) > 0)  # beir divides by it
    capped = EvaluateRetrieval.evaluate_custom(qrels, run, [max(relevant)], "recall_cap")
    ours = score(qrels, run, parse_measures(f"R@{max(relevant)}")).mean
    assert list(ours.values()) == pytest.approx(list(capped.values()), abs=0.6e-5)


def test_capped_recall_and_hole_of_beir_have_no_equal():
    from beir.retrieval.evaluation import EvaluateRetrieval

    qrels, run = (
        {"a": {"d": 1, "e": 1}, "b": {"f": 1}},
        {"a": {"d": 2.0, "f": 1.0}, "b": {"f": 2.0, "g": 1.0}},
    )
    # capped: one of one that one place can hold; R: one of two
    assert EvaluateRetrieval.evaluate_custom(qrels, run, [1], "recall_cap") == {"R_cap@1": 1.0}
    assert score(qrels, run, parse_measures("R@1")).per_query["Recall@1"] == {"a": 0.5, "b": 1.0}
    # hole: 1 - Judged, save that a document judged for another query (f for a) is no hole
    assert EvaluateRetrieval.evaluate_custom(qrels, run, [2], "hole") == {"Hole@2": (0 + 1 / 2) / 2}
    assert score(qrels, run, parse_measures("Judged@2")).per_query["Judged@2"] == {"a": 0.5, "b": 0.5}


# Where ours differs from beir 2.2.0 on purpose: the rows of the table in the docs, by beir's own code. Those
# of loading, encoding and search are in test_beir_model.py.
def beir_ndcg(qrels, run, k):
    from beir.retrieval.evaluation import EvaluateRetrieval

    return EvaluateRetrieval.evaluate(qrels, run, [k])[0][f"NDCG@{k}"]


def beir_mrr(qrels, run, k):
    from beir.retrieval.evaluation import EvaluateRetrieval

    return EvaluateRetrieval.evaluate_custom(qrels, run, [k], "mrr")[f"MRR@{k}"]


def test_beir_averages_over_answered_queries_but_mrr_over_all():
    qrels, run = {"a": {"d": 1}, "b": {"d": 1}}, {"a": {"d": 1.0}}
    assert (beir_ndcg(qrels, copy.deepcopy(run), 10), beir_mrr(qrels, run, 10)) == (1.0, 0.5)
    ours = score(qrels, run).mean
    assert ours["nDCG@10"] == ours["MRR@10"] == 0.5


def test_beir_breaks_ties_in_two_ways():
    qrels, run = {"q": {"a": 1}}, {"q": {"a": 1.0, "b": 1.0}}
    assert (beir_ndcg(qrels, copy.deepcopy(run), 1), beir_mrr(qrels, run, 1)) == (0.0, 1.0)
    assert set(score(qrels, run, parse_measures("nDCG@1 RR@1")).mean.values()) == {0.0}
    again = {"q": dict(reversed(run["q"].items()))}
    assert beir_mrr(qrels, again, 1) == 0.0


def test_beir_takes_results_under_the_querys_id_out_of_the_callers_run():
    # as in Cranfield, where query 1 and document 1 are strangers
    qrels, run = {"1": {"1": 1}}, {"1": {"1": 2.0, "2": 1.0}}
    assert score(qrels, run).mean["nDCG@10"] == 1.0
    assert run == {"1": {"1": 2.0, "2": 1.0}}
    assert beir_ndcg(qrels, run, 10) == 0.0
    assert run == {"1": {"2": 1.0}}


def test_beir_stops_at_empty_results_and_at_queries_of_its_own():
    from beir.retrieval.evaluation import EvaluateRetrieval

    with pytest.raises(ZeroDivisionError):
        beir_ndcg({"a": {"d": 1}}, {}, 10)
    assert set(score({"a": {"d": 1}}, {}).mean.values()) == {0.0}
    with pytest.raises(KeyError):
        beir_mrr({"a": {"d": 1}}, {"a": {"d": 1.0}, "b": {"d": 1.0}}, 10)
    assert score({"a": {"d": 1}}, {"a": {"d": 1.0}, "b": {"d": 1.0}}).mean["MRR@10"] == 1.0
    with pytest.raises(ZeroDivisionError):
        EvaluateRetrieval.evaluate_custom({"a": {"d": 0}}, {"a": {"d": 1.0}}, [10], "recall_cap")
    assert score({"a": {"d": 0}}, {"a": {"d": 1.0}}).mean["Recall@100"] == 0.0


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


# Every name of ir-measures; None where parse_measures refuses it.
NAMES = {
    "Accuracy": None,
    "AP": "AP@7",
    "MAP": "MAP(rel=2)",
    "BPM": "BPM(max_rel=3)@5",
    "Bpref": "Bpref",
    "BPref": "BPref(rel=2)",
    "Compat": "Compat(p=0.8)",
    **dict.fromkeys(
        ["ERR_IA", "nERR_IA", "alpha_DCG", "\u03b1_DCG", "alpha_nDCG", "\u03b1_nDCG", "NRBP", "nNRBP"]
    ),
    **dict.fromkeys(["AP_IA", "MAP_IA", "P_IA", "StRecall"]),
    "ERR": "ERR@5",
    "INST": "INST(max_rel=3)",
    "INSQ": "INSQ(max_rel=3)",
    "infAP": "infAP",
    "IPrec": "IPrec@0.2",
    "Judged": "Judged@10",
    "nDCG": "nDCG(dcg='exp-log2')@10",
    "NDCG": "NDCG(gains={1: 4, 2: 5})@10",
    "NERR8": "NERR8(max_rel=3)@5",
    "NERR9": "NERR9(max_rel=3)@5",
    "NERR10": "NERR10(max_rel=3)",
    "NERR11": "NERR11(max_rel=3)",
    "NumQ": "NumQ",
    "NumRel": "NumRel",
    "NumRet": "NumRet",
    "NumRelRet": "NumRelRet",
    "P": "P(rel=2, judged_only=True)@3",
    "Precision": "Precision@3",
    "R": "R(rel=2)@100",
    "Recall": "Recall@3",
    "RBP": "RBP(p=0.9,rel=1)",
    "Rprec": "Rprec",
    "RPrec": "RPrec(rel=2)",
    "RR": "RR",
    "MRR": "MRR(rel=2)@5",
    "SDCG": "SDCG(max_rel=3)@5",
    "SetP": "SetP",
    "SetRelP": "SetRelP",
    "SetR": "SetR(rel=2)",
    "SetF": "SetF(beta=2.0)",
    "SetAP": "SetAP",
    "Success": "Success@3",
}
BY_CWL = {"BPM", "INST", "INSQ", "NERR8", "NERR9", "NERR10", "NERR11", "RBP", "SDCG"}


def test_every_name_of_ir_measures_is_known_here():
    import ir_measures

    assert set(NAMES) == set(ir_measures.measures.registry)


# Without ties and with results for every query, ir-measures needs none of the care that score() takes. The
# names are numbers, since gdeval reads no others.
DISTINCT = st.lists(st.sampled_from([str(i) for i in range(25)]), min_size=1, unique=True).map(
    lambda ranked: {document: float(len(ranked) - i) for i, document in enumerate(ranked)}
)
NUMBERED = [str(i) for i in range(3)]
GRADES = st.dictionaries(st.sampled_from([str(i) for i in range(25)]), st.integers(-1, 3), min_size=1)


@pytest.mark.parametrize("name", NAMES)
@given(
    st.fixed_dictionaries(dict.fromkeys(NUMBERED, GRADES)),
    st.fixed_dictionaries(dict.fromkeys(NUMBERED, DISTINCT)),
)
@settings(max_examples=8)
def test_scores_are_those_of_ir_measures_by_any_name(name, qrels, run):
    import ir_measures

    word = NAMES[name]
    if word is None:
        with pytest.raises(RecipeError, match="cannot be used"):
            parse_measures(f"{name}@10" if name in ("Accuracy", "P_IA") else name)
        return
    theirs = ir_measures.parse_measure(word)
    if not ir_measures.DefaultPipeline.supports(theirs):
        assert name in BY_CWL
        with pytest.raises(RecipeError, match=r"cwl_eval \(pip install ir-measures\[cwl_eval\]\)"):
            parse_measures(word)
        return
    (measure,) = parse_measures(word)
    ours = score(qrels, run, [measure])
    assert ours.mean == {measure.name: pytest.approx(theirs.calc_aggregate(qrels, run))}
    expected = {metric.query_id: metric.value for metric in theirs.iter_calc(qrels, run)}
    assert ours.per_query[measure.name] == pytest.approx(expected)


def test_measures_with_parameters_have_the_values_of_their_definitions():
    # The order is b (grade 1), x (not judged), a (grade 3): x ties with a, and "x" comes after "a".
    qrels = {"q-1": {"a": 3, "b": 1, "c": 0}, "the 2nd": {"a": 1}}
    run = {"q-1": {"b": 3.0, "a": 2.0, "x": 2.0}}
    expected = {
        "R(rel=2)@2": 0,
        "R(rel=2)@100": 1,
        "P(rel=2)@4": 1 / 4,
        "RR(rel=2)@10": 1 / 3,
        "Judged@10": 2 / 3,
        "NumRet": 3,
        "NumRel": 2,
        "nDCG(dcg='exp-log2')@10": (1 + 7 / 2) / (7 + 1 / math.log2(3)),
        "ERR@10": 1 / 16 + 15 / 16 * 7 / 16 / 3,
    }
    scores = score(qrels, run, parse_measures(" ".join(expected)))
    for name, value in expected.items():
        # gdeval, which computes two of them, prints five digits
        assert scores.per_query[name]["q-1"] == pytest.approx(value, abs=0.6e-5), name
        assert scores.per_query[name]["the 2nd"] == 0
        # counts are summed, as ir-measures has it
        assert scores.mean[name] == pytest.approx(value if name.startswith("Num") else value / 2, abs=0.6e-5)


def test_measures_do_not_disturb_one_another():
    """ir-measures computes an nDCG without gains with those of another if it is given both."""
    qrels, run = {"q": {"a": 1, "b": 2, "c": 3}}, {"q": {"a": 3.0, "b": 2.0, "c": 1.0, "d": 0.0}}
    words = [f"nDCG@{k}" for k in range(1, 4)] + [f"nDCG(gains={{1: {gain}}})@10" for gain in range(4, 9)]
    words += ["R(rel=2)@2", "R@2", "IPrec@0.1", "IPrec@0.104", "SetF", "SetF(beta=2.0)", "RR@3", "NumRet"]
    together = score(qrels, run, parse_measures(" ".join(words)))
    alone = [score(qrels, run, parse_measures(word)).mean for word in words]
    assert together.mean == {name: value for mean in alone for name, value in mean.items()}


def test_many_queries_are_scored_a_part_at_a_time_as_all_at_once(monkeypatch):
    qrels = {str(i): {"a": i % 4, "b": 1} for i in range(25)}
    run = {str(i): {"a": 1.0 + i % 3, "b": 2.0, "c": 3.0} for i in range(0, 25, 2)}
    measures = parse_measures("nDCG@10 RR@10 ERR@10 Judged@2 NumRet R(rel=2)@2")
    whole = score(qrels, run, measures)
    monkeypatch.setattr("stzoo.evaluation.scoring.QUERIES_AT_ONCE", 4)
    assert score(qrels, run, measures) == whole
    assert 0 < whole.mean["ERR@10"] < whole.mean["nDCG@10"] < 1


def test_a_measure_has_our_name_where_we_have_one_and_that_of_ir_measures_elsewhere():
    names = [tuple(measure) for measure in parse_measures("MRR@10 RR@10 NDCG@5 R@20 R( rel=2 )@20")]
    assert names == [
        ("MRR@10", "RR@10", "mrr_at_10"),
        ("nDCG@5", "nDCG@5", "ndcg_at_5"),
        ("Recall@20", "R@20", "recall_at_20"),
        ("R(rel=2)@20", "R(rel=2)@20", "R(rel=2)@20"),
    ]
    assert parse_measures(" ".join(measure.name for measure in MEASURES)) == MEASURES


def test_a_measure_knows_how_deep_it_looks():
    words = "P@5 IPrec@0.1 Recall@1000 RR nDCG(gains={1: 3})@20 NumRet"
    assert [measure.cutoff for measure in parse_measures(words)] == [5, 0, 1000, 0, 20, 0]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("ndgc@10", r"'ndgc@10' is unknown; did you mean 'NDCG'\?"),
        ("zzz", r"'zzz' is unknown\. Expected names of ir-measures, e\.g\. nDCG@10"),
        ("P(rel=2", "is unknown"),
        ("nDCG@10,RR@10", "is unknown"),
        ("P", r"it needs cutoff, as in P@10\."),
        ("IPrec", r"it needs recall\."),
        ("BPM@10", r"it needs max_rel\."),
        ("P@0", "cutoff must be at least 1"),
        ("P@True", "cutoff is True; expected int"),
        ("nDCG(dcg='x')@10", r"dcg is 'x'; expected \['log2', 'exp-log2'\]"),
        ("Rprec@5", "has no parameter cutoff; its parameters are: rel, judged_only"),
        ("NumQ@5", "has no parameter cutoff; its parameters are: none"),
        ("alpha_nDCG@10", "needs judgements by subtopic"),
        ("Accuracy@10", "undefined for queries without a retrieved relevant document"),
        ("RBP(p=0.9)", r"no installed package computes it; cwl_eval \(.*rel=REQUIRED"),
        ("nDCG(dcg='exp-log2')", "gdeval .* computes it with cutoff=REQUIRED"),
        ("P(rel=0)@5", "rejects it .*should be positive"),
        ("nDCG(gains={1: 0.5})@5", "rejects it .*integer"),
        ("", "the list of measures is empty"),
    ],
)
def test_a_measure_that_cannot_be_used_is_refused_with_the_reason(word, message):
    with pytest.raises(RecipeError, match=message):
        parse_measures(word)


def test_what_a_provider_cannot_compute_of_the_data_is_an_error():
    with pytest.raises(DataError, match="grades up to 4"):
        score({"q": {"d": 5}}, {"q": {"d": 1.0}}, parse_measures("ERR@10"))
    long = {str(i): float(-i) for i in range(1100)}
    with pytest.raises(DataError, match=r"Compat\(p=2\.0\) of query 'q' is nan"):
        score({"q": {"0": 1}}, {"q": long}, parse_measures("Compat(p=2.0)"))


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
