"""Refreshed negatives: episodes of mining and training, killed and gone on with anywhere."""

import json
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support import processes
from support.helpers import UNVERIFIED, abandoned_draft, wait_for

import stzoo
from stzoo.data.training_sets.builder import TrainingSetWriter
from stzoo.data.training_sets.read import read_training
from stzoo.data.training_sets.sets import Candidate
from stzoo.finetuning import episodes
from stzoo.finetuning.episodes import mixed
from stzoo.training import runs
from stzoo.training.finetune_settings import FinetuneSettings
from stzoo.training.trainer import ObjectiveTrainer

pytestmark = pytest.mark.usefixtures("unverified")
SHORT = {
    "keep_checkpoints": 2,  # some tests look at what a finished run would remove
    "batch_size": 8,
    "mini_batch_size": 64,
    "learning_rate": 1e-3,
    "log_steps": 2,
    "depth": 20,
    "mined": 6,
    "negatives": 2,
    "pooling": "mean",
    "threads": 1,
}


def facts_of(folder):
    return json.loads((folder / "run.json").read_text())


def logs_of(folder):
    """The episodes' logs, without durations."""
    timed = ("tokens_per_s", "data_wait", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    return [
        [{name: value for name, value in line.items() if name not in timed} for line in one["log"]]
        for one in facts_of(folder)["episodes"]
    ]


@pytest.fixture(scope="module")
def finished(base, judged, tmp_path_factory):
    given = dict(data=str(judged), dev_split="dev", dev_passages=0, eval_steps=3, episodes=3, epochs=2)
    given |= dict(first_negatives="bm25s", keep_old=0.5, **SHORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stzoo.hub.export._verify", lambda *_, **__: None)
        return stzoo.finetune(str(base), output=tmp_path_factory.mktemp("episodes") / "out", **given)


def test_each_episode_mines_with_the_model_as_it_is_then(finished):
    facts = facts_of(finished)
    models = [one["mined"]["model"] for one in facts["episodes"]]
    assert models[0]["name"] == "bm25s"
    assert len({model["revision"] for model in models}) == 3
    files = [read_training(finished / f"episodes/{number}/negatives.parquet") for number in (1, 2, 3)]
    second, third = ({tuple(row.negatives) for row in file.rows()} for file in files[1:])
    assert second != third
    assert all(len(row.negatives) == 6 for row in files[1].rows())
    assert facts["steps"] == sum(one["steps"] for one in facts["episodes"]) == 3 * 2 * 5


def test_what_mining_leaves_behind_is_removed(finished):
    kept = {path.name for path in (finished / "episodes/2").iterdir()}
    assert kept == {"negatives.parquet", "checkpoints", "end.safetensors", "episode.json"}


def test_the_best_episodes_best_step_is_the_model(finished):
    facts = facts_of(finished)
    scores = {one["episode"]: one["dev_ndcg_at_10"] for one in facts["episodes"]}
    assert facts["best_episode"] == max(scores, key=lambda number: (scores[number], -number))
    assert facts["dev_ndcg_at_10"] == max(scores.values())
    best = load_file(finished / f"episodes/{facts['best_episode']}/end.safetensors")
    model = load_file(finished / "model.safetensors")
    assert all(torch.equal(tensor, best[f"0.model.{name}"]) for name, tensor in model.items())


def test_one_episode_is_static_mining(base, judged, tmp_path):
    given = dict(data=str(judged), dev_queries=0, max_steps=4, **SHORT)
    out = stzoo.finetune(str(base), episodes=1, output=tmp_path / "out", **given)
    start = stzoo.export(stzoo_start(base), tmp_path / "start")
    file = tmp_path / "mined.parquet"
    stzoo.mine(str(start), data=str(judged), output=file, depth=20, mined=6, threads=1)
    mine, theirs = read_training(out / "episodes/1/negatives.parquet"), read_training(file)
    assert [row.negatives for row in mine.rows()] == [row.negatives for row in theirs.rows()]
    trained = {name: value for name, value in given.items() if name not in ("depth", "mined")}
    by_hand = stzoo.finetune(str(base), **trained | {"data": str(file), "output": tmp_path / "by-hand"})
    one, other = (load_file(folder / "model.safetensors") for folder in (out, by_hand))
    assert all(torch.equal(one[name], other[name]) for name in one)


def stzoo_start(base):
    from stzoo.models.loading import load_model

    return load_model(str(base), pooling="mean")


RUN = f"""{UNVERIFIED}
import sys, stzoo
stzoo.finetune(sys.argv[1], data=sys.argv[2], output=sys.argv[3], dev_split="dev", eval_steps=3, epochs=4,
               episodes=2, patience=9, resume=True, **eval(sys.argv[4]))
"""
PLACES = (  # what is there when a run is killed: between two episodes, mining, training
    "episodes/1/end.safetensors",
    "episodes/2/negatives.parts",
    "episodes/2/checkpoints/checkpoint-6/whole.json",
)


@pytest.fixture(scope="module")
def straight(base, judged, tmp_path_factory):
    output = tmp_path_factory.mktemp("straight") / "out"
    assert run(base, judged, output).wait() == 0
    return output


def run(base, judged, output):
    return processes.Popen([sys.executable, "-c", RUN, str(base), str(judged), str(output), repr(SHORT)])


def test_kills_are_gone_on_with_inside_the_episode_to_the_bit(straight, base, judged, tmp_path):
    output = tmp_path / "out"
    mined = {}
    for place in PLACES:
        process = run(base, judged, output)
        wait_for((output / place).exists, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path in output.glob("episodes/*/*.parquet"):
            assert mined.setdefault(path, path.stat().st_mtime_ns) == path.stat().st_mtime_ns  # once
    assert run(base, judged, output).wait() == 0
    assert len(mined) == 2
    assert all(path.stat().st_mtime_ns == time for path, time in mined.items())
    for name in ("model.safetensors", "episodes/1/negatives.parquet", "episodes/2/negatives.parquet"):
        assert (output / name).read_bytes() == (straight / name).read_bytes()
    assert facts_of(output)["best_step"] == facts_of(straight)["best_step"]


def test_an_episode_of_another_run_is_refused(straight, base, judged, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(straight, output)
    facts = facts_of(output)
    (output / "run.json").write_text(json.dumps(facts | {"status": "running"}))
    other = json.loads((output / "episodes/2/episode.json").read_text())
    (output / "episodes/2/episode.json").write_text(json.dumps(other | {"run": "0" * 16}))
    given = dict(data=str(judged), dev_split="dev", eval_steps=3, epochs=4, episodes=2, patience=9, **SHORT)
    with pytest.raises(
        stzoo.OutputError, match=r"episodes/2 was made with other settings \(run: '0{16}' then"
    ):
        stzoo.finetune(str(base), output=output, resume=True, **given)
    (output / "episodes/2/episode.json").unlink()
    with pytest.raises(stzoo.OutputError, match=r"has no episode\.json"):
        stzoo.finetune(str(base), output=output, resume=True, **given)


@settings(max_examples=50)
@given(
    fresh=st.lists(st.integers(0, 12), max_size=6, unique=True),
    stale=st.lists(st.integers(0, 12), max_size=6, unique=True),
    share=st.floats(0, 0.99),
    seed=st.integers(0, 9),
)
def test_a_share_of_the_negatives_is_the_last_episodes(fresh, stale, share, seed):
    def made(negatives):
        writer = TrainingSetWriter()
        for query in range(2):
            texts = [Candidate(f"passage {place}", f"p{place}") for place in negatives]
            writer.add(f"query {query}", [Candidate("the answer", "yes")], texts, f"q{query}")
        return writer.finish("x", Path(__file__))

    found = mixed(made(fresh), made(stale), share, seed)
    for row in found.rows():
        names = [int(one.id[1:]) for one in row.negatives]
        assert len(names) == len(set(names)) == len(fresh)
        assert set(names) <= {*fresh, *stale}
        assert len(set(names) - set(fresh)) == min(round(share * len(fresh)), len(set(stale) - set(fresh)))
        assert [one.text for one in row.positives] == ["the answer"]
    again = mixed(made(fresh), made(stale), share, seed)
    assert np.array_equal(found.negatives.places, again.negatives.places)


def test_a_resume_mines_the_same_negatives_after_training_in_half_precision(base, judged, tmp_path):
    given = dict(data=str(judged), dev_queries=0, max_steps=4, precision="bf16", device="cpu", episodes=2)
    out = stzoo.finetune(str(base), output=tmp_path / "out", **given, **SHORT)
    mined = (out / "episodes/2/negatives.parquet").read_bytes()
    (out / "run.json").write_text(json.dumps(facts_of(out) | {"status": "running"}))
    (out / "modules.json").unlink()
    shutil.rmtree(out / "episodes/2")
    (out / "episodes/1/embeddings").mkdir()  # as a kill leaves it after the file of negatives is there
    abandoned_draft(out / "episodes/1", "end.safetensors")
    (out / "episodes/2").mkdir()
    abandoned_draft(out / "episodes/2", "episode.json")
    stzoo.finetune(str(base), output=out, resume=True, **given, **SHORT)
    assert (out / "episodes/2/negatives.parquet").read_bytes() == mined
    for number in (1, 2):
        kept = {path.name for path in (out / f"episodes/{number}").iterdir()}
        assert kept == {"negatives.parquet", "checkpoints", "end.safetensors", "episode.json"}


def test_an_old_negative_under_another_id_is_not_taken_twice():
    sets = []
    for name in ("new", "old"):
        writer = TrainingSetWriter()
        both = [Candidate("the same text", name), Candidate(f"a text of the {name}", f"{name}2")]
        writer.add("query", [Candidate("the answer", "yes")], both, "q")
        sets.append(writer.finish("x", Path(__file__)))
    (row,) = mixed(*sets, 0.5, seed=0).rows()
    assert {one.text for one in row.negatives} > {"a text of the old"}
    assert len(row.negatives) == 2


def test_a_loss_that_is_not_finite_fails_the_run_and_is_recorded_as_none(base, judged, tmp_path):
    given = dict(data=str(judged), dev_queries=0, max_steps=3, save_steps=1, episodes=1, warmup_ratio=0)
    with pytest.raises(stzoo.TrainingError, match="contrastive is nan"):
        stzoo.finetune(
            str(base), output=tmp_path / "out", **given, **{**SHORT, "learning_rate": 1e30, "log_steps": 1}
        )
    assert facts_of(tmp_path / "out")["status"] == "failed"
    log = json.loads((tmp_path / "out/episodes/1/episode.json").read_text())["log"]
    assert [line["step"] for line in log if "loss" in line] == [1]


def test_what_an_episode_made_and_was_damaged_since_is_made_again(finished, base, judged, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (out / "run.json").write_text(json.dumps(facts_of(out) | {"status": "running"}))
    damaged = [
        *(out / "episodes/2/end.safetensors", out / "episodes/2/negatives.parquet"),
        out / "episodes/3/negatives.parquet",
    ]
    before = [file.read_bytes() for file in damaged]
    for file in damaged:
        file.write_bytes(file.read_bytes()[:-20] + b"x" * 20)
    given = dict(data=str(judged), dev_split="dev", dev_passages=0, eval_steps=3, epochs=2)
    given |= dict(episodes=3, first_negatives="bm25s", keep_old=0.5, output=out, resume=True, **SHORT)
    stzoo.finetune(str(base), **given)
    assert [file.read_bytes() for file in damaged] == before
    assert capsys.readouterr().err.count("creating it again") == 3
    steps = facts_of(out)["steps"]
    assert steps == facts_of(finished)["steps"]


@pytest.mark.parametrize("step", [7, 40])
def test_a_signal_in_an_episode_is_continued_from_to_the_bit(
    step, straight, base, judged, tmp_path, monkeypatch
):
    """In the first episode, and in the second."""
    train, calls = ObjectiveTrainer.training_step, []

    def signalled(self, *given, **named):
        calls.append(0)
        if len(calls) == step:
            signal.raise_signal(signal.SIGTERM)
        return train(self, *given, **named)

    given = dict(data=str(judged), dev_split="dev", eval_steps=3, epochs=4, episodes=2, patience=9, **SHORT)
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as ended:
        patched.setattr(ObjectiveTrainer, "training_step", signalled)
        stzoo.finetune(str(base), output=tmp_path / "out", **given)
    assert ended.value.code == 143
    assert len(calls) == step
    out = stzoo.finetune(str(base), output=tmp_path / "out", resume=True, **given)
    assert (out / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()
    assert logs_of(out) == logs_of(straight)


def test_no_file_outside_its_folder_is_removed_for_an_episode(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    folder = tmp_path / "episodes/1"
    folder.mkdir(parents=True)
    (folder / "episode.json").write_text('{"run": "x", "sha256": {"../../thesis.tex": "0"}}')
    with pytest.raises(stzoo.OutputError, match=r"episode\.json is damaged"):
        episodes._open(folder, "x")
    assert (tmp_path / "thesis.tex").exists()


def test_episodes_go_on_from_the_greatest_seed(base, judged, tmp_path):
    given = dict(data=str(judged), dev_queries=0, max_steps=1, seed=2**32 - 1, episodes=2)
    out = stzoo.finetune(str(base), output=tmp_path / "out", **given, **SHORT)
    assert facts_of(out)["steps"] == 2


def test_other_processes_know_the_runs_facts_and_write_none(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    wanted = FinetuneSettings(model="x", data="y")
    with runs.start(tmp_path / "out", wanted, resume=False, overwrite=False) as run:
        run.record_inputs(base={"id": "x"})
        assert (run.metadata["recipe"], run.metadata["base"]) == (wanted.dump(), {"id": "x"})
    assert not (tmp_path / "out").exists()


WAIT = """
import datetime, sys, time
from pathlib import Path
import torch.distributed as dist
from stzoo.utils.distributed import is_main_process, main_process_first

dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=2))
with main_process_first():
    if is_main_process():
        time.sleep(5)
        Path(sys.argv[1]).touch()
    assert Path(sys.argv[1]).exists()
"""


def test_others_wait_for_the_first_process_longer_than_for_gradients(tmp_path):
    (tmp_path / "wait.py").write_text(WAIT)
    command = [sys.executable, tmp_path / "wait.py", tmp_path / "done"]
    done = processes.run_ranks(3, command, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
