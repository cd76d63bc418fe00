"""Copies of Python objects in the cache: what they contain, and what becomes of damaged ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import stzoo
from stzoo.data import objects
from stzoo.data.beir import write_beir
from stzoo.errors import DataError, OutputError
from stzoo.testing import sentences

TEXTS = sentences(6, seed=4)
ROWS = [{"id": f"d{i}", "text": text} for i, text in enumerate(TEXTS)]
QRELS = {"q0": {"d0": 1}}
JUDGED = ({row["id"]: {"text": row["text"]} for row in ROWS}, {"q0": TEXTS[0]}, QRELS)

KILLED = """
import os, signal
from stzoo.data.objects import corpus_path

def rows():
    yield "a text of some words"
    os.kill(os.getpid(), signal.SIGKILL)

corpus_path(rows())
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "objects"


def test_the_draft_of_a_killed_process_is_removed_by_the_next_copy(cache):
    killed = subprocess.run([sys.executable, "-c", KILLED], env=os.environ.copy(), check=False)
    assert killed.returncode == -9
    assert [path.name[:8] for path in cache.iterdir()] == [".object."]
    path = objects.corpus_path(TEXTS)
    assert list(cache.iterdir()) == [Path(path)]


def break_first_line(file):
    file.write_text("".join(file.read_text("utf-8").splitlines(keepends=True)[1:]), "utf-8")


@pytest.mark.parametrize("damage", [break_first_line, Path.unlink, lambda file: file.write_text("")])
@pytest.mark.parametrize(
    ("copy", "given", "file"),
    [
        (objects.corpus_path, ROWS, "corpus.jsonl"),
        (objects.judged_path, JUDGED, "qrels/test.tsv"),
        (objects.judged_path, {"one": JUDGED}, "one/queries.jsonl"),
        (objects.training_path, [{"query": "a", "positive": "b"}], ""),
    ],
)
def test_a_copy_that_was_edited_or_damaged_is_written_again(copy, given, file, damage, cache):
    path = Path(copy(given))
    before = (path / file).read_bytes()
    damage(path / file)
    assert copy(given) == str(path)
    assert (path / file).read_bytes() == before
    assert [one.name for one in cache.iterdir()] == [path.name]


def test_errors_of_the_users_iterables_are_passed_on(cache):
    def rows():
        yield from ROWS
        try:
            int("a word")
        except ValueError as error:
            raise FileNotFoundError(2, "No such file", "/the/users/file") from error

    for copy in (
        objects.corpus_path,
        objects.training_path,
        lambda given: objects.judged_path((given, {}, {})),
    ):
        with pytest.raises(FileNotFoundError, match="/the/users/file") as raised:
            copy(rows())
        assert isinstance(raised.value.__cause__, ValueError)
    assert not any(cache.iterdir())
    cache.rmdir()
    cache.write_text("a file in its place")
    with pytest.raises(OutputError, match=r"objects/object could not be written"):
        objects.corpus_path(ROWS)


def reader(rows):
    table = pa.Table.from_pylist(rows)
    return pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=2))


def test_a_reader_of_arrow_batches_is_read_as_rows():
    [file] = Path(objects.corpus_path(reader(ROWS))).iterdir()
    assert file.read_bytes() == Path(objects.corpus_path(ROWS), "corpus.jsonl").read_bytes()
    pairs = [{"query": text, "positive": text} for text in TEXTS]
    path = objects.training_path(reader(pairs))
    assert [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()] == pairs


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        (pd.DataFrame([["a", "b"]], columns=["text", "text"]), r"Duplicate column names.* its own name"),
        (pd.DataFrame({"text": ["a", 3]}), "Conversion failed for column text"),
        (pd.DataFrame({"text": ["a"], "more": [object()]}), "Conversion failed for column more"),
        (pd.DataFrame({"text": ["a"], "more": [1j]}), "Conversion failed for column more"),
        (pd.DataFrame({"text": ["a"], "more": pd.arrays.SparseArray([1])}), "column more.* not supported"),
        (pa.Table.from_arrays([pa.array(["a"])] * 2, ["text", "text"]), "Table has two columns named 'text'"),
        ([{"text": "a", (1, 2): "b"}], "row 1 cannot be written as JSON: keys must be str"),
    ],
)
@pytest.mark.parametrize("copy", [objects.corpus_path, objects.training_path])
def test_columns_that_cannot_be_read_are_a_short_error(frame, error, copy):
    with pytest.raises(DataError, match=error) as raised:
        copy(frame)
    assert len(str(raised.value)) < 250
    assert "object at" not in str(raised.value)


@pytest.mark.parametrize("score", [float("nan"), np.float32("nan"), "0.5", "high", None, [1.0], 1j, 10**400])
def test_scores_of_a_run_are_floats(score):
    with pytest.raises(DataError, match=r"the score of 'd1' for 'q0' is .*; expected a float") as raised:
        stzoo.score({"q0": {"d0": 1.0, "d1": score}}, data=JUDGED)
    assert len(str(raised.value)) < 100
    assert stzoo.score({"q0": {"d0": np.float32(1), "d1": 0}}, data=JUDGED)[0].scores.mean["MRR@10"] == 1.0


@pytest.mark.parametrize(
    "given", [ROWS, pd.DataFrame(ROWS), reader(ROWS), datasets.Dataset.from_list(ROWS), JUDGED[0]]
)
def test_an_object_has_the_results_of_its_file(given, tmp_path):
    train = [{"query": "a question", "positive": TEXTS[0]}]
    pairs = tmp_path / "train.jsonl"
    pairs.write_text(json.dumps(train[0]) + "\n")
    rows = [{"_id": row["id"], "text": row["text"]} for row in ROWS]
    folder = write_beir(tmp_path / "beir", rows, JUDGED[1], {"test": QRELS})
    by_objects = stzoo.contamination(train, data=(given, *JUDGED[1:]), minhash=False)
    by_files = stzoo.contamination(str(pairs), data=folder, minhash=False)
    assert by_objects.found_passages == by_files.found_passages == ("d0",)
    by_objects, by_files = (stzoo.bench([], data=data)[0] for data in (JUDGED, folder))
    assert by_objects.scores.per_query == by_files.scores.per_query
    assert by_objects.corpus == by_files.corpus
