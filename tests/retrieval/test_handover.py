"""Vectors that are handed over: engines find what `stzoo search` finds, and nothing is lost or replaced."""

import json
import os
import re
import shlex
import sys
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from support import processes
from support.helpers import cli
from support.models import sentence_transformer
from support.small_set import QUERIES

import stzoo
from stzoo.errors import DataError, MissingExtraError, MissingPackageError, OutputError, RecipeError
from stzoo.retrieval.handover import FORMATS, qdrant
from stzoo.testing import sentences

ROWS = [
    {"_id": f"d{i}", "title": f"page {i}", "text": text, "language": "en", "metadata": {"page": i}}
    for i, text in enumerate(sentences(60, seed=5))
]
ROWS[3] |= {"_id": "ä/ö/../ß €"}
ROWS[4] |= {"_id": "x" * 1000, "title": ""}
ROWS[5] |= {"_id": 7, "title": None}
IDS = [str(row["_id"]) for row in ROWS]
QUESTIONS = list(QUERIES.values())[:6]
NAME = "passages"


@pytest.fixture(scope="module")
def models(base, tmp_path_factory):
    """The folders of a model by each similarity."""
    folder = tmp_path_factory.mktemp("models")
    for similarity in ("cosine", "dot", "euclidean", "manhattan"):
        model = sentence_transformer(
            base,
            unit=similarity == "dot",
            similarity_fn_name=similarity,
            prompts={"query": "query: ", "document": ""},
        )
        model.save(str(folder / similarity))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / NAME
    folder.mkdir()
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def encode(model, data, to, output, **options):
    return stzoo.encode(model, data, to=to, output=output, shard_rows=7, device="cpu", **options)


def load(made):
    """What the printed line of Python returns; `vector` is a question's."""

    def load_with(**names):
        *statements, expression = made.load.split("; ")
        for statement in statements:
            exec(statement, names)
        return eval(expression, names)

    return load_with


def content(to, folder):
    """All that a reader of an output gets."""
    folder = Path(folder)
    if to == "qdrant":
        from qdrant_client import QdrantClient

        client = QdrantClient(path=str(folder))
        points, _ = client.scroll(NAME, limit=1000, with_vectors=True)
        record = client.get_collection(NAME).config.metadata["stzoo"]
        client.close()
        return [(point.id, point.payload, point.vector) for point in points], record
    if to == "lancedb":
        import lancedb

        table = lancedb.connect(folder).open_table(NAME).to_arrow()
        return table.to_pylist(), json.loads(table.schema.metadata[b"stzoo"])
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# -- the engines


def nearest(to, made, similarity, vector):
    """The ids and scores of the 5 nearest passages by the engine itself."""
    if to == "qdrant":
        from qdrant_client import QdrantClient

        client = QdrantClient(path=made.output)
        points = client.query_points(made.collection, query=vector.tolist(), limit=5).points
        client.close()
        far = similarity in ("euclidean", "manhattan")  # Qdrant gives the distance
        return [(point.payload["id"], -point.score if far else point.score) for point in points]
    if to == "lancedb":
        rows = load(made)(vector=vector)[:5]
        score = {"cosine": lambda d: 1 - d, "dot": lambda d: 1 - d, "euclidean": lambda d: -(d**0.5)}
        return [(row["id"], score[similarity](row["_distance"])) for row in rows]
    if to == "faiss":
        index = load(made)()
        unit = vector / np.linalg.norm(vector) if similarity == "cosine" else vector
        [scores], [places] = index.search(unit[None], 5)
        scores = -np.sqrt(scores) if similarity == "euclidean" else scores
        return [(IDS[place], score) for place, score in zip(places, scores, strict=True)]
    if to == "parquet":
        frame = load(made)()
        ids, vectors = list(frame["id"]), np.stack(frame["vector"])
    else:
        vectors = load(made)()
        lines = (Path(made.output) / "passages.jsonl").read_text().splitlines()
        ids = [json.loads(line)["id"] for line in lines]
    assert vectors.dtype == np.float32
    vectors = vectors.astype(np.float64)
    scores = {
        "cosine": lambda: vectors @ vector / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vector),
        "dot": lambda: vectors @ vector,
        "euclidean": lambda: -np.linalg.norm(vectors - vector, axis=1),
        "manhattan": lambda: -np.abs(vectors - vector).sum(1),
    }[similarity]()
    return [(ids[place], scores[place]) for place in np.argsort(-scores)[:5]]


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
@pytest.mark.parametrize("to", FORMATS)
def test_the_engine_finds_what_search_finds(models, data, tmp_path, to, similarity):
    model = models / similarity
    if similarity == "manhattan" and to in ("faiss", "lancedb"):
        with pytest.raises(RecipeError, match="manhattan"):
            encode(model, data, to, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return
    made = encode(model, data, to, tmp_path / "out").handed_over
    answers = stzoo.search(str(model), QUESTIONS, data=data, device="cpu")
    vectors = stzoo.load(model, device="cpu").encode_query(QUESTIONS)
    for answer, vector in zip(answers, vectors, strict=True):
        found = nearest(to, made, similarity, vector)
        assert [one["id"] for one in answer["found"]] == [one for one, _ in found]
        assert [one["score"] for one in answer["found"]] == pytest.approx([s for _, s in found], abs=1e-5)


@pytest.mark.parametrize("to", FORMATS)
def test_passages_come_with_their_texts_and_the_record(models, data, tmp_path, to):
    encode(models / "cosine", data, to, tmp_path / "out")
    made = content(to, tmp_path / "out")
    if to == "qdrant":
        assert [number for number, *_ in made[0]] == list(range(60))
        rows, record = [payload for _, payload, _ in made[0]], made[1]
    elif to == "lancedb":
        rows, record = made
    elif to == "parquet":
        tables = [pq.read_table(tmp_path / "out" / f"part-{number:05}.parquet") for number in range(9)]
        assert [len(table) for table in tables] == [7] * 8 + [4]
        assert str(tables[0].schema.field("vector").type).startswith("fixed_size_list<")
        rows, record = [row for table in tables for row in table.to_pylist()], json.loads(made["_stzoo.json"])
        assert json.loads(tables[0].schema.metadata[b"stzoo"]) == record
    else:
        rows = [json.loads(line) for line in made["passages.jsonl"].decode().splitlines()]
        record = json.loads(made["stzoo.json"])
    for row, given in zip(rows, ROWS, strict=True):
        assert (row["id"], row["title"], row["text"]) == (
            str(given["_id"]),
            given["title"] or "",
            given["text"],
        )
        metadata = json.loads(row["metadata"]) if isinstance(row["metadata"], str) else row["metadata"]
        assert metadata == {"language": "en", **given["metadata"]}
    assert (record["model"], record["query_prompt"], record["similarity"], record["rows"]) == (
        *("cosine", "query: ", "cosine"),
        60,
    )
    assert len(record["revision"]) == 12


# -- interruptions

KILLED = """
import os, signal, sys
import qdrant_client, stzoo.retrieval.encode  # lancedb has a thread, which older versions lose in a fork
from stzoo.retrieval.handover import qdrant
from stzoo.retrieval.store import Store
from qdrant_client.local.persistence import CollectionPersistence as Room
calls = 0
def killed_at(number, function):
    def counted(*given):
        global calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*given)
    return counted
qdrant.BATCH = 7
model, data, outputs = sys.argv[1:]
for to in ("npy", "parquet", "faiss", "qdrant", "lancedb"):
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, to
        continue
    if to == "qdrant":  # in the middle of the third batch
        Room.persist = killed_at(17, Room.persist)
    else:
        Store.__getitem__ = killed_at(1 if to == "faiss" else 3, Store.__getitem__)
    stzoo.encode(model, data, to=to, output=f"{outputs}/{to}", shard_rows=7, device="cpu")
    os._exit(1)
"""


def test_a_killed_hand_over_is_completed(models, data, tmp_path, monkeypatch):
    monkeypatch.setattr(qdrant, "BATCH", 7)
    command = [sys.executable, "-c", KILLED, *map(str, [models / "cosine", data, tmp_path])]
    processes.run(command, check=True, timeout=600)
    assert (tmp_path / "npy" / ".vectors.npy.partial").stat().st_size == 128 + 14 * 32 * 4
    with (tmp_path / "npy" / ".vectors.npy.partial").open("ab") as file:
        file.write(b"half a row")
    (tmp_path / "npy" / ".passages.jsonl.partial").write_text('{"id": "d0')
    first = (tmp_path / "parquet" / "part-00000.parquet").stat()
    for to in FORMATS:
        encode(models / "cosine", data, to, tmp_path / to)
        encode(models / "cosine", data, to, tmp_path / f"{to}-whole")
        assert content(to, tmp_path / to) == content(to, tmp_path / f"{to}-whole")
    assert (tmp_path / "parquet" / "part-00000.parquet").stat().st_mtime_ns == first.st_mtime_ns


@pytest.mark.parametrize("to", FORMATS)
def test_a_second_call_writes_nothing(models, data, tmp_path, to):
    def files():
        paths = (path for path in (tmp_path / "out").rglob("*") if path.is_file())
        return {path: path.stat().st_mtime_ns for path in paths if path.name != ".lock"}

    encode(models / "cosine", data, to, tmp_path / "out")
    before = files()
    encode(models / "cosine", data, to, tmp_path / "out")
    assert files() == before


# -- what is refused


@pytest.mark.parametrize("to", FORMATS)
def test_a_folder_of_others_is_refused(models, data, tmp_path, to):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "vectors.npy").write_text("mine")
    with pytest.raises(OutputError, match=r"other files \(vectors\.npy\)"):
        encode(models / "cosine", data, to, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["vectors.npy"]
    assert (tmp_path / "out" / "vectors.npy").read_text() == "mine"


@pytest.mark.parametrize("to", FORMATS)
def test_other_vectors_are_refused(models, data, tmp_path, to):
    encode(models / "cosine", data, to, tmp_path / "out")
    before = content(to, tmp_path / "out")
    with pytest.raises(OutputError, match=r"revision: '\w+' then, '\w+' now"):
        encode(models / "dot", data, to, tmp_path / "out")
    with pytest.raises(OutputError, match="rows: 60 then, 59 now"):
        encode(models / "cosine", ROWS[:59], to, tmp_path / "out", **options_of(to))
    assert content(to, tmp_path / "out") == before


def options_of(to):
    return {"collection": NAME} if to in ("qdrant", "lancedb") else {}


def test_a_collection_of_others_is_refused(models, data, tmp_path):
    import lancedb
    from qdrant_client import QdrantClient
    from qdrant_client import models as kinds

    client = QdrantClient(path=str(tmp_path / "qdrant"))
    client.create_collection(
        NAME, vectors_config=kinds.VectorParams(size=32, distance=kinds.Distance.COSINE), metadata={"a": 1}
    )
    with pytest.raises(OutputError, match="already accessed"):
        encode(models / "cosine", data, "qdrant", tmp_path / "qdrant")
    client.close()
    lancedb.connect(tmp_path / "lancedb").create_table(NAME, [{"id": "1", "vector": [0.0] * 32}])
    for to in ("qdrant", "lancedb"):
        with pytest.raises(OutputError, match="was not made by stzoo; choose another --collection"):
            encode(models / "cosine", data, to, tmp_path / to)
        encode(models / "cosine", data, to, tmp_path / to, collection="next-to-it")
    assert lancedb.connect(tmp_path / "lancedb").open_table(NAME).count_rows() == 1


def test_options_that_have_no_effect_are_refused(models, data, tmp_path, monkeypatch):
    model, out = models / "cosine", tmp_path / "out"
    for options, message in (
        (dict(to="nyp", output=out), "no format 'nyp'; did you mean 'npy'"),
        (dict(to="npy"), "--to npy needs --output FOLDER"),
        (dict(to="qdrant"), "--to qdrant needs --output FOLDER or --url ADDRESS"),
        (dict(to="qdrant", output=out, url="http://localhost:1"), "not both"),
        (dict(to="npy", output=out, index="HNSW32"), "--index has no effect with --to npy"),
        (dict(to="faiss", output=out, collection="x"), "--collection has no effect with --to faiss"),
        (dict(output=out, collection="x"), "--collection has no effect without --to"),
        (dict(to="lancedb", output=out, collection="a/b"), "collection 'a/b' is invalid"),
        (dict(to="faiss", output=out, index="Nonsense7"), "'Nonsense7' cannot be built"),
    ):
        with pytest.raises(RecipeError, match=message):
            stzoo.encode(model, data, **options)
    with pytest.raises(OutputError, match=r"Qdrant at http://localhost:1 failed.*run the same command"):
        stzoo.encode(model, data, to="qdrant", url="http://localhost:1")
    with pytest.raises(OutputError, match="a store must be in a local or shared folder"):
        stzoo.encode(model, data, output="memory://store")
    with pytest.raises(OutputError, match="must be local"):
        stzoo.encode(model, data, to="qdrant", output="memory://store")
    with pytest.raises(DataError, match="no document"):
        (tmp_path / "corpus.jsonl").write_text("")
        stzoo.encode(model, tmp_path, to="npy", output=out)
    for package, extra in (("lancedb", "lancedb"), ("qdrant_client", "qdrant")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtraError, match=re.escape(f"stzoo[{extra}]")):
            stzoo.encode(model, data, to=extra, output=out)
    assert not out.exists()


# -- URLs


@pytest.mark.parametrize("to", ["npy", "parquet", "faiss"])
def test_files_are_written_to_urls(models, data, tmp_path, to, monkeypatch):
    store, url = fsspec.filesystem("memory"), f"memory://bucket-{to}/some/vectors"
    made = encode(models / "cosine", data, to, url).handed_over
    encode(models / "cosine", data, to, tmp_path / "out")
    there = {name.rpartition("/")[2]: store.cat_file(name) for name in store.ls(url, detail=False)}
    assert there == content(to, tmp_path / "out")
    assert len(load(made)().shape if to == "npy" else "**") == 2
    with monkeypatch.context() as patched:
        patched.setattr(store, "put_file", None)
        encode(models / "cosine", data, to, url)  # writes nothing
    with pytest.raises(OutputError, match="revision"):
        encode(models / "dot", data, to, url)
    store.pipe_file(f"memory://others-{to}/a.txt", b"mine")
    with pytest.raises(OutputError, match=r"other files \(a\.txt\)"):
        encode(models / "cosine", data, to, f"memory://others-{to}")
    assert not any((Path(os.environ["STZOO_CACHE"]) / "handover").glob("*"))


def test_an_interrupted_upload_is_completed(models, data, tmp_path, monkeypatch):
    store, url = fsspec.filesystem("memory"), "memory://upload/vectors"
    upload = type(store).put_file

    def fails(self, path, name, **options):
        if "vectors.npy" in name:
            self.pipe_file(name, b"half of it")
            raise ConnectionError("the network is down")
        return upload(self, path, name, **options)

    monkeypatch.setattr(type(store), "put_file", fails)
    with pytest.raises(OutputError, match=r"vectors\.npy cannot be .*the network is down"):
        encode(models / "cosine", data, "npy", url)
    monkeypatch.undo()
    assert not store.exists(f"{url}/vectors.npy")
    encode(models / "cosine", data, "npy", url)
    encode(models / "cosine", data, "npy", tmp_path / "out")
    assert store.cat_file(f"{url}/vectors.npy") == (tmp_path / "out/vectors.npy").read_bytes()
    assert not [path for path in store.find(url) if path.endswith(".part")]


def test_a_corpus_is_read_from_a_url_once(models, data, tmp_path, monkeypatch):
    store, url = fsspec.filesystem("memory"), f"memory://corpora/{NAME}/corpus.jsonl"
    store.pipe_file(url, (data / "corpus.jsonl").read_bytes())
    there = encode(models / "cosine", url, "npy", tmp_path / "there")
    assert there.store.data["folder"].endswith(NAME)
    reads = []
    get = type(store).get_file
    monkeypatch.setattr(
        type(store), "get_file", lambda *given, **named: reads.append(1) or get(*given, **named)
    )
    done = cli("encode", models / "cosine", f"memory://corpora/{NAME}", "--output", tmp_path / "store")
    assert done.returncode == 0, done.stderr
    assert len(reads) == 1  # another URL
    encode(models / "cosine", url, "npy", tmp_path / "there")
    assert len(reads) == 1
    here = encode(models / "cosine", data, "npy", tmp_path / "here")
    assert np.array_equal(there.store[:], here.store[:])
    store.pipe_file(url, "".join(json.dumps(row) + "\n" for row in ROWS[:9]).encode())
    assert len(encode(models / "cosine", url, "npy", tmp_path / "new").ids) == 9
    for wrong, error, message in (
        ("memory://corpora/no", DataError, "memory://corpora/no does not exist"),
        ("nonsense://x/y", DataError, "Protocol not known: nonsense"),
        ("abfs://x/y", MissingPackageError, "pip install adlfs"),
    ):
        with pytest.raises(error, match=message):
            encode(models / "cosine", wrong, "npy", tmp_path / "wrong")


# -- the command


def test_the_command_says_how_to_load_the_vectors(models, data, tmp_path):
    words = ["encode", models / "cosine", data, "--to", "lancedb", "--output", tmp_path / "out"]
    done = cli(*words)
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'out'}, collection {NAME}: 60 vectors of 32 dimensions (lancedb)" in done.stdout
    assert f"lancedb.connect('{tmp_path / 'out'}').open_table('{NAME}')" in done.stdout
    made = json.loads(cli(*words, "--json").stdout)
    assert (made["to"], made["output"], made["collection"]) == ("lancedb", str(tmp_path / "out"), NAME)
    assert Path(made["path"], "manifest.json").is_file()
    wrong = cli(*words[:-3], "nonsense", "--output", tmp_path / "out")
    assert wrong.returncode == 2
    assert "npy" in wrong.stderr


def test_the_guide_is_right(models, data, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs/guides/encode.md").read_text()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/tuned").symlink_to(models / "cosine")
    (tmp_path / "scifact").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(bash|python)\n(.*?)```", page, re.DOTALL)
    assert [kind for kind, _ in blocks] == ["bash", "python"]
    for line in blocks[0][1].replace("\\\n", "").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["stzoo"] and "s3://" not in line:
            done = cli(*words[1:])
            assert done.returncode == 0, done.stderr
    exec(blocks[1][1], {})
