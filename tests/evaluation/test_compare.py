import json
import math
import statistics
import tempfile
from dataclasses import replace
from html import escape
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stzoo.data.beir import write_beir
from stzoo.errors import DataError, RecipeError
from stzoo.evaluation.bench import results
from stzoo.evaluation.compare import NO_TEXTS, compare, holm
from stzoo.evaluation.compare.result import as_json, table, verdict
from stzoo.evaluation.measures import MEASURES
from stzoo.evaluation.scoring import paired_test

REAL = Path(__file__).parents[2] / "benchmarks" / "results"
A = {"q1": 0.0, "q2": 0.5, "q3": 1.0, "q4": 0.25}
B = {"q1": 0.5, "q2": 0.5, "q3": 0.5, "q4": 1.0}


def write(output, model, scores, *, dataset="set", revision="r1", corpus="c", data="f", k=1000, **facts):
    """Files one measure's scores by query as `stzoo bench` files them; returns the folder."""
    folder = output / model.replace("/", "__") / revision
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_meta.json").write_text(json.dumps({"name": model, "revision": revision}))
    counts = dict(documents=9, queries=len(scores), judgements=9, seconds=1.0)
    entry = {"fingerprint": data, "settings": {"k": k}, "measures": {"nDCG@10": "ndcg_at_10"}}
    stored = {
        "schema_version": results.SCHEMA_VERSION,
        "dataset_revision": corpus,
        "task_name": dataset,
        "scores": {"test": [{"ndcg_at_10": statistics.fmean(scores.values())}]},
        "splits": {"test": entry | counts | facts},
        "per_query": {"test": {"ndcg_at_10": scores}},
        "date": "2026-01-01T00:00:00",
        "versions": {},
    }
    (folder / f"{dataset}.json").write_text(json.dumps(stored))
    return folder


def draws(random, queries=30):
    """Scores of two systems that are drawn alike."""
    return ({f"q{i}": value for i, value in enumerate(random.beta(0.5, 0.5, queries))} for _ in range(2))


def shown(comparison, width=80):
    from rich.console import Console

    out = StringIO()
    Console(file=out, width=width).print(table(comparison))
    return out.getvalue()


def test_the_figures_are_those_computed_by_hand(tmp_path):
    found = compare([write(tmp_path, "one", A), write(tmp_path, "two", B)], examples=1)
    (pair,) = found.pairs
    assert (found.measure, found.baseline, found.systems) == ("nDCG@10", "one", ("two",))
    assert (pair.dataset, pair.split, pair.system) == ("set", "test", "two")
    assert (pair.baseline_mean, pair.system_mean) == (0.4375, 0.625)
    assert pair.test.difference == 0.1875
    # of the sixteen ways to sign 0.5, 0, -0.5, 0.75, six reach 0.75 or more
    assert pair.p_holm == pair.test.p_value == pytest.approx(2 * 6 / 16)
    assert pair.effect == pytest.approx(0.1875 / statistics.stdev([0.5, 0.0, -0.5, 0.75]))
    assert (pair.won, pair.tied, pair.lost) == (2, 1, 1)
    (gain,), (loss,) = pair.gains, pair.losses
    assert (gain.query, gain.text, gain.baseline, gain.system) == ("q4", None, 0.25, 1.0)
    assert (loss.query, loss.baseline, loss.system) == ("q3", 1.0, 0.5)
    assert found.averages == ()
    assert found.notes == (NO_TEXTS,)


scores = st.sampled_from([0.0, 0.25, 0.3, 0.63, 1.0])


@given(st.lists(st.tuples(scores, scores), min_size=2, max_size=9), st.integers(0, 4))
@settings(max_examples=25)
def test_systems_the_other_way_round_turn_every_sign(pairs, examples):
    with tempfile.TemporaryDirectory() as output:
        one, two = (
            write(Path(output), name, {f"q{i}": pair[side] for i, pair in enumerate(pairs)})
            for side, name in enumerate(("one", "two"))
        )
        ((there,), (back,)) = (compare(both, examples=examples).pairs for both in ((one, two), (two, one)))
    assert there.test.difference == pytest.approx(-back.test.difference)
    assert there.test.p_value == pytest.approx(back.test.p_value)
    assert (there.effect is None) == (back.effect is None)
    assert there.effect is None or there.effect == pytest.approx(-back.effect)
    assert (there.won, there.tied, there.lost) == (back.lost, back.tied, back.won)
    assert there.won + there.tied + there.lost == len(pairs)
    for ours, theirs in ((there.gains, back.losses), (there.losses, back.gains)):
        assert [row.query for row in ours] == [row.query for row in theirs]
        assert len(ours) <= examples
    steps = [abs(row.system - row.baseline) for row in there.gains]
    assert steps == sorted(steps, reverse=True)
    assert len(there.gains) == min(examples, there.won)
    assert all(row.system > row.baseline for row in there.gains)


def rejected(p_values, level):
    """Holm's procedure as he states it: from the smallest p on, until the first that is too large."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, i in enumerate(order):
        if p_values[i] * (len(p_values) - rank) > level:
            return set(order[:rank])
    return set(order)


@given(
    st.lists(st.integers(0, 64).map(lambda i: i / 64), max_size=8), st.integers(1, 63).map(lambda i: i / 64)
)
def test_an_adjusted_p_is_below_a_level_just_where_holms_procedure_rejects(p_values, level):
    adjusted = holm(p_values)
    assert {i for i, p in enumerate(adjusted) if p <= level} == rejected(p_values, level)
    assert all(raw <= p <= 1 for raw, p in zip(p_values, adjusted, strict=True))
    by_raw = [p for _, p in sorted(zip(p_values, adjusted, strict=True))]
    assert by_raw == sorted(by_raw)


def test_systems_of_one_distribution_are_told_apart_about_as_often_as_they_should():
    import numpy as np

    random = np.random.default_rng(0)
    p_values = [paired_test(*draws(random)).p_value for _ in range(200)]
    assert 0.02 <= sum(p < 0.05 for p in p_values) / 200 <= 0.08
    families = [p_values[i : i + 10] for i in range(0, 200, 10)]
    assert sum(min(family) < 0.05 for family in families) >= 4
    assert sum(min(holm(family)) < 0.05 for family in families) <= 2


def test_several_sets_and_systems_make_one_family(tmp_path):
    first = {"one": A, "two": B, "three": dict.fromkeys(A, 0.25)}
    second = {name: {q: 1 - v for q, v in by_query.items()} for name, by_query in first.items()}
    second["two"]["q2"] = 0.9
    for dataset, rows in (("zweite", second), ("erste", first)):
        folders = [write(tmp_path, name, rows[name], dataset=dataset) for name in first]
    found = compare(folders)
    assert [(pair.dataset, pair.system) for pair in found.pairs] == [
        ("erste", "two"),
        ("erste", "three"),
        ("zweite", "two"),
        ("zweite", "three"),
    ]
    assert [pair.p_holm for pair in found.pairs] == holm([pair.test.p_value for pair in found.pairs])
    assert found.pairs[0].p_holm > found.pairs[0].test.p_value
    assert [mean.system for mean in found.averages] == ["two", "three"]
    only = compare(folders, datasets="zweite")
    assert [pair.dataset for pair in only.pairs] == ["zweite", "zweite"]
    assert only.averages == ()


def test_in_a_mean_over_sets_each_set_counts_the_same_and_is_drawn_again_by_itself(tmp_path):
    import numpy as np

    random = np.random.default_rng(1)
    sets = {"small": random.normal(0.3, 0.2, 10), "large": random.normal(-0.1, 0.1, 200)}
    for dataset, differences in sets.items():
        write(tmp_path, "one", {f"q{i}": 0.0 for i in range(len(differences))}, dataset=dataset)
        write(tmp_path, "two", {f"q{i}": value for i, value in enumerate(differences)}, dataset=dataset)
    (mean,) = compare(["one", "two"], results=tmp_path, examples=0).averages
    assert (mean.sets, mean.baseline_mean) == (2, 0.0)
    assert mean.system_mean == pytest.approx(statistics.fmean(values.mean() for values in sets.values()))
    drawn = sum(random.choice(values, (20000, len(values))).mean(axis=1) for values in sets.values()) / 2
    assert (mean.low, mean.high) == pytest.approx(np.percentile(drawn, (2.5, 97.5)), abs=0.004)


def test_real_results_give_what_the_paired_test_gives():
    stored = {(row.dataset, row.model): row for row in results.read(REAL)}
    names = ("bm25s", "sentence-transformers/all-MiniLM-L6-v2")
    for measure in MEASURES[:2]:
        found = compare(names, results=REAL, measure=measure.ir, seed=3, examples=0)
        assert found.measure == measure.name
        assert [pair.dataset for pair in found.pairs] == ["cranfield", "scifact", "vaswani"]
        for pair in found.pairs:
            a, b = (stored[pair.dataset, name].scores for name in names)
            assert pair.test == paired_test(a.per_query[measure.name], b.per_query[measure.name], seed=3)
            assert pair.baseline_mean == pytest.approx(a.mean[measure.name])
            assert pair.system_mean == pytest.approx(b.mean[measure.name])
    assert found.averages[0].sets == 3


def test_real_queries_are_shown_with_their_texts(data):
    systems = [REAL / "bm25s", REAL / "sentence-transformers__all-MiniLM-L6-v2" / "5eeba7e5448c"]
    found = compare(systems, data=data / "beir")
    texts = {
        (folder.name, row["_id"]): row["text"]
        for folder in (data / "beir").iterdir()
        for row in map(json.loads, (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines())
    }
    assert found.notes == ()
    for pair in found.pairs:
        assert len(pair.gains) == len(pair.losses) == 5
        for row in (*pair.gains, *pair.losses):
            assert row.text == texts[pair.dataset, row.query]
    one = compare(systems, data=data / "beir" / "scifact", examples=1)
    assert [pair.gains[0].text is None for pair in one.pairs] == [True, False, True]
    assert [note.split(":")[0] for note in one.notes] == ["cranfield", "vaswani"]


def test_texts_of_one_task_of_several_come_from_the_folder_they_share(tmp_path):
    write_beir(
        tmp_path / "sets" / "kilt", [{"_id": "d", "text": "x"}], {"q1": "who?"}, {"t.test": {"q1": {"d": 1}}}
    )
    folders = [write(tmp_path, name, rows, dataset="kilt-t") for name, rows in (("one", A), ("two", B))]
    (pair,) = compare(folders, data=tmp_path / "sets").pairs
    assert [(row.query, row.text) for row in pair.gains] == [("q4", None), ("q1", "who?")]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (dict(corpus="c2"), "scored on different corpora"),
        (dict(data="f2"), "scored on different queries or judgements"),
        (dict(k=100), "have 1000 and 100 results per query"),
        (dict(self_hits_dropped=True), "whether a document with the query's own id counts"),
    ],
)
def test_scores_on_other_data_or_another_depth_are_refused(tmp_path, other, reason):
    one, two = write(tmp_path, "one", A, self_hits_dropped=False), write(tmp_path, "two", B, **other)
    with pytest.raises(DataError, match=reason) as raised:
        compare([one, two])
    assert str(one / "set.json") in str(raised.value)
    assert str(two / "set.json") in str(raised.value)


def test_systems_without_a_set_in_common_are_refused(tmp_path):
    folders = [write(tmp_path, "one", A, dataset="x"), write(tmp_path, "two", B, dataset="y")]
    with pytest.raises(DataError, match=r"no data set in common: x \(test\) against y \(test\)"):
        compare(folders)


def test_a_system_is_found_by_name_or_folder_and_several_are_listed(tmp_path):
    write(tmp_path, "org/one", A)
    two = write(tmp_path, "two", B)
    assert compare(["org/one", two], results=tmp_path).systems == ("two",)
    with pytest.raises(DataError, match=r"'org/on'.*did you mean 'org/one'\? Known: org/one, two"):
        compare(["org/on", "two"], results=tmp_path)
    with pytest.raises(DataError, match="there is no folder org/one; expected"):
        compare(["org/one", two])
    with pytest.raises(DataError, match=rf"With --results {tmp_path} these can be named: org/one, two\."):
        compare([tmp_path / "on", two])
    newer = write(tmp_path, "two", B, revision="r2")
    for name in ("two", str(tmp_path / "two")):
        with pytest.raises(DataError, match="has results of several systems") as raised:
            compare(["org/one", name], results=tmp_path)
        assert f"two r1 in {two}; two r2 in {newer}" in str(raised.value)
    assert compare([two, newer]).systems == ("two (r2)",)
    moved = write(tmp_path / "again", "two", B)
    assert compare([two, moved]).systems == (str(moved),)


@pytest.mark.parametrize(
    ("given", "options", "error", "reason"),
    [
        (["one"], {}, RecipeError, "at least two systems; got one"),
        (["one", "one"], {}, RecipeError, "given twice"),
        (["one", "two"], dict(measure="nDGC@10"), RecipeError, "'nDGC@10' is unknown"),
        (["one", "two"], dict(measure="P@10"), DataError, r"set\.json has no P@10, only nDCG@10"),
        (["one", "two"], dict(datasets="sat"), DataError, r"on 'sat'; did you mean 'set'\? Known: set\."),
        (["one", "two"], dict(data="absent"), DataError, "no file or folder absent"),
        (["one", "two"], dict(examples=-1), RecipeError, "examples is -1"),
    ],
)
def test_what_cannot_be_compared_is_said(tmp_path, given, options, error, reason):
    write(tmp_path, "one", A)
    write(tmp_path, "two", B)
    with pytest.raises(error, match=reason):
        compare(given, results=tmp_path, **options)


def test_a_reader_learns_of_sets_that_one_lacks_and_of_notes_on_the_data(tmp_path):
    write(tmp_path, "one", A, notes=["counts differ"])
    write(tmp_path, "one", A, dataset="more")
    write(tmp_path, "two", B, notes=["counts differ"])
    assert compare(["one", "two"], results=tmp_path, examples=0).notes == (
        "two against one: only one has more (test).",
        "set (test): counts differ",
    )


def test_the_verdict_counts_all_tests(tmp_path):
    base = {f"q{i}": i / 30 for i in range(30)}
    clear = {query: value**0.5 + 0.1 for query, value in base.items()}
    # a sign test of 21 against 9: p = 0.043
    barely = {query: value + (0.1 if i < 21 else -0.1) for i, (query, value) in enumerate(base.items())}
    write(tmp_path, "one", base)
    write(tmp_path, "clear", clear)
    alone = compare(["one", "clear"], results=tmp_path)
    assert verdict(alone, alone.pairs[0]).endswith(", p = 0.0002, 30 queries). clear is better.")
    turned = compare(["clear", "one"], results=tmp_path)
    assert verdict(turned, turned.pairs[0]).endswith(" clear is better.")
    for measure in ("Judged@10", "NumRet"):
        counts = replace(alone, measure=measure)
        assert verdict(counts, counts.pairs[0]).endswith(" clear has the higher value.")
    write(tmp_path, "barely", barely)
    write(tmp_path, "same", base)
    both = compare(["one", "clear", "barely", "same"], results=tmp_path)
    sentences = [verdict(both, pair) for pair in both.pairs]
    assert sentences[0].startswith("clear against one on set (test): +0.2")
    assert sentences[0].endswith(
        "p = 0.0002, or 0.0006 after Holm's correction for 3 comparisons, 30 queries). clear is better."
    )
    assert both.pairs[1].test.p_value < 0.05 < both.pairs[1].p_holm
    assert [pair.differ for pair in both.pairs] == [True, False, False]
    assert sentences[1].endswith("They do not differ beyond chance, as this is one of 3 comparisons.")
    assert sentences[2].endswith("They do not differ beyond chance.")
    assert all(escape(sentence) in both._repr_html_() for sentence in sentences)


def test_the_verdict_says_what_decides_where_the_interval_does_not_fit_the_p_value(tmp_path):
    write(tmp_path, "one", {f"q{i}": 0.1 for i in range(5)})
    write(tmp_path, "two", {f"q{i}": 0.2 + i / 10 for i in range(5)})
    found = compare(["one", "two"], results=tmp_path)
    test = found.pairs[0].test
    assert (test.p_value, test.low > 0) == (0.0625, True)  # the least of 32 changes of signs
    assert verdict(found, found.pairs[0]).endswith(
        "They do not differ beyond chance. The p-value decides; the interval is a separate estimate."
    )


def test_a_comparison_is_plain_json_even_where_nothing_differs(tmp_path):
    write(tmp_path, "one", A)
    write(tmp_path, "two", A)
    found = compare(["one", "two"], results=tmp_path)
    plain = json.loads(json.dumps(as_json(found), allow_nan=False))
    (row,) = plain["pairs"]
    assert (row["difference"], row["p_value"], row["effect"], row["tied"]) == (0.0, 1.0, None, 4)
    assert row["differ"] is False
    assert row["verdict"].endswith("They do not differ beyond chance.")
    assert " - " in shown(found)


def test_the_tables_fit_80_columns_and_show_every_figure(tmp_path):
    many = {f"query-{i}": math.sin(i) ** 2 for i in range(2000)}
    name = "[x]organisation/with-a-very-long-name"
    write_beir(
        tmp_path / "data" / "set",
        [{"_id": "d", "text": "x"}],
        {query: f"[what] is {query}? " * 40 for query in many},
        {"test": {query: {"d": 1} for query in many}},
    )
    for dataset in ("set", "other"):
        write(tmp_path, "one", many, dataset=dataset)
        write(tmp_path, name, {query: value**2 for query, value in many.items()}, dataset=dataset)
    found = compare(["one", name], results=tmp_path, data=tmp_path / "data", examples=2)
    lines = shown(found).splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    (pair, _) = found.pairs
    for value in (
        f"{pair.system_mean:.4f}",
        f"{pair.test.difference:+.4f}",
        f"{pair.test.low:+.4f}",
        f"{pair.test.high:+.4f}",
        f"{pair.p_holm:.4f}",
        f"{pair.effect:+.2f}",
        f"{pair.won}/{pair.tied}/{pair.lost}",
        "Mean over 2 sets",
        pair.losses[0].query,
        "[what] is",
    ):
        assert value in text
    assert any(line.strip().startswith("[x]") for line in lines)
    assert text.count("…") == 2  # there are losses alone
