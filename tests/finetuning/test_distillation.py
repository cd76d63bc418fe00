"""A teacher's scores of training sets: each at its place, the same after a kill, of one teacher only."""

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support import processes
from support.helpers import wait_for

from stzoo.data.training_sets.builder import TrainingSetWriter
from stzoo.data.training_sets.sets import Candidate
from stzoo.errors import OutputError
from stzoo.finetuning.distillation import PART_QUERIES, rescore
from stzoo.models.cross_encoder import open_teacher
from stzoo.testing import sentences, tiny_cross_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_cross_encoder(tmp_path_factory.mktemp("teachers") / "tiny")


@pytest.fixture(scope="module")
def teacher(folder):
    return open_teacher(str(folder), device="cpu")


def training_set(count, seed=0):
    """Of `count` queries, each with one or two positives and up to four negatives."""
    texts, writer = sentences(60, seed=seed + 100), TrainingSetWriter()
    for number, query in enumerate(sentences(count, seed=seed)):
        some = [Candidate(texts[(7 * number + step) % 60]) for step in range(6)]
        writer.add(query, some[: 1 + number % 2], some[2 : 2 + number % 5], query_id=f"q{number}")
    return writer.finish("small", Path("small.jsonl"))


def test_every_positive_and_negative_gets_its_own_score(teacher, tmp_path):
    training = training_set(PART_QUERIES + 9)
    assert not training.scored
    scored = rescore(training, teacher, tmp_path / "scores")
    assert scored.scored
    for side in ("positives", "negatives"):
        lists = getattr(scored, side)
        rows = np.repeat(np.arange(len(training.queries)), np.diff(lists.starts))
        expected = teacher.score(
            [training.queries[row] for row in rows], [training.passages[place] for place in lists.places]
        )
        assert lists.scores.dtype == np.float32
        np.testing.assert_allclose(lists.scores, expected, rtol=0, atol=1e-5)
    assert sorted(file.name for file in (tmp_path / "scores").iterdir()) == [
        *("000000.safetensors", "000001.safetensors"),
        "manifest.json",
    ]


def test_a_set_without_negatives_is_scored(teacher, tmp_path):
    writer = TrainingSetWriter()
    writer.add("a wing", [Candidate("lift")])
    scored = rescore(writer.finish("one", Path("one.jsonl")), teacher, tmp_path / "scores")
    assert scored.scored
    assert scored.positives.scores == pytest.approx(teacher.score(["a wing"], ["lift"]))


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import stzoo.finetuning.distillation
from finetuning.test_distillation import open_teacher, rescore, training_set
stzoo.finetuning.distillation.PART_QUERIES = 8
rescore(training_set(400), open_teacher(sys.argv[2], device="cpu"), sys.argv[3])
"""


def test_a_kill_and_a_second_call_give_the_same_scores_bit_for_bit(folder, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("stzoo.finetuning.distillation.PART_QUERIES", 8)
    training = training_set(400)
    command = [sys.executable, "-c", SCRIPT, Path(__file__).parents[1], folder, tmp_path / "killed"]
    with processes.Popen([str(word) for word in command]) as process:
        wait_for(lambda: len(list((tmp_path / "killed").glob("*.safetensors"))) > 1, process)
        process.send_signal(signal.SIGKILL)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "killed").glob("0*.safetensors")}
    assert 1 < len(before) < 50
    first = sorted(before)[0]
    data = first.read_bytes()
    first.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # one bit, which is another score
    resumed = rescore(training, teacher, tmp_path / "killed")
    straight = rescore(training, teacher, tmp_path / "straight")
    for side in ("positives", "negatives"):
        assert (getattr(resumed, side).scores == getattr(straight, side).scores).all()
    kept = {file: file.stat().st_mtime_ns for file in before if file != first}
    assert kept.items() <= before.items()  # what was scored is not scored again


def test_processes_score_a_set_together(folder, tmp_path):
    training = training_set(5 * PART_QUERIES)
    alone = rescore(training, open_teacher(str(folder), device="cpu"), tmp_path / "alone")
    with ThreadPoolExecutor(2) as pool:
        teachers = [open_teacher(str(folder), device="cpu") for _ in range(2)]
        both = list(pool.map(lambda one: rescore(training, one, tmp_path / "scores"), teachers))
    for made in both:
        assert (made.positives.scores == alone.positives.scores).all()
        assert (made.negatives.scores == alone.negatives.scores).all()


def test_a_folder_of_something_else_is_refused(folder, teacher, tmp_path):
    training = training_set(3)
    rescore(training, teacher, tmp_path / "scores")
    for other, by, words in (
        (training_set(3, seed=1), teacher, r"training: '\w+' then, '\w+' now"),
        (training, open_teacher(str(folder), max_tokens=20), r"teacher\.max_tokens: 64 then, 20 now"),
    ):
        with pytest.raises(OutputError, match=words):
            rescore(other, by, tmp_path / "scores")
    (tmp_path / "scores" / "manifest.json").write_text("[]")
    with pytest.raises(OutputError, match="is damaged"):
        rescore(training, teacher, tmp_path / "scores")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("all of it")
    with pytest.raises(OutputError, match=r"other files \(thesis\.txt\)"):
        rescore(training, teacher, tmp_path / "full")
