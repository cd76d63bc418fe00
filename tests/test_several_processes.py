"""Commands that several processes run together give the files of a single process, byte for byte."""

import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from support import processes
from support.helpers import Pool
from support.models import sentence_transformer

import stzoo
from stzoo.data.beir import write_beir
from stzoo.errors import ModelError, OutputError, RecipeError
from stzoo.retrieval.store import open_store
from stzoo.testing import sentences
from stzoo.utils.parts import ArrayParts
from stzoo.utils.workers import ThisProcess, using

TEXTS = sentences(90)
MINING = ["--depth", 30, "--mined", 5]


@pytest.fixture(scope="module")
def model(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    sentence_transformer(base).save_pretrained(str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "small"
    rows = ({"_id": f"d{number}", "title": "", "text": text} for number, text in enumerate(TEXTS))
    queries = {f"q{number}": text.split(".")[0] for number, text in enumerate(TEXTS[::3])}
    grades = {f"q{number}": {f"d{3 * number}": 1} for number in range(len(queries))}
    write_beir(folder, rows, queries, {"test": grades, "train": grades})
    return folder


def together(count, *words, timeout=300):
    """Runs a command of stzoo in several processes, as torchrun does."""
    done = processes.run_ranks(count, [sys.executable, "-m", "stzoo", *map(str, words)], timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done


def files(folder):
    """The content of all files, without records of times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in (".parquet", ".trec", ".jsonl")
    }


def test_processes_encode_one_corpus_together(model, judged, tmp_path):
    alone = stzoo.encode(model, judged, output=tmp_path / "alone", shard_rows=7)
    done = together(3, "encode", model, judged, "--output", tmp_path / "both", "--shard-rows", 7)
    both = open_store(tmp_path / "both")
    assert np.array_equal(both[:], alone.store[:])
    assert both.metadata == alone.store.metadata
    assert "warning" not in done.stderr
    stzoo.encode(model, judged, output=tmp_path / "both", shard_rows=7)  # is complete
    found = stzoo.search(str(tmp_path / "both"), TEXTS[4], k=1)
    assert found[0]["found"][0]["id"] == "d4"


def test_processes_score_and_mine_together(model, judged, tmp_path, monkeypatch):
    monkeypatch.setenv("STZOO_CACHE", str(tmp_path / "cache"))
    stzoo.bench(model, data=judged, output=tmp_path / "alone", progress=False)
    stzoo.mine(model, data=judged, output=tmp_path / "alone.jsonl", depth=30, mined=5)
    monkeypatch.setenv("STZOO_CACHE", str(tmp_path / "other"))
    together(2, "bench", model, "--data", judged, "--output", tmp_path / "both")
    together(2, "mine", model, "--data", judged, "--output", tmp_path / "both.jsonl", *MINING)
    assert files(tmp_path / "both") == files(tmp_path / "alone")
    assert (tmp_path / "both.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    assert not list(tmp_path.glob(".*"))
    monkeypatch.setenv("STZOO_CACHE", str(tmp_path / "unused"))
    together(2, "bench", model, "--data", judged, "--output", tmp_path / "both")  # has all results
    assert not list((tmp_path / "unused").rglob("shard-*"))


def test_mining_is_shared_out(model, judged, tmp_path, monkeypatch):
    """Both processes mine, as each waits until the other one has begun."""
    code = """
import sys, time
from pathlib import Path
from stzoo.finetuning.mining import shards
shards.PART = 2  # all in one block
find, here = shards._Mining._finder, Path(sys.argv[4])
def begun(self, first, last):
    (here / f"{shards.rank()}").touch()
    while len(list(here.iterdir())) < 2:
        time.sleep(0.01)
    return find(self, first, last)
shards._Mining._finder = begun
import stzoo
stzoo.mine(sys.argv[1], data=sys.argv[2], output=sys.argv[3], depth=30, mined=5)
"""
    monkeypatch.setenv("STZOO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "begun").mkdir()
    words = [model, str(judged), str(tmp_path / "both.jsonl"), str(tmp_path / "begun")]
    done = processes.run_ranks(2, [sys.executable, "-c", code, *words])
    assert done.returncode == 0, done.stderr
    stzoo.mine(model, data=judged, output=tmp_path / "alone.jsonl", depth=30, mined=5)
    rows = [(tmp_path / name).read_text().splitlines() for name in ("both.jsonl", "alone.jsonl")]
    assert [json.loads(row) for row in rows[0]] == [json.loads(row) for row in rows[1]]


def test_processes_prepare_together(base, corpus, tmp_path):
    given = dict(queries="lexical", continuation="none", neighbours="bm25", shard_rows=5)
    stzoo.prepare("master", output=tmp_path / "alone", corpus=[corpus], tokenizer=base, **given)
    words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    words += ["--corpus", corpus, "--tokenizer", base, "--output", tmp_path / "both"]
    together(2, "prepare", "master", *words)
    assert files(tmp_path / "both") == files(tmp_path / "alone") != {}
    assert json.loads((tmp_path / "both" / "run.json").read_text())["status"] == "finished"


KILLED = """
import os, signal
from stzoo.cli import main
from stzoo.pretraining import prepare
from stzoo.utils import distributed
distributed.SILENCE_S, distributed.BEAT_S = 10, 0.2
wait = prepare.wait_for_all
def killed():
    wait()
    if distributed.rank():
        os.kill(os.getpid(), signal.SIGKILL)
prepare.wait_for_all = killed
main()
"""


def test_a_process_that_is_killed_at_the_end_takes_no_finished_record_with_it(base, corpus, tmp_path):
    words = ["prepare", "master", "--queries", "lexical", "--continuation", "none", "--neighbours", "bm25"]
    words += ["--corpus", corpus, "--tokenizer", base, "--output", tmp_path / "out"]
    done = processes.run_ranks(2, [sys.executable, "-c", KILLED, *map(str, words)], to_the_end=True)
    assert done.codes == [2, -9], done.stderr
    assert "process 1 of 2 has shown no sign of life" in done.stderr
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "finished"
    before = files(tmp_path / "out")
    together(1, *words, "--resume")
    assert files(tmp_path / "out") == before


def test_without_torchrun_processes_end_if_one_refuses(base, corpus, tmp_path):
    """The first process alone looks at the output; the others would wait for it."""
    words = ["prepare", "master", "--queries", "lexical", "--continuation", "none", "--neighbours", "bm25"]
    words += ["--corpus", corpus, "--tokenizer", base, "--output", tmp_path / "out"]
    together(1, *words)
    begun = time.monotonic()
    command = [sys.executable, "-m", "stzoo", *map(str, words)]
    done = processes.run_ranks(3, command, to_the_end=True, torchrun=False)
    assert done.codes == [2, 2, 2], done.stderr
    assert "contains a finished run. Replace it with --overwrite" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - begun < 100


def test_a_rank_without_the_others_is_refused(model, judged, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(stzoo.StzooError, match=r"that of several processes .* torchrun"):
        stzoo.mine(model, data=judged, output=tmp_path / "mined.jsonl", depth=30, mined=5)


# --- workers


class Squares(ArrayParts):
    def __init__(self, folder):
        super().__init__(folder, "{number:03d}.safetensors", 22, 3)

    def square(self, rows):
        return {"squares": np.array(rows) ** 2}


def made(parts):
    return np.concatenate([parts.read(part)["squares"] for part in parts]).tolist()


@pytest.mark.parametrize("workers", [ThisProcess, Pool])
def test_workers_make_what_is_missing(tmp_path, workers):
    parts, seen, finished = Squares(tmp_path), [], []

    def take(part):
        seen.append(part.number)
        return range(part.first, part.last)

    parts.make(parts[2], lambda part: parts.square(take(part)))
    seen.clear()
    parts.complete(workers(parts.square), take, each=lambda part, _: finished.append(part.number))
    assert sorted(seen) == [0, 1, 3, 4, 5, 6, 7]
    assert sorted(finished) == list(range(8))
    assert made(parts) == [row**2 for row in range(22)]


@pytest.mark.parametrize("workers", [ThisProcess, Pool])
def test_a_failure_keeps_what_was_saved_and_claims_nothing(tmp_path, workers):
    parts = Squares(tmp_path)

    def take(part):
        if part.number == 6:
            raise ModelError("no")
        return range(part.first, part.last)

    with pytest.raises(ModelError):
        parts.complete(workers(parts.square), take)
    assert len(parts.missing()) < 8
    parts.complete(workers(parts.square), lambda part: range(part.first, part.last))
    assert made(parts) == [row**2 for row in range(22)]
    assert not list(tmp_path.glob(".*"))


def test_two_drivers_make_no_part_twice(tmp_path):
    parts, seen, barrier = Squares(tmp_path), [], threading.Barrier(2)

    def take(part):
        seen.append(part.number)
        return range(part.first, part.last)

    def drive():
        barrier.wait()
        Squares(tmp_path).complete(Pool(parts.square), take)

    threads = [threading.Thread(target=drive) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(seen) == list(range(8))
    assert made(parts) == [row**2 for row in range(22)]


def test_one_of_the_processes_hands_the_vectors_over(model, judged, tmp_path, monkeypatch):
    monkeypatch.setenv("STZOO_CACHE", str(tmp_path / "cache"))
    options = ["--to", "npy", "--output", tmp_path / "both", "--shard-rows", 7]
    together(2, "encode", model, judged, *options)
    alone = stzoo.encode(model, judged, to="npy", output=tmp_path / "alone", shard_rows=7)
    assert np.array_equal(np.load(tmp_path / "both" / "vectors.npy"), alone.store[:])
    assert files(tmp_path / "both") == files(tmp_path / "alone")


@pytest.mark.parametrize("to", ["parquet", "lancedb"])
def test_one_of_the_processes_that_no_launcher_started_hands_over_to_a_url(model, judged, tmp_path, to):
    """Each has a cache of its own, as on another machine. Neither begins before both have all vectors."""
    code = """
import sys, time
from pathlib import Path
import stzoo
from stzoo.retrieval import encode
from stzoo.retrieval.handover.folder import Folder
upload, passages = Folder._upload, encode.Passages
model, data, url, store, to, marks, rank = sys.argv[1:]
def both(*given):
    Path(marks, rank).touch()
    while len(list(Path(marks).iterdir())) < 2:
        time.sleep(0.01)
    return passages(*given)
def slow_upload(self, path, name):
    time.sleep(0.1)
    print(name)
    upload(self, path, name)
encode.Passages, Folder._upload = both, slow_upload
made = stzoo.encode(model, data, to=to, output=url, store=store, shard_rows=20)
assert made.handed_over.to == to
"""
    (tmp_path / "marks").mkdir()
    if to == "lancedb":
        lancedb = pytest.importorskip("lancedb")
    url = (tmp_path / "out").as_uri()
    words = [sys.executable, "-c", code, model, str(judged), url, str(tmp_path / "store"), to]
    started = [
        processes.Popen(
            [*words, str(tmp_path / "marks"), str(number)],
            env=os.environ | {"STZOO_CACHE": str(tmp_path / f"cache-{number}")},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    printed = [process.communicate(timeout=300)[0].split() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    if to == "parquet":
        names = [f"part-{number:05}.parquet" for number in range(5)]
        assert sorted(printed) == [[], ["_stzoo.json", *names]]
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["_stzoo.json", *names]
    else:
        assert lancedb.connect(url).open_table("small").count_rows() == len(TEXTS)
    assert not list((tmp_path / "store").rglob(".*"))


def test_options_of_ray_need_it(model, judged, tmp_path):
    with pytest.raises(RecipeError, match="--ray-workers has no effect without --engine ray"):
        stzoo.encode(model, judged, output=tmp_path / "out", ray_workers=2)
    with pytest.raises(RecipeError, match="ray_workers is 0; expected at least 1"):
        stzoo.encode(model, judged, output=tmp_path / "out", engine="ray", ray_workers=0)
    with pytest.raises(RecipeError, match="there is no engine 'rya'; did you mean 'ray'"):
        stzoo.encode(model, judged, output=tmp_path / "out", engine="rya")
    for command in ("mine", "finetune"):
        with pytest.raises(RecipeError, match="--ray-address has no effect without --engine ray"):
            getattr(stzoo, command)(model, data=judged, output=tmp_path / "out", ray_address="auto")
    stzoo.encode(model, judged, output=tmp_path / "out")
    with pytest.raises(OutputError, match="role: 'document' then, 'query' now"):
        stzoo.encode(model, judged, output=tmp_path / "out", role="query")


def test_processes_of_torchrun_have_no_engine_of_their_own(model, judged, tmp_path, monkeypatch):
    launcher = dict(WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(stzoo.StzooError, match=r"--engine ray runs in one process, .* or drop the option"):
        stzoo.finetune(model, data=judged, output=tmp_path / "out", engine="ray")


def test_an_engine_computes_what_a_store_lacks(model, judged, tmp_path):
    import contextlib
    import pickle

    counts = []

    @contextlib.contextmanager
    def engine(compute):
        pool = Pool(pickle.loads(pickle.dumps(compute.on("cpu"))).on("cpu"))
        yield pool
        counts.append(pool)

    with using(engine):
        both = stzoo.encode(model, judged, output=tmp_path / "pool", shard_rows=7)
    alone = stzoo.encode(model, judged, output=tmp_path / "alone", shard_rows=7)
    assert np.array_equal(both.store[:], alone.store[:])
    assert counts
