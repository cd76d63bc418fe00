import csv
import io
import json
import random
import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pypdfium2 as pdfium
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.helpers import cli, record_run

from stzoo.data import registry
from stzoo.data.beir import RetrievalDataset, write_beir
from stzoo.errors import DataError, OutputError, RecipeError
from stzoo.evaluation.bench import result_files, results
from stzoo.evaluation.measures import MEASURES, parse_measures
from stzoo.evaluation.report import charts, report
from stzoo.evaluation.report.data import gather
from stzoo.evaluation.report.intervals import RESAMPLES, interval, resampled
from stzoo.evaluation.scoring import Scores, paired_test
from stzoo.training.finetune_settings import FinetuneSettings
from stzoo.training.history import read_history
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


@settings(max_examples=30)
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
    file_result(tmp_path / "in", "adapted", judged("own"), cost=COST | {"encode_s": 0.0})
    html, text, _ = written(tmp_path / "in", tmp_path)
    words = [line.split() for line in text.split("costs\n")[1].splitlines()]
    assert {
        line[0]: " ".join(line[1:])
        for line in words
        if line[:1] in (["dense"], ["adapted"], ["indexed"], ["bm25s"])
    } == {
        "dense": "12.5 s 0.25 s 4 ms 7.96 MB -",
        "adapted": "reused 0.25 s 4 ms 7.96 MB -",
        "indexed": "- - 0.5 ms - 1 MB",
        "bm25s": "- - - - -",
    }
    assert "indexed: recall against exact search 0.9870 @10" in text
    assert "<td>0.9870 @10</td>" in html
    assert "1 of 4 results have no measured cost and are not shown here: bm25s." in html
    assert '<td class="n" data-value="999600">1 MB</td>' in html
    assert '<td class="n" data-value="0.0">reused</td>' in html


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
    corpus = "/data/" + "long-" * 20  # whose folder is nobody's business
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
    assert settings["tuned"] == "batch_size 7, data beir/scifact, model base"
    assert "head_warmup_steps 3" in settings["pre"]
    assert f"corpus [&#39;{corpus.removeprefix('/data/')}&#39;]" in settings["pre"]
    cells = [re.findall("<t[hd].*?>(.*?)</t[hd]>", row) for row in section.split("<tr>")[2:]]
    assert [re.sub("<.*?>", "", " ".join(row)) for row in cells][::2] == [
        "tuned finetune contrastive base scifact 300 12.5 s 0.5000 200 dev nDCG@10",
        "killed (unfinished) finetune contrastive base scifact 6 12.5 s 0.5000 4 dev nDCG@10",
    ]
    assert rows == written(RESULTS, tmp_path)[2]
    for shown in written(RESULTS, tmp_path)[:2]:
        assert "Training" not in shown.partition("<script")[0]


def path_points(path):
    """The points of each part of an SVG path."""
    return [[tuple(map(float, point.split())) for point in part.split("L")] for part in path.split("M")[1:]]


def test_a_run_s_curve_shows_what_was_logged(tmp_path):
    chart = charts.training(read_history(file_run(tmp_path / "tuned")))
    losses, scores = chart.panels
    assert [line.name for line in losses.lines] == ["loss", "contrastive", "kl"]
    assert [line.colour == "" for line in losses.lines] == [True, False, False]
    (kl,) = path_points(losses.lines[2].thin)
    assert len(kl) == 300
    for (x, y), step in zip(kl, range(1, 301), strict=True):
        assert x == pytest.approx(10 * chart.x.at(step), abs=1)
        assert y == pytest.approx(1000 - 10 * losses.y.at(1 - step / 300), abs=1)
    x, y, label = scores.best
    assert label == "best dev nDCG@10: 0.5000 at step 200"
    assert (x, y) == (chart.x.at(200), 100 - scores.y.at(0.5))
    assert [(x, y) for x, y, _ in scores.lines[0].marks] == [
        (chart.x.at(step), 100 - scores.y.at(0.5 - abs(step / 300 - 2 / 3))) for step in range(50, 301, 50)
    ]
    text = next(text for begin, width, text in chart.bands if begin <= chart.x.at(100) < begin + width)
    step = int(text.split()[1])
    assert f"kl {1 - step / 300:.4g}" in text
    assert abs(step - 100) < 10


def test_episodes_are_apart_and_long_runs_are_thinned(tmp_path):
    episodes = [{"log": [{"loss": step / 3, "step": step}], "steps": 5} for step in (2, 4)]
    chart = charts.training(read_history(file_run(tmp_path / "ance", episodes=episodes)))
    (panel,) = chart.panels
    assert chart.begins == [chart.x.at(5)]
    assert [len(part) for part in path_points(panel.lines[0].path)] == [1, 1]
    assert [label for _, _, label in panel.lines[0].marks] == [
        "loss 0.6667 at step 2",
        "loss 1.333 at step 9",
    ]
    log = [{"loss": 9.0 if step == 4321 else 3.0, "step": step} for step in range(1, 20_001)]
    chart = charts.training(
        read_history(file_run(tmp_path / "long", episodes=[{"log": log, "steps": 20_000}]))
    )
    (line,) = chart.panels[0].lines
    (points,) = path_points(line.thin)
    assert len(points) <= charts.MOST_POINTS
    peak = min(points, key=lambda point: point[1])
    assert peak == pytest.approx((10 * chart.x.at(4321), 1000 - 10 * chart.panels[0].y.at(9.0)), abs=1)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_an_axis_fits_its_data(values):
    axis = charts.axis(values)
    low, high = axis.at(min(values)), axis.at(max(values))
    assert -0.01 <= low <= high <= 100.01
    if max(values) - min(values) > 1e-3 * abs(max(values)) > 1e-6:
        assert high - low >= 80 or min(values) >= 0  # an axis of positive values may begin at 0
        assert 2 <= len(axis.ticks) <= 8
        labels = [label for _, label in axis.ticks]
        assert len(set(labels)) == len(labels)
        for value, label in axis.ticks:
            assert float(label.replace(",", "")) == pytest.approx(value, abs=1e-6)
            assert -0.01 <= axis.at(value) <= 100.01


def test_an_axis_of_like_values_does_not_begin_at_nought():
    axis = charts.axis([0.61, 0.65, 0.69])
    assert (axis.low, axis.high) == (pytest.approx(0.6052), pytest.approx(0.6948))
    assert [label for _, label in axis.ticks] == ["0.62", "0.64", "0.66", "0.68"]


@given(st.floats(1e-3, 1e9), st.floats(1, 1e6))
def test_a_logarithmic_axis_fits_its_data_too(low, ratio):
    high = low * ratio
    axis = charts.log_axis([low, high], lambda value: f"{value:g}")
    assert 0 <= axis.at(low) <= axis.at(high) <= 100
    assert axis.at((low * high) ** 0.5) == pytest.approx(50, abs=0.01)
    assert 2 <= len(axis.ticks) <= 8
    assert all(-0.01 <= axis.at(tick) <= 100.01 for tick, _ in axis.ticks)


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [file_run(tmp_path / place / "tuned") for place in ("a", "b")]
    page = gather(RESULTS, "nDCG@10", seed=0, progress=False, runs=[*runs, file_run(tmp_path / "own")])
    assert list(page.runs) == ["a/tuned", "b/tuned", "own"]


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
    assert html.count("<script") == html.count("</script>") == 1 + 3 + 1
    assert "http:" not in html
    assert "https:" not in html
    assert re.findall(r'<meta http-equiv="Content-Security-Policy" content="default-src \'none\';', html)


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


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no results"):
        report(tmp_path, output=tmp_path / "r.html")


# The leaderboard


def rows_of(html, label):
    """The texts of a table's cells, by row."""
    table = html.partition(f'aria-label="{label}"')[2].partition("</table>")[0].partition("<tbody>")[2]
    cells = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL) for row in table.split("<tr")[1:]]
    return [[re.sub("<[^>]*>", " ", cell).split() for cell in row] for row in cells]


def test_systems_are_ranked_by_the_mean_over_the_sets_that_all_share(tmp_path):
    for name, systems in {"one": "abc", "two": "abc", "three": "ab"}.items():
        for system in systems:
            at = {"a": 0.2, "b": 0.8 if name == "one" else 0.3, "c": 0.4}[system]
            file_result(tmp_path / "in", f"system-{system}", judged(name, 60), at=at)
    html, text, _ = written(tmp_path / "in", tmp_path)
    page = gather(tmp_path / "in", "nDCG@10", seed=0, progress=False)
    means = {
        system: np.mean([row.result.scores.mean["nDCG@10"] for g in page.groups for row in g.rows
                         if row.system == system and "three" not in g.name])
        for system in page.systems
    }  # fmt: skip
    rows = rows_of(html, "Every data set")
    assert [row[0] for row in rows] == [["system-b"], ["system-c"], ["system-a"]]
    assert [row[1] for row in rows] == [[f"{means[row[0][0]]:.4f}"] for row in rows]
    assert "the mean over the 2 data sets that all systems share (one (test), two (test))" in flat(html)
    assert "Mean of 2 data sets that all systems share (one (test), two (test))" in flat(text)
    assert rows[1][4] == [DASH]  # c on "three"


def test_without_a_shared_set_the_page_says_why_there_is_no_mean(tmp_path):
    for name, systems in {"one": "ab", "two": "bc", "three": "c"}.items():
        for system in systems:
            file_result(tmp_path / "in", system, judged(name, 60), at={"a": 0.2, "b": 0.4, "c": 0.9}[system])
    html = written(tmp_path / "in", tmp_path)[0]
    assert [row[0] for row in rows_of(html, "Every data set")] == [["b"], ["a"], ["c"]]
    assert "No data set has results of all systems, so there is no mean" in flat(html)
    assert "those of one (test)" in flat(html)
    assert rows_of(html, "Every data set")[2][1] == [DASH]  # c has no letter


def test_letters_say_which_systems_differ(tmp_path):
    for system, at in (("low", 0.2), ("high", 0.8), ("higher", 0.82)):
        file_result(tmp_path / "in", system, judged("own", 60), at=at)
    html, text, _ = written(tmp_path / "in", tmp_path)
    scores = {
        row.system: row.result.scores.per_query["nDCG@10"]
        for row in gather(tmp_path / "in", "nDCG@10", seed=0, progress=False).rows
    }
    assert paired_test(scores["high"], scores["higher"]).p_value > 0.1
    assert paired_test(scores["low"], scores["high"]).p_value < 0.001
    for label, place in (("Every data set", 1), ("own (test)", 3)):
        assert [row[place] for row in rows_of(html, label)] == [["a"], ["a"], ["b"]]
    assert "Systems that share a letter do not differ" in html
    assert [line.split()[-1] for line in text.splitlines() if line.startswith(("low ", "high"))] == [
        "a",
        "a",
        "b",
    ]


def test_letters_of_a_suite_are_those_of_its_mean(tmp_path):
    for name in registry.suites()["decontaminated-beir"]:
        for model, at in (("weak", 0.3), ("strong", 0.6)):
            file_result(tmp_path / "in", model, judged(name, 12, split=registry.find(name).split), at=at)
    html = written(tmp_path / "in", tmp_path)[0]
    assert [row[3] for row in rows_of(html, "decontaminated-beir")] == [["a"], ["b"]]


def first_choice(html):
    plotted = json.loads(re.search(r'id="plotted">(.*?)</script>', html, re.DOTALL)[1])
    group = plotted["groups"][str(plotted["first"])]
    return group["name"], *(plotted["systems"][group["rows"][row]] for row in group["pair"])


def test_the_best_system_is_compared_with_bm25_on_the_set_with_most_systems(tmp_path):
    for system, at in (("bm25s", 0.5), ("best", 0.8), ("second", 0.7)):
        file_result(tmp_path / "in", system, judged("small", 20), at=at)
        file_result(tmp_path / "in", system, judged("large", 30), at=at)
    file_result(tmp_path / "in", "best", judged("alone", 90))
    assert first_choice(written(tmp_path / "in", tmp_path)[0]) == ("large (test)", "bm25s", "best")
    shutil.rmtree(tmp_path / "in" / "bm25s")
    assert first_choice(written(tmp_path / "in", tmp_path)[0]) == ("large (test)", "second", "best")
    file_result(tmp_path / "in", "bm25s", judged("large", 30), at=0.99)
    assert first_choice(written(tmp_path / "in", tmp_path)[0]) == ("large (test)", "bm25s", "best")


# Texts, sizes, paths


def query_data(html, place=0):
    return json.loads(re.search(rf'id="queries-{place}">(.*?)</script>', html, re.DOTALL)[1])


def test_queries_are_shown_with_their_texts(tmp_path):
    data = judged("own")
    for system in ("one", "two"):
        file_result(tmp_path / "in", system, data)
    html = written(tmp_path / "in", tmp_path)[0]
    assert query_data(html)["texts"] is None
    assert "The texts of the queries of own (test) were not found" in html
    rows = ({"_id": query, "text": f"{text} {NASTY} {'long ' * 80}"} for query, text in data.queries.items())
    write_beir(tmp_path / "sets/own", [], {row["_id"]: row["text"] for row in rows}, {})
    for folder in (tmp_path / "sets", tmp_path / "sets/own"):
        html = written(tmp_path / "in", tmp_path, data=folder)[0]
        found = query_data(html)
        assert found["ids"] == list(data.queries)
        assert all(
            text.startswith(f"{one}evil/<b>")
            for text, one in zip(found["texts"], data.queries.values(), strict=True)
        )
        assert max(map(len, found["texts"])) <= 160
        assert "were not found" not in html
        assert "hit'</script>" not in html
    with pytest.raises(DataError, match=r"no file or folder .*nowhere"):
        report(tmp_path / "in", output=tmp_path / "r.html", data=tmp_path / "nowhere", overwrite=True)


def test_the_page_is_light(tmp_path, monkeypatch):
    html = written(RESULTS, tmp_path, runs=[file_run(tmp_path / "long", steps=5_000)])[0]
    assert len(html.encode()) < 900_000
    for name, count in (("small", 20), ("large", 400)):
        for system in ("one", "two"):
            file_result(tmp_path / "in", system, judged(name, count))
    monkeypatch.setattr("stzoo.evaluation.report.html.QUERY_BYTES", 3000)
    html = written(tmp_path / "in", tmp_path)[0]
    assert len(query_data(html, 1)["ids"]) == 20
    assert 'id="queries-0"' not in html
    assert "Left out, as the page would be too large: large (test)." in html
    assert first_choice(html)[0] == "small (test)"
    monkeypatch.setattr("stzoo.evaluation.report.html.QUERY_BYTES", 100)
    assert (
        "Left out, as the page would be too large; <code>stzoo compare"
        in written(tmp_path / "in", tmp_path)[0]
    )


def test_no_path_of_the_machine_is_shown(tmp_path, monkeypatch):
    home = tmp_path / "home" / "me"
    settings = FinetuneSettings(model=str(home / "base"), data=home / "beir/own", dev_data=home / "dev")
    runs = [file_run(home / place / "tuned", settings=settings) for place in "ab"]
    notes = [f"{home}/qrels/test.tsv has judged documents that the corpus lacks"]
    for system in ("one", "two"):
        file_result(home / "in", system, judged("own"), notes=notes, checkpoint=str(home / "base"))
    write_beir(home / "sets/own", [], judged("own").queries, {})
    found = written(home / "in", tmp_path, runs=runs, data=home / "sets")
    for shown in (*found[:2], json.dumps(found[2])):
        assert str(tmp_path) not in shown
        assert "home/me" not in shown
    assert "Read from <code>in</code>" in found[0]
    assert "test.tsv has judged documents" in found[0]
    monkeypatch.chdir(home.parent)
    assert "Read from <code>me/in</code>" in written(Path("me/in"), tmp_path)[0]


# A run of adapt


def adapt_run(folder, decision="adapted", **changes):
    """A run as `stzoo adapt` leaves it; query i gains (i - 15) / 40."""
    data = judged("held_out", 30)
    base = dict.fromkeys(data.queries, 0.5)
    adapted = {query: 0.5 + (i - 15) / 40 for i, query in enumerate(data.queries)}
    for name, values in {"base": base, "adapted": adapted, "bm25s": base, "BM25 + adapted": adapted}.items():
        per_query = {measure.name: values for measure in MEASURES}
        mean = dict.fromkeys(per_query, sum(values.values()) / len(values))
        path = result_files.result_file(folder / "results", name, "r1", data.name)
        write_json(path.with_name("model_meta.json"), {"name": name, "revision": "r1"})
        results.store(path, (name, "r1"), data, SETTINGS, Scores(mean, per_query), MEASURES, 1.0, {})
    corpus = [{"_id": f"p{i}", "title": f"Title {i}", "text": f"Passage {i}. {NASTY}"} for i in range(30)]
    texts = {f"q{i}": f"what is held out {i} {NASTY}" for i in range(30)}
    write_beir(folder / "held_out", corpus, texts, {"test": {f"q{i}": {f"p{i}": 1} for i in range(30)}})
    (folder / "questions").mkdir()
    with (folder / "questions/questions.jsonl").open("w") as file:
        for i in range(100):
            metadata = {"passage": f"p{i % 30}", "style": "title"}
            print(json.dumps({"_id": f"g{i}", "text": f"generated {i}", "metadata": metadata}), file=file)
    point = {"dev": 0.61, "general": 0.5}
    record = {
        "copied_questions": False,
        "questions": {"generated": 100, "train": 70, "dev": 15, "test": 30},
        "left_out": {"a copy of the passage": 9},
        "share": 0.5,
        "curve": {
            "base": point,
            **{str(share): point | {"dev": 0.61 + share / 10} for share in (0.0, 0.5, 1.0)},
        },
        "scores": {"bm25s": 0.5, "base": 0.5, "adapted": 0.49, "BM25 + base": 0.5, "BM25 + adapted": 0.5},
        "general": {"base": 0.5, "adapted": 0.45},
        "gain": {"difference": 0.056, "p_value": 0.0002, "low": 0.031, "high": 0.081, "queries": 12},
        "decision": decision,
        "seconds": {"read": 1.0, "train": 62.0},
    }
    write_json(folder / "adapt.json", record | changes)
    return folder


def test_a_run_of_adapt_has_a_section_of_its_own(tmp_path):
    file_result(
        adapt_run(tmp_path / "run") / "judged", "base", judged("judged"), measures={"MRR@10": "mrr_at_10"}
    )
    html, text, _ = written(tmp_path / "run", tmp_path)
    assert "left out" not in text
    assert "Read from <code>run/results</code>" in html
    section = flat(html.partition('<section id="adaptation">')[2].partition("</section>")[0])
    for shown in (section, flat(text)):
        assert "+0.056 nDCG@10 against the base as the mean over 12 held-out documents" in shown
        assert "95 % interval +0.031 to +0.081, p 0.0002" in shown
        assert "On other texts its queries find less: 0.500 before, 0.450 now." in shown
        assert "KEEP adapted: SentenceTransformer(" in shown
        assert "run/adapted" in shown
        assert "62 s" in shown
        assert "generated 90" in shown
        assert "generated 10" in shown
        assert "Title 29" in shown
    assert [row[1:] for row in rows_of(html, "Shares of the map")] == [
        [["0.6100"], ["0.6100"], ["0.6600"], ["0.7100"]],
        [["0.5000"]] * 4,
    ]
    assert rows_of(html, "Questions") == [
        [["generated"], ["100"]],
        [["train"], ["70"]],
        [["dev"], ["15"]],
        [["test"], ["30"]],
        [["a", "copy", "of", "the", "passage"], ["9"]],
    ]
    gained, lost = (rows_of(html, f"Queries that {kind} most") for kind in ("gained", "lost"))
    assert [row[0][4] for row in gained] == [str(i) for i in range(29, 22, -1)]
    assert [row[0][4] for row in lost] == [str(i) for i in range(7)]
    assert gained[0][1] == ["Title", "29", "p29"]
    assert gained[0][2:] == [["0.5000"], ["0.8500"]]
    assert text.index("0.500 to 0.850  what is held out 29") < text.index(
        "0.500 to 0.125  what is held out 0"
    )
    assert "hit'</script>" not in html
    assert first_choice(html) == ("held_out (test)", "base", "adapted")
    assert query_data(html)["texts"][3].startswith("what is held out 3")
    assert 'id="adaptation"' not in written(tmp_path / "run/results", tmp_path)[0]


def test_a_damaged_record_of_adapt_is_refused(tmp_path):
    for number, change in enumerate(
        ({"gain": {}}, {"curve": {"half": 1}}, {"general": None}, {"seconds": 3})
    ):
        folder = adapt_run(tmp_path / str(number), **change)
        with pytest.raises(DataError, match=r"adapt\.json is not the record of a finished run"):
            report(folder, output=tmp_path / "r.html")
    (folder / "adapt.json").write_text("{")
    with pytest.raises(DataError, match=r"or report the results alone: .*results"):
        report(folder, output=tmp_path / "r.html")


def test_an_unfinished_run_of_adapt_is_not_taken_for_results(tmp_path):
    files = {"failed/settings.json": {"settings": {"command": "adapt"}}, "refused/corpus/passages.json": {}}
    for name, content in files.items():
        write_json(tmp_path / name, content)
        folder = tmp_path / name.partition("/")[0]
        with pytest.raises(DataError, match=r"`stzoo adapt` that was interrupted or has failed.*again: it"):
            report(folder, output=tmp_path / "r.html")


# In a browser


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A report with everything: adapt, a suite, costs, warnings, other data, a nasty name, training runs."""
    folder = tmp_path_factory.mktemp("report")
    adapt_run(folder / "in")
    for place, name in enumerate(registry.suites()["decontaminated-beir"]):
        data = judged(name, 30 + place)
        for model, at in (("maker/a-model-of-a-rather-long-name", 0.4), ("maker/other", 0.6), (NASTY, 0.5)):
            notes = ["counts are not official"] if place == 0 else []
            file_result(folder / "in/results", model, data, at=at, cost=COST, notes=notes, device="cpu")
        file_result(folder / "in/results", "bm25s", data)
        write_beir(folder / "sets" / name, [], data.queries, {})
    file_result(folder / "in/results", "stranger", judged(data.name, word="other"))
    nasty = FinetuneSettings(model="base", data="data", losses={NASTY: 1.0}, query_prompt=NASTY)
    episodes = [{"log": [{"loss": 1.0, NASTY: 2.0, "step": 5}], "steps": 9}] * 30
    runs = [
        file_run(folder / "tuned"),
        file_run(folder / "<b>nasty</b>", settings=nasty, episodes=episodes),
        record_run(folder / "silent", nasty, [], status="running"),
    ]
    return report(folder / "in", output=folder / "r.html", data=folder / "sets", formats="html", runs=runs)[0]


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
    *(
        "summary",
        "summary span",
        "label",
        "select",
        "#verdict",
        "dd",
        ".file code",
        ".letters",
        "#largest code",
    ),
    *("#training th .soft", "#training td", "#training .title", "#training .plot text", ".key b", ".key bdi"),
    *(".dots bdi", ".dots .ticks text", "#scatter text", "#cost .plot text", "#adaptation .plot text"),
    *("#adaptation .outcome p", "#adaptation .text code"),
]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_renders_at_any_width_in_light_and_dark(opened, width, scheme):
    page = opened(width, scheme)
    marks = (".dots circle", "#scatter circle", "#cost .point")
    sizes = {mark: page.locator(f"{mark} >> visible=true").count() for mark in marks}
    assert sizes[".dots circle"] == 2 * 4  # of adapt, and of the only data set that is open
    assert sizes["#cost .point"] == 2 * 3  # BM25 has no cost
    assert sizes["#scatter circle"] > 5
    assert (
        page.locator("#training path").count() == 2 * 3 + 1 + 1
    )  # losses, their means; dev scores; episodes
    assert page.locator("#training circle:not(.star)").count() == 6 + 30
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for box in page.locator(".box:visible, svg.plot:visible").all():
        assert box.evaluate("box => box.getBoundingClientRect().right") <= width
    for text in page.locator("svg.plot:visible text").all():
        left, right = text.evaluate(
            "one => [one.getBoundingClientRect().left, one.getBoundingClientRect().right]"
        )
        assert 0 <= left <= right <= width
    contrasts = dict(zip(READ, page.evaluate(CONTRASTS, READ), strict=True))
    assert {name: round(ratio, 2) for name, ratio in contrasts.items() if ratio < 4.5} == {}
    dark_page = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 20, 24)"
    assert dark_page == (scheme == "dark")


POINTS = """chart => [...chart.querySelectorAll("circle")].map(one => [
  parseFloat(one.getAttribute("cx")), 100 - parseFloat(one.getAttribute("cy")), one.dataset.tip])"""


def test_the_scatter_shows_the_chosen_systems_and_data(opened, page_file):
    page = opened()
    rows = next(
        group.rows
        for group in gather(page_file.parent / "in/results", "nDCG@10", seed=0, progress=False).groups
        if group.name == page.locator("#scatter-group option:checked").text_content()
    )
    data = query_data(page_file.read_text(), page.locator("#scatter-group").input_value())
    low, high = data["range"]
    chosen = [page.locator(f"#scatter-{side} option:checked").text_content() for side in "ab"]
    assert chosen == ["base", "adapted"]
    for axis, system in enumerate(chosen):
        scores = next(row.result.scores.per_query["nDCG@10"] for row in rows if row.system == system)
        shown = {
            round(low + (high - low) * point[axis] / 100, 3)
            for point in page.locator("#scatter").evaluate(POINTS)
        }
        assert shown == {round(value, 3) for value in scores.values()}
    plot, verdict = page.locator("#scatter"), page.locator("#verdict")
    assert sum(map(int, re.findall(r" on (\d+)", verdict.text_content()))) == len(data["ids"])
    tip = page.locator("#tip")
    assert tip.is_hidden()
    plot.locator("circle").last.hover()
    assert re.match(r"A 0\.5000, B \d\.\d{4}\nwhat is held out \d+", tip.text_content())
    assert tip.is_visible()
    assert page.locator("#largest th").first.text_content().startswith("what is held out 29")
    seen = [(plot.evaluate(POINTS), verdict.text_content())]
    for name, choice in (("scatter-a", "3"), ("scatter-b", "1"), ("scatter-group", "2")):
        page.locator(f"#{name}").select_option(choice)
        seen.append((plot.evaluate(POINTS), verdict.text_content()))
    assert all(one[0] != other[0] and one[1] != other[1] for one, other in pairwise(seen))
    page.locator("#scatter-group").select_option("0")
    page.locator("#scatter-a").select_option("0")
    page.locator("#scatter-b").select_option("0")
    assert re.match(rf"B {MINUS} A: \+0\.0000 .* equal on \d+", verdict.text_content())
    assert page.locator("#largest tr").count() == 0
    page.locator("#scatter-b").select_option("3")
    table = page.locator("#d1 tbody tr")
    means = [float(table.nth(place).locator("td").nth(1).text_content()) for place in (0, 3)]
    shown = float(verdict.text_content().split()[3].replace(MINUS, "-"))
    assert shown == pytest.approx(means[1] - means[0], abs=2e-4)


def test_it_prints_in_light_colours_with_all_that_is_folded(opened):
    page = opened(scheme="dark")
    folded = "document.querySelectorAll('details:not([open])').length"
    before = page.evaluate(folded)
    pdf = pdfium.PdfDocument(page.pdf())
    text = "".join(page.get_textpage().get_text_bounded() for page in pdf)
    assert before > 5
    assert page.evaluate(folded) == before
    for shown in (
        "scidocs",
        "A point is a query",
        "B is better on",
        "ms per query",
        "best dev nDCG@10",
        "what is held out",
    ):
        assert shown in flat(text)
    pictures = [page.render(scale=0.3).to_numpy() for page in pdf]
    assert all((picture > 240).all(axis=2).mean() > 0.6 for picture in pictures)
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_a_table_that_can_be_scrolled_has_a_shade_at_its_edge(opened):
    page = opened(390)
    box = page.locator('[aria-label="Every data set"]')
    box.scroll_into_view_if_needed()
    assert box.evaluate("box => box.scrollWidth > box.clientWidth")
    box.evaluate("box => box.querySelector('table').style.visibility = 'hidden'")  # the shade alone

    def edges():
        picture = Image.open(io.BytesIO(box.screenshot())).convert("L")
        return [picture.getpixel((x, picture.height // 2)) for x in (1, picture.width - 2)]

    left, right = edges()
    assert left > 250 > 230 > right
    box.evaluate("box => { box.scrollLeft = box.scrollWidth; }")
    left, right = edges()
    assert right > 250 > 230 > left


def test_charts_and_all_numbers_are_there_without_javascript(opened, page_file):
    page = opened(java_script_enabled=False)
    for row in gather(page_file.parent / "in/results", "nDCG@10", seed=0, progress=False).rows:
        file = page.locator("code", has_text=re.compile(f"^{re.escape(row.file)}$"))
        shown = page.locator("#provenance tr", has=file)
        assert f"{row.result.scores.mean['nDCG@10']:.4f}" in shown.text_content()
    assert page.locator(".matrix").is_visible()
    assert page.get_by_text("query by query needs JavaScript").is_visible()
    assert not page.locator("#scatter-a").is_visible()
    assert page.locator("#costs tbody tr").last.is_visible()
    assert page.locator("thead button").count() == 0
    for chart in (
        ".dots circle >> visible=true",
        "#cost .point",
        "#training path",
        "#adaptation .plot circle",
    ):
        assert page.locator(chart).first.is_visible()


def test_a_nasty_name_is_text_everywhere(opened):
    page = opened()
    assert page.title() == "Retrieval results by nDCG@10"
    assert page.locator(".matrix tbody th", has_text=NASTY).count() == 1
    page.locator("#scatter-group").select_option("0")
    assert NASTY in page.locator("#scatter-a option").all_text_contents()
    page.locator("#scatter-a").select_option(label=NASTY)
    own = NASTY.partition("/")[2]
    axis = page.locator("#scatter .title").first.text_content()
    assert own[:10] in axis
    assert own[-10:] in axis
    page.locator(".dots rect:visible").nth(1).hover()
    assert (
        page.locator("#tip").text_content().split("\n")[0]
        in page.locator("#scatter-a option").all_text_contents()
    )
    assert page.locator("svg b, svg a, #tip b").count() == 0


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
