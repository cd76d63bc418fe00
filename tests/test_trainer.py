"""Each trap of the host's trainer: mended, and there again with the host's own method."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformerTrainer
from transformers import TrainerCallback, set_seed

from stzoo.batches import LengthBatchSampler
from stzoo.pretrain import load_base, load_parts, make_objective
from stzoo.recipe import PretrainSettings
from stzoo.testing import sentences, tiny_masked_lm
from stzoo.trainer import ObjectiveTrainer, arguments, last_checkpoint


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


@pytest.mark.parametrize("step", [9, 12])
def test_a_resumed_run_ends_with_the_same_weights_to_the_bit(step, base, tmp_path):
    """From the middle of the second of three epochs, and from the end of it."""
    straight = make(ObjectiveTrainer, base, tmp_path / "straight", max_steps=None, epochs=3, save_steps=step)
    straight.train()
    last = tmp_path / "straight/checkpoints" / f"checkpoint-{step}"
    resumed = make(ObjectiveTrainer, base, tmp_path / "resumed", max_steps=None, epochs=3, save_steps=100)
    resumed.train(resume_from_checkpoint=str(last))
    assert straight.state.global_step == resumed.state.global_step == 18
    assert same(straight.tensors, resumed.tensors)


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


def test_processes_agree_and_disagree_without_the_mends(base, tmp_path):
    script = Path(__file__).with_name("two_processes.py")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
    ]
    done = subprocess.run([*command, str(base), str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    spread = json.loads((tmp_path / "spread.json").read_text())
    assert spread["mended"] == {"encoder": 0.0, "own": 0.0}
    assert spread["frozen first"] == {"encoder": 0.0, "own": 0.0}
    assert spread["_inner_training_loop"]["own"] > 1e-4
    assert spread["_clip_grad_norm"]["own"] > 1e-6


def test_losses_are_logged_as_they_are_and_summed_by_weight(base, tmp_path):
    trainer = make(ObjectiveTrainer, base, tmp_path, max_steps=1, weights={"decoder": 0.25})
    trainer.train()
    line = trainer.state.log_history[0]
    assert line["loss"] == pytest.approx(line["encoder"] + 0.25 * line["decoder"], abs=1e-3)
    assert 0 <= line["decoder_accuracy"] <= 1
    assert line["tokens_per_s"] > 0


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_precision_reaches_head_and_decoder(precision, dtype, base, tmp_path):
    trainer = make(ObjectiveTrainer, base, tmp_path, max_steps=1, precision=precision, device="cpu")
    seen = []
    products = (
        trainer.loss.backbone.masked_lm.cls.predictions.decoder,
        trainer.loss.head.layers[0].intermediate.dense,
    )
    for product in products:
        product.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
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
    import numpy

    allowed = [numpy._core.multiarray._reconstruct, numpy.ndarray, numpy.dtype, numpy.dtypes.UInt32DType]
    with torch.serialization.safe_globals(allowed):
        for name in pickled:
            torch.load(folder / name, weights_only=True)


@pytest.fixture(scope="module")
def two_checkpoints(base, tmp_path_factory):
    output = tmp_path_factory.mktemp("run")
    make(ObjectiveTrainer, base, output, max_steps=4).train()
    return output / "checkpoints"


def damage_nothing(folder):
    pass


def damage_marker(folder):
    (folder / "whole.json").unlink()


def damage_weights(folder):
    weights = folder / "state.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def damage_optimiser(folder):
    (folder / "optimizer.pt").write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_nothing, damage_marker, damage_weights, damage_optimiser])
def test_a_checkpoint_cut_short_is_passed_over_and_removed(damage, two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path / "checkpoints")
    damage(tmp_path / "checkpoints/checkpoint-4")
    found = last_checkpoint(tmp_path)
    assert found.name == ("checkpoint-4" if damage is damage_nothing else "checkpoint-2")
    assert (tmp_path / "checkpoints/checkpoint-4").exists() == (damage is damage_nothing)
    assert load_file(found / "state.safetensors")
