"""mteb's own retrieval task over the same data gives an exported model the score that stzoo.bench gives it.

Where the two differ on purpose:
- mteb drops a document under the query's id where a task says so (ignore_identical_ids: also FiQA, FEVER and
  MS MARCO), after the cut at 1000, at the cost of a place; stzoo in ArguAna and Quora alone, before the cut.
- Prompts named after a task or a kind of task ("SciFact-query", "Retrieval-query") go before the model's
  "query" in mteb; to sentence-transformers and stzoo they mean nothing.
- mteb compares in float32, stzoo in float64: where all vectors are almost one, rounding ranks them in mteb.
"""

import json
from importlib.util import find_spec

import pytest
import torch

import stzoo
from stzoo.data.beir import write_beir
from stzoo.hub.export import export
from stzoo.models.loading import like, load_model

pytestmark = pytest.mark.skipif(not find_spec("mteb"), reason="mteb is an extra")
PROMPTS = {"query": "question about the ", "document": "passage: "}


@pytest.fixture(scope="module")
def model(base):
    """A tiny model with prompts. Its words lie far apart, so that no rounding ranks."""
    torch.manual_seed(0)
    model = load_model(str(base), pooling="mean")
    model[0].model.get_input_embeddings().weight.data.normal_()
    model.prompts = PROMPTS
    return model


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """Its portable export."""
    return export(model, tmp_path_factory.mktemp("exported") / "tiny", verify=False)


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def by_mteb(model, folder, drop_self=False):
    """Scores of mteb, which reads the files of the folder by code of its own and of this test only."""
    import mteb  # which takes seconds
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata
    from sentence_transformers import SentenceTransformer

    qrels = {}
    for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, document, grade = line.split("\t")
        qrels.setdefault(query, {})[document] = int(grade)
    corpus = [
        {"id": row["_id"], "title": row["title"], "text": row["text"]}
        for row in rows(folder / "corpus.jsonl")
    ]
    queries = [
        {"id": row["_id"], "text": row["text"]}
        for row in rows(folder / "queries.jsonl")
        if row["_id"] in qrels
    ]

    class Local(AbsTaskRetrieval):
        ignore_identical_ids = drop_self
        metadata = TaskMetadata(
            name="Local",
            description="a set on this disk",
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
            dataset={"path": "local", "revision": "1"},
        )

        def load_data(self, *_, **__):
            split = {
                "corpus": Dataset.from_list(corpus),
                "queries": Dataset.from_list(queries),
                "relevant_docs": qrels,
                "top_ranked": None,
            }
            self.dataset, self.data_loaded = {"default": {"test": split}}, True

    found = mteb.evaluate(
        SentenceTransformer(str(model), device="cpu"),
        Local(),
        cache=None,
        co2_tracker=False,
        show_progress_bar=False,
    )
    return found.task_results[0].scores["test"][0]


def by_stzoo(model, folder, output):
    (result,) = stzoo.bench([str(model)], data=folder, output=output, bm25=False)
    return result.scores.mean


def assert_agree(ours, theirs):
    assert ours["nDCG@10"] == pytest.approx(theirs["ndcg_at_10"], abs=1e-4)
    assert ours["Recall@100"] == pytest.approx(theirs["recall_at_100"], abs=1e-4)
    assert ours["MRR@10"] == pytest.approx(theirs["mrr_at_10"], abs=1e-4)
    assert ours["MAP@100"] == pytest.approx(theirs["map_at_100"], abs=1e-4)
    assert 0.02 < ours["nDCG@10"] < 0.98  # neither nothing nor all is found


def test_mteb_gives_the_same_scores(exported, judged, tmp_path):
    ours = by_stzoo(exported, judged, tmp_path)
    assert_agree(ours, by_mteb(exported, judged))


def test_mteb_gives_the_same_scores_on_cranfield(exported, data, tmp_path):
    """Queries and documents share numbers there that mean nothing, and two documents are empty."""
    folder = data / "beir" / "cranfield"
    assert_agree(by_stzoo(exported, folder, tmp_path), by_mteb(exported, folder))


def test_a_document_under_the_querys_id_is_dropped_by_both_where_the_set_shares_ids(
    exported, judged, tmp_path
):
    # ArguAna's way: each query is a document, too, and another document answers it
    queries = {row["_id"]: row["text"] for row in rows(judged / "queries.jsonl")}
    corpus = rows(judged / "corpus.jsonl")
    corpus += [{"_id": query, "title": "", "text": text} for query, text in queries.items()]
    qrels = {query: {query.replace("q", "d"): 1} for query in queries}
    folder = write_beir(tmp_path / "arguana", corpus, queries, {"test": qrels})
    ours = by_stzoo(exported, folder, tmp_path / "out")
    assert_agree(ours, by_mteb(exported, folder, drop_self=True))
    assert by_mteb(exported, folder)["ndcg_at_10"] < ours["nDCG@10"] - 1e-3


def test_a_prompt_named_after_a_task_is_used_by_mteb_alone(model, exported, judged, tmp_path):
    other = like(model, list(model))
    other.prompts = PROMPTS | {"Retrieval-query": "something else entirely: "}
    named = export(other, tmp_path / "named", verify=False)
    assert by_stzoo(named, judged, tmp_path / "a") == by_stzoo(exported, judged, tmp_path / "b")
    theirs = by_mteb(exported, judged)
    assert by_mteb(named, judged)["ndcg_at_10"] != pytest.approx(theirs["ndcg_at_10"], abs=1e-4)
