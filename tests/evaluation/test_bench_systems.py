"""bench() beyond one model on one folder: stores, precisions, indexes, suites, KILT, run files, questions."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import processes
from support.helpers import cli, wait_for
from support.small_set import CORPUS, QRELS, QUERIES

import stzoo
from stzoo.data import registry
from stzoo.data.beir import read_beir, write_beir
from stzoo.errors import DataError, ModelError, OutputError, RecipeError
from stzoo.evaluation.bench.bench import bench
from stzoo.evaluation.bench.score import score
from stzoo.evaluation.bench.tables import costs, table
from stzoo.models.loaded import folder_revision
from stzoo.retrieval.search import retriever as retriever_room
from stzoo.retrieval.search import search as search_module
from stzoo.testing import TEXTS, sentences
from stzoo.utils.files import fingerprint


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_beir(tmp_path_factory.mktemp("data") / "small", CORPUS, QUERIES, QRELS)


def forbid_encoding(monkeypatch, role):
    """From here on, encoding texts of that role is an error."""
    encode = retriever_room.encode

    def guarded(model, texts, **options):
        assert options["role"] != role, f"{len(texts)} texts were encoded again"
        return encode(model, texts, **options)

    monkeypatch.setattr(retriever_room, "encode", guarded)


def test_precisions_and_indexes_are_systems_of_their_own(model, data, tmp_path):
    found = bench(
        model,
        data=data,
        output=tmp_path / "out",
        bm25=False,
        precision="float32,float16,int8,binary",
        index=["Flat", "IVF2,Flat nprobe=1"],
        store=tmp_path / "store",
    )
    names = [
        "tiny",
        *(f"tiny ({way})" for way in ("float16", "int8", "binary", "Flat", "IVF2,Flat nprobe=1")),
    ]
    assert [result.model for result in found] == names
    full, half, int8, binary, flat, ivf = found
    assert flat.scores.mean == full.scores.mean
    assert flat.details["recall_against_exact"] == {"@10": 1.0, "@100": 1.0, "@1000": 1.0}
    assert ivf.details["recall_against_exact"]["@1000"] < 1  # one of two lists
    width = full.details["cost"]["vector_bytes"] // (4 * len(CORPUS))
    assert [result.details["cost"]["vector_bytes"] for result in (full, half, int8, binary)] == [
        len(CORPUS) * bytes_ for bytes_ in (4 * width, 2 * width, width, -(-width // 8))
    ]
    assert full.details["cost"].keys() == {"encode_s", "search_s", "ms_per_query", "vector_bytes"}
    assert flat.details["cost"]["index_bytes"] > 4 * width * len(CORPUS)
    assert "precision" not in full.details["settings"]
    assert int8.details["settings"]["precision"] == "int8"
    assert ivf.details["settings"]["index"] == "IVF2,Flat nprobe=1"
    assert len({result.path for result in found}) == len(found)

    from io import StringIO

    from rich.console import Console

    console = Console(width=100, file=StringIO())
    console.print(costs(found))
    shown = console.file.getvalue()
    loss = binary.scores.mean["nDCG@10"] - full.scores.mean["nDCG@10"]
    (line,) = (line for line in shown.splitlines() if "(binary)" in line)
    assert f"{loss:+.4f}" in line
    assert costs([full]) is None
    again = bench(
        model, data=data, output=tmp_path / "out", bm25=False, precision="int8", store=tmp_path / "store"
    )
    assert again[0].reused
    assert again[0].scores == int8.scores


def test_an_index_that_cannot_be_is_said_before_anything_is_encoded(model, data, tmp_path, monkeypatch):
    forbid_encoding(monkeypatch, "document")
    for index, message in (
        ("Bogus32", "'Bogus32' cannot be built"),
        ("HNSW0", "is too small"),
        ("IVF4,Flat nprobe=0", "'nprobe=0' are invalid"),
        ("IVF4,Flat efSearch=8", "does not have the parameters 'efSearch=8'"),
    ):
        with pytest.raises(RecipeError, match=message):
            bench(model, data=data, output=tmp_path / "out", index=index, store=tmp_path / "store")
    assert not (tmp_path / "out").exists()


def test_another_split_or_depth_encodes_no_passage_again(model, data, tmp_path, monkeypatch):
    options = dict(data=data, bm25=False, store=tmp_path / "store")
    (first,) = bench(model, output=tmp_path / "out", **options)
    forbid_encoding(monkeypatch, "document")
    (dev,) = bench(model, output=tmp_path / "out", split="dev", **options)
    assert dev.queries == 8
    forbid_encoding(monkeypatch, "query")
    (shallow,) = bench(f"other={model}", output=tmp_path / "shallow", k=20, **options)
    assert shallow.scores.mean["nDCG@10"] == first.scores.mean["nDCG@10"]
    assert "Recall@100" not in shallow.scores.mean  # 20 results say nothing of it
    with pytest.raises(AssertionError, match="60 texts were encoded again"):
        monkeypatch.undo()
        forbid_encoding(monkeypatch, "document")
        bench(model, output=tmp_path / "cut", max_tokens=8, **options)


def test_embeddings_are_kept_in_the_cache_or_not_at_all(model, data, tmp_path, monkeypatch):
    monkeypatch.setenv("STZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    bench(model, data=data, output=tmp_path / "none", bm25=False, keep_store=False)
    assert not list(tmp_path.rglob("shard-*"))
    bench(model, data=data, output=tmp_path / "kept", bm25=False)
    assert len(list((tmp_path / "cache" / "embeddings").rglob("shard-*"))) == 2


def test_a_killed_run_goes_on_with_the_finished_shards_and_ends_with_the_same_scores(tmp_path, model):
    corpus = [{"_id": f"d{i}", "text": text} for i, text in enumerate(sentences(3000, seed=1))]
    data = write_beir(tmp_path / "larger", corpus, QUERIES, {"test": {"q1": {"d1": 1}, "q2": {"d7": 1}}})
    command = [sys.executable, "-m", "stzoo", "bench", model, "--data", str(data), "--no-bm25",
               "--store", str(tmp_path / "store"), "--shard-rows", "50", "--output",
               str(tmp_path / "out")]  # fmt: skip
    done: dict[Path, int] = {}
    for kills in range(1, 4):
        process = processes.Popen(command, stderr=subprocess.DEVNULL)
        finished = (tmp_path / "store").glob  # at this depth: drafts vanish while rglob lists them
        wait_for(lambda: len(list(finished("*/*/shard-*"))) > len(done) + 2, process)  # noqa: B023
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not list((tmp_path / "out").rglob("larger.json"))
        shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("shard-*")}
        assert shards.items() >= done.items(), kills
        done = shards
    assert processes.run(command, capture_output=True).returncode == 0
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("shard-*")}
    assert shards.items() >= done.items()
    assert not list((tmp_path / "store").rglob("*.part"))
    (alone,) = bench(model, data=data, output=tmp_path / "alone", bm25=False, store=tmp_path / "other")
    (killed,) = stzoo.bench(model, data=data, output=tmp_path / "out", bm25=False)
    assert killed.reused
    assert killed.scores == alone.scores


def test_measures_are_scored_beside_the_usual_ones_and_later_ones_added(model, data, tmp_path, monkeypatch):
    options = dict(data=data, output=tmp_path / "out", bm25=False, store=tmp_path / "store")
    (plain,) = bench(model, **options)
    forbid_encoding(monkeypatch, "document")
    (more,) = bench(model, measures="nDCG@3 Rprec P(rel=2)@5", **options)
    assert not more.reused
    assert plain.scores.mean.items() <= more.scores.mean.items()
    assert more.scores.mean.keys() - plain.scores.mean.keys() == {"nDCG@3", "Rprec", "P(rel=2)@5"}
    stored = json.loads(more.path.read_text())["scores"]["test"][0]
    assert stored["ndcg_at_3"] == more.scores.mean["nDCG@3"]
    assert stored["P(rel=2)@5"] == more.scores.mean["P(rel=2)@5"]
    assert bench(model, **options)[0].reused
    assert stzoo.bench(model, measures="Rprec", **options)[0].reused


def test_a_set_that_is_not_the_official_one_is_loudly_noted(model, tmp_path):
    data = write_beir(tmp_path / "scifact", CORPUS, QUERIES, QRELS)
    done = cli("bench", model, "--data", data, "--output", tmp_path / "out", "--no-bm25", "--json")
    assert done.returncode == 0, done.stderr
    note = "scifact has 60 documents, the official set has 5,183"
    assert f"warning: scifact: {note}" in done.stderr
    (row,) = json.loads(done.stdout)["results"]
    assert note in row["notes"]
    stored = json.loads(Path(row["path"]).read_text())
    assert note in stored["splits"]["test"]["notes"]


def test_cqadupstack_is_twelve_forums_and_their_mean(tmp_path):
    forums = [name.removeprefix("cqadupstack-") for name in registry.expand(["cqadupstack"])]
    for place, forum in enumerate(forums):
        corpus = [{"_id": f"d{i}", "text": text} for i, text in enumerate(TEXTS)]
        write_beir(
            tmp_path / "cqadupstack" / forum,
            corpus,
            {"q": TEXTS[place % len(TEXTS)]},
            {"test": {"q": {f"d{place % 3}": 1}}},
        )
    found = bench([], data=tmp_path, datasets="cqadupstack", output=tmp_path / "out")
    assert [result.dataset for result in found] == [f"cqadupstack-{forum}" for forum in forums]
    done = cli("bench", "--data", tmp_path, "--datasets", "cqadupstack", "--output", tmp_path / "out")
    assert f"Next: stzoo report {tmp_path / 'out'} --output report.html\n" in done.stderr
    mean = sum(result.scores.mean["nDCG@10"] for result in found) / 12
    lines = done.stdout.splitlines()
    (place,) = (i for i, line in enumerate(lines) if line.strip() == "mean of 12 sets")
    assert lines[place - 1].strip() == "cqadupstack"
    assert f"{mean:.4f}" in lines[place + 1]
    rows = json.loads(
        cli(
            "bench", "--data", tmp_path, "--datasets", "cqadupstack", "--output", tmp_path / "out", "--json"
        ).stdout
    )
    (average,) = (row for row in rows["averages"] if row["measure"] == "nDCG@10")
    assert (average["suite"], average["value"]) == ("cqadupstack", pytest.approx(mean))


@pytest.fixture
def kilt(tmp_path) -> Path:
    """The test queries as a KILT file over the same passages; a page is what its title says."""
    pages = {row["_id"]: row["title"] for row in CORPUS}
    (tmp_path / "pages.tsv").write_text("".join(f"{p}\t{page}\n" for p, page in pages.items()))
    rows = []
    for query, grades in QRELS["test"].items():
        evidence = [
            {"provenance": [{"wikipedia_id": page} for page in dict.fromkeys(map(pages.get, grades))]}
        ]
        rows.append({"id": query, "input": QUERIES[query], "output": evidence})
    path = tmp_path / "nq-test-kilt.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_kilt_file_is_scored_by_page(model, data, kilt, tmp_path):
    options = dict(data=kilt, corpus=data, pages=tmp_path / "pages.tsv", output=tmp_path / "out")
    bm25, dense = bench(model, **options)
    assert (dense.dataset, dense.split, dense.documents) == ("nq-kilt", "test", 60)
    for result in (bm25, dense):
        assert {"KILT Rprec", "KILT recall@5", "nDCG@10"} <= result.scores.mean.keys()
        run = result.path.with_name("nq-kilt.test.run")
        assert {line.split()[2] for line in run.read_text().splitlines()} <= {row["_id"] for row in CORPUS}
        (again,) = score(f"again={run}", data=kilt, corpus=data, pages=tmp_path / "pages.tsv")
        assert again.scores.mean == pytest.approx(result.scores.mean)
    assert bm25.scores.mean["KILT recall@5"] > 0.9


def test_a_run_file_scores_what_the_system_that_wrote_it_scores(model, data, tmp_path):
    (dense,) = bench(model, data=data, output=tmp_path / "out", bm25=False)
    run = dense.path.with_name("small.test.run")
    (scored,) = score(f"again={run}", data=data, output=tmp_path / "out", measures="Rprec")
    assert dense.scores.mean.items() <= scored.scores.mean.items()
    assert scored.data == dense.data  # so that the two can be compared
    compared = stzoo.compare(["tiny", "again"], results=tmp_path / "out")
    assert compared.pairs[0].test.difference == 0
    qrels = tmp_path / "qrels.txt"
    qrels.write_text(
        "".join(f"{q} 0 {d} {grade}\n" for q, grades in QRELS["test"].items() for d, grade in grades.items())
    )
    (bare,) = score([str(run)], data=qrels)
    assert bare.scores.mean == dense.scores.mean
    assert "without the corpus" in bare.details["notes"][0]
    assert bare.path == run
    (cut,) = score([str(run)], data=data, k=10)
    assert cut.scores.mean["nDCG@10"] == dense.scores.mean["nDCG@10"]
    with pytest.raises(OutputError, match=r"was made with other settings \(k: 1000 then, 10 now\)"):
        score(f"again={run}", data=data, output=tmp_path / "out", k=10)


def test_a_scored_run_must_be_of_the_judged_queries_and_their_corpus(data, tmp_path, capsys):
    (tmp_path / "a.run").write_text("other Q0 d1 1 0.5 tag\n")
    with pytest.raises(DataError, match=r"a\.run has no judged query of"):
        score([str(tmp_path / "a.run")], data=data)
    judged = read_beir(data, "test").qrels
    query, (document, *_) = next((query, list(grades)) for query, grades in judged.items())
    (tmp_path / "b.run").write_text(f"{query} Q0 msmarco-1 1 0.5 tag\n")
    with pytest.raises(DataError, match=r"b\.run has no document of .*'msmarco-1'"):
        score([str(tmp_path / "b.run")], data=data)
    (tmp_path / "b.run").write_text(f"{query} Q0 msmarco-1 1 0.5 tag\n{query} Q0 {document} 2 0.4 tag\n")
    score([str(tmp_path / "b.run")], data=data)
    assert "1 of 2 documents are not in the corpus" in capsys.readouterr().err
    with pytest.raises(DataError, match="no\\.run does not exist"):
        score([str(tmp_path / "no.run")], data=data)


def test_kilt_answers_are_scored_against_a_kilt_file(kilt, tmp_path):
    gold = [json.loads(line) for line in kilt.read_text().splitlines()]
    guesses = [{"id": row["id"], "output": [row["output"][0]]} for row in gold]
    guesses[0]["output"] = [{"provenance": [{"wikipedia_id": "elsewhere"}]}]
    path = tmp_path / "guess.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in guesses))
    (result,) = score(f"mine={path}", data=kilt)
    assert result.scores.mean["KILT Rprec"] == pytest.approx(11 / 12)
    assert result.scores.per_query["KILT Rprec"]["q0"] == 0
    done = cli("score", f"mine={path}", "--data", kilt)
    assert "0.9167" in done.stdout


def test_kilt_answers_are_pages_also_where_passages_have_the_same_ids(tmp_path):
    rows = [{"_id": str(i), "title": "", "text": row["text"]} for i, row in enumerate(CORPUS)]
    (tmp_path / "corpus.jsonl").write_text(
        "".join(json.dumps(row | {"wikipedia_id": str(i // 2)}) + "\n" for i, row in enumerate(rows))
    )
    gold = [
        {"id": str(q), "input": "what", "output": [{"provenance": [{"wikipedia_id": str(2 * q)}]}]}
        for q in range(6)
    ]
    for name in ("nq-dev-kilt.jsonl", "guess.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in gold))
    guess, data = str(tmp_path / "guess.jsonl"), tmp_path / "nq-dev-kilt.jsonl"
    for corpus in (None, tmp_path / "corpus.jsonl"):
        (result,) = score(guess, data=data, corpus=corpus)
        assert result.scores.mean["KILT Rprec"] == result.scores.mean["nDCG@10"] == 1


@pytest.mark.parametrize("name", ["model_meta.json", "small.json"])
@pytest.mark.parametrize("content", ["{bad", "[]", "{}", '{"schema_version": 1}', '{"name": "x"}'])
def test_a_damaged_result_is_named_whoever_reads_it(data, tmp_path, name, content):
    (result,) = bench([], data=data, output=tmp_path / "out")
    (result.path.with_name(name)).write_text(content)
    for words in (lambda: stzoo.report(tmp_path / "out", output=tmp_path / "page.html"),) + (
        (lambda: bench([], data=data, output=tmp_path / "out"),) if name == "small.json" else ()
    ):
        with pytest.raises(OutputError, match=rf"{name} is not a result of this version"):
            words()
    (again,) = bench([], data=data, output=tmp_path / "out", overwrite=True)
    assert again.scores == result.scores
    assert stzoo.evaluation.bench.results.read(tmp_path / "out")[0].scores == result.scores


def test_a_run_in_a_hidden_file_has_a_name(data, tmp_path):
    (tmp_path / ".first.run").write_text("q0 Q0 d0 1 0.5 tag\n")
    (result,) = score(str(tmp_path / ".first.run"), data=data, output=tmp_path / "out")
    assert result.model == "first"


def test_other_weights_of_another_backend_are_another_revision(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "onnx").mkdir()
    found = []
    for weights in (b"first", b"second"):
        (copy / "onnx" / "model.onnx").write_bytes(weights)
        found.append([folder_revision(copy, backend) for backend in ("torch", "onnx")])
    (torch_before, onnx_before), (torch_after, onnx_after) = found
    assert torch_before == torch_after == folder_revision(Path(model))
    assert len({torch_before, onnx_before, onnx_after}) == 3


def test_only_what_a_plain_load_reads_makes_a_revision(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    whole = [path for path in copy.rglob("*") if path.is_file() and path.name != "README.md"]
    before = folder_revision(copy)
    top = sorted(path for path in whole if path.parent == copy)
    inside = [
        path for folder in sorted({p.parent for p in whole} - {copy}) for path in sorted(folder.iterdir())
    ]
    assert before == fingerprint(*top, *inside)[:12]  # as revisions have always been of such folders
    for name in (
        "notes.txt",
        ".stzoo.json",
        "README",
        "curve.png",
        "LICENSE",
        "a.log",
        "run.json",
        "merge.json",
    ):
        (copy / name).write_text(name)
    (copy / "import.json").write_text("{}")
    (copy / "checkpoints").mkdir()
    (copy / "checkpoints" / "model.safetensors").write_text("another")
    assert folder_revision(copy) == before
    for path in whole:
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        assert folder_revision(copy) != before, path.name
        path.write_bytes(content)
    for name in (
        "vocab.txt",
        "merges.txt",
        "spiece.model",
        "pytorch_model.bin",
        "pooling.py",
        "1_Pooling/more",
    ):
        (copy / name).write_text("what a load may read")
        assert folder_revision(copy) != before, name
        (copy / name).unlink()
    assert folder_revision(copy) == before


def test_static_embeddings_of_the_hub_have_the_commit_as_their_revision(data, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    from stzoo.testing import tiny_tokenizer

    tokenizer = tiny_tokenizer("bert").backend_tokenizer
    for name, digit in (("first", "a"), ("second", "b")):
        home = tmp_path / f"models--me--{name}"
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text(digit * 40)
        static = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")
        static.save(str(home / "snapshots" / (digit * 40)))
    done = cli(
        *("bench", "same=me/first", "same=me/second", "--data", data, "--no-bm25", "--json"),
        *("--output", tmp_path / "out", "--store", tmp_path / "store"),
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)["results"]
    assert (first["revision"], second["revision"]) == ("a" * 40, "b" * 40)
    assert not second["reused"]
    folder = str(tmp_path / "models--me--first" / "snapshots" / ("a" * 40))
    with pytest.raises(ModelError, match="leave out max_tokens"):
        bench(folder, data=data, output=tmp_path / "cut", bm25=False, max_tokens=8)


def test_a_store_is_asked_in_the_dtype_it_was_made_in(model, data, tmp_path, monkeypatch):
    bench(model, data=data, output=tmp_path / "out", bm25=False, store=tmp_path / "store", dtype="bfloat16")
    (store,) = (tmp_path / "store").glob("*/*-document-*")
    seen, encode = [], search_module.encode

    def watched(model, *texts, **options):
        seen.append(str(model.dtype))
        return encode(model, *texts, **options)

    monkeypatch.setattr(search_module, "encode", watched)
    stzoo.search(store, "what lift")
    assert seen == ["torch.bfloat16"]


def test_a_question_finds_passages_by_model_and_by_store(model, data, tmp_path, monkeypatch):
    question = QUERIES["q7"]
    (answer,) = stzoo.search(model, question, data=data, k=3, store=tmp_path / "store")
    assert answer["question"] == question
    assert len(answer["found"]) == 3
    judged = read_beir(data)
    texts = dict(zip(judged.corpus_ids, judged.passages, strict=True))
    assert all(found["text"] == texts[found["id"]] for found in answer["found"])
    values = [found["score"] for found in answer["found"]]
    assert values == sorted(values, reverse=True)
    forbid_encoding(monkeypatch, "document")
    (store,) = (path for path in (tmp_path / "store").glob("*/*-document-*"))
    assert stzoo.search(store, [question, "another"], k=3)[0] == answer
    done = cli("search", store, question, "--k", "1")
    assert done.returncode == 0, done.stderr
    assert answer["found"][0]["id"] in done.stdout
    copy = tmp_path / "changed"
    write_beir(copy, [*CORPUS[1:], CORPUS[0]], QUERIES, QRELS)
    with pytest.raises(DataError, match="is not the corpus of"):
        stzoo.search(store, question, data=copy)
    with pytest.raises(RecipeError, match="no corpus to search"):
        stzoo.search(model, question)
    (queries,) = [path.parent for path in bench_queries(model, data, tmp_path)]
    with pytest.raises(DataError, match="embeddings of queries"):
        stzoo.search(queries, question)


def test_a_question_finds_the_passage_whose_id_is_its_number(model, tmp_path):
    rows = [{"_id": str(number), "text": text} for number, text in enumerate(QUERIES.values())]
    write_beir(
        tmp_path / "quora", rows, QUERIES, {"test": {"q0": {"0": 1}}}
    )  # queries and documents share ids
    (answer,) = stzoo.search(model, "what lift", data=tmp_path / "quora", k=99, store=tmp_path / "store")
    assert "0" in {found["id"] for found in answer["found"]}


def bench_queries(model, data, tmp_path):
    bench(model, data=data, output=tmp_path / "out", bm25=False, store=tmp_path / "store")
    return list((tmp_path / "store").glob("*/*-query-*/manifest.json"))


def test_devices_side_by_side_and_half_precision(model, data, tmp_path):
    options = dict(data=data, bm25=False, keep_store=False)
    (alone,) = bench(model, output=tmp_path / "alone", **options)
    (pair,) = bench(model, output=tmp_path / "pair", device="cpu,cpu", **options)
    assert pair.scores.mean == pytest.approx(alone.scores.mean, abs=1e-9)
    (half,) = bench(model, output=tmp_path / "half", dtype="bfloat16", **options)
    assert half.details["settings"]["dtype"] == "bfloat16"
    assert "dtype" not in alone.details["settings"]
    with pytest.raises(OutputError, match="was made with"):
        bench(model, output=tmp_path / "alone", dtype="float16", **options)
    with pytest.raises(RecipeError, match="mean 'bfloat16'"):
        bench(model, output=tmp_path / "alone", dtype="bfloat", **options)
    with pytest.raises((ModelError, RecipeError), match="backend"):
        bench(model, output=tmp_path / "alone", backend="onxx", **options)


def test_the_table_of_results_names_kilt_and_extra_measures(data, kilt, tmp_path):
    from io import StringIO

    from rich.console import Console

    found = bench(
        [], data=kilt, corpus=data, pages=tmp_path / "pages.tsv", output=tmp_path / "out", measures="Rprec"
    )
    console = Console(width=160, file=StringIO())
    console.print(table(found, ["Rprec"]))
    head = " ".join(console.file.getvalue().split())
    assert "KILT Rprec" in head
