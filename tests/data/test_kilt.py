import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from support.helpers import cli

import stzoo
from stzoo.data import kilt
from stzoo.errors import DataError, RecipeError, StzooError
from stzoo.evaluation import kilt as kilt_scoring
from stzoo.evaluation.bench.datasets import select_datasets
from stzoo.evaluation.bench.kilt_suite import by_task
from stzoo.evaluation.measures import parse_measures
from stzoo.evaluation.scoring import score as score_documents
from stzoo.models.loaded import open_model
from stzoo.retrieval.bm25 import retrieve_bm25
from stzoo.retrieval.search.retriever import Retriever
from stzoo.testing import tiny_masked_lm
from stzoo.utils.logging import silence_hf_logging

PAGES = list("abcdefgh")
evidence_sets = st.lists(st.frozensets(st.sampled_from(PAGES[:5]), max_size=3), max_size=4, unique=True)
rankings = st.lists(st.sampled_from(PAGES), max_size=12)


def sets(*texts):
    """Evidence sets by the letters of their pages."""
    return {"q": tuple(map(frozenset, texts))}


def scored(evidence, pages, ks=(1, 2, 3)):
    return {
        name: values["q"] for name, values in kilt_scoring.score(evidence, {"q": pages}, ks).per_query.items()
    }


def row(number, *provenances, **more):
    """A line of a KILT file; None makes an output without provenance."""
    outputs = [
        {"answer": "x"}
        | ({} if pages is None else {"provenance": [{"wikipedia_id": page} for page in pages]})
        for pages in provenances
    ]
    return {"id": number, "input": f"what is {number}", "output": outputs} | more


def put(path, *rows):
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def at(k, precision, recall, success):
    return {f"precision@{k}": precision, f"recall@{k}": recall, f"success_rate@{k}": success}


# Each by hand from the definition at the head of kilt.py.
def test_a_set_of_two_pages_is_one_point_at_the_place_of_the_second():
    # Pages x a y b: points x, y, {a, b}. R = 2: of x, a one is evidence.
    assert scored(sets("ab"), "xayb") == {"Rprec": 1 / 2} | at(1, 0, 0, 0) | at(2, 0, 0, 0) | at(
        3, 1 / 3, 1, 1
    )


def test_half_an_evidence_set_is_a_point_without_being_a_hit():
    # Points {b, c} (half), {a}: one of two sets within two points. Rprec: {a} has 0 of 1, {b, c} 1 of 2.
    assert scored(sets("a", "bc"), "ba", [1, 2]) == {"Rprec": 1 / 2} | at(1, 0, 0, 0) | at(2, 1 / 2, 1 / 2, 1)


def test_a_page_of_two_sets_makes_two_points():
    # a completes {a} and is half of {a, b}; b then completes that: both points are hits.
    assert scored(sets("a", "ab"), "ab", [1, 2]) == {"Rprec": 1} | at(1, 1, 1 / 2, 1) | at(2, 1, 1, 1)


def test_of_repeated_pages_the_first_counts():
    # As x, a: with the repetition a would be third.
    assert scored(sets("a"), "xxa", [2]) == {"Rprec": 0} | at(2, 1 / 2, 1, 1)
    assert scored(sets("ab"), "aab", [1]) == {"Rprec": 1} | at(1, 1, 1, 1)


def test_an_output_with_empty_provenance_is_a_set_that_cannot_be_found():
    assert scored(sets("a", ""), "a", [1]) == {"Rprec": 1} | at(1, 1, 1 / 2, 1)


@pytest.mark.parametrize("evidence", [sets(), sets("")])
def test_a_question_without_provenance_scores_0_and_counts(evidence):
    scores = kilt_scoring.score(evidence | {"other": (frozenset("a"),)}, {"q": "ab", "other": "a"}, [1])
    assert set(scores.mean.values()) == {0.5}
    assert {values["q"] for values in scores.per_query.values()} == {0.0}


def test_a_question_that_the_guess_leaves_out_scores_0_and_one_without_judgement_is_left_out():
    scores = kilt_scoring.score(
        sets("a") | {"other": (frozenset("a"),)}, {"other": "a", "stranger": "b"}, [1]
    )
    assert set(scores.mean.values()) == {0.5}
    assert {tuple(values) for values in scores.per_query.values()} == {("q", "other")}


@given(evidence_sets, rankings, st.integers(1, 12))
@settings(max_examples=500)
def test_scores_follow_from_the_place_of_each_set(found_sets, pages, k):
    """A complete set stands behind each other page and set that was last touched before its last page."""
    unique = list(dict.fromkeys(pages))
    last = [max((unique.index(page) for page in s if page in unique), default=None) for s in found_sets]
    strays = [i for i, page in enumerate(unique) if not any(page in s for s in found_sets)]

    def place(number):
        before = [i for i in strays if i < last[number]]
        order = [(end, i) for i, end in enumerate(last) if end is not None]
        return len(before) + sum(other < (last[number], number) for other in order)

    complete = [i for i, s in enumerate(found_sets) if s and s <= set(unique)]
    hits = sum(place(i) < k for i in complete)
    best = max((len(s & set(unique[: len(s)])) / len(s) for s in found_sets if s), default=0)
    recall = hits / len(found_sets) if found_sets else 0
    expected = {"Rprec": best} | at(k, hits / k, recall, float(hits > 0))
    assert scored({"q": tuple(found_sets)}, pages, [k]) == pytest.approx(expected)


@given(st.frozensets(st.sampled_from(PAGES), min_size=1), rankings, st.integers(1, 12))
@settings(max_examples=100)
def test_where_each_set_is_one_page_the_scores_are_the_usual_ones(pages, ranking, k):
    ours = scored({"q": tuple(frozenset([page]) for page in sorted(pages))}, ranking, [k])
    run = {page: -float(i) for i, page in enumerate(dict.fromkeys(ranking))}
    usual = score_documents(
        {"q": dict.fromkeys(pages, 1)}, {"q": run}, parse_measures(f"P@{k} R@{k} Success@{k}")
    )
    assert [ours[f"{name}@{k}"] for name in ("precision", "recall", "success_rate")] == pytest.approx(
        list(usual.mean.values())
    )


def test_cutoffs_below_1_and_no_questions_are_errors():
    for ks in ([], [0], [5, -1]):
        with pytest.raises(RecipeError, match="at least 1"):
            kilt_scoring.score(sets("a"), {"q": "a"}, ks)
    with pytest.raises(DataError, match="no questions"):
        kilt_scoring.score({}, {})


def test_pages_are_ranked_by_their_best_passage_with_ties_as_in_trec_eval():
    run = {"q": {"1": 0.75, "2": 0.5, "3": 0.5, "4": 0.75, "5": 0.125}, "none": {}}
    page_of = {"1": "x", "2": "y", "3": "z", "4": "y", "5": "x"}
    ranked = kilt.to_pages(run, page_of)
    assert [list(found.items()) for found in ranked.values()] == [[("y", 0.75), ("x", 0.75), ("z", 0.5)], []]
    with pytest.raises(DataError, match="'9', found for query 'q'"):
        kilt.to_pages({"q": {"9": 1.0}}, page_of)


@pytest.mark.parametrize("name", ["gold.jsonl", "gold.jsonl.gz"])
def test_a_kilt_file_is_read(tmp_path, name):
    path = put(tmp_path / name, row("a", [" 7 ", 7, "8"], None, ["8", "7"], []), row(3, None), row(" c", [1]))
    assert kilt.read_gold(path) == {
        "a": (frozenset({"7", "8"}), frozenset()),
        "3": (),
        "c": (frozenset({"1"}),),
    }
    path = put(
        tmp_path / name, row("a", [2, "1", 2]), row("b", None), {"id": "c", "output": [{"provenance": [{}]}]}
    )
    assert kilt.read_guess(path) == {"a": ["2", "1", "2"], "b": [], "c": []}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([row("a", ["1"]), "{oops"], r"gold\.jsonl:2: invalid JSON"),
        ([row("a", ["1"]), row("a", ["2"])], r"gold\.jsonl:2: question id 'a' for the second time"),
        ([{"output": [{}]}], r"gold\.jsonl:1: no id"),
        ([row(1.5, ["1"])], r"gold\.jsonl:1: the id 1\.5; expected a \"id\" that is text or a whole number"),
        ([row(" ", ["1"])], r"gold\.jsonl:1: the id \" \""),
        ([{"id": "a", "input": "x"}], r"gold\.jsonl:1: question 'a' without output"),
        ([row("a")], r"gold\.jsonl:1: question 'a' without output"),
        ([{"id": "a", "output": "b"}], r"gold\.jsonl:1: the output \"b\""),
        ([{"id": "a", "output": [{"provenance": ["7"]}]}], r"gold\.jsonl:1: the provenance \[\"7\"\]"),
        ([row("a", ["1", None])], r"gold\.jsonl:1: the wikipedia_id null"),
        ([row("a", [True])], r"gold\.jsonl:1: the wikipedia_id true"),
        ([row("a", ["\ud800"])], r"gold\.jsonl:1: invalid JSON .*half of a surrogate pair.*wikipedia_id"),
        ([{"id": "a", "output": [{"provenance": [{"title": "t"}]}]}], r"gold\.jsonl:1: no wikipedia_id"),
        ([], r"gold\.jsonl has no question"),
    ],
)
def test_a_line_that_does_not_hold_is_named(tmp_path, lines, message):
    with pytest.raises(DataError, match=message):
        kilt.read_gold(put(tmp_path / "gold.jsonl", *lines))


def test_a_guess_has_one_output_a_question(tmp_path):
    with pytest.raises(DataError, match=r"guess\.jsonl:2: 2 outputs; expected exactly one"):
        kilt.read_guess(put(tmp_path / "guess.jsonl", row("a", ["1"]), row("b", ["1"], ["2"])))


CORPUS = [
    {"_id": "p1", "title": "Wing", "text": "lift", "wikipedia_id": "10", "metadata": {"url": "u"}},
    {"_id": "p2", "title": "Wing", "text": "drag", "wikipedia_id": 10},
    {"_id": "p3", "title": "Sail", "text": "wind", "metadata": {"wikipedia_id": "20"}},
]


@pytest.fixture
def gold(tmp_path):
    return put(tmp_path / "nq-dev-kilt.jsonl", row("a", ["10", "20"], ["99"]), row("b", None), row("c", [20]))


def test_a_kilt_set_is_judged_by_page(tmp_path, gold):
    corpus = put(tmp_path / "corpus.jsonl.gz", *CORPUS)
    judged = kilt.read_kilt(gold, corpus)
    assert (judged.name, judged.split, judged.folder) == ("nq-kilt", "dev", tmp_path)
    assert list(judged.corpus_ids) == ["p1", "p2", "p3"]
    assert list(judged.passages) == ["Wing lift", "Wing drag", "Sail wind"]
    assert list(judged.pages) == ["10", "10", "20"]
    assert judged.queries == {"a": "what is a", "b": "what is b", "c": "what is c"}
    assert judged.qrels == {"a": {"10": 1, "20": 1, "99": 1}, "b": {}, "c": {"20": 1}}
    assert judged.evidence == kilt.read_gold(gold)
    assert judged.notes == (
        "1 of 3 evidence pages have no passage in the corpus",
        "1 of 3 questions have no provenance; as in KILT they score 0",
    )
    other = kilt.read_kilt(put(tmp_path / "mine.jsonl", row("a", ["10"])), corpus)
    assert (other.name, other.split, other.notes) == ("mine", "test", ())
    run = {"a": {"p2": 0.75, "p1": 0.5, "p3": 0.25}, "b": {"p1": 1.0}, "c": {"p3": 1.0}}
    pages = judged.to_pages(run)
    assert pages == {"a": {"10": 0.75, "20": 0.25}, "b": {"10": 1.0}, "c": {"20": 1.0}}
    assert kilt_scoring.score(judged.evidence, pages, [1]).per_query["recall@1"] == {
        "a": 0.5,
        "b": 0.0,
        "c": 1.0,
    }
    # two relevant pages found of three, one first; nothing to find; found
    assert score_documents(judged.qrels, pages).per_query["Recall@100"] == {"a": 2 / 3, "b": 0.0, "c": 1.0}


def test_pages_may_be_named_in_a_file_of_their_own(tmp_path, gold):
    (tmp_path / "set").mkdir()
    plain = [{key: text for key, text in line.items() if key in ("_id", "text")} for line in CORPUS]
    put(tmp_path / "set" / "corpus.jsonl", *plain)
    names = put(tmp_path / "pages.tsv", "passage\tpage", "p3\t20", "p2\t11", "p1\t10", "p1\t10")
    judged = kilt.read_kilt(gold, tmp_path / "set", names)
    assert list(judged.pages) == ["10", "11", "20"]
    for lines, message in {
        ("p1 10",): r"pages\.tsv:1: 1 field; expected passage-id<TAB>page-id",
        ("p1\t10", "p1\t20"): r"pages\.tsv:2: a second page for passage 'p1'",
        ("p1\t10",): r"pages\.tsv has no page for the passage 'p2'",
    }.items():
        with pytest.raises(DataError, match=message):
            kilt.read_kilt(gold, tmp_path / "set", put(names, *lines))


def test_the_fingerprint_changes_with_pages_and_with_the_way_they_are_grouped(tmp_path, gold):
    corpus = put(tmp_path / "corpus.jsonl", *CORPUS)
    before = kilt.read_kilt(gold, corpus)
    assert before.fingerprint == kilt.read_kilt(gold, corpus).fingerprint
    seen = {before.fingerprint}
    put(corpus, *(line | {"wikipedia_id": "20"} for line in CORPUS))
    moved = kilt.read_kilt(gold, corpus)
    put(corpus, *CORPUS)
    put(gold, row("a", ["10"], ["20"], ["99"]), row("b", None), row("c", [20]))
    split = kilt.read_kilt(gold, corpus)
    assert before.qrels == moved.qrels == split.qrels
    assert before.corpus_fingerprint == moved.corpus_fingerprint == split.corpus_fingerprint
    assert len(seen | {moved.fingerprint, split.fingerprint}) == 3


def test_what_cannot_be_scored_is_an_error(tmp_path, gold):
    corpus = put(tmp_path / "corpus.jsonl", *CORPUS)
    put(gold, row("a", ["77"]))
    with pytest.raises(DataError, match="no evidence page of"):
        kilt.read_kilt(gold, corpus)
    put(gold, row("a", ["10"], input=None))
    with pytest.raises(DataError, match=r"nq-dev-kilt\.jsonl:1: question 'a' without a text"):
        kilt.read_kilt(gold, corpus)
    put(gold, row("a", ["10"]))
    put(corpus, CORPUS[0], {"_id": "p2", "text": "x"})
    with pytest.raises(DataError, match=r"corpus\.jsonl:2: no wikipedia_id"):
        kilt.read_kilt(gold, corpus)
    with pytest.raises(DataError, match="none"):
        kilt.read_kilt(tmp_path / "none.jsonl", corpus)


def test_fact_checking_over_wikipedia_end_to_end(data, tmp_path):
    """Climate-FEVER's claims, whose evidence is five passages each from one to five pages; page = title."""
    folder, prefix = data / "minikilt", "cf:"
    lines = (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    passages = [passage for passage in map(json.loads, lines) if passage["_id"].startswith(prefix)]
    page_of = {passage["_id"]: passage["title"] for passage in passages}
    judged_lines = (folder / "qrels" / "fact-climatefever.dev.tsv").read_text().splitlines()[1:]
    wanted = {}
    for line in judged_lines:
        query, passage, _ = line.split("\t")
        wanted.setdefault(query, []).append(page_of[passage])
    texts = {
        question["_id"]: question["text"]
        for question in map(json.loads, (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines())
    }
    gold = put(
        tmp_path / "climatefever-dev-kilt.jsonl.gz",
        *(row(query, pages, input=texts[query]) for query, pages in wanted.items()),
    )
    corpus = put(
        tmp_path / "corpus.jsonl", *(passage | {"wikipedia_id": passage["title"]} for passage in passages)
    )
    judged = kilt.read_kilt(gold, corpus)
    assert (len(judged.corpus_ids), len(set(judged.pages)), len(judged.queries)) == (5238, 1344, 57)
    assert judged.notes == ()

    run = retrieve_bm25(judged, 1000)
    pages = judged.to_pages(run)
    found = kilt_scoring.score(judged.evidence, pages)
    usual = score_documents(judged.qrels, pages, parse_measures("Rprec Recall@20 nDCG@10")).mean
    # One set a claim: Rprec is the usual one, and a set within 20 points is found at least as often as all
    # pages within 20 pages.
    assert found.mean["Rprec"] == pytest.approx(usual["Rprec"])
    whole = score_documents(judged.qrels, pages).per_query
    assert found.mean["recall@20"] == found.mean["success_rate@20"]
    for query, ranked in pages.items():
        assert len(ranked) == len({page_of[passage] for passage in run[query]})
        all_found = judged.evidence[query][0] <= set(list(ranked)[:20])
        assert found.per_query["recall@20"][query] >= all_found
        assert whole["Recall@1000"][query] >= found.per_query["recall@20"][query]
    assert 0.2 < found.mean["Rprec"] < 0.9
    assert 0.1 < found.mean["recall@20"] < 0.9


def kilt_folder(folder):
    """KILT's own files of two tasks, the corpus beside them."""
    folder.mkdir()
    put(folder / "structured_zeroshot-dev-kilt.jsonl", row("a", ["10"], input="wing lift"))
    put(folder / "nq-dev-kilt.jsonl", row("b", ["20"], input="sail"), row("c", ["10"], input="wind"))
    put(folder / "nq-train-kilt.jsonl", row("d", ["20"]))
    put(folder / "corpus.jsonl", *CORPUS)
    return folder


def beir_folder(folder):
    """The same, as a BEIR folder of two tasks that judge passages; p3 has no page, so its title is one."""
    (folder / "qrels").mkdir(parents=True)
    queries = {"a": "wing lift", "b": "sail", "c": "wind"}
    put(folder / "queries.jsonl", *({"_id": number, "text": text} for number, text in queries.items()))
    put(folder / "corpus.jsonl", *CORPUS[:2], {"_id": "p3", "title": "Sail", "text": "wind"})
    head = "query-id\tcorpus-id\tscore"
    put(folder / "qrels/zsre.dev.tsv", head, "a\tp1\t1", "a\tp3\t0")
    put(folder / "qrels/nq.dev.tsv", head, "b\tp3\t1", "c\tp1\t1", "c\tp2\t1")
    return folder


@pytest.mark.parametrize("layout", [kilt_folder, beir_folder])
def test_the_suite_has_every_task_of_a_folder(layout, tmp_path):
    folder = layout(tmp_path / "data")
    sets = {
        judged.task: judged
        for judged in (one() for one in select_datasets(folder, None, split=None, suite="kilt"))
    }
    assert set(sets) == {"nq", "zsre"}
    assert sets["zsre"].evidence == {"a": (frozenset(["10"]),)}
    assert len(sets["nq"].evidence["c"]) == 1  # two passages of one page
    results = stzoo.bench([], data=folder, suite="kilt", output=tmp_path / "out", progress=False)
    scores = by_task(results)["bm25s"]
    # BM25 finds p3 for b and c: for b its page is right, for c it is not
    assert scores["nq"]["KILT Rprec"] == 0.5
    tasks = [scores[task]["KILT recall@20"] for task in scores if task != "mean"]
    assert scores["mean"]["KILT recall@20"] == sum(tasks) / len(tasks)


def test_queries_of_a_task_get_its_prompt_and_one_without_is_told(tmp_path, capsys):
    folder = kilt_folder(tmp_path / "data")
    model = tmp_path / "model"
    with silence_hf_logging():
        tiny = SentenceTransformer(str(tiny_masked_lm("bert", tmp_path / "bert")), device="cpu")
    tiny.prompts |= {"zsre": "Treaty: "}
    tiny.save_pretrained(str(model))
    retriever = Retriever(open_model(str(model), device="cpu"), tmp_path / "store")
    for one in select_datasets(folder, None, split=None, suite="kilt"):
        judged = one()
        prompt = "Treaty: " if judged.task == "zsre" else ""
        expected = tiny.encode([prompt + text for text in judged.queries.values()])
        found = retriever.queries(judged)[: len(judged.queries)]
        np.testing.assert_allclose(found, expected, atol=1e-5)
        documents = retriever.documents(judged)
    assert len(list((tmp_path / "store").rglob("*-document*/manifest.json"))) == 1  # one corpus, encoded once
    assert documents.shape[0] == 3

    stzoo.bench(f"mine={model}", data=folder, suite="kilt", output=tmp_path / "results", bm25=False)
    told = capsys.readouterr().err
    assert "mine has prompts for zsre, but none for nq, so the queries of nq get none" in told
    assert "queries of zsre" not in told
    card = stzoo.card(model, results=tmp_path / "results")
    assert "| KILT Rprec | KILT recall@20 | KILT recall@100 |" in card


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (dict(suite="kelt"), "did you mean 'kilt'"),
        (dict(suite="kilt", data=None), "needs --data"),
        (dict(suite="kilt", data="nowhere"), "no file or folder nowhere"),
        (dict(suite="kilt", split="test"), "TASK-test-kilt.jsonl"),
    ],
)
def test_a_suite_that_is_not_there_is_told(given, told, tmp_path):
    given = {"data": kilt_folder(tmp_path / "data"), "output": tmp_path / "out"} | given
    with pytest.raises(StzooError, match=told):
        stzoo.bench([], **given)
    assert not (tmp_path / "out").exists()


def test_minikilt_is_scored_task_by_task(data, tmp_path):
    done = cli(
        "bench", "--suite", "kilt", "--data", data / "minikilt", "--output", tmp_path / "out", "--json",
        "--k", "200",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tasks = json.loads(done.stdout)["kilt"]["bm25s"]
    assert set(tasks) == {
        "dialog-cmudog", "el-wiki", "fact-climatefever", "qa-squad", "slot-googlere", "mean",
    }  # fmt: skip
    assert 0.9 < tasks["qa-squad"]["KILT Rprec"] < 0.95
    assert tasks["mean"]["KILT recall@100"] > tasks["mean"]["KILT recall@20"] > tasks["mean"]["KILT Rprec"]
