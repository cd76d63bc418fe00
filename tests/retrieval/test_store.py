import random
import shutil
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file
from sentence_transformers.util.quantization import quantize_embeddings
from support import processes
from support.helpers import abandoned_draft

from stzoo.errors import DataError, ModelError, OutputError, RecipeError
from stzoo.retrieval.store import PRECISIONS, Store, fill, open_store, place, quantise
from stzoo.retrieval.store.shards import Shard, Shards, read_manifest
from stzoo.utils.files import lock_folder
from stzoo.utils.messages import note_if_slow

FACTS = {"model": "tiny", "revision": "0123456789ab", "role": "document", "texts": "f" * 64}
ROWS, WIDTH, SHARD_ROWS = 50, 12, 8
VECTORS = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)
NUMBERS = list(range(ROWS))  # the texts of these tests are the numbers of their vectors

FILLS = f"""
import resource, sys, time
import numpy as np
from stzoo.retrieval.store import fill
def vector(number):
    return np.random.default_rng(number).standard_normal(300).astype(np.float32)
def encode(numbers):
    print("encoding", flush=True)
    time.sleep(0.02)
    if numbers[0] == 60 and "full" in sys.argv:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    return np.stack([vector(number) for number in numbers])
fill(sys.argv[1], range(1800), {FACTS!r}, encode, shard_rows=30)
"""


def encode(numbers):
    return VECTORS[numbers]


def filled(folder, **options) -> Store:
    return fill(folder, NUMBERS, FACTS, encode, **{"shard_rows": SHARD_ROWS, **options})


def times(folder) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in Path(folder).glob("shard-*.safetensors")}


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


class Counted:
    """encode() that remembers what it was asked for."""

    def __init__(self):
        self.seen = []

    def __call__(self, numbers):
        self.seen += numbers
        return encode(numbers)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return filled(tmp_path_factory.mktemp("store") / "store")


def test_what_was_encoded_is_found_again_without_encoding(tmp_path):
    first, again = Counted(), Counted()
    for counted in (first, again):
        made = fill(tmp_path / "store", NUMBERS, FACTS, counted, shard_rows=SHARD_ROWS)
        assert np.array_equal(made[:], VECTORS)
    assert first.seen == NUMBERS
    assert again.seen == []
    opened = open_store(tmp_path / "store")
    assert np.array_equal(opened[:], VECTORS)
    assert (opened.shape, len(opened), opened.precision) == ((ROWS, WIDTH), ROWS, "float32")
    assert opened.metadata == FACTS
    assert opened.nbytes == VECTORS.nbytes
    assert len(times(tmp_path / "store")) == 7
    tensors = load_file(tmp_path / "store" / "shard-00006.safetensors")
    assert np.array_equal(tensors["vectors"], VECTORS[48:])


@given(st.integers(-60, 60) | st.none(), st.integers(-60, 60) | st.none())
def test_a_slice_is_that_of_the_array_wherever_shards_meet(store, start, stop):
    found = store[start:stop]
    assert found.dtype == np.float32
    assert np.array_equal(found, VECTORS[start:stop])


def test_rows_that_are_not_consecutive_are_refused(store):
    with pytest.raises(ValueError, match="consecutive"):
        store[::2]


def test_a_fill_that_is_killed_five_times_ends_with_the_same_bytes(tmp_path):
    draw = random.Random(0)
    command = [sys.executable, "-c", FILLS]
    processes.run([*command, tmp_path / "whole"], check=True, capture_output=True)
    finished, made_again = [], 0
    for _ in range(5):
        before = times(tmp_path / "killed")
        child = processes.Popen([*command, tmp_path / "killed"], stdout=PIPE)
        child.stdout.readline()
        time.sleep(draw.uniform(0, 0.1))
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        after = times(tmp_path / "killed")
        made_again += sum(after[name] != moment for name, moment in before.items())
        finished.append(len(after))
    assert 0 < finished[-1] < 60, "it was not killed midway"
    processes.run([*command, tmp_path / "killed"], check=True, capture_output=True)
    assert made_again == 0
    assert after.items() <= times(tmp_path / "killed").items()
    killed, whole = open_store(tmp_path / "killed"), open_store(tmp_path / "whole")
    assert killed[:].tobytes() == whole[:].tobytes()
    assert sorted(contents(tmp_path / "killed")) == sorted(contents(tmp_path / "whole"))
    assert killed.seconds > 60 * 0.019  # what was spent before the kills is not forgotten


@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_found_and_made_again(store, data):
    path = data.draw(st.sampled_from(sorted(store.folder.iterdir())))
    whole = path.read_bytes()
    start = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        damaged = whole[:start]
    else:
        damaged = whole[:start] + bytes([data.draw(st.integers(0, 255))]) + whole[start + 1 :]
    path.write_bytes(damaged)
    try:
        try:
            assert np.array_equal(open_store(store.folder)[:], VECTORS)  # a blank for a blank harms nothing
            harmed = False
        except DataError:
            harmed = True
        before = times(store.folder)
        counted = Counted()
        again = fill(store.folder, NUMBERS, FACTS, counted, shard_rows=SHARD_ROWS)
        assert np.array_equal(again[:], VECTORS)
        assert np.array_equal(open_store(store.folder)[:], VECTORS)
        assert bool(counted.seen) == harmed
        assert len(counted.seen) <= SHARD_ROWS
        changed = {name for name, moment in times(store.folder).items() if before[name] != moment}
        assert changed <= {path.name}
    finally:
        path.write_bytes(whole)


def test_vectors_that_are_damaged_are_always_found(store):
    path = store.folder / "shard-00002.safetensors"
    whole = path.read_bytes()
    for place_ in (-1, -200, -SHARD_ROWS * WIDTH * 4):
        damaged = bytearray(whole)
        damaged[place_] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"shard-00002.* is missing or damaged"):
            open_store(store.folder)
    path.write_bytes(whole)
    open_store(store.folder)


def test_a_shard_of_wrong_shape_or_of_another_store_is_made_again(tmp_path):
    made = filled(tmp_path / "store")
    other = fill(
        tmp_path / "other", NUMBERS, {**FACTS, "revision": "other"}, lambda n: -encode(n), shard_rows=8
    )
    paths = [made.folder / f"shard-0000{number}.safetensors" for number in range(7)]
    paths[1].write_bytes((other.folder / paths[1].name).read_bytes())
    paths[2].write_bytes(paths[3].read_bytes())
    shards = Shards(made.folder, made.manifest)
    paths[4].unlink()
    paths[6].unlink()
    shards.make(shards[4], lambda _: Shard(np.zeros((3, WIDTH), np.float32), 0.0))
    shards.make(shards[6], lambda _: Shard(np.zeros((2, WIDTH)), 0.0))
    paths[5].unlink()
    counted = Counted()
    assert np.array_equal(fill(made.folder, NUMBERS, FACTS, counted)[:], VECTORS)
    assert counted.seen == [*range(8, 24), *range(32, 50)]


def test_a_store_of_other_facts_is_never_reused(tmp_path):
    made = filled(tmp_path / "store")
    before = contents(made.folder)
    changes = [{"revision": "other"}, {"prompt": "query: "}, {"texts": "0" * 64}]
    for change in changes:
        ((name, value),) = change.items()
        with pytest.raises(OutputError, match=rf"facts\.{name}: .* then, '{value}' now"):
            fill(made.folder, NUMBERS, FACTS | change, encode)
    with pytest.raises(OutputError, match="rows: 50 then, 49 now"):
        fill(made.folder, NUMBERS[:-1], FACTS, encode)
    with pytest.raises(OutputError, match="precision: 'float32' then, 'float16' now"):
        filled(made.folder, precision="float16")
    assert contents(made.folder) == before
    folders = {place(tmp_path, "a/b", "set one", "query", FACTS | change) for change in [{}, *changes]}
    assert len(folders) == 4
    (folder,) = folders & {place(str(tmp_path), "a/b", "set one", "query", dict(reversed(FACTS.items())))}
    assert folder.parent == tmp_path / "a__b"
    assert folder.name.startswith("set-one-query-")
    assert len(folder.name) == len("set-one-query-") + 12
    folder.mkdir(parents=True)
    assert place(tmp_path, "a/b", "the same set", "query", FACTS) == folder
    assert place(tmp_path, "a/b", "the same set", "document", FACTS) != folder


def test_a_store_keeps_its_shards_when_another_size_is_asked_for(tmp_path):
    filled(tmp_path / "store")
    (tmp_path / "store" / "shard-00001.safetensors").unlink()
    before = times(tmp_path / "store")
    assert np.array_equal(filled(tmp_path / "store", shard_rows=30)[:], VECTORS)
    assert before.items() <= times(tmp_path / "store").items()


def test_the_manifest_follows_texts_that_have_moved_and_costs_no_encoding(tmp_path):
    filled(tmp_path / "store", data={"folder": "old", "name": "set"})
    assert filled(tmp_path / "store").data == {"folder": "old", "name": "set"}
    before = times(tmp_path / "store")
    filled(tmp_path / "store", data={"folder": "new", "name": "set"})
    assert open_store(tmp_path / "store").data == {"folder": "new", "name": "set"}
    assert times(tmp_path / "store") == before


def test_processes_fill_a_store_together(tmp_path):
    """Each shard is encoded once, whoever encodes it."""
    count = Counted()

    def slow(numbers):
        time.sleep(0.02)
        return count(numbers)

    def work():
        fill(tmp_path / "store", NUMBERS, FACTS, slow, shard_rows=SHARD_ROWS)

    workers = [threading.Thread(target=work) for _ in range(3)]
    with lock_folder(tmp_path / "store"):  # they wait for whoever writes the manifest
        for one in workers:
            one.start()
    for one in workers:
        one.join()
    assert sorted(count.seen) == NUMBERS
    assert np.array_equal(open_store(tmp_path / "store")[:], VECTORS)


def test_a_full_disk_is_said_and_finished_shards_stay(tmp_path):
    command = [sys.executable, "-c", FILLS, tmp_path / "store", "full"]
    child = processes.run(command, capture_output=True, text=True)
    assert "OutputError" in child.stderr
    assert "shard-00002.safetensors could not be written" in child.stderr
    assert sorted(contents(tmp_path / "store")) == [
        "manifest.json", "shard-00000.safetensors", "shard-00001.safetensors"
    ]  # fmt: skip


def test_vectors_that_do_not_hold_are_refused(tmp_path):
    for vectors, said in (
        (VECTORS[:3], "encoded as"),
        (VECTORS[:SHARD_ROWS, 0], "encoded as"),
        (np.full((8, 2), np.nan, np.float32), "NaN"),
    ):
        with pytest.raises(ModelError, match=said):
            fill(tmp_path / "store", NUMBERS, FACTS, lambda _, given=vectors: given, shard_rows=SHARD_ROWS)
    with pytest.raises(ModelError, match="dimension"):
        fill(
            tmp_path / "a", NUMBERS, FACTS, lambda n: VECTORS[n, : 5 if 8 in n else 4], shard_rows=SHARD_ROWS
        )
    with pytest.raises(ModelError, match="float16"):
        fill(tmp_path / "b", NUMBERS, FACTS, lambda n: 1e5 * encode(n), precision="float16")
    with pytest.raises(DataError, match="no text"):
        fill(tmp_path / "c", [], FACTS, encode)
    with pytest.raises(RecipeError, match="shard_rows is 0"):
        filled(tmp_path / "d", shard_rows=0)


def test_a_folder_with_another_programs_manifest_is_not_filled(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "an extension", "schema_version": 3}')
    with pytest.raises(OutputError, match="does not belong to an embedding store"):
        filled(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_what_is_no_store_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text('{"rows": 3}')
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(DataError, match="not an embedding store"):
            open_store(folder)


def test_a_shard_that_vanishes_after_it_was_checked_is_named(tmp_path):
    made = filled(tmp_path / "store")
    path = made.folder / "shard-00001.safetensors"
    for left in (path.read_bytes()[:-1], b""):
        path.write_bytes(left)
        assert np.array_equal(made[:8], VECTORS[:8])
        with pytest.raises(DataError, match=r"shard-00001.* can no longer be read"):
            made[:16]
    path.unlink()
    with pytest.raises(DataError, match=r"shard-00001.* can no longer be read"):
        made[:9]


MATRICES = st.tuples(st.integers(2, 40), st.integers(1, 20)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(-100, 100, width=16))
)


@given(MATRICES, st.sampled_from(PRECISIONS), st.integers(9, 50))
@settings(max_examples=40)
def test_each_precision_comes_back_within_its_bounds(tmp_path_factory, vectors, precision, shard_rows):
    folder = tmp_path_factory.mktemp("precisions")
    rows = range(len(vectors))
    source = fill(folder / "full", rows, FACTS, lambda n: vectors[n.start : n.stop], shard_rows=shard_rows)
    made = quantise(source, folder / precision, precision)
    found = made[:]
    assert (made.shape, found.shape, found.dtype) == (source.shape, vectors.shape, np.float32)
    step = np.ptp(vectors, axis=0) / 255
    bound = {"float32": 0, "float16": np.abs(vectors) * 2**-11, "int8": step * 0.501 + 1e-4}
    if precision == "binary":
        assert np.array_equal(found, np.where(vectors > 0, 1, -1))
        # the highest bit first, and 0 after the last dimension
        packed, shards = quantize_embeddings(vectors, "ubinary"), Shards(made.folder, made.manifest)
        assert np.array_equal(shards.read_rows(0, len(vectors)), packed)
        assert np.array_equal(shards.read_rows(1, 2), packed[1:2])
    else:
        assert (np.abs(found - vectors) <= bound[precision]).all()
    per_row = {"float32": 4, "float16": 2, "int8": 1}
    width = vectors.shape[1]
    assert made.nbytes == len(vectors) * (
        per_row[precision] * width if precision in per_row else (width + 7) // 8
    )
    assert np.array_equal(open_store(folder / precision)[:], found)
    assert np.array_equal(made[1:2], found[1:2])


def test_a_smaller_store_is_made_in_one_pass_with_the_ranges_of_its_first_shard(tmp_path):
    made = filled(tmp_path / "store", precision="int8")
    low, high = VECTORS[:SHARD_ROWS].min(0), VECTORS[:SHARD_ROWS].max(0)
    assert (np.abs(made[:] - VECTORS.clip(low, high)) <= (high - low) / 255).all()
    ranges = np.stack([VECTORS.min(0), VECTORS.max(0)])
    told = filled(tmp_path / "told", precision="int8", ranges=ranges)
    assert np.array_equal(told[:], quantise(filled(tmp_path / "full"), tmp_path / "later", "int8")[:])


def test_quantising_encodes_nothing_goes_on_and_counts_the_seconds_before_it(tmp_path):
    def slow(numbers):
        time.sleep(0.02)
        return encode(numbers)

    source = fill(tmp_path / "full", NUMBERS, FACTS, slow, shard_rows=8, data={"folder": "here"})
    assert source.seconds >= 0.14
    first = quantise(source, tmp_path / "int8", "int8")
    assert source.seconds <= first.seconds < source.seconds + 0.1
    assert open_store(tmp_path / "int8").seconds == pytest.approx(first.seconds, abs=0.01)
    assert first.data == {"folder": "here"}
    before = times(tmp_path / "int8")
    (tmp_path / "int8" / "shard-00003.safetensors").unlink()
    again = quantise(open_store(tmp_path / "full"), tmp_path / "int8", "int8")
    assert np.array_equal(again[:], first[:])
    changed = {name for name, moment in times(tmp_path / "int8").items() if before[name] != moment}
    assert changed == {"shard-00003.safetensors"}
    with pytest.raises(RecipeError, match="float32"):
        quantise(first, tmp_path / "smaller", "binary")
    with pytest.raises(RecipeError, match="did you mean 'int8'"):
        quantise(source, tmp_path / "smaller", "int9")


def test_what_a_killed_fill_left_half_written_is_cleared_away(tmp_path):
    made = filled(tmp_path / "store")
    abandoned_draft(made.folder, "shard-00009.safetensors")
    filled(made.folder)
    assert not list(made.folder.glob(".*"))


def test_the_manifest_says_what_the_vectors_are_of(store):
    manifest = read_manifest(store.folder)
    assert manifest["facts"] == FACTS
    assert (manifest["rows"], manifest["dim"], manifest["shard_rows"]) == (ROWS, WIDTH, SHARD_ROWS)


def test_what_is_encoded_is_said_once_if_it_takes_long_and_there_is_no_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("stzoo.retrieval.store.note_if_slow", partial(note_if_slow, seconds=0.01))

    def slowly(numbers):
        time.sleep(0.1)
        return encode(numbers)

    def said(encode):
        fill(tmp_path / "store", NUMBERS, FACTS, encode, shard_rows=30, note="encoding 50 numbers …")
        return capsys.readouterr().err

    assert said(slowly) == "stzoo: encoding 50 numbers …\n"
    assert said(slowly) == ""  # all is stored
    next((tmp_path / "store").glob("shard-*1*.safetensors")).unlink()
    assert said(slowly) == "stzoo: encoding 50 numbers …\n"
    shutil.rmtree(tmp_path / "store")
    monkeypatch.undo()
    assert said(slowly) == ""  # two seconds are long
