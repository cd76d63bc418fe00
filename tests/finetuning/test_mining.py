"""Mining: which results become negatives, the library's negatives, what a kill leaves, mistakes."""

import json
import sys
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import processes
from typer.testing import CliRunner

import stzoo
from stzoo.cli import app
from stzoo.data.beir import read_beir, write_beir
from stzoo.data.training_sets.read import read_training
from stzoo.finetuning.mining import shards
from stzoo.finetuning.mining.mine import mine
from stzoo.finetuning.mining.rules import REMOVED, candidates, chosen
from stzoo.finetuning.mining.searchers import Dense, Lexical
from stzoo.finetuning.mining.shards import mine_into
from stzoo.models.cross_encoder import open_teacher
from stzoo.models.loaded import open_model
from stzoo.retrieval.bm25 import retrieve_bm25
from stzoo.retrieval.search.exact import retrieve
from stzoo.retrieval.search.retriever import Retriever
from stzoo.testing import sentences
from stzoo.training.finetune_settings import MiningRules

TOP = dict(sampling="top", mined=3, depth=20)


def rows_of(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text().splitlines()]


def negatives(path):
    return {row["query"]: row["neg"] for row in rows_of(path)}


@pytest.fixture(scope="module")
def model(base, tmp_path_factory):
    from sentence_transformers import SentenceTransformer

    folder = tmp_path_factory.mktemp("model") / "tiny"
    SentenceTransformer(str(base)).save(str(folder))
    return folder


@pytest.fixture(scope="module")
def cross_encoder(base, tmp_path_factory):
    from sentence_transformers import CrossEncoder

    folder = tmp_path_factory.mktemp("teacher") / "cross"
    torch.manual_seed(0)  # of its head; some heads turn no candidate away
    CrossEncoder(str(base), num_labels=1).save_pretrained(str(folder))
    return folder


@pytest.fixture
def mined(model, judged, tmp_path):
    """A short way to mine; it returns what was said and the file."""

    def run(name="mined.jsonl", **changes):
        given = dict(model=str(model), data=str(judged), store=str(tmp_path / "store")) | TOP | changes
        return mine(output=tmp_path / name, **given).record, tmp_path / name

    return run


# Rules


@st.composite
def results(draw):
    """Of one query: kinds, descending scores, kinds of its answers, its best positive's score, rules."""
    count = draw(st.integers(0, 12))
    kinds = draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    few = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
    scores = sorted(draw(st.lists(few, min_size=count, max_size=count)), reverse=True)
    margins = st.none() | st.sampled_from([-0.5, 0.0, 0.5])
    relative = st.none() | st.sampled_from([0.0, 0.5])
    rules = MiningRules(
        mined=1,
        depth=draw(st.integers(1, 12)),
        skip=draw(st.integers(0, 4)),
        absolute_margin=draw(margins),
        relative_margin=draw(relative),
    )
    return kinds, scores, draw(st.sets(st.integers(0, 9))), draw(few), rules


@given(results())
def test_the_rules_are_what_a_loop_makes_of_them(given):
    kinds, scores, answers, best, rules = given
    left, removed, rank, seen, texts = [], dict.fromkeys(REMOVED, 0), 0, 0, set()
    for place, (kind, score) in enumerate(zip(kinds, scores, strict=True)):
        if seen == rules.depth:
            break
        if kind in answers:
            removed["answers"] += 1
            continue
        seen += 1
        if kind in texts:
            removed["copies"] += 1
            continue
        texts.add(kind)
        rank += 1
        if rank <= rules.skip:
            removed["skipped"] += 1
        elif rules.absolute_margin is not None and score > best - rules.absolute_margin:
            removed["absolute_margin"] += 1
        elif rules.relative_margin is not None and score > best - abs(best) * rules.relative_margin:
            removed["relative_margin"] += 1
        else:
            left.append(place)
    found, gone = candidates(
        np.array(kinds, np.int64), np.array(scores, np.float32), np.array([*answers], np.int64), best, rules
    )
    assert found.tolist() == left
    assert dict(zip(REMOVED, gone, strict=True)) == removed


def test_what_is_drawn_depends_on_the_seed_and_the_query_alone():
    left, rules = np.arange(3, 40), MiningRules()
    order = chosen(left, rules, 1, "q").tolist()
    assert sorted(order) == left.tolist() != order
    assert chosen(left, rules, 1, "q").tolist() == order
    assert len({tuple(chosen(left, rules, seed, query)) for seed in (1, 2) for query in "qr"}) == 4
    assert chosen(left, MiningRules(sampling="top"), 1, "q").tolist() == left.tolist()


# Beside the library


@pytest.mark.parametrize(
    "rules",
    [
        dict(depth=20),
        dict(depth=20, skip=5),
        dict(depth=30, absolute_margin=0.02),
        dict(depth=30, relative_margin=0.03),
        dict(depth=30, absolute_margin=0.01, relative_margin=0.02),
        dict(depth=100),  # more than there are
    ],
)
def test_negatives_are_those_of_mine_hard_negatives(rules, model, judged, mined):
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    _, path = mined(mined=4, **rules)
    read = read_beir(judged, "train")
    passages = dict(zip(read.corpus_ids, read.passages, strict=True))
    pairs = [
        {"anchor": text, "positive": passages[next(iter(read.qrels[query]))]}
        for query, text in read.queries.items()
    ]
    named = {"depth": "range_max", "skip": "range_min"}
    found = mine_hard_negatives(
        Dataset.from_list(pairs),
        SentenceTransformer(str(model), device="cpu"),
        corpus=list(passages.values()),
        num_negatives=4,
        sampling_strategy="top",
        verbose=False,
        **{named.get(name, name): value for name, value in rules.items()},
    )
    theirs = defaultdict(list)
    for row in found:
        theirs[row["anchor"]].append(row["negative"])
    assert sum(map(len, theirs.values())) > 20
    ours = {query: found for query, found in negatives(path).items() if found}
    assert ours == theirs


# The file


@pytest.mark.parametrize("name", ["mined.parquet", "mined.jsonl"])
def test_the_file_holds_what_the_rules_say_and_what_made_it(name, mined, model, judged):
    said, path = mined(name, skip=2, relative_margin=0.01)
    read = read_beir(judged, "train")
    texts = dict(zip(read.corpus_ids, read.passages, strict=True))
    run = retrieve(open_model(str(model)).model, read, k=60)
    rows = rows_of(path)
    assert [row["query_id"] for row in rows] == list(read.queries)
    for row in rows:
        found, (positive,) = run[row["query_id"]], row["pos_id"]
        left = [one for one in found if one != positive][:20][2:]
        left = [one for one in left if found[one] <= found[positive] * 0.99][:3]
        assert row["neg_id"] == left
        assert row["neg"] == [texts[one] for one in left]
        assert row["neg_scores"] == pytest.approx([found[one] for one in left], abs=1e-6)
        assert row["pos_scores"] == pytest.approx([found[positive]], abs=1e-6)
    counts = said["counts"]
    assert counts["queries"] == 40
    assert counts["negatives"] == sum(len(row["neg"]) for row in rows)
    assert counts["queries_with_fewer_than_asked_for"] == sum(len(row["neg"]) < 3 for row in rows) > 0
    assert counts["queries_with_none"] == sum(not row["neg"] for row in rows) > 0
    assert counts["removed_skipped"] == 80
    read_again = read_training(path)
    assert read_again.made == said
    assert said["model"]["name"] == "tiny"
    assert said["data"]["fingerprint"] == read.fingerprint
    assert {"stzoo", "sentence-transformers", "torch"} <= said["versions"].keys()
    assert said["recipe"]["skip"] == 2
    assert str(path.parent) not in json.dumps(said), "a path"


def test_a_positive_that_was_not_found_has_its_exact_score(mined, model, judged, monkeypatch):
    monkeypatch.setattr("stzoo.finetuning.mining.searchers.ROWS", 7)
    _, path = mined(depth=3, mined=1)
    read = read_beir(judged, "train")
    run = retrieve(open_model(str(model)).model, read, k=60)
    rows = rows_of(path)
    assert any(row["pos_id"][0] not in list(run[row["query_id"]])[:4] for row in rows)
    for row in rows:
        assert row["pos_scores"] == pytest.approx([run[row["query_id"]][row["pos_id"][0]]], abs=1e-6)


def test_margins_are_taken_from_the_best_of_several_positives(mined, judged, tmp_path, model):
    read = read_beir(judged, "train")
    qrels = {query: {**grades, "d50": 1, "d51": 0} for query, grades in read.qrels.items()}
    rows = [{"_id": one, "text": text} for one, text in zip(read.corpus_ids, read.passages, strict=True)]
    write_beir(tmp_path / "several", rows, read.queries, {"train": qrels})
    _, path = mined(data=str(tmp_path / "several"), absolute_margin=0.0, depth=60, mined=60)
    run = retrieve(open_model(str(model)).model, read, k=60)
    for row in rows_of(path):
        found = run[row["query_id"]]
        best = max(found[one] for one in row["pos_id"])
        assert len(row["pos_id"]) == 2
        assert row["neg_id"] == [one for one in found if found[one] <= best and one not in row["pos_id"]]


def test_the_text_of_a_positive_under_another_id_is_no_negative(mined, tmp_path):
    texts = sentences(20, seed=3)
    rows = [{"_id": f"d{n}", "text": text} for n, text in enumerate(texts)]
    rows += [{"_id": f"copy{n}", "text": text} for n, text in enumerate(texts[:10])]
    queries = {f"q{n}": text for n, text in enumerate(texts[:5])}
    write_beir(tmp_path / "d", rows, queries, {"train": {f"q{n}": {f"d{n}": 1} for n in range(5)}})
    said, path = mined(data=str(tmp_path / "d"), depth=30, mined=30)
    for row in rows_of(path):
        assert sorted([*row["pos"], *row["neg"]]) == sorted(texts), "each text once"
    assert said["counts"]["removed_answers"] == 10
    assert said["counts"]["removed_copies"] == 5 * 9
    rows = [{"_id": f"d{max(0, n - 4)}-{n}", "text": texts[max(0, n - 4)]} for n in range(20)]
    write_beir(tmp_path / "one", rows, {"q": texts[0]}, {"train": {"q": {"d0-0": 1}}})
    said, _ = mined("one.jsonl", data=str(tmp_path / "one"), depth=3)
    assert said["counts"]["removed_answers"] == 5
    assert said["counts"]["negatives"] == 3, "copies of the positive take no rank"


def test_a_passage_under_the_querys_own_id_is_no_negative_where_ids_are_shared(model, tmp_path):
    texts = sentences(12, seed=4)
    rows = [{"_id": str(n), "text": text} for n, text in enumerate(texts)]
    folder = write_beir(
        tmp_path / "arguana",
        rows,
        dict(zip("012", texts, strict=False)),
        {"train": {q: {"9": 1} for q in "012"}},
    )
    judged = read_beir(folder, "train")
    assert judged.shares_ids
    finders = (Dense(Retriever(open_model(str(model)), tmp_path / "store"), judged), Lexical(judged))
    for number, finder in enumerate(finders):
        path = tmp_path / f"{number}.jsonl"
        mine_into(path, finder, judged, MiningRules(mined=11, depth=11), work=tmp_path / f"w{number}")
        for row in rows_of(path):
            assert {row["query_id"], "9"}.isdisjoint(row["neg_id"])
            assert len(row["neg_id"]) == 10 or number


def test_neither_blocks_nor_other_queries_change_what_is_mined(mined, judged, monkeypatch, tmp_path):
    _, whole = mined("whole.jsonl", sampling="random")
    asked = []
    find = Dense.find
    monkeypatch.setattr(Dense, "find", lambda self, *given: asked.append(given[:2]) or find(self, *given))
    monkeypatch.setattr(shards, "PART", 3)
    monkeypatch.setattr(Dense, "query_bytes", 80_000)
    _, small = mined("small.jsonl", sampling="random", memory_gib=2e-3)
    assert small.read_bytes() == whole.read_bytes()
    for row in rows_of(whole):
        assert row["neg_scores"] == sorted(row["neg_scores"], reverse=True), "as they rank"
    assert {last - first for first, last in asked} == {6, 4}, "as many as memory_gib takes"
    read = read_beir(judged, "train")
    few = {query: read.queries[query] for query in ("q7", "q3")}
    rows = [{"_id": one, "text": text} for one, text in zip(read.corpus_ids, read.passages, strict=True)]
    write_beir(tmp_path / "few", rows, few, {"train": {query: read.qrels[query] for query in few}})
    _, alone = mined("few.jsonl", sampling="random", data=str(tmp_path / "few"))
    expected = negatives(whole)
    assert negatives(alone) == {text: expected[text] for text in few.values()}
    _, other = mined("other.jsonl", sampling="random", seed=7)
    assert negatives(other) != expected


def test_bm25_mines_with_margins_from_its_own_scores(mined, judged):
    said, path = mined(model="bm25s", relative_margin=0.2, depth=10)
    read = read_beir(judged, "train")
    run = retrieve_bm25(read, 60)
    for row in rows_of(path):
        found, (positive,) = run[row["query_id"]], row["pos_id"]
        left = [one for one in found if one != positive][:10]
        assert row["neg_id"] == [one for one in left if found[one] <= found[positive] * 0.8][:3]
        assert row["pos_scores"] == pytest.approx([found[positive]], rel=1e-5)
    assert said["model"]["name"] == "bm25s"
    assert said["counts"]["removed_relative_margin"] > 0
    said, path = mined("all.jsonl", model="bm25s", depth=60, mined=60)
    assert said["counts"]["removed_absolute_margin"] == 0, "none is made up where few share a word"
    for row in rows_of(path):
        assert row["neg_id"] == [one for one in run[row["query_id"]] if one not in row["pos_id"]]


PANDAS = [
    "大熊猫吃竹子。住在四川的山里。",
    "大熊猫住在四川的竹林里。",
    "四川的山里有竹林和茶园。",
    "长江流过四川。",
]


def test_bm25_mines_chinese_and_tells_the_language(tmp_path, capsys):
    rows = [{"_id": f"d{n}", "text": text} for n, text in enumerate(PANDAS)]
    queries, qrels = {"q": "大熊猫吃什么", "r": "长江"}, {"q": {"d0": 1}, "r": {"d3": 1}}
    folder = write_beir(tmp_path / "zh", rows, queries, {"train": qrels})
    given = dict(data=str(folder), mined=2, depth=4, sampling="top")
    made = mine("bm25s", output=tmp_path / "a.jsonl", **given)
    (first, second) = rows_of(tmp_path / "a.jsonl")
    assert first["neg"] == [PANDAS[1]]
    assert second["neg"] == []
    assert (made["model"]["language"], made["model"]["stemmer"], made["recipe"]["language"]) == (
        "zh",
        None,
        None,
    )
    assert made["notes"] == ["1 of 2 queries (50%) have no negative"]
    assert read_training(tmp_path / "a.jsonl").made == made.record
    said = capsys.readouterr().err
    assert "reads zh as Chinese" in said
    assert "1 of 2 queries (50%) have no negative. Mine deeper" in said
    assert mine("bm25s", output=tmp_path / "a.jsonl", resume=True, **given).record == made.record
    capsys.readouterr()
    named = mine("bm25s", output=tmp_path / "b.jsonl", language="German", **given)
    assert (named["model"]["language"], named["model"]["stemmer"]) == ("de", "german")
    assert named["recipe"]["language"] == "de"  # so that a resumed run may name it either way
    assert "reads" not in capsys.readouterr().err
    (tmp_path / "norwegian.yaml").write_text("language: no\n")
    named = mine("bm25s", tmp_path / "norwegian.yaml", output=tmp_path / "c.jsonl", **given)
    assert named["model"]["stemmer"] == "norwegian"


@pytest.mark.parametrize("finder", ["bm25s", "model"])
def test_passages_that_look_like_the_answer_are_not_mined(finder, model, tmp_path):
    texts = [
        "the wing of a café",
        " the wing  of a café\n",
        "the wing of a cafe\u0301",
        "the wing of a plane",
    ]
    texts.append("The WING of a café")  # the same tokens to a model that folds case
    rows = [{"_id": f"d{n}", "text": text} for n, text in enumerate(texts)]
    folder = write_beir(tmp_path / "copies", rows, {"q": "wing"}, {"train": {"q": {"d1": 1}}})
    store = {} if finder == "bm25s" else {"store": str(tmp_path / "store")}
    name = finder if finder == "bm25s" else str(model)
    made = mine(name, data=str(folder), output=tmp_path / "mined.jsonl", **TOP, **store)
    (row,) = rows_of(tmp_path / "mined.jsonl")
    left = texts[3:] if finder == "bm25s" else [texts[3]]
    assert sorted(row["neg"]) == sorted(left)
    assert made["counts"]["removed_answers"] == 5 - len(left)


def test_a_training_file_gets_other_negatives_from_a_corpus(mined, judged):
    _, path = mined(model="bm25s")
    _, again = mined("again.parquet", data=str(path), corpus=str(judged))
    _, straight = mined("straight.jsonl")
    assert negatives(again) == negatives(straight) != negatives(path)


def test_a_query_without_a_positive_in_the_corpus_is_left_out_and_counted(mined, judged, tmp_path):
    read = read_beir(judged, "train")
    rows = [{"_id": one, "text": text} for one, text in zip(read.corpus_ids, read.passages, strict=True)]
    qrels = read.qrels | {"q0": {"d0": 0}}
    write_beir(tmp_path / "odd", rows, read.queries, {"train": qrels, "none": {"q0": {"d0": 0}}})
    said, path = mined(data=str(tmp_path / "odd"))
    assert [row["query_id"] for row in rows_of(path)] == [f"q{n}" for n in range(1, 40)]
    assert said["counts"]["queries_without_positives"] == 1
    with pytest.raises(stzoo.DataError, match="positive"):
        mined("none.jsonl", data=str(tmp_path / "odd"), split="none")


# With a teacher


def test_what_is_blank_is_no_positive_and_the_file_is_read_again(tmp_path):
    """An empty document that is judged relevant, and a query without words."""
    texts = {"d1": "the wing of a bird", "d2": "", "d3": "the wing of a plane", "d4": "a bird"}
    queries = {"q1": "wing", "q2": "bird", "q3": " "}
    qrels = {"train": {"q1": {"d1": 1, "d2": 1}, "q2": {"d2": 1}, "q3": {"d4": 1}}}
    rows = [{"_id": name, "text": text} for name, text in texts.items()]
    folder = write_beir(tmp_path / "blank", rows, queries, qrels)
    made = mine("bm25s", data=str(folder), output=tmp_path / "mined.jsonl", **TOP)
    assert made["counts"]["queries_without_positives"] == 2
    (row,) = read_training(tmp_path / "mined.jsonl").rows()
    assert ([one.id for one in row.positives], [one.id for one in row.negatives]) == (["d1"], ["d3"])


def test_the_columns_of_training_rows_are_kept_in_what_is_mined(tmp_path):
    rows = [
        {"ask": f"wing {word}", "text": f"wing of a {word}", "answer": word} for word in ("bird", "plane")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = dict(data=str(tmp_path / "rows.jsonl"), columns={"query": "ask", "positive": "text"})
    made = mine("bm25s", output=tmp_path / "mined.jsonl", **given, **TOP)
    columns = {"form": "sentence-transformers", "query": ["ask"], "positive": ["text"], "unused": ["answer"]}
    assert made["data"]["columns"] == [columns]
    assert [one.text for row in read_training(tmp_path / "mined.jsonl").rows() for one in row.negatives] == [
        "wing of a plane",
        "wing of a bird",
    ]
    assert mine("bm25s", output=tmp_path / "mined.jsonl", resume=True, **given, **TOP).record == made.record


def test_a_teacher_scores_no_more_than_are_needed(model, judged, cross_encoder, tmp_path):
    read = read_beir(judged, "train")
    qrels = {query: {**grades, "d50": 1} for query, grades in read.qrels.items()}
    read = replace(read, queries=dict(list(read.queries.items())[:12]), qrels=qrels)
    finder = Dense(Retriever(open_model(str(model)), tmp_path / "store"), read)
    teacher = open_teacher(str(cross_encoder))
    asked, score = [], teacher.score

    def counted(queries, passages, **more):
        asked.extend(zip(queries, passages, strict=True))
        return score(queries, passages, **more)

    object.__setattr__(teacher, "score", counted)
    rules = MiningRules(mined=4, depth=30, teacher=str(cross_encoder), teacher_margin=0.0)
    path = tmp_path / "mined.jsonl"
    said = mine_into(path, finder, read, rules, work=tmp_path / "work", teacher=teacher)
    assert len(set(asked)) == len(asked), "a pair was scored twice"
    texts = dict(zip(read.corpus_ids, read.passages, strict=True))
    run, scored, rejected = retrieve(open_model(str(model)).model, read, k=60), 0, 0
    for row in rows_of(path):
        ranked = [one for one in run[row["query_id"]] if one not in row["pos_id"]][:30]
        order = [ranked[place] for place in chosen(np.arange(30), rules, 42, row["query_id"])]
        worth = score([row["query"]] * 32, [texts[one] for one in [*row["pos_id"], *order]]).tolist()
        kept, seen = {}, 0
        for one, value in zip(order, worth[2:], strict=True):
            if len(kept) == 4:
                break
            seen += 1
            if value <= max(worth[:2]):
                kept[one] = value
        scored, rejected = scored + seen + 2, rejected + seen - len(kept)
        assert row["neg_id"] == sorted(kept, key=ranked.index)
        assert row["neg_scores"] == pytest.approx([kept[one] for one in row["neg_id"]], abs=1e-5)
        assert row["pos_scores"] == pytest.approx(worth[:2], abs=1e-5)
    assert len(asked) == scored
    assert said["counts"]["removed_teacher_margin"] == rejected > 0
    assert said["teacher"] == {"name": "cross", **teacher.metadata}


# Kills, and what is there already

# Imports once, then mines in a child for each moment at which it is to be killed, and once to the end.
KILLED = """import json, os, signal, sys
import pyarrow.parquet, safetensors.numpy, sentence_transformers, torch
from stzoo.finetuning.mining import shards
from stzoo.finetuning.mining.mine import mine
shards.PART = shards.TAUGHT = 5
for moments, options in json.loads(sys.argv[1]):
    for event, where in [*moments, ["never", ""]]:
        child = os.fork()
        if not child:
            def kill(now, given):
                if now == event and where in str(given):
                    os.kill(os.getpid(), signal.SIGKILL)
            sys.addaudithook(kill)
            mine(resume=True, progress=False, **options)
            os._exit(0)
        print(os.waitpid(child, 0)[1], flush=True)
"""


def test_a_killed_mining_goes_on_and_ends_the_same(model, judged, cross_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "PART", 5)
    monkeypatch.setattr(shards, "TAUGHT", 5)
    plain = dict(model=str(model), data=str(judged), mined=4, depth=20)
    taught = plain | dict(teacher=str(cross_encoder), teacher_margin=0.0, relative_margin=0.01)
    jobs = []
    for name, options in (("plain.parquet", plain), ("taught.jsonl", taught)):
        mine(output=tmp_path / name, store=str(tmp_path / "store"), **options)
        moments = [
            ("os.rename", "mining.json"),
            ("os.rename", "-document-"),  # a shard of the store
            ("os.rename", "part-000003"),
            ("os.rename", "part-000007"),
            ("os.rename", f"killed/{name}'"),
            ("os.remove", "part-"),  # all is done but to clear up
        ][3 * (options is taught) :]
        own = dict(output=str(tmp_path / "killed" / name), store=str(tmp_path / f"store-{name}"))
        jobs.append((moments, options | own))
    command = [sys.executable, "-c", KILLED, json.dumps(jobs)]
    done = processes.run(command, capture_output=True, text=True)
    assert done.stdout.split() == ["9"] * 6 + ["0"] + ["9"] * 3 + ["0"], done.stderr
    assert sorted(one.name for one in (tmp_path / "killed").iterdir()) == ["plain.parquet", "taught.jsonl"]
    for name in ("plain.parquet", "taught.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_what_is_done_is_neither_done_again_nor_mixed_with_other_settings(mined, monkeypatch, tmp_path):
    monkeypatch.setattr(shards, "PART", 10)
    made, rank = [], shards._Mining._rank

    def breaks(self, part, **given):
        made.append(part.first)
        if made.count(20) == 1 and part.first == 20:
            raise KeyboardInterrupt
        return rank(self, part, **given)

    monkeypatch.setattr(shards._Mining, "_rank", breaks)
    with pytest.raises(KeyboardInterrupt):
        mined()
    with pytest.raises(stzoo.OutputError, match=r"unfinished.*--resume"):
        mined()
    with pytest.raises(stzoo.OutputError, match=r"recipe.depth: 20 then, 21 now"):
        mined(resume=True, depth=21)
    with pytest.raises(stzoo.OutputError, match=r"data.split: 'train' then, 'dev' now"):
        mined(resume=True, split="dev")
    mined(resume=True)
    assert made == [0, 10, 20, 20, 30]
    assert not list(tmp_path.glob(".*"))


def test_a_file_that_is_there_is_kept_unless_it_is_to_be_replaced(mined):
    said, path = mined()
    before = path.read_bytes()
    with pytest.raises(stzoo.OutputError, match="exists already"):
        mined(depth=9)
    with pytest.raises(stzoo.OutputError, match=r"recipe.depth: 20 then, 9 now"):
        mined(depth=9, resume=True)
    assert mined(resume=True)[0] == said
    assert path.read_bytes() == before
    assert mined(depth=9, overwrite=True)[0]["recipe"]["depth"] == 9
    assert path.read_bytes() != before
    path.write_text('{"query": "q", "pos": ["p"], "neg": []}\n')
    for how in (dict(resume=True), dict(overwrite=True)):
        with pytest.raises(stzoo.OutputError, match="not a file that stzoo mine wrote"):
            mined(**how)
    assert path.read_text().startswith('{"query": "q"')


def test_replacing_a_file_goes_on_after_a_kill_and_a_damaged_part(mined, monkeypatch):
    _, path = mined()
    monkeypatch.setattr(shards, "PART", 10)
    write = shards.write_training
    monkeypatch.setattr(shards, "write_training", lambda *_: 1 / 0)
    for depth in (8, 9):
        with pytest.raises(ZeroDivisionError):
            mined(depth=depth, overwrite=True)
    monkeypatch.setattr(shards, "write_training", write)
    damaged = path.parent / f".{path.name}.mining/part-000002.safetensors"
    data = damaged.read_bytes()
    damaged.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # one bit, which is another score or count
    assert mined(depth=9, resume=True)[0]["recipe"]["depth"] == 9
    assert len(rows_of(path)) == 40
    assert path.read_bytes() == mined("fresh.jsonl", depth=9)[1].read_bytes()


def test_parts_that_a_kill_left_of_a_whole_file_are_no_mining(mined, monkeypatch, tmp_path):
    with monkeypatch.context() as killed:
        killed.setattr(shards, "remove_files", lambda work, names: (work / names[0]).unlink(missing_ok=True))
        _, path = mined()
    assert list(tmp_path.glob(".mined.jsonl.mining/part-*"))
    path.unlink()
    _, expected = mined("fresh.jsonl", depth=9)
    assert mined(depth=9)[1].read_bytes() == expected.read_bytes()
    assert not list(tmp_path.glob(".*"))


# Mistakes


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (dict(data="/no/such"), "/no/such"),
        (dict(split="tran"), "did you mean 'train'"),
        (dict(name="mined.csv"), ".parquet or .jsonl"),
        (dict(depth=4, skip=2), "depth 4 minus skip 2 leaves too few"),
        (dict(teacher_margin=1.0), "need a teacher"),
        (dict(model="bm25s", max_tokens=20), "leave max_tokens out"),
        (dict(model="bm25s", language="klingon"), "language 'klingon' is unknown"),
        (dict(language="de"), "applies to bm25s only"),
        (dict(model="/no/such"), "/no/such"),
        (dict(memory_gib=1e-9), "memory_gib"),
        (dict(minned=3), "did you mean 'mined'"),
    ],
)
def test_a_mistake_is_told_and_leaves_nothing(change, told, mined, tmp_path):
    with pytest.raises(stzoo.StzooError, match=told):
        mined(**change)
    assert not [one for one in tmp_path.iterdir() if one.name != "store"]


def test_a_retriever_is_no_teacher(mined, model):
    with pytest.raises(stzoo.ModelError, match="CrossEncoder"):
        mined(teacher=str(model))


def test_the_command_shows_the_counts_and_prints_them_as_json(model, judged, tmp_path):
    words = ["mine", str(model), "--data", str(judged), "--mined", "5", "--store", str(tmp_path / "store")]
    shown = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "a.jsonl"), "--depth", "9"])
    assert shown.exit_code == 0
    assert ["queries", "40"] in [line.split() for line in shown.output.splitlines()]
    told = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "b.jsonl"), "--json"])
    assert json.loads(told.stdout)["counts"]["negatives"] == 200
