"""Each trap of the host's trainer: mended, and there again with the host's own method."""

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformerTrainer
from support import processes
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback, set_seed

import stzoo
from stzoo.errors import OutputError
from stzoo.pretraining import vocabulary_loss
from stzoo.pretraining.length_sampler import LengthBatchSampler
from stzoo.pretraining.pretrain import load_base, load_parts, make_objective
from stzoo.testing import sentences, tiny_masked_lm
from stzoo.training.arguments import arguments
from stzoo.training.checkpoints import last_checkpoint, remove
from stzoo.training.pretrain_settings import PretrainSettings
from stzoo.training.run_files import is_run_file
from stzoo.training.trainer import ObjectiveTrainer


def unmended(*names):
    """ObjectiveTrainer with the host's own methods of these names."""
    return type("Unmended", (ObjectiveTrainer,), {n: getattr(SentenceTransformerTrainer, n) for n in names})


def make(kind, base, output, *, rows=48, collate=None, callbacks=(), given=None, **changes):
    settings = PretrainSettings.read(
        None,
        {
            "base": str(base),
            "corpus": ["none"],
            "batch_size": 8,
            "max_steps": 3,
            "save_steps": 2,
            "log_steps": 1,
        }
        | changes,
    )
    set_seed(settings.seed)
    base = load_base(settings.base)
    objective = make_objective(base, settings)
    new = load_parts(objective, base, settings)
    return kind(
        model=objective.model,
        args=arguments(settings, output, batch_sampler=LengthBatchSampler),
        train_dataset=Dataset.from_list([{"id": str(i), "text": t} for i, t in enumerate(sentences(rows))]),
        loss=objective,
        settings=settings,
        new=new,
        collate=collate(objective) if collate else objective.collate,
        callbacks=list(callbacks),
        **(given or {}),
    )


def test_the_host_shows_no_progress_of_its_own(base, tmp_path, monkeypatch):
    """In a notebook, transformers shows a table in place of a bar."""
    table = type("NotebookProgressCallback", (TrainerCallback,), {})
    monkeypatch.setattr("transformers.trainer.DEFAULT_PROGRESS_CALLBACK", table)
    shown = {type(one).__name__ for one in make(ObjectiveTrainer, base, tmp_path).callback_handler.callbacks}
    assert "Progress" in shown
    assert not shown & {"NotebookProgressCallback", "ProgressCallback", "PrinterCallback"}


def copy_of(tensors):
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def check_checkpoint_holds_decoders_and_head(kind, base, tmp_path):
    first = make(kind, base, tmp_path / "first", max_steps=2)
    first.train()
    second = make(kind, base, tmp_path / "second", seed=7)
    assert not same(first.tensors, second.tensors)
    second._load_from_checkpoint(str(tmp_path / "first/checkpoints/checkpoint-2"))
    assert same(first.tensors, second.tensors)


class GradientNorm(TrainerCallback):
    def on_pre_optimizer_step(self, *_, **__):
        squares = [
            p.grad.square().sum() for p in self.tensors.values() if getattr(p, "grad", None) is not None
        ]
        self.norm = torch.stack(squares).sum().sqrt().item()


def check_every_parameter_is_clipped(kind, base, tmp_path):
    seen = GradientNorm()
    trainer = make(kind, base, tmp_path, max_steps=1, max_grad_norm=1e-3, callbacks=[seen])
    seen.tensors = trainer.tensors
    trainer.train()
    assert seen.norm <= 1e-3 * 1.001


def check_a_given_optimiser_gets_every_parameter(kind, base, tmp_path):
    given = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1})}
    trainer = make(kind, base, tmp_path, given=given)
    held = {id(p) for group in trainer.create_optimizer().param_groups for p in group["params"]}
    assert isinstance(trainer.optimizer, torch.optim.SGD)
    assert held == {id(p) for p in trainer.loss.parameters()}


def log_of(trainer):
    """The lines of the log, without durations."""
    lines = [line for line in trainer.state.log_history if "train_runtime" not in line]
    timed = ("tokens_per_s", "data_wait", "utilisation")
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


@pytest.mark.parametrize("step", [9, 12])
def test_a_resumed_run_ends_with_the_same_weights_and_log_to_the_bit(step, base, tmp_path):
    """From the middle of the second of three epochs, and from the end of it; the last step is logged too."""
    given = dict(max_steps=None, epochs=3, log_steps=5)
    straight = make(ObjectiveTrainer, base, tmp_path / "straight", save_steps=step, **given)
    straight.train()
    last = tmp_path / "straight/checkpoints" / f"checkpoint-{step}"
    resumed = make(ObjectiveTrainer, base, tmp_path / "resumed", save_steps=100, **given)
    resumed.train(resume_from_checkpoint=str(last))
    assert straight.state.global_step == resumed.state.global_step == 18
    assert same(straight.tensors, resumed.tensors)
    assert [line["step"] for line in log_of(straight)] == [5, 10, 15, 18]
    assert log_of(straight) == log_of(resumed)


TRAPS = {
    "decoders": (check_checkpoint_holds_decoders_and_head, ("_save", "_load_from_checkpoint")),
    "clipping": (check_every_parameter_is_clipped, ("_clip_grad_norm",)),
    "optimiser": (check_a_given_optimiser_gets_every_parameter, ("create_optimizer",)),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_trap_is_mended(trap, base, tmp_path):
    check, _ = TRAPS[trap]
    check(ObjectiveTrainer, base, tmp_path)


@pytest.mark.parametrize("trap", TRAPS)
def test_trap_is_there_without_the_mend(trap, base, tmp_path):
    check, names = TRAPS[trap]
    if trap == "decoders":  # with BERT the host cannot load its own checkpoint, for want of a pooler
        base = tiny_masked_lm("distilbert", tmp_path / "distilbert")
    with pytest.raises(AssertionError):
        check(unmended(*names), base, tmp_path)


def with_labels(objective):
    """A batch with a key that makes the host think that the loss was scaled already."""
    return lambda rows: objective.collate(rows) | {"labels": torch.ones(len(rows), dtype=torch.long)}


@pytest.mark.parametrize("mended", [True, False])
def test_accumulated_batches_are_averaged(mended, base, tmp_path):
    kind = (
        ObjectiveTrainer if mended else type("Unmended", (ObjectiveTrainer,), {"loss_is_scaled_for_ga": None})
    )
    losses = []
    for accumulation in (1, 4):
        trainer = make(
            kind,
            base,
            tmp_path / str(accumulation),
            max_steps=1,
            accumulation=accumulation,
            collate=with_labels,
        )
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert (losses[1] < 1.2 * losses[0]) is mended


def test_two_processes_train_stop_and_continue_together(base, tmp_path):
    script = Path(__file__).parents[1] / "support" / "two_processes.py"
    here = Path(__file__).parent
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent), *sys.path])}
    done = processes.run_ranks(2, [sys.executable, script, base, tmp_path], timeout=600, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    spread = json.loads((tmp_path / "spread.json").read_text())
    assert spread["mended"] == {"encoder": 0.0, "own": 0.0}
    assert spread["frozen first"] == {"encoder": 0.0, "own": 0.0}
    assert spread["_inner_training_loop"]["own"] > 1e-4
    assert spread["_clip_grad_norm"]["own"] > 1e-6
    one, other = spread["drawn"]
    assert len({*one, *other}) == 6  # masks of their own
    assert spread["ended"] == ["143", "143"]
    assert spread["resumed"] == [["checkpoint-2", True, drawn[2:]] for drawn in (one, other)]
    assert spread["timed"] == ["checkpoint-2", "checkpoint-3"]
    assert "step 3 of 3: decoder is nan" in spread["nan"][0]
    assert spread["nan"][0] == spread["nan"][1]
    assert spread["removed"] == [True, True]


def test_losses_are_logged_as_they_are_and_summed_by_weight(base, tmp_path):
    trainer = make(ObjectiveTrainer, base, tmp_path, max_steps=1, weights={"decoder": 0.25})
    trainer.train()
    line = trainer.state.log_history[0]
    assert line["loss"] == pytest.approx(line["encoder"] + 0.25 * line["decoder"], abs=1e-3)
    assert 0 <= line["decoder_accuracy"] <= 1
    assert line["tokens_per_s"] > 0


def test_only_tokens_are_counted_and_of_several_texts_one(base, tmp_path):
    trainer = make(ObjectiveTrainer, base, tmp_path)
    batch = trainer.loss.collate([{"text": "the wing"}, {"text": "the lift of a wing"}])
    trainer.compute_loss(trainer.model, batch)
    passages = int(batch["passage_attention_mask"].sum())
    assert int(trainer.throughput.tokens) == passages < batch["passage_input_ids"].numel()
    related = {
        f"related_{n.removeprefix('passage_')}": t.unsqueeze(1).repeat(1, 3, 1) for n, t in batch.items()
    }
    trainer.compute_loss(trainer.model, batch | related)
    assert float(trainer.throughput.tokens) == passages + 2 * passages


@pytest.mark.parametrize(("delay", "least", "most"), [(0, 0, 0.5), (0.4, 0.6, 1)])
def test_the_share_of_waiting_for_data_is_logged(delay, least, most, base, tmp_path):
    def collate(objective):
        return lambda rows: time.sleep(delay) or objective.collate(rows)

    trainer = make(ObjectiveTrainer, base, tmp_path, collate=collate)
    trainer.train()
    for line in trainer.state.log_history[1:3]:
        assert least <= line["data_wait"] <= most


@pytest.mark.parametrize("frozen", [True, False])
def test_operations_are_counted_in_the_first_step_of_a_kind(frozen, base, tmp_path):
    steps = 2 if frozen else 0
    trainer = make(ObjectiveTrainer, base, tmp_path, head_warmup_steps=steps)
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer.loss.collate([{"text": "the lift of a wing"}])
    with FlopCounterMode(display=False) as counter:
        trainer.training_step(trainer.model, batch)
    assert trainer.throughput.operations == pytest.approx(counter.get_total_flops())
    assert trainer.throughput.operations > 0
    trainer.training_step(trainer.model, {name: ids.repeat(3, 1) for name, ids in batch.items()})
    assert trainer.throughput.operations == pytest.approx(4 * counter.get_total_flops())
    assert len(trainer.throughput.per_token) == 1
    logged = trainer.throughput.read()
    assert 0 < logged["utilisation"] < 1
    assert "utilisation" not in trainer.throughput.read()


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_precision_reaches_head_and_decoder(precision, dtype, base, tmp_path, monkeypatch):
    trainer = make(ObjectiveTrainer, base, tmp_path, max_steps=1, precision=precision, device="cpu")
    seen = []
    for layer in (
        trainer.loss.backbone.masked_lm.cls.predictions.transform.dense,
        trainer.loss.head.layers[0].intermediate.dense,
    ):
        layer.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    scores = vocabulary_loss.product
    monkeypatch.setattr(vocabulary_loss, "product", lambda *a: seen.append(a[0].dtype) or scores(*a))
    trainer.train()
    assert len(seen) >= 3
    assert set(seen) == {dtype}


def test_head_warm_up_leaves_the_encoder_bitwise_alone_and_then_trains_it(base, tmp_path):
    seen = {}

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **_):  # noqa: ARG002
            seen[state.global_step] = copy_of(trainer.tensors)

    trainer = make(
        ObjectiveTrainer,
        base,
        tmp_path,
        max_steps=4,
        head_warmup_steps=2,
        learning_rate=1e-3,
        callbacks=[Look()],
    )
    before = copy_of(trainer.tensors)
    trainer.train()
    changed = {name for name in before if not torch.equal(before[name], seen[2][name])}
    assert changed == {name for name in trainer.new if before[name].is_floating_point()}
    assert all(
        not torch.equal(seen[2][name], seen[4][name])
        for name in before
        if name not in trainer.new and "key.bias" not in name and "token_type" not in name
    )


def test_new_parts_learn_at_their_own_rate(base, tmp_path):
    trainer = make(ObjectiveTrainer, base, tmp_path, learning_rate=1e-5, new_learning_rate=1e-3)
    groups = trainer.create_optimizer().param_groups
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    own = {name: rate[id(p)] for name, p in trainer.tensors.items() if isinstance(p, torch.nn.Parameter)}
    assert {own[name] for name in trainer.new} == {1e-3}
    assert {r for name, r in own.items() if name not in trainer.new} == {1e-5}


def test_checkpoints_hold_no_pickle_but_the_trainers_own_state(base, tmp_path):
    make(ObjectiveTrainer, base, tmp_path, max_steps=2).train()
    folder = tmp_path / "checkpoints/checkpoint-2"
    pickled = {f.name for f in folder.iterdir() if f.suffix in (".bin", ".pt", ".pth", ".pkl")}
    assert pickled == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    # what --overwrite removes, and what the removal of old checkpoints does, is what is written
    assert all(is_run_file(f"checkpoints/checkpoint-2/{f.name}", "pretrain") for f in folder.iterdir())
    import numpy

    allowed = [numpy._core.multiarray._reconstruct, numpy.ndarray, numpy.dtype, numpy.dtypes.UInt32DType]
    with torch.serialization.safe_globals(allowed):
        for name in pickled:
            torch.load(folder / name, weights_only=True)
    remove(folder)
    assert not folder.exists()


@pytest.fixture(scope="module")
def two_checkpoints(base, tmp_path_factory):
    output = tmp_path_factory.mktemp("run")
    make(ObjectiveTrainer, base, output, max_steps=4).train()
    return output / "checkpoints"


def flip(file):
    """Changes one bit in the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


SAVED = (
    *("state.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"),
    *("log_sums.safetensors", "whole.json"),
)


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("damage", [flip, lambda file: file.write_bytes(b"")])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(
    name, damage, two_checkpoints, tmp_path, capsys
):
    shutil.copytree(two_checkpoints, tmp_path / "checkpoints")
    damage(tmp_path / "checkpoints/checkpoint-4" / name)
    before = {file.name: file.read_bytes() for file in (tmp_path / "checkpoints/checkpoint-4").iterdir()}
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoints/checkpoint-2"
    aside = tmp_path / "checkpoints/damaged-checkpoint-4"
    assert {file.name: file.read_bytes() for file in aside.iterdir()} == before
    said = capsys.readouterr().err
    assert "is damaged" in said
    assert "training continues from checkpoint-2" in said
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoints/checkpoint-2"
    assert not capsys.readouterr().err


def test_an_incomplete_checkpoint_is_removed_but_not_the_users_files_in_it(two_checkpoints, tmp_path, capsys):
    shutil.copytree(two_checkpoints, tmp_path / "checkpoints")
    folder = tmp_path / "checkpoints/checkpoint-4"
    (folder / "whole.json").unlink()
    (folder / ".state.safetensors.1.part").touch()
    (folder / "notes.md").write_text("mine")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoints/checkpoint-2"
    assert [file.name for file in folder.iterdir()] == ["notes.md"]
    assert "not saved completely and was removed except for files" in capsys.readouterr().err
    last_checkpoint(tmp_path)
    assert capsys.readouterr().err == ""  # what is left is the user's


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_again_unasked(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path / "checkpoints")
    flip(tmp_path / "checkpoints/checkpoint-2/optimizer.pt")
    (tmp_path / "checkpoints/checkpoint-4/state.safetensors").unlink()
    for _ in range(2):  # nothing was moved, so that a copy can be put back
        with pytest.raises(OutputError, match=r"checkpoint-4 is damaged \(state.*checkpoint-2.*--overwrite"):
            last_checkpoint(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    assert last_checkpoint(tmp_path) is None


@pytest.mark.parametrize("name", [None, "optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_a_checkpoint_of_an_older_version_is_used_if_its_files_can_be_read(
    name, two_checkpoints, tmp_path, capsys
):
    shutil.copytree(two_checkpoints, tmp_path / "checkpoints")
    folder = tmp_path / "checkpoints/checkpoint-4"
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.name != "whole.json"}
    (folder / "whole.json").write_text(json.dumps(sizes))
    if name:
        (folder / name).write_bytes(b"\0" * sizes[name])
    assert last_checkpoint(tmp_path).name == ("checkpoint-2" if name else "checkpoint-4")
    assert (name or "without checksums") in capsys.readouterr().err


def test_only_files_of_ours_are_removed_with_old_checkpoints(base, tmp_path):
    class Note(TrainerCallback):
        def on_save(self, args, state, control, **_):  # noqa: ARG002
            (tmp_path / f"checkpoints/checkpoint-{state.global_step}/notes.md").write_text("mine")

    make(ObjectiveTrainer, base, tmp_path, max_steps=4, save_steps=1, callbacks=[Note()]).train()
    left = {f.name: len(list(f.iterdir())) for f in (tmp_path / "checkpoints").iterdir()}
    assert left == {"checkpoint-1": 1, "checkpoint-2": 1, "checkpoint-3": 8, "checkpoint-4": 8}


def test_checkpoints_by_time_change_no_bit(base, tmp_path):
    straight = make(ObjectiveTrainer, base, tmp_path / "straight", save_steps=100)
    straight.train()
    timed = make(ObjectiveTrainer, base, tmp_path / "timed", save_steps=100, save_minutes=1e-9)
    timed.train()
    assert {f.name for f in (tmp_path / "timed/checkpoints").iterdir()} == {"checkpoint-2", "checkpoint-3"}
    assert {f.name for f in (tmp_path / "straight/checkpoints").iterdir()} == {"checkpoint-3"}
    assert same(straight.tensors, timed.tensors)


class Signals(TrainerCallback):
    """Sends signals to this process as a step begins."""

    def __init__(self, step, *numbers):
        self.step, self.numbers = step, numbers

    def on_step_begin(self, args, state, control, **_):  # noqa: ARG002
        for number in self.numbers if state.global_step == self.step else ():
            signal.raise_signal(number)


ENDS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}


@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize("step", [0, 7])
def test_a_signal_saves_a_checkpoint_from_which_the_run_continues_to_the_bit(
    number, step, base, tmp_path, capsys
):
    handlers = [signal.getsignal(one) for one in ENDS]
    given = dict(max_steps=10, save_steps=100, accumulation=2, log_steps=3)
    stopped = make(ObjectiveTrainer, base, tmp_path, callbacks=[Signals(step, number)], **given)
    with pytest.raises(ENDS[number]) as ended:
        stopped.train_or_resume(None)
    assert getattr(ended.value, "code", 143) == 143
    assert "saved a checkpoint after step" in capsys.readouterr().err
    assert [signal.getsignal(one) for one in ENDS] == handlers
    checkpoint = last_checkpoint(tmp_path)
    assert checkpoint.name == f"checkpoint-{step + 1}"
    resumed = make(ObjectiveTrainer, base, tmp_path, **given)
    resumed.train_or_resume(checkpoint)
    assert f"resuming from step {step + 1} of 10." in capsys.readouterr().err
    straight = make(ObjectiveTrainer, base, tmp_path / "straight", **given)
    straight.train_or_resume(None)
    assert same(straight.tensors, resumed.tensors)
    assert log_of(straight) == log_of(resumed)


def test_a_second_signal_stops_at_once(base, tmp_path):
    twice = Signals(1, signal.SIGTERM, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        make(ObjectiveTrainer, base, tmp_path, callbacks=[twice]).train_or_resume(None)
    assert last_checkpoint(tmp_path) is None
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_training_in_another_thread_leaves_the_signals_alone(base, tmp_path):
    trainer = make(ObjectiveTrainer, base, tmp_path, max_steps=1)
    seen = []
    trainer.add_callback(Look(lambda: seen.append(signal.getsignal(signal.SIGINT))))
    thread = threading.Thread(target=trainer.train_or_resume, args=[None])
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


class Look(TrainerCallback):
    def __init__(self, call):
        self.call = call

    def on_step_end(self, *_, **__):
        self.call()


def spoil(trainer, name, step, value):
    """Has a part of an objective's loss be `value` from a step on, with its gradient as it was."""
    forward = trainer.loss.forward

    def spoilt(*given, **named):
        losses = forward(*given, **named)
        if trainer.state.global_step + 1 >= step:
            losses[name] = losses[name] - losses[name].detach() + value
        return losses

    trainer.loss.forward = spoilt
    return trainer


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_at_its_step_and_is_named(value, base, tmp_path):
    logs = []
    given = dict(save_steps=1, log_steps=100, max_steps=9, given={"record": logs.append})
    trainer = spoil(make(ObjectiveTrainer, base, tmp_path, **given), "decoder", 4, value)
    with pytest.raises(stzoo.TrainingError, match=f"step 4 of 9: decoder is {value}.*checkpoint-3.*--learn"):
        trainer.train_or_resume(None)
    assert last_checkpoint(tmp_path).name == "checkpoint-3"
    assert all(
        torch.isfinite(t).all() for t in load_file(last_checkpoint(tmp_path) / "state.safetensors").values()
    )


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (dict(learning_rate=1e30), r"step \d of 6: .* is (nan|inf)"),
        (dict(learning_rate=1e38, max_steps=1), "step 1 of 1: weights are not finite after the update"),
    ],
)
def test_training_that_diverges_saves_no_checkpoint_that_is_not_finite(changes, what, base, tmp_path):
    given = dict(save_steps=1, max_steps=6, max_grad_norm=1e9, warmup_ratio=0) | changes
    with pytest.raises(stzoo.TrainingError, match=what):
        make(ObjectiveTrainer, base, tmp_path, **given).train_or_resume(None)
    for file in tmp_path.rglob("state.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(file).values())


def test_a_gradient_that_overflows_in_fp16_is_scaled_by_less_while_that_can_help(base, tmp_path):
    """Without a GPU there is no training in fp16, so the check is called with what such a step gives."""
    trainer = make(ObjectiveTrainer, base, tmp_path)
    overflow = {"encoder": 1.0, "gradient norm": float("inf")}
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    trainer._judge(1, overflow)
    with pytest.raises(stzoo.TrainingError, match="encoder is nan"):
        trainer._judge(1, overflow | {"encoder": float("nan")})
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=0.5)
    with pytest.raises(stzoo.TrainingError, match="gradient norm is inf"):
        trainer._judge(1, overflow)
