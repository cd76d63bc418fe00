"""Files of results: whoever reads one gets scores that fit together, or an error that names the file."""

import contextlib
import json
import math
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stzoo.data.beir import write_beir
from stzoo.errors import DataError, OutputError, RecipeError, StzooError
from stzoo.evaluation.bench import results
from stzoo.evaluation.bench.bench import bench
from stzoo.evaluation.bench.score import score
from stzoo.evaluation.compare import compare
from stzoo.evaluation.report import report
from stzoo.evaluation.scoring import overall

CORPUS = [{"_id": f"d{i}", "text": f"word{i} of all"} for i in range(6)]
QUERIES = {f"q{i}": f"word{i}" for i in range(4)}
QRELS = {"test": {f"q{i}": {f"d{i}": 1, f"d{i + 1}": 1} for i in range(4)}, "dev": {"q1": {"d1": 1}}}


@pytest.fixture(scope="module")
def filed(tmp_path_factory):
    """An output with two systems' results of one set; not to be changed."""
    folder = tmp_path_factory.mktemp("filed")
    data = write_beir(folder / "set", CORPUS, QUERIES, QRELS)
    (result,) = bench([], data=data, output=folder / "out", measures="NumRet")
    score(f"other={result.path.with_name('set.test.run')}", data=data, output=folder / "out")
    return folder / "out"


@pytest.fixture
def output(filed, tmp_path):
    """A copy of it."""
    return shutil.copytree(filed, tmp_path / "out")


def change(output, system, action):
    (path,) = (output / system).rglob("set.json")
    stored = json.loads(path.read_text())
    action(stored)
    path.write_text(json.dumps(stored))
    return path


def add(name, value):
    def action(stored):
        stored["scores"]["test"][0][name] += value

    return action


def set_of(output):
    return write_beir(output.parent / "set", CORPUS, QUERIES, QRELS)


def test_a_mean_that_its_queries_do_not_give_is_refused_whoever_reads_it(output, tmp_path):
    path = change(output, "bm25s", add("ndcg_at_10", -0.01))
    for read in (
        lambda: compare(["bm25s", "other"], results=output),
        lambda: report(output, output=tmp_path / "r", formats="txt"),
        lambda: bench([], data=set_of(output), output=output),
    ):
        with pytest.raises(
            DataError,
            match=rf"^{path} \(test\) states a nDCG@10 of 0\.\d+, but .* its queries give 0\.\d{{6}}",
        ):
            read()
    (again,) = bench([], data=output.parent / "set", output=output, overwrite=True)
    assert results.read(output)[0].scores.mean["nDCG@10"] == again.scores.mean["nDCG@10"]


def test_a_sum_over_queries_is_checked_as_a_sum(output):
    found = {result.model: result.scores for result in results.read(output)}["bm25s"]
    assert found.mean["NumRet"] == sum(found.per_query["NumRet"].values()) > 1
    path = change(output, "bm25s", add("NumRet", 1))
    with pytest.raises(DataError, match=rf"{path.name} \(test\) states a NumRet of"):
        results.read(output)


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (lambda stored: stored["per_query"]["test"]["mrr_at_10"].pop("q1"), r"MRR@10 scores of 3 queries"),
        (lambda stored: stored["splits"]["test"].update(queries=5), r"the same 5 queries for every measure"),
        (lambda stored: stored["splits"]["test"].update(queries="4"), r"splits\.test\.queries: .*integer"),
        (lambda stored: stored["splits"]["test"].update(notes="note"), r"splits\.test\.notes: .*list"),
        (lambda stored: stored["splits"]["test"].update(cost={"encode_s": "1"}), r"cost\.encode_s: .*number"),
        (lambda stored: stored["splits"]["test"]["settings"].update(k=math.inf), "the number Infinity"),
        (lambda stored: stored["scores"]["test"][0].update(ndcg_at_10=True), "its nDCG@10 is True"),
        (lambda stored: stored["scores"].pop("test"), "it has no 'test'"),
        (lambda stored: stored.update(task_name="x" * 10**6), r"task_name: .*at most 1000 characters"),
    ],
)
def test_a_file_whose_parts_do_not_fit_together_is_refused(output, action, reason):
    path = change(output, "bm25s", action)
    with pytest.raises((DataError, OutputError), match=reason) as error:
        results.read(output)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 1000


def test_half_of_a_surrogate_pair_is_shown_as_a_question_mark(output, tmp_path):
    change(output, "bm25s", lambda stored: stored["splits"]["test"].update(notes=["a \ud800 note"]))
    report(output, output=tmp_path / "r.html")
    for file in tmp_path.glob("r.*"):
        assert "a ? note" in " ".join(file.read_text().split())


def test_what_is_no_file_or_nested_without_end_is_refused(filed, output):
    (path,) = (output / "bm25s").rglob("set.json")
    text = path.read_text()
    for depth in (60, 600, 60_000):
        path.write_text(text.replace('"settings": {', f'"settings": {{"x": {"[" * depth}{"]" * depth},'))
        with pytest.raises(OutputError, match=r"set\.json is not a result .*nested too deeply"):
            results.read(output)
    path.write_text(text)
    for file in (path, path.with_name("model_meta.json")):
        file.unlink()
        file.mkdir()
        with pytest.raises(OutputError, match=rf"{file.name} is not a result .*not a file"):
            results.read(output)
        with pytest.raises(OutputError, match=rf"{file.name} is a folder"):
            bench([], data=set_of(output), output=output, overwrite=True)
        shutil.rmtree(output)
        shutil.copytree(filed, output)


def paths(value, above=()):
    """The paths of all parts of a JSON value."""
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in children:
        yield (*above, key)
        yield from paths(child, (*above, key))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=150)
@given(st.data())
def test_any_change_of_a_file_is_refused_or_leaves_scores_that_fit(filed, tmp_path_factory, data):
    output = tmp_path_factory.mktemp("changed") / "out"
    shutil.copytree(filed, output)
    file = data.draw(st.sampled_from(sorted(output.rglob("*.json"))))
    stored = json.loads(file.read_text())
    *above, last = data.draw(st.sampled_from(list(paths(stored))))
    part = stored
    for key in above:
        part = part[key]
    if data.draw(st.booleans()):
        part[last] = data.draw(json_values)
    else:
        del part[last]
    file.write_text(json.dumps(stored))
    with contextlib.suppress(StzooError):
        for result in results.read(output):
            for name, mean in result.scores.mean.items():
                assert overall(name, result.scores.per_query[name].values()) == pytest.approx(mean, abs=1e-5)
        report(output, output=output / "r", formats="txt,csv")
        compare(["bm25s", "other"], results=output)


# Names


def sets(folder, *names):
    for name in names:
        write_beir(folder / name, CORPUS, QUERIES, QRELS)
    return folder


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a b", "a-b"], "the data sets 'a b' and 'a-b' would have their results in the same file"),
        (["Mine", "mine"], "the data sets 'Mine' and 'mine' would have their results in the same file"),
        (["x/mine", "y/mine"], "two data sets are named 'mine'"),
        (["model_meta"], "a data set cannot be named 'model_meta'"),
        (["Model_Meta"], "a data set cannot be named 'Model_Meta'"),
        (["..."], r"the name '\.\.\.' cannot be used as a file name"),
        (["x" * 200], "cannot be used as a file name: it is too long"),
    ],
)
def test_names_that_have_no_file_of_their_own_are_refused_before_anything_is_scored(tmp_path, names, reason):
    sets(tmp_path, *names)
    with pytest.raises(RecipeError, match=reason):
        bench([], data=tmp_path, datasets=names, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_results_under_a_name_of_the_same_file_are_not_taken_for_anothers(tmp_path):
    sets(tmp_path, "a b", "a-b")
    options = dict(data=tmp_path, output=tmp_path / "out")
    (first,) = bench([], datasets=["a b"], **options)
    with pytest.raises(OutputError, match=r"a-b\.json is the result of other data \(name: 'a b' then, "):
        bench([], datasets=["a-b"], **options)
    run = str(first.path.with_name("a-b.test.run"))
    score(f"my run={run}", data=tmp_path / "a b", output=tmp_path / "out")
    with pytest.raises(OutputError, match=r"has results of my run .*, not my-run"):
        score(f"my-run={run}", data=tmp_path / "a b", output=tmp_path / "out")
    bench([], datasets=["a-b"], split="dev", overwrite=True, **options)
    assert {(one.dataset, one.split) for one in results.read(tmp_path / "out" / "bm25s")} == {("a-b", "dev")}


def test_a_set_given_as_the_current_folder_is_filed_under_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(sets(tmp_path, "mine") / "mine" / "qrels")
    (result,) = bench([], data="..", output=tmp_path / "out")
    assert (result.dataset, result.path.name) == ("mine", "mine.json")
    monkeypatch.chdir("..")
    assert bench([], data=".", output=tmp_path / "out")[0].reused


# What is wrong is said first, and what is finished is kept


def test_every_set_is_read_before_the_first_is_scored(tmp_path):
    sets(tmp_path, "good", "bad")
    (tmp_path / "bad" / "queries.jsonl").write_text("{oops")
    scored = []
    with pytest.raises(DataError, match=r"bad/queries\.jsonl:1: invalid JSON"):
        bench([], data=tmp_path, datasets="good,bad", output=tmp_path / "a" / "out", on_result=scored.append)
    sets(tmp_path, "bad")
    bench([], data=tmp_path, datasets="bad", output=tmp_path / "old")
    (tmp_path / "bad" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\n")
    with pytest.raises(OutputError, match=r"bad\.json is the result of other data \(fingerprint: "):
        bench([], data=tmp_path, datasets="good,bad", output=tmp_path / "old", on_result=scored.append)
    assert scored == []
    assert not (tmp_path / "a").exists()


def test_what_is_finished_is_shown_where_a_later_run_fails(filed, tmp_path):
    from typer.testing import CliRunner

    from stzoo.cli import app

    (run,) = filed.glob("bm25s/*/set.test.run")
    (tmp_path / "bad.run").write_text("q0 Q0 d0 1 high tag\n")
    words = ["score", f"good={run}", str(tmp_path / "bad.run"), "--data", str(set_of(tmp_path / "out"))]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, DataError)
    assert "good" in done.stdout
    assert "nDCG" in done.stdout
    done = CliRunner().invoke(app, [words[0], words[2], *words[3:], "--output", str(tmp_path / "a" / "b")])
    assert isinstance(done.exception, DataError)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("command", "options", "reason"),
    [
        (bench, dict(pages="pages.tsv"), "--pages is for KILT files"),
        (score, dict(pages="pages.tsv"), "--pages is for KILT files"),
        (bench, dict(datasets="set,,x"), "has an empty name"),
        (bench, dict(backend="onnx"), "--backend has no effect without a model"),
        (bench, dict(dtype="float16"), "--dtype has no effect without a model"),
        (bench, dict(index="HNSW32"), "--index has no effect without a model"),
        (bench, dict(missing_judged="ignore"), "expected one of error, drop, not-found"),
    ],
)
def test_options_without_an_effect_are_refused(filed, tmp_path, command, options, reason):
    systems = [] if command is bench else [str(next(filed.rglob("*.run")))]
    with pytest.raises(RecipeError, match=reason):
        command(systems, data=set_of(tmp_path / "out"), output=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_too_large_for_results_is_not_searched(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "MAX_FOLDERS", 3)
    for name in "abc":
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="has more than 3 subfolders; expected an --output"):
        compare(["one", "two"], results=tmp_path)


def test_judged_documents_that_are_missing_are_noted_in_the_result(tmp_path):
    data = set_of(tmp_path / "out")
    with (data / "qrels" / "test.tsv").open("a") as file:
        file.write("q0\tgone\t1\n")
    with pytest.raises(DataError, match=r"the unknown document 'gone'.*--missing-judged drop"):
        bench([], data=data, output=tmp_path / "out")
    (dropped,) = bench([], data=data, output=tmp_path / "drop", missing_judged="drop")
    (kept,) = bench([], data=data, output=tmp_path / "keep", missing_judged="not-found")
    for result, way in ((dropped, "drop"), (kept, "not-found")):
        (note,) = json.loads(result.path.read_text())["splits"]["test"]["notes"]
        assert f"missing_judged: {way}" in note
    assert dropped.scores.per_query["Recall@100"]["q0"] == 1 / 2
    assert kept.scores.per_query["Recall@100"]["q0"] == pytest.approx(1 / 3)
    with pytest.raises(DataError, match="scored on different queries or judgements"):
        compare([dropped.path.parent, kept.path.parent])
