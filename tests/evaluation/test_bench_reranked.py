"""A cross-encoder as second stage, in bench and in search."""

import json

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from support.helpers import cli

import stzoo
from stzoo import RecipeError
from stzoo.data.beir import read_beir
from stzoo.data.trec import read_run
from stzoo.models.cross_encoder import Teacher
from stzoo.testing import tiny_cross_encoder

DEPTH = 7


@pytest.fixture(scope="module")
def reranker(tmp_path_factory):
    return tiny_cross_encoder(tmp_path_factory.mktemp("rerankers") / "judge")


@pytest.fixture
def scored(monkeypatch):
    """The numbers of pairs that cross-encoders score."""
    counts = []
    score = Teacher.__call__

    def counted(self, pairs):
        counts.append(len(pairs))
        return score(self, pairs)

    monkeypatch.setattr(Teacher, "__call__", counted)
    return counts


def bench(model, judged, reranker, tmp_path, **options):
    given = {"rerank": str(reranker), "rerank_depth": DEPTH, "k": 20, "data": judged, "device": "cpu"}
    output, store = tmp_path / "results", tmp_path / "store"
    return stzoo.bench(model, output=output, store=store, **given | options)


def run_of(result):
    return read_run(next(result.path.parent.glob("*.run*")))


def test_the_first_passages_are_ranked_by_the_cross_encoder_and_the_others_follow(
    model, judged, reranker, tmp_path
):
    results = {result.model: result for result in bench(model, judged, reranker, tmp_path)}
    assert set(results) == {"bm25s", "tiny", "tiny + judge"}
    again = results["tiny + judge"]
    assert again.revision.startswith(f"{results['tiny'].revision}+")
    assert again.details["settings"]["rerank_depth"] == DEPTH
    before, after = run_of(results["tiny"]), run_of(again)
    data = read_beir(judged, "test")
    texts = dict(zip(data.corpus_ids, data.passages, strict=True))
    encoder = CrossEncoder(str(reranker), device="cpu")
    for query, text in data.queries.items():
        first = sorted(before[query], key=before[query].get, reverse=True)
        head, rest = first[:DEPTH], first[DEPTH:]
        logits = encoder.predict(
            [(text, texts[one]) for one in head], activation_fn=torch.nn.Identity(), show_progress_bar=False
        )
        expected = [head[place] for place in np.argsort(-logits, kind="stable")] + rest
        assert sorted(after[query], key=after[query].get, reverse=True) == expected
        np.testing.assert_allclose([after[query][one] for one in head], logits, atol=1e-5)


def test_a_second_call_scores_nothing_again(model, judged, reranker, tmp_path, scored):
    first = bench(model, judged, reranker, tmp_path)
    assert sum(scored) == 10 * DEPTH
    assert [one.reused for one in bench(model, judged, reranker, tmp_path)] == [True] * 3
    again = bench(model, judged, reranker, tmp_path, overwrite=True)
    assert sum(scored) == 10 * DEPTH, "the scores of pairs are stored"
    assert [one.scores.mean for one in again] == [one.scores.mean for one in first]
    bench(model, judged, reranker, tmp_path, rerank_depth=DEPTH + 1, overwrite=True)
    assert sum(scored) == 10 * DEPTH + 10 * (DEPTH + 1)


def test_a_killed_run_loses_the_part_that_it_was_making(
    model, judged, reranker, tmp_path, scored, monkeypatch
):
    monkeypatch.setattr("stzoo.retrieval.rerank.PART_QUERIES", 4)
    expected = bench(model, judged, reranker, tmp_path / "whole")[-1].scores
    scored.clear()
    score = Teacher.__call__

    def killed(self, pairs):
        if len(scored) == 2:
            raise KeyboardInterrupt
        return score(self, pairs)

    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            bench(model, judged, reranker, tmp_path)
    assert scored == [4 * DEPTH, 4 * DEPTH]
    assert bench(model, judged, reranker, tmp_path)[-1].scores == expected
    assert scored == [4 * DEPTH, 4 * DEPTH, 2 * DEPTH]


def test_the_last_stage_before_it_is_ranked_again(model, judged, reranker, tmp_path):
    fused = bench(model, judged, reranker, tmp_path, fuse="min-max")
    assert [one.model for one in fused][-2:] == ["BM25 + tiny", "BM25 + tiny + judge"]
    alone = bench([], judged, reranker, tmp_path)
    assert [one.model for one in alone] == ["bm25s", "bm25s + judge"]


def test_a_depth_without_effect_is_refused(model, judged, reranker, tmp_path):
    with pytest.raises(RecipeError, match="--rerank-depth is 7, but only --k 5 results"):
        bench(model, judged, reranker, tmp_path, k=5)
    with pytest.raises(RecipeError, match="--rerank-depth has no effect without --rerank"):
        bench(model, judged, reranker, tmp_path, rerank=None)
    with pytest.raises(RecipeError, match="--rerank-depth has no effect without --rerank"):
        stzoo.search(model, "x", data=judged, rerank_depth=3)


@pytest.mark.parametrize("hybrid", [False, True])
def test_search_shows_the_scores_before_and_after(model, judged, reranker, tmp_path, hybrid):
    question = "wing of the aircraft"
    given = ["search", model, question, "--data", judged, "--store", tmp_path / "store", "--k", "3"]
    given += ["--rerank", reranker, "--rerank-depth", "60", *(["--hybrid"] if hybrid else [])]
    done = cli(*given, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)[0]["found"]
    data = read_beir(judged, "test")
    logits = CrossEncoder(str(reranker), device="cpu").predict(
        [(question, text) for text in data.passages],
        activation_fn=torch.nn.Identity(),
        show_progress_bar=False,
    )
    best = np.argsort(-logits, kind="stable")[:3]
    assert [one["id"] for one in found] == [data.corpus_ids[place] for place in best]
    np.testing.assert_allclose([one["score"] for one in found], logits[best], atol=1e-5)
    assert all("first" in one and ("bm25" in one) == hybrid for one in found)
    assert f"before reranking {found[0]['first']:.3f})" in cli(*given).stdout
