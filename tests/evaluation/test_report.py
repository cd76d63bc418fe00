import csv
import json
import random
import re
import shutil
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.helpers import cli, record_run

from stzoo.data import registry
from stzoo.data.beir import RetrievalDataset
from stzoo.errors import DataError, MissingExtraError, OutputError, RecipeError
from stzoo.evaluation.bench import result_files, results
from stzoo.evaluation.measures import MEASURES, parse_measures
from stzoo.evaluation.report import report
from stzoo.evaluation.report.data import gather
from stzoo.evaluation.report.intervals import RESAMPLES, interval, resampled
from stzoo.evaluation.scoring import Scores
from stzoo.training.finetune_settings import FinetuneSettings
from stzoo.training.pretrain_settings import PretrainSettings
from stzoo.utils.files import write_json

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
NASTY = "evil/<b>bold</b> <script>document.title='hit'</script> &amp;\"'</script><!--<script>"
COST = {"encode_s": 12.5, "search_s": 0.25, "ms_per_query": 4.0, "vector_bytes": 7_960_000}
SETTINGS = {"k": 1000, "max_tokens": 256, "similarity": "cosine", "prompts": {}}


def judged(name, count=40, *, split="test", word=""):
    """A judged set of `count` queries; another word makes other data of it."""
    queries = {f"q{i}": f"query {i} {word}" for i in range(count)}
    qrels = {query: {"d0": 1} for query in queries}
    return RetrievalDataset(
        name=name,
        split=split,
        corpus_ids=["d0", "d1"],
        passages=["one", "two"],
        queries=queries,
        qrels=qrels,
        folder=Path(name),
    )


def file_result(folder, model, data, *, at=0.5, revision="r1", **how):
    """Files a result of `model` whose queries score fifths around `at`; `how` goes into its facts."""
    draw = random.Random(f"{model} {data.name}")
    per_query = {
        measure.name: {query: min(5, max(0, round(draw.gauss(5 * at, 1.5)))) / 5 for query in data.queries}
        for measure in MEASURES
    }
    mean = {name: sum(values.values()) / len(values) for name, values in per_query.items()}
    path = result_files.result_file(folder, model, revision, data.name)
    write_json(path.with_name("model_meta.json"), {"name": model, "revision": revision})
    return results.store(path, (model, revision), data, SETTINGS, Scores(mean, per_query), MEASURES, 1.0, how)


def file_run(folder, *, settings=None, steps=300, every=1, **facts):
    """Writes a run of falling losses and a dev score, the best at two thirds, as fine-tuning records it."""
    log = []
    for step in range(every, steps + 1, every):
        log.append({"loss": 3 - step / steps, "kl": 1 - step / steps, "contrastive": 2.0, "step": step})
        if 6 * step % steps == 0:
            log.append({"eval_dev_ndcg_at_10": 0.5 - abs(step / steps - 2 / 3), "step": step})
    settings = settings or FinetuneSettings(model="base", data="beir/scifact", batch_size=7)
    return record_run(folder, settings, log, **{"steps": steps} | facts)


def written(folder, tmp_path, **options):
    """The report's HTML, text, and CSV rows."""
    html, text, table = report(folder, output=tmp_path / "out" / "r.html", overwrite=True, **options)
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return html.read_text(encoding="utf-8"), text.read_text(encoding="utf-8"), rows


def flat(text):
    return " ".join(text.split())


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda systems: st.lists(
            st.lists(st.floats(0, 1), min_size=systems, max_size=systems), min_size=2, max_size=30
        )
    ),
    st.integers(0, 99),
)
def test_resamples_are_those_of_scipy(rows, seed):
    from scipy import stats

    scores = np.array(rows).T
    ours = resampled(scores, seed)
    theirs = stats.bootstrap(
        (scores,),
        np.mean,
        n_resamples=RESAMPLES,
        method="percentile",
        axis=-1,
        rng=np.random.default_rng(seed),
    )
    np.testing.assert_allclose(ours, theirs.bootstrap_distribution, atol=1e-12)
    for one, low, high in zip(ours, *theirs.confidence_interval, strict=True):
        assert interval(one) == pytest.approx((low, high), abs=1e-12)


def test_resamples_of_many_queries_are_drawn_in_parts():
    scores = np.random.default_rng(1).random((2, 50_000))
    drawn = resampled(scores, 0)
    assert drawn.shape == (2, RESAMPLES)
    np.testing.assert_allclose(drawn.mean(axis=1), scores.mean(axis=1), atol=1e-4)
    np.testing.assert_allclose(drawn.std(axis=1), scores.std(axis=1) / 50_000**0.5, rtol=0.1)


def test_csv_has_every_measure_of_every_result_and_its_file(tmp_path):
    html, text, rows = written(RESULTS, tmp_path)
    known = {
        (r.model, r.revision, r.dataset, r.split, m): r for r in results.read(RESULTS) for m in r.scores.mean
    }
    assert len(known) == len(rows) >= 2 * 3 * len(MEASURES)
    for row in rows:
        result = known[row["model"], row["revision"], row["dataset"], row["split"], row["measure"]]
        stored = json.loads((RESULTS / row["file"]).read_text())
        assert RESULTS / row["file"] == result.path
        assert float(row["mean"]) == result.scores.mean[row["measure"]]
        assert (row["queries"], row["corpus"], row["judged"]) == (str(result.queries), *result.data)
        assert row["date"] == stored["date"]
        low, high = float(row["low"]), float(row["high"])
        values = np.array(list(result.scores.per_query[row["measure"]].values()))
        if len(set(values)) == 1:  # as Recall@1000 of a model that finds everything
            assert low == float(row["mean"]) == high
        else:
            assert low < float(row["mean"]) < high
        # A bootstrap's interval is about that of the normal law, if more than a few queries differ.
        if np.count_nonzero(values != np.median(values)) > 3:
            assert high - low == pytest.approx(2 * 1.96 * values.std() / len(values) ** 0.5, rel=0.15)
        if row["measure"] == "nDCG@10":  # the same numbers everywhere
            assert f"{float(row['mean']):.4f}   {low:.4f} to {high:.4f}" in text
            assert f"<small>{low:.4f}{DASH}{high:.4f}</small>" in html
        assert row["file"] in text
        assert f"<code>{row['file']}</code>" in html
        assert row["corpus"] in text
        assert row["judged"][:12] in html


def test_text_keeps_to_80_columns_but_for_paths(tmp_path):
    file_result(tmp_path / "in", "maker/" + "long-" * 30, judged("a" * 60), notes=["word " * 50], cost=COST)
    text = written(tmp_path / "in", tmp_path)[1]
    wide = [line for line in text.splitlines() if len(line) > 80]
    assert all(line.endswith(".json") for line in wide)
    assert "4 ms" in text
    assert "7.96 MB" in text


def test_the_same_seed_gives_the_same_files_and_another_seed_other_intervals(tmp_path):
    first, second, other = (written(RESULTS, tmp_path, seed=seed) for seed in (0, 0, 1))
    assert first == second
    assert [row["mean"] for row in first[2]] == [row["mean"] for row in other[2]]
    assert [row["low"] for row in first[2]] != [row["low"] for row in other[2]]


def test_an_interval_does_not_depend_on_what_else_is_reported(tmp_path):
    every = {
        (row["dataset"], row["measure"]): row
        for row in written(RESULTS, tmp_path)[2]
        if row["model"] == "bm25s"
    }
    shutil.copytree(RESULTS / "bm25s", tmp_path / "in" / "bm25s")
    (tmp_path / "in/bm25s/0.3.16/cranfield.json").unlink()
    alone = written(tmp_path / "in", tmp_path)[2]
    assert len(alone) == 2 * len(MEASURES)
    for row in alone:
        assert float(row["low"]) == pytest.approx(
            float(every[row["dataset"], row["measure"]]["low"]), abs=1e-12
        )


def test_a_suite_is_averaged_only_where_every_set_of_it_is_there(tmp_path):
    folder, sets = tmp_path / "in", registry.suites()["decontaminated-beir"]
    for place, name in enumerate(sets):
        data = judged(name, 30 + place, split=registry.find(name).split)
        for model, at in (("a weak one", 0.3), ("strong", 0.6), ("partial", 0.5)):
            if (model, place) != ("partial", 3):
                file_result(folder, model, data, at=at)
    file_result(folder, "stranger", judged("scifact"))
    page = gather(folder, "nDCG@10", seed=0, progress=False)
    assert [row.system for row in page.groups[0].rows] == ["strong", "partial", "a weak one"]
    (suite,) = page.suites
    assert (suite.name, suite.sets) == ("decontaminated-beir", sets)
    assert [system for system, _, _ in suite.rows] == ["strong", "a weak one"]
    assert suite.missing == {"partial": "1 of 8"}
    for system, mean, (low, high) in suite.rows:
        found = [row.result.scores for row in page.rows if row.system == system]
        assert mean == pytest.approx(np.mean([scores.mean["nDCG@10"] for scores in found]))
        # each set's queries are drawn for themselves: variances of the sets' means add up
        variances = [
            np.var(list(s.per_query["nDCG@10"].values())) / len(s.per_query["nDCG@10"]) for s in found
        ]
        assert high - low == pytest.approx(2 * 1.96 * sum(variances) ** 0.5 / len(sets), rel=0.1)
        assert low < mean < high
    html, text, _ = written(folder, tmp_path)
    assert "decontaminated-beir: mean over 8 data sets" in text
    assert "No average for partial (1 of 8 missing)." in flat(text)
    assert "mean nDCG@10 over 8 data sets" in html
    assert "No system has results on all" not in html + text


def test_a_suite_within_a_suite_counts_as_one_set(tmp_path):
    for name in registry.expand(["beir-14"]):
        forum = name.startswith("cqadupstack")
        file_result(tmp_path / "in", "one", judged(name, 25), at=0.9 if forum else 0.2)
    suites = {
        suite.name: suite for suite in gather(tmp_path / "in", "nDCG@10", seed=0, progress=False).suites
    }
    assert set(suites) == {"cqadupstack", "beir-13", "beir-14"}
    ((_, mean, (low, high)),) = suites["beir-14"].rows
    ((_, inner, _),), ((_, others, _),) = suites["cqadupstack"].rows, suites["beir-13"].rows
    assert mean == pytest.approx((13 * others + inner) / 14)
    assert low < mean < high


def test_no_average_is_shown_over_a_part_of_a_suite(tmp_path):
    html, text, _ = written(RESULTS, tmp_path)
    assert "No system has results on all data sets of a suite, so there are no averages." in flat(text)
    assert "No system has results on all data sets of a suite" in html
    assert "mean over" not in text


def test_other_data_under_one_name_stands_apart_with_a_warning(tmp_path):
    folder = tmp_path / "in"
    for model, word in (("one", ""), ("two", ""), ("three", "changed")):
        file_result(folder, model, judged("scifact", word=word))
        for name in registry.expand(["beir-13"]):
            if name != "scifact":
                file_result(folder, model, judged(name))
    page = gather(folder, "nDCG@10", seed=0, progress=False)
    groups = {
        group.name: {row.system for row in group.rows} for group in page.groups if "scifact" in group.name
    }
    assert groups == {"scifact (test), data 1 of 2": {"one", "two"}, "scifact (test), data 2 of 2": {"three"}}
    assert {suite.name: len(suite.rows) for suite in page.suites} == {
        "beir-13, data 1 of 2": 2,
        "beir-13, data 2 of 2": 1,
    }
    html, text, _ = written(folder, tmp_path)
    for shown in (html, flat(text)):
        assert "data 1 of 2; scifact (test), data 2 of 2: other data has the same name" in shown


def test_notes_of_the_data_are_warnings_everywhere(tmp_path):
    file_result(tmp_path / "in", "one", judged("own"), notes=["counts are not official", "seen in training"])
    file_result(tmp_path / "in", "two", judged("own"), notes=["counts are not official"])
    html, text, rows = written(tmp_path / "in", tmp_path)
    assert "WARNING: own (test): counts are not official\n" in text
    assert "WARNING: own (test): seen in training (Noted for one.)\n" in text
    assert "Before you compare" in html
    assert "<li>own (test): seen in training (Noted for one.)</li>" in html
    assert {row["notes"] for row in rows if row["model"] == "one"} == {
        "counts are not official seen in training"
    }


def test_nothing_is_warned_of_where_nothing_is_odd(tmp_path):
    html, text, _ = written(RESULTS, tmp_path)
    assert "WARNING" not in text
    assert "Before you compare" not in html


def test_costs_that_were_not_measured_are_never_shown_as_nought(tmp_path):
    shutil.copytree(RESULTS / "bm25s", tmp_path / "bare" / "bm25s")  # which notes no cost
    html, text, _ = written(tmp_path / "bare", tmp_path)
    assert "No result here has a measured cost" in html
    assert 'id="latency"' not in html
    assert "costs" not in text
    file_result(tmp_path / "in", "dense", judged("own"), cost=COST)
    file_result(
        tmp_path / "in",
        "indexed",
        judged("own"),
        cost={"ms_per_query": 0.5, "index_bytes": 999_600},
        recall_against_exact={"@10": 0.987},
    )
    file_result(tmp_path / "in", "bm25s", judged("own"))
    html, text, _ = written(tmp_path / "in", tmp_path)
    words = [line.split() for line in text.split("costs\n")[1].splitlines()]
    assert {
        line[0]: " ".join(line[1:]) for line in words if line[:1] in (["dense"], ["indexed"], ["bm25s"])
    } == {
        "dense": "12.5 s 0.25 s 4 ms 7.96 MB -",
        "indexed": "- - 0.5 ms - 1 MB",
        "bm25s": "- - - - -",
    }
    assert "indexed: recall against exact search 0.9870 @10" in text
    assert "<td>0.9870 @10</td>" in html
    assert "1 of 3 results have no measured cost" in html
    assert '<td class="n" data-value="999600">1 MB</td>' in html


def test_two_revisions_of_one_model_are_told_apart(tmp_path):
    for revision in ("aaa", "bbb"):
        file_result(tmp_path / "in", "model", judged("own"), revision=revision)
    file_result(tmp_path / "in", "other", judged("own"))
    page = gather(tmp_path / "in", "nDCG@10", seed=0, progress=False)
    assert page.systems == ["model (aaa)", "model (bbb)", "other"]


def test_a_result_that_is_there_twice_is_shown_once_and_said(tmp_path):
    for folder in ("a", "b"):
        file_result(tmp_path / "in" / folder, "model", judged("own"))
    html, text, rows = written(tmp_path / "in", tmp_path)
    assert {row["file"] for row in rows} == {"a/model/r1/own.json"}
    for shown in (html, flat(text)):
        assert "b/model/r1/own.json is left out: a/model/r1/own.json has the same model and data." in shown


def test_a_sum_over_queries_has_the_interval_of_a_sum(tmp_path):
    data = judged("own")
    found = {"NumRet": {query: float(place % 7) for place, query in enumerate(data.queries)}}
    scores, measures = Scores({"NumRet": sum(found["NumRet"].values())}, found), parse_measures("NumRet")
    path = result_files.result_file(tmp_path / "in", "model", "r1", data.name)
    write_json(path.with_name("model_meta.json"), {"name": "model", "revision": "r1"})
    results.store(path, ("model", "r1"), data, SETTINGS, scores, measures, 1.0, {})
    (made,) = report(tmp_path / "in", output=tmp_path / "r.csv", formats="csv", measure="NumRet")
    (row,) = csv.DictReader(made.open())
    assert float(row["low"]) < float(row["mean"]) == 115 < float(row["high"]) < 160


def test_one_query_gives_no_interval(tmp_path):
    file_result(tmp_path / "in", "model", judged("own", 1))
    assert {row["low"] for row in written(tmp_path / "in", tmp_path)[2]} == {""}


def test_results_on_one_data_with_other_queries_are_refused(tmp_path):
    file_result(tmp_path / "in", "one", judged("own"))
    path = file_result(tmp_path / "in", "two", judged("own")).path
    stored = json.loads(path.read_text())
    for scores in stored["per_query"]["test"].values():
        scores["q99"] = scores.pop("q3")
    write_json(path, stored)
    with pytest.raises(
        DataError, match=r"two/r1/own\.json has nDCG@10 scores of other queries than .*one/r1/own\.json"
    ):
        report(tmp_path / "in", output=tmp_path / "r.html")
    assert not list(tmp_path.glob("r.*"))


def test_another_measure_may_be_asked_for_in_any_spelling(tmp_path):
    html, text, _ = written(RESULTS, tmp_path, measure="RR@10")
    assert text.startswith("Retrieval results by MRR@10")
    assert "<title>Retrieval results by MRR@10</title>" in html
    for unknown in ("R@7", "no such", ""):
        with pytest.raises(DataError, match=r"no result has the measure .*; expected one of nDCG@10, MRR@10"):
            report(RESULTS, output=tmp_path / "other.html", measure=unknown)


def test_results_without_the_measure_are_left_out_and_said(tmp_path):
    file_result(tmp_path / "in", "full", judged("own"))
    file_result(tmp_path / "in", "short", judged("own"), measures={"MRR@10": "mrr_at_10"})
    html, text, rows = written(tmp_path / "in", tmp_path)
    assert {row["model"] for row in rows} == {"full"}
    for shown in (html, text):
        assert "short/r1/own.json is left out: it has no nDCG@10." in shown


def test_names_that_hold_markup_are_shown_as_they_are(tmp_path):
    file_result(tmp_path / "in", NASTY + "\x1b[31m", judged("own"), notes=[NASTY])
    html, text, _ = written(tmp_path / "in", tmp_path)
    assert "hit'</script>" not in html
    assert "&lt;script&gt;document.title=" in html
    scripts = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html, re.DOTALL)
    assert json.loads(scripts[0])["systems"] == [NASTY + "\x1b[31m"]
    assert "\x1b" not in text


def test_runs_are_shown_with_their_outcome_and_changed_settings(tmp_path):
    corpus = "/data/" + "long-" * 20
    settings = PretrainSettings(base="makers/base", corpus=[corpus], head_warmup_steps=3)
    runs = [
        file_run(tmp_path / "tuned"),
        file_run(tmp_path / "pre", settings=settings, steps=30_000, every=100, seconds=98_765.4),
        file_run(tmp_path / "killed", steps=6, status="running"),
    ]
    html, text, rows = written(RESULTS, tmp_path, runs=runs)
    training = text.partition("\nTraining\n")[2].partition("Where the numbers")[0]
    assert (
        "tuned: finetune (contrastive) of base on scifact\n  300 steps, 12.5 s, best dev nDCG@10 0.5000 at"
        in text
    )
    assert "30,000 steps, 27 h 26 min, best dev nDCG@10 0.5000 at step 20,000" in flat(training)
    assert "at step 4, unfinished" in flat(training)
    assert all(len(line) <= 80 for line in training.splitlines())
    section = html.partition('<section id="training">')[2].partition("</section>")[0]
    settings = dict(re.findall(r"<dt><bdi>(.*?)</bdi></dt><dd>(.*?)</dd>", section))
    assert settings["tuned"] == "batch_size 7, model base, data beir/scifact"
    assert "head_warmup_steps 3" in settings["pre"]
    assert corpus in settings["pre"]
    cells = [re.findall("<t[hd].*?>(.*?)</t[hd]>", row) for row in section.split("<tr>")[2:]]
    assert [re.sub("<.*?>", "", " ".join(row)) for row in cells][::2] == [
        "tuned finetune contrastive base scifact 300 12.5 s 0.5000 200 dev nDCG@10",
        "killed (unfinished) finetune contrastive base scifact 6 12.5 s 0.5000 4 dev nDCG@10",
    ]
    assert rows == written(RESULTS, tmp_path)[2]
    for shown in written(RESULTS, tmp_path)[:2]:
        assert "Training" not in shown.partition("<script")[0]


def test_a_run_s_curve_holds_what_was_logged(tmp_path):
    folder = file_run(tmp_path / "tuned")
    episodes = [{"log": [{"loss": step / 3, "step": step}], "steps": 5} for step in (2, 4)]
    html = written(RESULTS, tmp_path, runs=[folder, file_run(tmp_path / "ance", episodes=episodes)])[0]
    first, second = (
        json.loads(text)
        for text in re.findall(r'<script type="application/json" id="curve-.">(.*?)</script>', html)
    )
    logged = [line for line in json.loads((folder / "run.json").read_text())["log"] if "loss" in line]
    assert [line["name"] for line in first["losses"]] == ["loss", "contrastive", "kl"]
    for line in first["losses"]:
        assert line["steps"][:-1] == [entry["step"] for entry in logged]
        assert line["values"][:-1] == pytest.approx([entry[line["name"]] for entry in logged], rel=1e-4)
        assert len(line["means"]) == len(line["values"])
    assert first["best"] == [0.5, 200, "dev nDCG@10"]
    assert first["scores"][0]["means"] is None
    assert second["begins"] == [0, 5]
    assert second["losses"][0] == {
        "name": "loss",
        "steps": [2, None, 9, None],
        "values": [0.66667, None, 1.3333, None],
        "means": None,
    }


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [file_run(tmp_path / place / "tuned") for place in ("a", "b")]
    page = gather(RESULTS, "nDCG@10", seed=0, progress=False, runs=[*runs, file_run(tmp_path / "own")])
    assert list(page.runs) == [str(runs[0]), str(runs[1]), "own"]


def test_a_folder_that_is_no_run_is_refused_before_anything_is_written(tmp_path):
    for runs in (tmp_path, [file_run(tmp_path / "in/run"), tmp_path / "none"]):
        with pytest.raises(DataError, match="contains no training run"):
            report(RESULTS, output=tmp_path / "r.html", runs=runs)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_command_takes_several_runs(tmp_path):
    runs = [file_run(tmp_path / name) for name in ("one", "two")]
    out = ("--output", tmp_path / "r.html", "--formats", "txt")
    done = cli("report", RESULTS, *out, "--runs", runs[0], "--runs", runs[1])
    assert done.returncode == 0, done.stderr
    assert "\none: finetune" in (text := (tmp_path / "r.txt").read_text())
    assert "\ntwo: finetune" in text
    refused = cli("report", RESULTS, *out, "--overwrite", "--runs", tmp_path)
    assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)
    assert "contains no training run" in refused.stderr


def test_the_page_names_nothing_outside_itself(tmp_path):
    html = written(RESULTS, tmp_path)[0]
    assert html.count("<script") == html.count("</script>") == 1 + 3 + 1 + 1
    own = html.split('<script type="text/plain"')[0] + html.rpartition("<script>")[2]
    assert "http:" not in own
    assert "https:" not in own
    assert re.findall(r'<meta http-equiv="Content-Security-Policy" content="default-src \'none\';', own)


def test_files_that_are_there_are_kept_unless_overwritten(tmp_path):
    (tmp_path / "r.csv").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"r\.csv exists and is not a report"):
            report(RESULTS, output=tmp_path / "r.html", overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["r.csv"]
    assert report(RESULTS, output=tmp_path / "r", formats="txt") == [tmp_path / "r.txt"]
    assert report(RESULTS, output=tmp_path / "r.v2", formats=["csv", "txt"]) == [
        tmp_path / "r.v2.csv",
        tmp_path / "r.v2.txt",
    ]
    assert (tmp_path / "r.csv").read_text() == "mine"
    made = (tmp_path / "r.txt").read_text()
    (tmp_path / "r.txt").write_text(made[:100])
    with pytest.raises(OutputError, match=r"r\.txt exists already.*--overwrite"):
        report(RESULTS, output=tmp_path / "r", formats="txt")
    report(RESULTS, output=tmp_path / "r", formats="txt", overwrite=True)
    assert (tmp_path / "r.txt").read_text() == made


def test_an_output_that_names_no_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for output in ("", ".", "..", "/"):
        with pytest.raises(OutputError, match=r"expected a file, e\.g\. report\.html"):
            report(RESULTS, output=output, overwrite=True)
    (tmp_path / "r.csv").mkdir()
    with pytest.raises(OutputError, match=r"r\.csv is a folder"):
        report(RESULTS, output="r", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["r.csv"]


@pytest.mark.parametrize("formats", ["", "pdf", "html,pdf", []])
def test_unknown_formats_are_refused(formats, tmp_path):
    with pytest.raises(RecipeError, match="expected one or more of html,txt,csv"):
        report(RESULTS, output=tmp_path / "r.html", formats=formats)


def test_without_plotly_the_extra_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    for folder in (RESULTS, tmp_path / "not even read"):
        with pytest.raises(MissingExtraError, match=r"pip install 'stzoo\[report\]'"):
            report(folder, output=tmp_path / "r.html")
    assert not list(tmp_path.iterdir())
    assert report(RESULTS, output=tmp_path / "r.html", formats="txt,csv")


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no results"):
        report(tmp_path, output=tmp_path / "r.html")


# In a browser


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A report with everything in it: a suite, costs, warnings, other data, a nasty name, training runs."""
    folder = tmp_path_factory.mktemp("report")
    for place, name in enumerate(registry.suites()["decontaminated-beir"]):
        data = judged(name, 30 + place)
        for model, at in (("maker/a-model-of-a-rather-long-name", 0.4), ("maker/other", 0.6), (NASTY, 0.5)):
            notes = ["counts are not official"] if place == 0 else []
            file_result(folder / "in", model, data, at=at, cost=COST, notes=notes, device="cpu")
        file_result(folder / "in", "bm25s", data)
    file_result(folder / "in", "stranger", judged(data.name, word="other"))
    nasty = FinetuneSettings(model="base", data="data", losses={NASTY: 1.0}, query_prompt=NASTY)
    episodes = [{"log": [{"loss": 1.0, NASTY: 2.0, "step": 5}], "steps": 9}] * 30
    runs = [
        file_run(folder / "tuned"),
        file_run(folder / "<b>nasty</b>", settings=nasty, episodes=episodes),
        record_run(folder / "silent", nasty, [], status="running"),
    ]
    return report(folder / "in", output=folder / "r.html", formats="html", runs=runs)[0]


@pytest.fixture
def opened(browser, page_file):
    """Opens the report; whatever goes wrong in it, or is asked for, makes the test fail at its end."""
    contexts, faults = [], []

    def open_page(width=1280, scheme="light", **options):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, **options
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("console", lambda message: faults.append(f"console: {message.text}"))
        page.on("request", lambda request: faults.append(f"request: {request.url[:200]}"))
        page.goto(page_file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [fault for fault in faults if fault != f"request: {page_file.as_uri()}"] == []


def draw(page, name):
    """Scrolls to a plot and waits for its marks."""
    page.locator(f"#{name}").scroll_into_view_if_needed()
    page.locator(f"#{name} .main-svg").first.wait_for()
    return page.locator(f"#{name} .point path, #{name} path.point").count()


CONTRASTS = """selectors => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255);
  const back = node => {
    for (; node; node = node.parentElement) {
      const found = rgb(getComputedStyle(node).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  return selectors.map(selector => {
    const node = document.querySelector(selector), style = getComputedStyle(node);
    const text = rgb(node.closest("svg") ? style.fill : style.color);
    const behind = back(node.closest("svg")?.parentElement ?? node);
    const [low, high] = [light(text), light(behind)].sort((a, b) => a - b);
    return (high + .05) / (low + .05);
  });
}"""
READ = [
    *("header p", "h1", "nav a", ".warning li", ".mark", "caption div", "caption strong", "thead th"),
    *("tbody th", "tbody th .maker", "tbody td", ".matrix td small", ".matrix td a", ".none", "figcaption"),
    *("summary", "summary span", "label", "select", "#verdict", "dd", ".file code"),
    *("#training th .soft", "#training td", "#curve .xtick text", "#curve .legendtext"),
    *("#bars .xtick text", "#bars .ytick text", "#scatter .legendtext"),
]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_renders_at_any_width_in_light_and_dark(opened, width, scheme):
    page = opened(width, scheme)
    marks = {name: draw(page, name) for name in ("bars", "scatter", "latency", "bytes", "curve")}
    assert marks["bars"] == 8 * 4 + 1  # a bar of each result
    assert marks["latency"] == marks["bytes"] == 3  # BM25 has no cost
    assert marks["scatter"] > 5
    assert marks["curve"] == 6 + 1  # dev scores, and the best
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for table in page.locator(".box").all():
        assert table.evaluate("box => box.getBoundingClientRect().right") <= width
    contrasts = dict(zip(READ, page.evaluate(CONTRASTS, READ), strict=True))
    assert {name: round(ratio, 2) for name, ratio in contrasts.items() if ratio < 4.5} == {}
    dark_page = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 20, 24)"
    assert dark_page == (scheme == "dark")


def test_the_scatter_shows_the_chosen_systems_and_data(opened, page_file):
    page = opened()
    draw(page, "scatter")
    first = gather(page_file.parent / "in", "nDCG@10", seed=0, progress=False).groups[0].rows
    for axis, row in (("x", first[1]), ("y", first[0])):
        values = page.locator("#scatter").evaluate(f"box => box.data.flatMap(trace => [...trace.{axis}])")
        assert set(values) == {round(value, 4) for value in row.result.scores.per_query["nDCG@10"].values()}
    points = "box => box.data.map(trace => [...trace.x, ...trace.y])"
    title = "box => [box.layout.xaxis.title.text, box.layout.yaxis.title.text]"
    plot, verdict = page.locator("#scatter"), page.locator("#verdict")
    counts = [int(text.split()[-1]) for text in page.locator("#scatter .legendtext").all_text_contents()]
    assert sum(counts) == sum(map(int, re.findall(r" on (\d+)", verdict.text_content()))) == 30
    rows = page.locator("#d1 tbody tr")
    assert (
        page.locator("#scatter-b option:checked").text_content() == rows.nth(0).locator("th").text_content()
    )
    seen = [(plot.evaluate(points), verdict.text_content())]
    for name, choice in (("scatter-a", "3"), ("scatter-b", "1"), ("scatter-group", "2")):
        page.locator(f"#{name}").select_option(choice)
        seen.append((plot.evaluate(points), verdict.text_content()))
    assert all(one[0] != other[0] and one[1] != other[1] for one, other in pairwise(seen))
    page.locator("#scatter-group").select_option("0")
    page.locator("#scatter-a").select_option("0")
    page.locator("#scatter-b").select_option("0")
    assert re.match(rf"B {MINUS} A: \+0\.0000 .* equal on \d+\.", verdict.text_content())
    assert page.locator("#largest tr").count() == 0
    page.locator("#scatter-b").select_option("3")
    means = [float(rows.nth(place).locator("td").nth(1).text_content()) for place in (0, 3)]
    shown = float(verdict.text_content().split()[3].replace(MINUS, "-"))
    assert shown == pytest.approx(means[1] - means[0], abs=2e-4)
    assert len(set(plot.evaluate(title))) == 2


def test_the_curve_is_that_of_the_chosen_run(opened):
    page = opened()
    draw(page, "curve")
    plot = page.locator("#curve")
    line = (
        "box => box.data.filter(one => one.name === 'kl' && one.mode === 'lines').map(one => [...one.y])[0]"
    )
    shown = plot.evaluate(line)
    assert shown[:-1] == pytest.approx([1 - step / 300 for step in range(1, 301)], abs=0.02)
    assert plot.evaluate("box => box.data.at(-1).name") == "best dev nDCG@10: 0.5000 at step 200"
    assert plot.evaluate("box => [box.layout.yaxis.title.text, box.layout.yaxis2.title.text]") == [
        "loss",
        "dev nDCG@10",
    ]
    page.locator("#curve-run").select_option("1")
    assert plot.evaluate("box => box.layout.shapes.length") == 29  # lines between 30 episodes
    assert plot.evaluate("box => box.layout.yaxis2") is None
    assert plot.evaluate("box => box.data.every(one => one.mode.includes('markers'))")  # one value each
    assert page.locator("#curve svg b").count() == 0
    page.locator("#curve-run").select_option("2")
    assert plot.text_content() == "This run has logged nothing."
    page.locator("#curve-run").select_option("0")
    page.locator("#curve .main-svg").first.wait_for()
    assert plot.evaluate(line) == shown
    box = plot.bounding_box()
    page.mouse.move(box["x"] + 300, box["y"] + 150)
    page.mouse.down()
    page.mouse.move(box["x"] + 500, box["y"] + 152, steps=4)
    page.mouse.up()
    page.wait_for_function("document.getElementById('curve')._fullLayout.xaxis.range[0] > 50")
    assert plot.evaluate("box => box._fullLayout.xaxis.range[1]") < 200


def test_plots_are_drawn_when_they_come_near_and_follow_scheme_and_width(opened):
    page = opened(390)
    assert page.evaluate("typeof Plotly") == "undefined"
    draw(page, "latency")

    def becomes(expression, wanted):
        end = time.monotonic() + 20
        while (
            found := page.evaluate(f"document.getElementById('latency')._fullLayout.{expression}")
        ) != wanted:
            assert time.monotonic() < end, f"{expression} is {found}, not {wanted}"

    becomes("paper_bgcolor", "#ffffff")
    page.emulate_media(color_scheme="dark")
    becomes("paper_bgcolor", "#101418")
    page.set_viewport_size({"width": 1280, "height": 900})
    page.locator("#latency").scroll_into_view_if_needed()
    becomes("width", page.locator("#latency").evaluate("box => box.clientWidth"))
    assert page.locator("#latency").evaluate("box => box.clientWidth") > 390


def test_all_numbers_are_there_without_javascript(opened, page_file):
    page = opened(java_script_enabled=False)
    for row in gather(page_file.parent / "in", "nDCG@10", seed=0, progress=False).rows:
        shown = page.locator("#provenance tr", has_text=row.file)
        assert f"{row.result.scores.mean['nDCG@10']:.4f}" in shown.text_content()
    assert page.locator(".matrix").is_visible()
    assert page.get_by_text("The plot needs JavaScript").first.is_visible()
    assert not page.locator("#scatter-a").is_visible()
    assert page.locator("#costs tbody tr").last.is_visible()
    assert page.locator("thead button").count() == 0


def test_a_nasty_name_is_text_everywhere(opened):
    page = opened()
    draw(page, "bars")
    draw(page, "scatter")
    assert page.title() == "Retrieval results by nDCG@10"
    assert page.locator(".matrix tbody th", has_text=NASTY).count() == 1
    assert NASTY in page.locator("#scatter-a option").all_text_contents()
    page.locator("#scatter-a").select_option(label=NASTY)
    own = NASTY.partition("/")[2]
    legend = page.locator("#bars .legendtext").all_text_contents()
    assert any(own[:10] in text and own[-10:] in text for text in legend)
    assert page.locator("#bars svg b, #bars svg a, #scatter svg b").count() == 0


def test_tables_are_sorted_by_a_press_on_their_heads(opened):
    page = opened()
    table = page.locator(".matrix")
    cells = table.locator("tbody tr td:nth-child(2) a")
    head = table.get_by_role("button", name="arguana-decontaminated (test)")
    head.press("Enter")
    assert table.locator("[aria-sort]").get_attribute("aria-sort") == "descending"
    falling = [float(text) for text in cells.all_text_contents()]
    assert falling == sorted(falling, reverse=True)
    assert table.locator("tbody tr").last.locator("td").first.text_content() == DASH  # has no such score
    head.press("Enter")
    assert table.locator("[aria-sort]").get_attribute("aria-sort") == "ascending"
    assert [float(text) for text in cells.all_text_contents()] == falling[::-1]
    assert table.locator("tbody tr").last.locator("td").first.text_content() == DASH


def test_every_link_leads_to_a_place_on_the_page(opened):
    page = opened()
    dead = page.evaluate(
        "[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))"
        ".filter(href => !href.startsWith('#') || !document.getElementById(href.slice(1)))"
    )
    assert dead == []
    assert page.locator("td a").count() > 40
    assert (
        page.evaluate("new Set([...document.querySelectorAll('[id]')].map(n => n.id)).size")
        == page.locator("[id]").count()
    )
