"""BEIRModel goes through BEIR's own searcher and scorer to stzoo's own scores.

The second half holds the rows of the table in the docs: what beir 2.2.0 does, by its own code, and what stzoo
does instead. Those that concern scoring alone are in test_metrics.py.
"""

import copy
import json
import logging

import numpy as np
import pytest
import torch
from beir.datasets.data_loader import GenericDataLoader
from beir.retrieval.evaluation import EvaluateRetrieval
from beir.retrieval.models import SentenceBERT
from beir.retrieval.search.dense import DenseRetrievalExactSearch
from datasets import Dataset

from stzoo.data.beir import read_beir, write_beir
from stzoo.errors import DataError, ModelError, OutputError, RecipeError
from stzoo.evaluation.bench.beir_model import BEIRModel, _passages
from stzoo.evaluation.scoring import score
from stzoo.models.loading import like, load_model
from stzoo.retrieval.search.exact import retrieve, top_k
from stzoo.retrieval.search.faiss_index import open_index
from stzoo.retrieval.store import fill

PROMPTS = {"query": "question about the ", "document": "passage: "}
logging.getLogger("beir").setLevel(logging.WARNING)


@pytest.fixture(scope="module")
def model(base):
    """A tiny model with prompts. Its words lie far apart, so that no rounding ranks."""
    torch.manual_seed(0)
    model = load_model(str(base), pooling="mean")
    model[0].model.get_input_embeddings().weight.data.normal_()
    model.prompts = PROMPTS
    return model.eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """The model on disk."""
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(str(path))
    return path


def by_beir(encoder, folder, score_function="cos_sim", k=1000):
    """What BEIR's loader, exact search and scorer make of a set with this encoder."""
    corpus, queries, qrels = GenericDataLoader(str(folder)).load("test")
    searcher = DenseRetrievalExactSearch(encoder, batch_size=16, show_progress_bar=False)
    results = EvaluateRetrieval(searcher, [k], score_function).retrieve(corpus, queries)
    ndcg, _map, recall, _ = EvaluateRetrieval.evaluate(qrels, copy.deepcopy(results), [10, 100])
    return ndcg | _map | recall, results


def by_stzoo(model, folder):
    judged = read_beir(folder)
    run = retrieve(model, judged)
    return score(judged.qrels, run).mean, run


def assert_agree(theirs, ours):
    # beir rounds to five digits
    for name, key in {"nDCG@10": "NDCG@10", "MAP@100": "MAP@100", "Recall@100": "Recall@100"}.items():
        assert ours[name] == pytest.approx(theirs[key], abs=0.6e-5)
    assert 0.02 < ours["nDCG@10"] < 0.98  # neither nothing nor all is found


def test_beir_gives_our_models_the_scores_of_stzoos_own_bench(model, judged):
    wrapped = BEIRModel(model)
    theirs, results = by_beir(wrapped, judged, wrapped.score_function)
    ours, run = by_stzoo(model, judged)
    assert_agree(theirs, ours)
    for query, found in run.items():
        assert results[query] == pytest.approx(found, abs=1e-5)


def test_a_model_compared_by_dot_product_is_scored_alike(model, judged):
    by_dot = like(model, list(model))
    by_dot.similarity_fn_name = "dot"
    wrapped = BEIRModel(by_dot)
    assert wrapped.score_function == "dot"
    theirs, results = by_beir(wrapped, judged, wrapped.score_function)
    ours, run = by_stzoo(by_dot, judged)
    assert_agree(theirs, ours)
    assert max(run["q50"].values()) == pytest.approx(max(results["q50"].values()), rel=1e-4)
    assert run["q50"] != pytest.approx(by_stzoo(model, judged)[1]["q50"], abs=0.01)  # the cosines


def test_beirs_sentence_bert_leaves_the_models_prompts_out(model, folder, judged):  # B4
    ours, run = by_stzoo(model, judged)
    theirs, results = by_beir(SentenceBERT(str(folder), device="cpu"), judged)
    assert results["q50"] != pytest.approx(run["q50"], abs=1e-3)
    unprompted = like(model, list(model))
    unprompted.prompts = {}
    assert_agree(theirs, by_stzoo(unprompted, judged)[0])
    named = {"query": "query", "passage": "document"}  # unless they are named, in words of beir's own
    theirs, _ = by_beir(SentenceBERT(str(folder), prompt_names=named, device="cpu"), judged)
    assert_agree(theirs, ours)


def test_a_folder_is_loaded(folder, model, judged):
    theirs, _ = by_beir(BEIRModel(folder, device="cpu", batch_tokens=256), judged)
    assert theirs == by_beir(BEIRModel(model), judged)[0]
    with pytest.raises(ModelError, match="is not a folder, and cannot be loaded from the Hub"):
        BEIRModel("nowhere/nothing")


ROWS = [
    {"title": "Wings", "text": "that lift"},
    {"title": "", "text": " drag "},
    {"title": "Sails", "text": ""},
]
PASSAGES = ["Wings that lift", "drag", "Sails"]
FORMS = {
    "rows": ROWS,
    "rows with ids, and None for what is missing": [
        row | {"_id": str(i), "title": row["title"] or None, "text": row["text"] or None}
        for i, row in enumerate(ROWS)
    ],
    "rows without the keys": [{key: text for key, text in row.items() if text} for row in ROWS],
    "columns": {key: [row[key] for row in ROWS] for key in ("title", "text")},
    "a data set": Dataset.from_list(ROWS),
    "a data set without titles": Dataset.from_dict({"text": PASSAGES}),
    "columns without titles": {"text": PASSAGES},
    "texts": PASSAGES,
}


@pytest.mark.parametrize("form", FORMS)
def test_documents_are_encoded_in_every_form_that_beir_has(model, form):
    vectors = BEIRModel(model).encode_corpus(FORMS[form], 8)
    assert (type(vectors), vectors.dtype) == (np.ndarray, np.float32)
    np.testing.assert_allclose(vectors, model.encode_document(PASSAGES), atol=1e-6)
    assert _passages(FORMS[form]) == PASSAGES  # to the last space, which this model's tokenizer passes over


@pytest.mark.parametrize(
    "corpus", [[ROWS[0], {"_id": "2"}], Dataset.from_dict({"contents": ["x"]}), {"body": ["x"]}]
)
def test_documents_without_any_text_are_an_error(model, corpus):
    with pytest.raises(DataError, match=r"document [12] of the corpus is empty"):
        BEIRModel(model).encode_corpus(corpus)


def test_the_options_of_beirs_searchers_are_honoured(model):
    wrapped = BEIRModel(model)
    queries = ["what lifts", "what drags at the sail"]
    plain = wrapped.encode_queries(queries, 16)
    np.testing.assert_allclose(plain, model.encode_query(queries), atol=1e-6)
    assert not np.allclose(np.linalg.norm(plain, axis=1), 1, atol=0.01)
    tensor = wrapped.encode_queries(queries, batch_size=16, convert_to_tensor=True, show_progress_bar=False)
    assert torch.equal(tensor, torch.from_numpy(plain))
    unit = wrapped.encode_corpus(ROWS, normalize_embeddings=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    with pytest.raises(RecipeError, match="batch_tokens is 0"):
        BEIRModel(model, batch_tokens=0).encode_queries(queries)
    with pytest.raises(TypeError, match="precision"):
        wrapped.encode_queries(queries, precision="int8")


def test_a_similarity_that_beir_has_not_is_an_error(model):
    other = like(model, list(model))
    other.similarity_fn_name = "euclidean"
    with pytest.raises(ModelError, match=r"is 'euclidean', but BEIR supports only cosine and dot\."):
        _ = BEIRModel(other).score_function


# The rows of the table.
class Given:
    """An encoder of vectors that are given, as BEIR wants one and as top_k does."""

    def __init__(self, queries, corpus):
        self.queries, self.corpus = queries, corpus

    def encode_queries(self, *_, **__):
        return torch.tensor(self.queries)

    def encode_corpus(self, *_, **__):
        return torch.tensor(self.corpus)

    def by_beir(self, query_ids, corpus_ids, score_function="dot", k=10, **options):
        corpus = {document: {"title": "", "text": "x"} for document in corpus_ids}
        searcher = DenseRetrievalExactSearch(self, show_progress_bar=False)
        return searcher.search(corpus, dict.fromkeys(query_ids, "x"), k, score_function, **options)

    def by_stzoo(self, query_ids, corpus_ids, similarity="dot", k=10):
        vectors = (np.array(side, np.float32) for side in (self.queries, self.corpus))
        return top_k(*vectors, query_ids, corpus_ids, k, drop_self=False, similarity=similarity)


TWO = Given([[1.0, 0.0], [0.0, 1.0]], [[3.0, 4.0], [1.0, 0.0], [0.5, 0.0]])


@pytest.mark.parametrize("kind", ["FlatIP", "PQ", "HNSW", "HNSWSQ", "Binary", "PCA"])
def test_beirs_faiss_searchers_cannot_be_made(kind, tmp_path):  # B1
    from beir.retrieval.search.dense import faiss_search

    with pytest.raises(TypeError, match="abstract"):
        getattr(faiss_search, f"{kind}FaissSearch")(TWO)
    index = open_index(tmp_path, np.array(TWO.corpus, np.float32), "Flat", similarity="dot")
    found = index.search(np.array(TWO.queries, np.float32), ["q", "r"], ["a", "b", "c"], 3, drop_self=False)
    assert dict(found) == dict(TWO.by_stzoo(["q", "r"], ["a", "b", "c"]))


def test_beir_needs_two_queries():  # B2
    one = Given(TWO.queries[:1], TWO.corpus)
    with pytest.raises(IndexError):
        one.by_beir(["q"], ["a", "b", "c"])
    assert list(one.by_stzoo(["q"], ["a", "b", "c"])["q"]) == ["a", "b", "c"]


def test_beir_needs_titles(model, tmp_path):  # B3
    rows = [{"_id": "a", "title": "", "text": "wings lift"}, {"_id": "b", "title": "", "text": "sails"}]
    queries, qrels = {"1": "wings", "2": "sails"}, {"1": {"a": 1}, "2": {"b": 1}}
    folder = write_beir(tmp_path / "set", rows, queries, {"test": qrels})
    plain = [{"_id": row["_id"], "text": row["text"]} for row in rows]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain))
    with pytest.raises(TypeError):
        by_beir(BEIRModel(model), folder)
    assert set(by_stzoo(model, folder)[0]) >= {"nDCG@10"}
    assert read_beir(folder).passages == ["wings lift", "sails"]


def test_beir_drops_a_document_under_the_querys_id_from_every_set():  # B7
    found = TWO.by_beir(["a", "q"], ["a", "b", "c"])
    assert "a" not in found["a"]
    kept = EvaluateRetrieval.evaluate({"a": {"a": 1}}, found, [10], ignore_identical_ids=False)
    assert kept[0]["NDCG@10"] == 0.0
    assert next(iter(TWO.by_stzoo(["a", "q"], ["a", "b", "c"])["a"])) == "a"


def test_beir_returns_results_out_of_order_though_they_are_asked_for_sorted():  # B10
    found = TWO.by_beir(["q", "r"], ["a", "b", "c"], return_sorted=True)["q"]
    assert sorted(found.values(), reverse=True) != list(found.values())
    found = TWO.by_stzoo(["q", "r"], ["a", "b", "c"])["q"]
    assert list(found.items()) == [("a", 3.0), ("b", 1.0), ("c", 0.5)]


def test_beir_ranks_no_number_above_negative_scores():  # B16
    broken = Given([[-1.0, 0.0], [-1.0, 0.0]], [[3.0, 0.0], [float("nan"), 0.0]])
    assert broken.by_beir(["q", "r"], ["a", "b"])["q"] == {"a": -3.0, "b": -1.0}
    with pytest.raises(ModelError, match="1 of 2 passage vectors"):
        broken.by_stzoo(["q", "r"], ["a", "b"])


def test_beir_keeps_ties_at_the_cut_by_chance_of_chunks():  # B6, at the cut
    level = Given([[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0]] * 5)
    assert set(level.by_stzoo(["q", "r"], list("edcba"), k=2)["q"]) == {"e", "d"}
    assert set(level.by_stzoo(["q", "r"], list("abcde"), k=2)["q"]) == {"e", "d"}
    assert (
        level.by_beir(["q", "r"], list("edcba"), k=2)["q"]
        != level.by_beir(["q", "r"], list("abcde"), k=2)["q"]
    )


def test_beir_encodes_no_data_set_from_the_hub(model, folder):  # B15
    rows = Dataset.from_list(ROWS)
    with pytest.raises(UnboundLocalError):
        SentenceBERT(str(folder), device="cpu").encode_corpus(rows)
    assert BEIRModel(model).encode_corpus(rows).shape == (3, 32)


def test_beir_cannot_start_its_processes(folder):  # B14
    with pytest.raises(AttributeError, match="_encode_multi_process_worker"):
        SentenceBERT(str(folder), device="cpu").start_multi_process_pool(["cpu"])


def small(path, **files):
    """A set of two documents and two queries, with files put in place of its own."""
    rows = [{"_id": "1", "title": "", "text": "wings"}, {"_id": "2", "title": "", "text": "sails"}]
    qrels = {"test": {"8": {"1": 1}, "9": {"2": 1}}}
    folder = write_beir(path, rows, {"8": "wings", "9": "sails"}, qrels)
    for name, lines in files.items():
        file = {"qrels": "qrels/test.tsv"}.get(name, f"{name}.jsonl")
        (folder / file).write_text("".join(line + "\n" for line in lines))
    return folder


def load(folder):
    return GenericDataLoader(str(folder)).load("test")


HEADER = "query-id\tcorpus-id\tscore"


def test_beirs_loader_fails_or_is_silent_where_ours_names_the_line_or_reads_on(tmp_path):  # B11
    unknown = small(tmp_path / "unknown", qrels=[HEADER, "8\t1\t1", "7\t1\t1"])
    with pytest.raises(KeyError):
        load(unknown)
    with pytest.raises(DataError, match=r"test\.tsv:3: the unknown query '7'"):
        read_beir(unknown)

    numbers = small(
        tmp_path / "numbers", queries=['{"_id": 8, "text": "wings"}', '{"_id": 9, "text": "sails"}']
    )
    with pytest.raises(KeyError):
        load(numbers)
    assert list(read_beir(numbers).queries) == ["8", "9"]

    floats = small(tmp_path / "floats", qrels=[HEADER, "8\t1\t1.0"])
    with pytest.raises(ValueError, match="invalid literal"):
        load(floats)
    assert read_beir(floats).qrels == {"8": {"1": 1}}

    headless = small(tmp_path / "headless", qrels=["8\t1\t1", "9\t2\t1"])
    assert load(headless)[2] == {"9": {"2": 1}}  # a judgement is lost
    with pytest.raises(DataError, match=r"test\.tsv:1: a judgement in place of the header"):
        read_beir(headless)

    twice = small(
        tmp_path / "twice",
        corpus=['{"_id": "1", "title": "", "text": "a"}'] * 2 + ['{"_id": "2", "text": ""}'],
    )
    assert len(load(twice)[0]) == 2  # the last one wins
    with pytest.raises(DataError, match=r"corpus\.jsonl:2: document id '1' for the second time"):
        read_beir(twice)


def test_beirs_run_files_have_no_ranks_and_do_not_bear_ids_with_spaces(tmp_path):  # B12
    from beir.util import load_runfile, save_runfile

    from stzoo.data.trec import check_ids, write_run

    run = {"q": {"b": 2.0, "a": 1.0}}
    save_runfile(str(tmp_path / "beir.run"), run)
    assert [line.split()[3] for line in (tmp_path / "beir.run").read_text().splitlines()] == ["0", "0"]
    write_run(tmp_path / "ours.run", run, "us")
    assert [line.split()[3] for line in (tmp_path / "ours.run").read_text().splitlines()] == ["1", "2"]

    save_runfile(str(tmp_path / "spaces.run"), {"q": {"a b": 1.0}})
    with pytest.raises(ValueError, match="too many values"):
        load_runfile(str(tmp_path / "spaces.run"))
    rows = [{"_id": "a b", "text": "x"}]
    folder = write_beir(tmp_path / "set", rows, {"q": "x"}, {"test": {"q": {"a b": 1}}})
    with pytest.raises(DataError, match="the id 'a b' contains white space"):
        check_ids(read_beir(folder))


def test_beirs_stored_vectors_are_compared_by_dot_product_and_taken_for_any_corpus(tmp_path):  # B13
    def stored(encoder, query_ids, corpus_ids):
        evaluation = EvaluateRetrieval(
            DenseRetrievalExactSearch(encoder, show_progress_bar=False), [3], "cos_sim"
        )
        corpus = {document: {"title": "", "text": "x"} for document in corpus_ids}
        return evaluation.encode_and_retrieve(
            corpus, dict.fromkeys(query_ids, "x"), encode_output_path=str(tmp_path)
        )

    # by cosine b and c are nearest to q; by dot product a is
    found = stored(TWO, ["q", "r"], ["a", "b", "c"])
    assert max(found["q"], key=found["q"].get) == "a"
    ours = TWO.by_stzoo(["q", "r"], ["a", "b", "c"], "cosine")
    assert list(ours["q"]) == ["c", "b", "a"]
    # other queries over another corpus: the first ones' results
    again = stored(Given([[0.0, 1.0]] * 2, [[1.0, 1.0]] * 3), ["s", "t"], ["d", "e", "f"])
    assert set(again) == {"q", "r"}
    fill(tmp_path / "store", ["x"], {"texts": "the first"}, lambda _: np.ones((1, 2), np.float32))
    with pytest.raises(OutputError, match=r"was made with other settings \(facts.texts"):
        fill(tmp_path / "store", ["y"], {"texts": "others"}, lambda _: np.zeros((1, 2), np.float32))
