"""The Ray engine, with a real Ray of this machine."""

import builtins
import json
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from stzoo_master.prepare import MASTERData
from support import processes
from support.models import sentence_transformer

import stzoo
from stzoo.data.beir import write_beir
from stzoo.errors import RecipeError, TrainingError
from stzoo.finetuning.mining import shards
from stzoo.finetuning.mining.cross_encoder_filter import CrossEncoderFilter
from stzoo.models.cross_encoder import Teacher
from stzoo.pretraining import token_cache
from stzoo.retrieval.search import exact
from stzoo.retrieval.search.exact import top_k
from stzoo.retrieval.store import Store, fill, open_store
from stzoo.testing import sentences, tiny_cross_encoder
from stzoo.utils.parts import ArrayParts
from stzoo.utils.workers import chosen_engine, started

ray = pytest.importorskip("ray", reason="Ray is not installed")
from ray.cluster_utils import Cluster  # noqa: E402 - where Ray is installed

TEXTS = sentences(60)
NICENESS = "RAY_worker_niceness"


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """A cluster of two nodes of one CPU for all tests, as starting one takes seconds."""
    before, own_print = signal.getsignal(signal.SIGTERM), builtins.print
    os.environ[NICENESS] = "0"  # or the other tests would starve the workers
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False)
    signal.signal(signal.SIGTERM, before)  # which Ray replaces, also for later tests
    yield nodes
    ray.shutdown()
    nodes.shutdown()
    del os.environ[NICENESS]
    signal.signal(signal.SIGTERM, before)
    builtins.print = own_print


@pytest.fixture(scope="module")
def model(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    sentence_transformer(base).save_pretrained(str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "small"
    rows = ({"_id": f"d{number}", "title": "", "text": text} for number, text in enumerate(TEXTS))
    queries = {"q": TEXTS[4].split(".")[0]} | {f"t{number}": TEXTS[number][:40] for number in range(20, 30)}
    train = {f"t{number}": {f"d{number}": 1} for number in range(20, 30)}
    write_beir(folder, rows, queries, {"test": {"q": {"d4": 1}}, "train": train})
    return folder


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "cross"
    tiny_cross_encoder(folder)
    return folder


def only_workers(monkeypatch, kind):
    """Breaks a function in this process; workers import it."""
    monkeypatch.setattr(kind, "__call__", lambda *_: pytest.fail("the driver computed"))


class Squares(ArrayParts):
    def __init__(self, folder):
        super().__init__(folder, "{number:03d}.safetensors", 22, 3)


def rows_of(part):
    return list(range(part.first, part.last))


def test_workers_give_the_vectors_and_scores_of_one_process(
    model, judged, cross_encoder, tmp_path, monkeypatch
):
    given = dict(data=judged, rerank=cross_encoder, rerank_depth=20, shard_rows=7, progress=False)
    monkeypatch.setenv("STZOO_CACHE", str(tmp_path / "one"))
    alone = stzoo.bench(model, **given, output=tmp_path / "alone")
    monkeypatch.setenv("STZOO_CACHE", str(tmp_path / "other"))
    spread = stzoo.bench(model, **given, output=tmp_path / "spread", engine="ray", ray_workers=1)
    assert [one.scores for one in spread] == [one.scores for one in alone]
    stores = [sorted((tmp_path / name).rglob("shard-*")) for name in ("one", "other")]
    assert len(stores[0]) == len(stores[1]) > 9
    for here, there in zip(*stores, strict=True):
        assert np.array_equal(open_store(here.parent)[:], open_store(there.parent)[:])


def test_negatives_are_those_of_one_process(model, judged, cross_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "TAUGHT", 3)
    given = dict(data=judged, teacher=cross_encoder, teacher_margin=0.0, mined=4, depth=20)
    given |= dict(store=tmp_path / "store")
    stzoo.mine(model, output=tmp_path / "alone.jsonl", **given)
    only_workers(monkeypatch, CrossEncoderFilter)
    stzoo.mine(model, output=tmp_path / "spread.jsonl", engine="ray", ray_workers=1, **given)
    assert (tmp_path / "spread.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    stzoo.mine(model, output=tmp_path / "spread.jsonl", resume=True, **given)


@pytest.mark.usefixtures("unverified")
def test_a_teacher_scores_on_workers_and_the_model_is_the_same(model, cross_encoder, tmp_path, monkeypatch):
    rows = [
        {"query": TEXTS[number][:40], "pos": [TEXTS[number]], "neg": [TEXTS[number + 20]]}
        for number in range(20)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = dict(data=tmp_path / "rows.jsonl", teacher=cross_encoder, losses={"kl": 1.0}, device="cpu")
    given |= dict(max_steps=2, batch_size=8, dev_queries=0)
    stzoo.finetune(model, output=tmp_path / "alone", **given)
    only_workers(monkeypatch, Teacher)
    stzoo.finetune(model, output=tmp_path / "spread", engine="ray", ray_workers=1, **given)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("alone", "spread")]
    assert weights[0] == weights[1]
    recipes = [
        json.loads((tmp_path / name / "run.json").read_text())["recipe"] for name in ("alone", "spread")
    ]
    assert recipes[0] == recipes[1]
    with pytest.raises(RecipeError, match="--engine ray has no effect without --teacher or --episodes"):
        given |= dict(teacher=None, losses={"contrastive": 1.0})
        stzoo.finetune(model, output=tmp_path / "none", engine="ray", **given)


@pytest.mark.usefixtures("unverified")
def test_tokens_are_those_of_one_process(base, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "PART_ROWS", 7)
    given = dict(base=base, corpus=[corpus], objective="retromae", max_steps=1, batch_size=4)
    made = []
    for name, more in (("alone", {}), ("spread", dict(engine="ray", ray_workers=1))):
        monkeypatch.setenv("STZOO_CACHE", str(tmp_path / name))
        stzoo.pretrain(output=tmp_path / f"{name}-model", **given, **more)
        made.append([path.read_bytes() for path in sorted((tmp_path / name).rglob("part-*.arrow"))])
        only_workers(monkeypatch, token_cache._Tokeniser)
    assert made[0] == made[1]
    assert len(made[0]) == 7


def test_data_are_prepared_by_workers_that_share_the_files(base, corpus, tmp_path, monkeypatch):
    given = dict(queries="lexical", continuation="none", neighbours="bm25", shard_rows=5)
    given |= dict(corpus=[corpus], tokenizer=base)
    stzoo.prepare("master", output=tmp_path / "alone", **given)
    shard, here = MASTERData.shard, []
    monkeypatch.setattr(MASTERData, "shard", lambda *of: here.append(of[1:]) or shard(*of))
    stzoo.prepare("master", output=tmp_path / "spread", engine="ray", ray_workers=1, **given)
    assert here == [(0, 5)]  # the first shard, for which indexes are made
    alone, spread = (sorted((tmp_path / name).rglob("*.parquet")) for name in ("alone", "spread"))
    assert [path.read_bytes() for path in alone] == [path.read_bytes() for path in spread]
    assert [path.name for path in alone] == [path.name for path in spread]


def test_a_worker_that_dies_is_replaced(tmp_path):
    """Each worker kills itself at its first part."""

    def compute(rows):
        mark = tmp_path / "killed"
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"squares": np.array(rows) ** 2}

    parts = Squares(tmp_path / "parts")
    with chosen_engine("ray", 2, None), started(compute) as workers:
        parts.complete(workers, rows_of)
    assert np.concatenate([parts.read(part)["squares"] for part in parts]).tolist() == [
        row**2 for row in range(22)
    ]


def test_a_part_that_kills_every_worker_ends_with_a_sentence(tmp_path):
    def compute(rows):
        if 9 in rows:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"squares": np.array(rows) ** 2}

    parts = Squares(tmp_path / "parts")
    with (
        pytest.raises(TrainingError, match=r"a worker of Ray failed 4 times .* run the command again"),
        chosen_engine("ray", 1, None),
        started(compute) as workers,
    ):
        parts.complete(workers, rows_of)
    assert not list((tmp_path / "parts").glob(".*"))


def test_others_do_the_work_of_a_node_that_is_lost(cluster, model, tmp_path):
    (lost,) = cluster.worker_nodes
    there, at_work = lost.node_id, tmp_path / "at_work"

    def encode(texts):
        if ray.get_runtime_context().get_node_id() == there:
            at_work.touch()
            time.sleep(600)
        while texts[0] != TEXTS[0] and not at_work.exists():  # the first shard is encoded before the others
            time.sleep(0.01)
        return SentenceTransformer(model, device="cpu").encode(texts, batch_size=7)

    def lose():
        while not at_work.exists():
            time.sleep(0.01)
        cluster.remove_node(lost)

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    try:
        with chosen_engine("ray", 2, None):
            store = fill(tmp_path / "store", TEXTS, {}, encode, shard_rows=7, remote=True)
        thread.join()
    finally:
        cluster.add_node(num_cpus=1)
    alone = fill(tmp_path / "alone", TEXTS, {}, encode, shard_rows=7)
    assert np.array_equal(store[:], alone[:])


def test_errors_of_workers_are_the_users(tmp_path):
    def compute(rows):  # noqa: ARG001
        raise RecipeError("this is wrong.")

    parts = Squares(tmp_path / "parts")
    with (
        pytest.raises(RecipeError, match=r"^this is wrong\.$"),
        chosen_engine("ray", 1, None),
        started(compute) as workers,
    ):
        parts.complete(workers, rows_of)


class Absent:
    def __call__(self, rows):
        raise NotImplementedError

    def __reduce__(self):
        return __import__, ("a_plugin_that_only_the_driver_has",)


def test_a_function_that_workers_cannot_open_is_one_sentence(tmp_path):
    with (
        pytest.raises(
            RecipeError, match=r"cannot load the function .* No module named 'a_plugin.* Install the packages"
        ),
        chosen_engine("ray", 1, None),
        started(Absent()) as workers,
    ):
        Squares(tmp_path / "parts").complete(workers, rows_of)


def test_notes_of_workers_reach_the_user(tmp_path, caplog):
    def compute(rows):
        from stzoo.utils.messages import notify

        notify("a note from far away")
        return {"squares": np.array(rows)}

    with chosen_engine("ray", 1, None), started(compute) as workers:
        Squares(tmp_path / "parts").complete(workers, rows_of)
    assert "a note from far away" in caplog.text


def test_a_driver_that_is_killed_loses_only_parts_at_work(model, judged, tmp_path):
    code = """
import os, signal, sys
from stzoo.retrieval.store import shards
save = shards.Shards.save
def killed(self, draft, part, content):
    if len(list(self.folder.glob("shard-*"))) == 3:
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "Ray's handler"
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, draft, part, content)
shards.Shards.save = killed
import stzoo
stzoo.encode(sys.argv[1], sys.argv[2], output=sys.argv[3], shard_rows=7, engine="ray", ray_workers=1)
"""
    words = [model, str(judged), str(tmp_path / "store")]
    address = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, "-c", code, *words]
    killed = processes.run(command, env=os.environ | address, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "store").glob("shard-*")}
    assert len(kept) == 3
    made = stzoo.encode(model, judged, output=tmp_path / "store", shard_rows=7, engine="ray", ray_workers=1)
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "store").glob("shard-*")}
    assert kept.items() <= now.items()
    alone = stzoo.encode(model, judged, output=tmp_path / "alone", shard_rows=7)
    assert np.array_equal(made.store[:], alone.store[:])


def test_a_cluster_that_is_not_there_is_one_sentence(model, judged, tmp_path):
    words = ["encode", model, judged, "--output", tmp_path / "out", "--engine", "ray"]
    words += ["--ray-address", "127.0.0.1:1"]
    start = time.monotonic()
    done = processes.run([sys.executable, "-m", "stzoo", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "there is no Ray cluster at 127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - start < 600


def test_workers_search_the_blocks_of_a_store_that_they_can_read(tmp_path, monkeypatch, caplog):
    """One of two stores exists for the driver only."""
    driver, drawn = os.getpid(), np.random.default_rng(0).integers(-2, 3, (700, 4)).astype(np.float32)
    queries, ids = (
        np.random.default_rng(1).normal(size=(9, 4)).astype(np.float32),
        [f"d{i}" for i in range(700)],
    )

    class Elsewhere(Store):
        def has(self, start, stop):  # noqa: ARG002 - as of a store
            return os.getpid() == driver

    monkeypatch.chdir(tmp_path)
    stored = fill("store", drawn, {}, np.array, shard_rows=100)
    alone = top_k(queries, stored, ids[:9], ids, 40, drop_self=True)
    monkeypatch.setattr(exact, "PASSAGES", 64)
    monkeypatch.setattr(exact, "PAIRS", 0)
    with chosen_engine("ray", 1, None):
        assert top_k(queries, stored, ids[:9], ids, 40, drop_self=True) == alone
        assert not caplog.text
        hidden = Elsewhere(stored.folder, stored.manifest, 0.0)
        assert top_k(queries, hidden, ids[:9], ids, 40, drop_self=True) == alone
    assert caplog.text.count("so this process searches in its place") == 1
