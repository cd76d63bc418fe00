"""bench --fuse and search --hybrid: BM25 fused with a model, from the runs of both."""

import json
from pathlib import Path

import pytest
from support.helpers import cli
from support.small_set import CORPUS, QRELS, QUERIES

import stzoo
from stzoo.data.beir import write_beir
from stzoo.data.ranking import rank
from stzoo.data.trec import read_run
from stzoo.errors import DataError, OutputError, RecipeError
from stzoo.evaluation.bench import bench as bench_module
from stzoo.evaluation.bench.bench import bench
from stzoo.evaluation.bench.results import read
from stzoo.evaluation.bench.systems import Dense
from stzoo.hub.card_scores import read_scores
from stzoo.retrieval.fusion import METHODS, fuse_bm25

SPLITS = QRELS | {"both": {f"q{i}": {f"d{i}": 1} for i in range(10, 14)}}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_beir(tmp_path_factory.mktemp("data") / "small", CORPUS, QUERIES, SPLITS)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def forbid_search(monkeypatch):
    """A function after whose call every search is an error."""

    def refuse(*_args, **_options):
        raise AssertionError("something was searched again")

    def forbid():
        monkeypatch.setattr(Dense, "exact", refuse)
        monkeypatch.setattr(bench_module.lexical, "retrieve_bm25", refuse)

    return forbid


def run_of(result):
    return rank(read_run(result.path.with_name(f"{result.dataset}.{result.split}.run")))


def test_the_fusion_is_a_system_made_of_the_runs_of_both(model, data, store, tmp_path, monkeypatch):
    searches = []
    exact = Dense.exact
    monkeypatch.setattr(Dense, "exact", lambda self, judged: (searches.append(1), exact(self, judged))[1])
    options = dict(data=data, output=tmp_path / "out", store=store, fuse="z-score", fuse_weight=0.3)
    bm25, dense, fused = bench(f"org/tiny={model}", **options)
    assert len(searches) == 1
    assert (fused.model, fused.revision) == ("BM25 + org/tiny", f"{bm25.revision}+{dense.revision}")
    expected = fuse_bm25(run_of(bm25), run_of(dense), weight=0.3, method="z-score")
    assert run_of(fused) == expected
    assert fused.details["fusion"] == {"method": "z-score", "weight": 0.3, "weight_from": "fixed"}
    assert fused.details["settings"]["fuse_weight"] == 0.3
    meta = json.loads(fused.path.with_name("model_meta.json").read_text())
    assert [meta[part]["revision"] for part in ("bm25", "model")] == [bm25.revision, dense.revision]

    second = bench(f"org/tiny={model}", **options)
    assert [result.reused for result in second] == [True] * 3
    assert len(searches) == 1
    with pytest.raises(OutputError, match=r"other settings \(fuse_weight: 0.3 then, 0.5 now\)"):
        bench(f"org/tiny={model}", **options | {"fuse_weight": 0.5})


@pytest.mark.parametrize("method", METHODS)
def test_finished_runs_are_fused_without_searching_again(model, data, store, tmp_path, forbid_search, method):
    options = dict(data=data, output=tmp_path / "out", store=store)
    bench(model, **options)
    together = bench(model, **options | {"output": tmp_path / "together"}, fuse=method)
    forbid_search()
    later = bench(model, **options, fuse=method)
    assert [result.reused for result in later] == [True, True, False]
    assert later[2].scores == together[2].scores
    assert run_of(later[2]) == run_of(together[2])


def test_without_run_files_the_parts_are_searched_again_with_the_stored_vectors(model, data, store, tmp_path):
    options = dict(data=data, output=tmp_path / "out", store=store, run_files=False)
    bench(model, **options)
    *_, fused = bench(model, **options, fuse="min-max")
    *_, expected = bench(model, data=data, output=tmp_path / "other", store=store, fuse="min-max")
    assert fused.scores == expected.scores


def test_the_weight_is_chosen_on_another_split(model, data, store, tmp_path, forbid_search):
    options = dict(data=data, output=tmp_path / "out", store=store, fuse="min-max", fuse_weight="dev")
    *_, fused = bench(model, **options)
    found = fused.details["fusion"]
    assert found["weight_from"] == "dev (8 queries)"
    assert found["nDCG@10"][str(found["weight"])] == max(found["nDCG@10"].values())
    by_weight = {}
    for weight in (0.2, found["weight"]):
        *_, on_dev = bench(
            model, **options | {"output": tmp_path / str(weight), "fuse_weight": weight}, split="dev"
        )
        by_weight[weight] = on_dev.scores.mean["nDCG@10"]
        assert by_weight[weight] == pytest.approx(found["nDCG@10"][str(weight)], abs=1e-5)
    *_, expected = bench(model, **options | {"output": tmp_path / "fixed", "fuse_weight": found["weight"]})
    assert fused.scores == expected.scores
    forbid_search()
    assert all(result.reused for result in bench(model, **options))


def test_the_weight_is_never_chosen_on_what_is_scored(model, data, store, tmp_path):
    options = dict(data=data, output=tmp_path / "out", store=store, fuse="min-max")
    with pytest.raises(RecipeError, match="is scored on the split test, which cannot choose the weight"):
        bench(model, **options, fuse_weight="test")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match=r"the splits both and test share 2 queries, such as 'q10'"):
        bench(model, **options, fuse_weight="both")
    with pytest.raises(DataError, match="has no split 'train'"):
        bench(model, **options, fuse_weight="train")


def test_options_that_do_not_fit_are_errors(model, data, tmp_path):
    options = dict(data=data, output=tmp_path / "out")
    for changes, reason in (
        ({"fuse": "rrf", "bm25": False}, "--no-bm25 leaves BM25 out"),
        ({"fuse_weight": 0.3}, "--fuse-weight has no effect without --fuse"),
        ({"fuse": "mean"}, "fuse is 'mean'; expected one of min-max, z-score, rrf"),
        ({"fuse": "rrf", "fuse_weight": 1.5}, "expected a number from 0 to 1, or the name of a split"),
    ):
        with pytest.raises(RecipeError, match=reason):
            bench(model, **options | changes)
    with pytest.raises(RecipeError, match="--fuse has no effect without a model"):
        bench([], **options, fuse="rrf")


def test_others_read_the_fusion_as_a_system(model, data, store, tmp_path):
    out = tmp_path / "out"
    options = ["--data", data, "--output", out, "--store", store, "--fuse", "rrf", "--fuse-weight", "dev"]
    done = cli("bench", model, *options, "--precision", "float32,int8")
    assert done.returncode == 0, done.stderr
    following = f"stzoo compare bm25s tiny --results {out}"
    assert done.stderr.splitlines()[-1] == f"The results are in {out}. Next: {following}"
    names = ["bm25s", "tiny", "tiny (int8)", "BM25 + tiny", "BM25 + tiny (int8)"]
    assert [name for name in names if f"  {name} " in done.stdout] == names
    compared = stzoo.compare(["tiny", "BM25 + tiny"], results=out)
    assert compared.pairs[0].system == "BM25 + tiny"
    stzoo.report(out, output=tmp_path / "report.html", progress=False)
    assert "BM25 + tiny" in (tmp_path / "report.html").read_text()
    assert {result.model for result in read(out)} == set(names)
    scored = read_scores(out, Path(model))
    assert {row.result.model for row in [*scored.rows, *scored.smaller]} == {"tiny", "tiny (int8)"}


def test_the_tasks_of_kilt_are_fused_by_passage(model, store, tmp_path):
    data = write_beir(
        tmp_path / "kilt",
        CORPUS,
        QUERIES,
        {
            f"{task}.{split}": QRELS[other]
            for task in ("a", "b")
            for split, other in (("dev", "test"), ("train", "dev"))
        },
    )
    options = dict(data=data, suite="kilt", store=store, fuse="min-max")
    found = bench(model, **options, output=tmp_path / "out", fuse_weight="train")
    fused = [result for result in found if result.model == "BM25 + tiny"]
    assert [result.dataset for result in fused] == ["a-kilt", "b-kilt"]
    assert all("KILT Rprec" in result.scores.mean for result in fused)
    (data / "qrels" / "b.train.tsv").unlink()
    with pytest.raises(DataError, match="2 tasks are scored, but 1 have a split train"):
        bench(model, **options, output=tmp_path / "other", fuse_weight="train")


def test_a_hybrid_search_shows_both_scores(model, data, store):
    question = QUERIES["q3"]
    options = dict(data=data, store=store, k=60, progress=False)
    (plain,) = stzoo.search(model, question, **options)
    (hybrid,) = stzoo.search(model, question, **options, hybrid=True, fuse_weight=0.6)
    by_model = {row["id"]: row["score"] for row in plain["found"]}
    assert {row["id"]: row["model"] for row in hybrid["found"]} == by_model
    scores = [row["score"] for row in hybrid["found"]]
    assert scores == sorted(scores, reverse=True)
    bm25 = {row["id"]: row["bm25"] for row in hybrid["found"]}
    assert max(bm25, key=bm25.get) == "d3"
    part = {i: s for i, s in bm25.items() if s > 0}
    expected = fuse_bm25(rank({"q": part}), rank({"q": by_model}), weight=0.6)["q"]
    assert {row["id"]: row["score"] for row in hybrid["found"]} == pytest.approx(expected)
    (best,) = stzoo.search(model, question, **options | {"k": 1}, hybrid=True, fuse_weight=1)
    assert best["found"][0]["id"] == "d3"
    with pytest.raises(RecipeError, match="--language is for the fusion with BM25; add --hybrid"):
        stzoo.search(model, question, **options, language="en")
    done = cli("search", model, question, "--data", data, "--store", store, "--hybrid", "--k", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(BM25 ") == 2


def test_a_question_that_finds_nothing_by_bm25_alone_has_no_answers(model, data, store):
    options = dict(data=data, store=store, hybrid=True, progress=False)
    assert stzoo.search(model, "qwerty", **options, fuse_weight=1)[0]["found"] == []
    assert len(stzoo.search(model, "qwerty", **options)[0]["found"]) == 5
    with pytest.raises(RecipeError, match="fuse_weight is 2; expected a number from 0 to 1"):
        stzoo.search(model, "qwerty", **options, fuse_weight=2)
