"""Models that are sharded over processes, and runs that continue on another number of processes."""

import json

import pytest
import torch
from support.models import sentence_transformer
from support.ranks import assert_close, assert_same, finetune, pretrain, result, train

import stzoo
from stzoo.testing import tiny_masked_lm
from stzoo.training.finetune_settings import FinetuneSettings
from stzoo.training.pretrain_settings import PretrainSettings
from stzoo.training.sharding import check_loss, check_sharding


@pytest.mark.parametrize("objective", ["retromae", "dupmae"])
def test_a_sharded_pretraining_equals_one_process(objective, still, corpus, tmp_path):
    words = pretrain(still, corpus, objective, "--head-warmup-steps", 1)
    train(1, *words, "--accumulation", 2, output=tmp_path / "one")
    shown = train(2, *words, "--shard-model", "--gradient-checkpointing", output=tmp_path / "two")
    assert "Warning" not in shown
    assert_same(tmp_path / "one", tmp_path / "two")


def test_a_sharded_finetuning_with_cached_gradients_and_negatives_of_both_equals_one_process(
    still, judged, tmp_path
):
    train(1, *finetune(still, judged, "--batch-size", 20), output=tmp_path / "one")
    words = finetune(still, judged, "--cross-device", "--mini-batch-size", 4, "--gradient-checkpointing")
    train(2, *words, "--shard-model", output=tmp_path / "two")
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(
    "more", [["--lora-rank", 2], ["--matryoshka", 8, "--accumulation", 2], ["--precision", "bf16"]], ids=str
)
def test_a_sharded_finetuning_equals_one_that_is_not(more, still, judged, tmp_path):
    words = finetune(still, judged, *more)
    train(2, *words, output=tmp_path / "whole")
    train(2, *words, "--shard-model", output=tmp_path / "sharded")
    assert_same(tmp_path / "whole", tmp_path / "sharded")


def test_a_sharded_model_is_scored_and_the_best_one_is_kept(still, judged, tmp_path):
    words = finetune(
        still, judged, "--dev-queries", 6, "--eval-steps", 2, "--batch-size", 8, "--no-keep-base"
    )
    train(2, *words, output=tmp_path / "whole")
    train(2, *words, "--shard-model", output=tmp_path / "sharded")
    assert_same(tmp_path / "whole", tmp_path / "sharded")
    gains = [json.loads((tmp_path / name / "run.json").read_text())["gain"] for name in ("whole", "sharded")]
    assert gains[0] == gains[1]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_continues_on_another_number_of_processes_with_the_same_steps(
    before, after, still, judged, tmp_path
):
    def words(count):
        return finetune(still, judged, "--shard-model", "--accumulation", 2 // count)

    train(1, *words(1), output=tmp_path / "straight")
    train(before, *words(before), output=tmp_path / "out", STOP_AFTER=3, code=143)
    other = finetune(still, judged, "--accumulation", 2 // before)
    message = train(after, *other, "--resume", output=tmp_path / "out", code=2)
    assert f"with --accumulation {2 // after}" in message
    message = train(after, *words(after), "--resume", output=tmp_path / "out")
    assert "Each step still has 2 batches" in message
    assert_close(result(tmp_path / "straight")[0], result(tmp_path / "out")[0])


def test_other_runs_continue_on_as_many_processes_only(still, corpus, tmp_path):
    words = pretrain(still, corpus, "retromae")
    train(2, *words, output=tmp_path / "out", STOP_AFTER=2, code=143)
    message = train(1, *words, "--accumulation", 2, "--resume", output=tmp_path / "out", code=2)
    assert (
        "contains a run on 2 processes; 1 would train on other batches. Resume it on 2 processes, or"
        in message
    )


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (PretrainSettings(base="x", corpus=["y"], probe="z", shard_model=True), "^probe does not work"),
        (PretrainSettings(base="x", corpus=["y"], precision="fp16", shard_model=True), "use bf16"),
        (
            FinetuneSettings(model="x", tasks=[{"name": "a", "data": "b"}], shard_model=True),
            "^tasks does not",
        ),
    ],
    ids=["probe", "fp16", "tasks"],
)
def test_what_a_sharded_model_cannot_do_is_refused(settings, reason):
    with pytest.raises(stzoo.RecipeError, match=reason):
        check_sharding(settings)


def test_in_one_process_there_is_nothing_to_shard(capsys):
    check_sharding(PretrainSettings(base="x", corpus=["y"], shard_model=True))
    assert "no effect in one process" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_a_model_that_cannot_be_sharded_is_refused_before_the_old_run_is_removed(
    command, still, corpus, judged, tmp_path
):
    """MPNet's layers are not those that transformers can checkpoint."""
    other = tiny_masked_lm("mpnet", tmp_path / "mpnet")

    def words(base):
        return finetune(base, judged) if command == "finetune" else pretrain(base, corpus, "retromae")

    train(1, *words(still), output=tmp_path / "out")
    before = files(tmp_path / "out")
    message = train(2, *words(other), "--shard-model", "--overwrite", output=tmp_path / "out", code=2)
    assert "the encoder's layers cannot be found, so it cannot be sharded" in message
    assert files(tmp_path / "out") == before


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_loss_with_parameters_is_refused(base, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    loss = torch.nn.Module()
    loss.model = sentence_transformer(base)
    settings = FinetuneSettings(model="x", data="y", shard_model=True)
    check_loss(settings, loss)
    loss.scale = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(stzoo.RecipeError, match=r"parameters of its own \(scale\)"):
        check_loss(settings, loss)


TIMED = """
from stzoo.pretraining import dry_run
time_steps = dry_run._time
def checked(trainer, *given):
    print(f"is sharded: {trainer.is_sharded}", file=sys.stderr)
    return time_steps(trainer, *given)
dry_run._time = checked
"""


def test_a_dry_run_measures_the_sharded_model(still, corpus, tmp_path):
    words = pretrain(still, corpus, "retromae", "--shard-model", "--dry-run")
    shown = train(2, *words, output=tmp_path / "out", FIRST=TIMED)
    assert shown.count("is sharded: True") == 2
    assert not (tmp_path / "out").exists()
