"""Training in several processes: what they share out, how uneven data end, and what happens if one fails."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from support import processes
from support.ranks import assert_close, finetune, train

import stzoo
from stzoo.data.training_sets.read import read_training

COUNT = """
import stzoo.models.encode as encoding
encode = encoding.encode
def counted(model, texts, **options):
    with open(os.environ["COUNTS"] + os.environ.get("RANK", ""), "a") as file:
        print(len(texts), file=file)
    return encode(model, texts, **options)
encoding.encode = counted
"""


def test_dev_scores_are_shared_out(still, judged, tmp_path):
    counts, gains = {}, {}
    for count in (1, 2):
        folder = tmp_path / str(count)
        words = finetune(still, judged, "--dev-queries", 6, "--eval-steps", 3, "--batch-size", 17 // count)
        train(count, *words, output=folder, FIRST=COUNT, COUNTS=tmp_path / f"counts-{count}-")
        found = [sum(map(int, file.read_text().split())) for file in tmp_path.glob(f"counts-{count}-*")]
        counts[count] = sorted(found)
        gains[count] = json.loads((folder / "run.json").read_text())["gain"]["base"]
    (everything,), (less, more) = counts[1], counts[2]
    assert less + more == everything
    assert more - less <= 6  # scorings of queries and passages
    assert gains[1] == gains[2]


def test_episodes_mine_in_all_processes_what_one_mines(still, judged, tmp_path):
    more = ["--episodes", 2, "--depth", 20, "--mined", 4, "--max-steps", 2]
    words = list(finetune(still, judged, *more))
    words[words.index("--negatives") + 1] = 2
    train(1, *words, "--accumulation", 2, output=tmp_path / "one", FIRST=MINED, COUNTS=tmp_path / "mined-1-")
    train(2, *words, output=tmp_path / "two", FIRST=MINED, COUNTS=tmp_path / "mined-2-")
    for number in (1, 2):
        sets = [
            read_training(tmp_path / name / f"episodes/{number}/negatives.parquet") for name in ("one", "two")
        ]
        assert list(sets[0].rows()) == list(sets[1].rows())
    assert_close(*(load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")))
    both = [set((tmp_path / f"mined-2-{rank}").read_text().split()) for rank in (0, 1)]
    assert both[0]
    assert both[1]
    assert not both[0] & both[1]
    assert both[0] | both[1] == set((tmp_path / "mined-1-").read_text().split())


MINED = """
import time
from stzoo.finetuning.mining import shards
shards.PART, shards.BLOCK = 4, 4
rank = shards._Mining._rank
def noted(self, part, **options):
    with open(os.environ["COUNTS"] + os.environ.get("RANK", ""), "a") as file:
        print(f"{part.path.parent.parent.name}/{part.number}", file=file)
    time.sleep(0.2)  # the other process has time to begin
    return rank(self, part, **options)
shards._Mining._rank = noted
"""


def test_rows_that_make_no_whole_batch_for_each_process_are_left_out_with_a_word(base, judged, tmp_path):
    words = ["finetune", base, "--data", judged, "--negatives", 0, "--dev-queries", 0, "--batch-size", 12]
    shown = train(2, *words, "--epochs", 2, output=tmp_path / "out")
    assert "Each epoch leaves out 16 of 40 rows, drawn at random" in shown
    assert "drop_last" not in shown  # the host's own words
    assert json.loads((tmp_path / "out/run.json").read_text())["steps"] == 2


DIE = """
if os.environ["RANK"] == os.environ["VICTIM"]:
    name = {"training": "_end_step", "saving": "_save_rng_state"}[os.environ["WHILE"]]
    own = getattr(ObjectiveTrainer, name)
    def dies(self, *words):
        if self.state.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return own(self, *words)
    setattr(ObjectiveTrainer, name, dies)
"""


def words_to_kill(base, judged):
    words = ["finetune", base, "--data", judged, "--negatives", 0, "--dev-queries", 0, "--batch-size", 10]
    return [*words, "--max-steps", 4, "--save-steps", 1]


@pytest.fixture(scope="module")
def straight(base, judged, tmp_path_factory):
    """A run in two processes that nobody kills."""
    output = tmp_path_factory.mktemp("straight") / "out"
    train(2, *words_to_kill(base, judged), output=output)
    return output


@pytest.mark.parametrize(
    ("sharding", "doing", "victim"),
    [([], "training", 1), ([], "saving", 0), ([], "saving", 1), (["--shard-model"], "saving", 0)],
    ids=str,
)
def test_if_one_process_is_killed_the_other_ends_and_the_run_can_be_continued(
    doing, victim, sharding, base, judged, straight, tmp_path
):
    words = [*words_to_kill(base, judged), *sharding]
    killed = {"FIRST": DIE, "WHILE": doing, "VICTIM": victim}
    shown = train(2, *words, output=tmp_path / "out", code=-9, to_the_end=True, **killed)
    assert f"process {1 - victim} of 2 cannot reach another process of the run" in shown
    assert "--resume to continue from the last complete checkpoint" in shown
    assert "This is a bug" not in shown
    shown = train(2, *words, "--resume", output=tmp_path / "out")
    assert "resuming from step 2 of 4" in shown
    if sharding:
        straight = tmp_path / "straight"
        train(2, *words, output=straight)
    one, other = (load_file(folder / "model.safetensors") for folder in (straight, tmp_path / "out"))
    assert all(torch.equal(one[name], other[name]) for name in one)


WAIT = """
import os, signal, sys, time
from stzoo.utils import distributed
distributed.SILENCE_S, distributed.START_S, distributed.BEAT_S = 3, 20, 0.2
if sys.argv[1] == "is missing":
    os.environ["WORLD_SIZE"] = "3"
with distributed.main_process_first():
    if distributed.is_main_process():
        match sys.argv[1]:
            case "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hangs":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "fails":
                raise OSError("no space")
            case "takes time":
                time.sleep(6)
distributed.wait_for_all()
"""


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("dies", "process 0 of 2 has shown no sign of life for"),
        ("hangs", "process 0 of 2 has shown no sign of life for"),
        ("fails", "another process of the run has failed; its own message says why"),
        ("is missing", "process 2 of 3 has not been here for"),
        ("takes time", ""),
    ],
)
def test_processes_wait_for_one_that_lives_and_for_no_other(what, message):
    to_the_end = what in ("dies", "fails")
    done = processes.run_ranks(2, [sys.executable, "-c", WAIT, what], timeout=60, to_the_end=to_the_end)
    assert (done.returncode != 0) == bool(message), done.stderr
    assert message in done.stderr


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"WORLD_SIZE": "2"},
            r"WORLD_SIZE is 2\), but RANK and LOCAL_RANK and MASTER_ADDR and MASTER_PORT are not",
        ),
        (
            {"RANK": "1"},
            r"RANK is 1\), but LOCAL_RANK and WORLD_SIZE and .* are not set. Start the command with tor",
        ),
        ({"MASTER_ADDR": ""}, r"but MASTER_ADDR is not set"),
        ({"RANK": "2"}, "RANK is 2 and WORLD_SIZE 2; expected a rank from 0 to 1"),
        ({"RANK": "one"}, "RANK is 'one'; expected a whole number from 0 on"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK is '-1'; expected a whole number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'; expected a whole number from 1 on"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http'; expected a whole number"),
    ],
    ids=str,
)
def test_variables_of_the_launcher_that_do_not_agree_are_explained(
    environment, message, tmp_path, monkeypatch
):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    alone = len(environment) == 1 and environment in ({"WORLD_SIZE": "2"}, {"RANK": "1"})
    good = {} if alone else dict(zip(names, ("0", "0", "2", "localhost", "29500"), strict=True))
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in (good | environment).items():
        monkeypatch.setenv(name, value)
    for begin in (
        lambda: stzoo.pretrain(base="x", corpus=["y"], output=tmp_path / "out"),
        lambda: stzoo.finetune("x", data="y", output=tmp_path / "out"),
    ):
        with pytest.raises(stzoo.RecipeError, match=message):
            begin()
    assert not list(tmp_path.iterdir())
