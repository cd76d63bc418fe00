"""Adapters: that they train alone, resume to the bit, and leave no trace but better weights."""

import sys

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from transformers import AutoModel, DebertaV2Config, GPT2Config, GPT2Model, TrainerCallback, set_seed

from stzoo.errors import MissingExtraError, ModelError, RecipeError
from stzoo.hub.export import export
from stzoo.models import lora
from stzoo.models.loading import load_model, load_plain
from stzoo.testing import FAMILIES, TEXTS, sentences, tiny_masked_lm, tiny_tokenizer
from stzoo.training.arguments import arguments
from stzoo.training.finetune_settings import FinetuneSettings
from stzoo.training.trainer import ObjectiveTrainer


def tiny(family, folder):
    """A tiny encoder of a family, with a mean pooling and a Dense behind it."""
    if family == "deberta-v2":
        sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        more = dict(relative_attention=True, pos_att_type=["p2c", "c2p"], max_position_embeddings=64)
        tokenizer = tiny_tokenizer("bert")
        torch.manual_seed(0)
        AutoModel.from_config(DebertaV2Config(vocab_size=len(tokenizer), **sizes, **more)).save_pretrained(
            folder
        )
        tokenizer.save_pretrained(folder)
    else:
        tiny_masked_lm(family, folder)
    torch.manual_seed(1)
    modules = [Transformer(str(folder)), Pooling(32, "mean"), Dense(32, 16)]
    return SentenceTransformer(modules=modules, device="cpu").eval()


def embedded(model):
    return model.encode(TEXTS, convert_to_tensor=True)


def randomise(model):
    """Stands in for training: adapters that do something."""
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)


@pytest.mark.parametrize("family", [*FAMILIES, "deberta-v2"])
def test_adapters_start_at_nothing_and_fold_into_plain_weights(family, tmp_path):
    model = tiny(family, tmp_path)
    names = {name: weight.requires_grad for name, weight in model.state_dict(keep_vars=True).items()}
    before = embedded(model)
    lora.add(model, rank=4, alpha=6.0)
    assert torch.equal(embedded(model), before)
    randomise(model)
    changed = embedded(model)
    assert (changed - before).abs().max() > 1e-3
    assert lora.fold(model) is model
    assert (embedded(model) - changed).abs().max() < 1e-5
    assert {name: weight.requires_grad for name, weight in model.state_dict(keep_vars=True).items()} == names
    assert not lora.adapted(model)


def test_only_adapters_and_what_follows_the_encoder_learn(tmp_path):
    model = tiny("bert", tmp_path)
    lora.add(model, rank=3)
    learning = {name: weight.numel() for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name for name in learning if "lora_" not in name} == {"2.linear.weight", "2.linear.bias"}
    # in each of two layers: query, key, value and output of 32 x 32, two of 32 x 64
    assert sum(n for name, n in learning.items() if "lora_" in name) == 2 * 3 * (
        4 * (32 + 32) + 2 * (32 + 64)
    )
    assert not any("pooler" in name for name in learning)
    assert model[0].model.encoder.layer[0].attention.self.query.scaling == {"default": 2.0}


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["query"], {"attention.self.query"}),
        (["output.dense"], {"attention.output.dense", "output.dense"}),
        (["self.key", "intermediate.dense"], {"attention.self.key", "intermediate.dense"}),
        (["encoder.layer.1.output.dense"], {"output.dense"}),
    ],
)
def test_targets_are_ends_of_names(targets, expected, tmp_path):
    model = tiny("bert", tmp_path)
    lora.add(model, rank=2, targets=targets)
    found = {name for name, module in model[0].model.named_modules() if hasattr(module, "lora_A")}
    assert {name.split(".", 3)[3] for name in found} == expected
    assert len(found) == (1 if "encoder" in targets[0] else 2 * len(expected))


def test_weights_in_bfloat16_get_adapters_in_float32(tmp_path):
    export(tiny("bert", tmp_path / "base"), tmp_path / "model", verify=False)
    model = load_plain(str(tmp_path / "model"), device="cpu", dtype="bfloat16")
    lora.add(model, rank=4)
    assert {weight.dtype for name, weight in model.named_parameters() if "lora_" in name} == {torch.float32}
    randomise(model)
    changed = embedded(model).float()
    lora.fold(model)
    assert model.dtype == torch.bfloat16
    assert (embedded(model).float() - changed).abs().max() < 0.02


class Norms(TrainerCallback):
    """The norm of all gradients as the optimiser sees them."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, *_, model, **__):
        grads = [weight.grad.norm() for weight in model.parameters() if weight.grad is not None]
        self.seen.append(float(torch.stack(grads).norm()))


def train(base, output, steps, *, resume=None, **changes):
    """Trains adapters; returns the model, what its weights were, and the norms of the gradients."""
    given = {"model": str(base), "data": "none", "batch_size": 4, "max_steps": 4, "save_steps": 2}
    settings = FinetuneSettings.read(None, given | {"learning_rate": 1e-2, "log_steps": 1} | changes)
    set_seed(settings.seed)
    model = load_model(str(base), pooling="mean")
    lora.add(model, rank=4, dropout=0.1)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    norms, stop = Norms(), Stop(steps)
    texts = sentences(64)
    trainer = ObjectiveTrainer(
        model=model,
        args=arguments(settings, output),
        train_dataset=Dataset.from_dict({"anchor": texts[:32], "positive": texts[32:]}),
        loss=CachedMultipleNegativesRankingLoss(model, mini_batch_size=2),
        settings=settings,
        callbacks=[norms, stop],
    )
    trainer.train_or_resume(resume)
    return model, before, norms.seen


class Stop(TrainerCallback):
    """Ends training after some steps, as a kill would."""

    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **_):  # noqa: ARG002
        control.should_training_stop = state.global_step >= self.steps


def test_a_resumed_run_ends_with_the_same_adapters_to_the_bit_and_the_same_base(base, tmp_path):
    straight, before, _ = train(base, tmp_path / "straight", 4)
    train(base, tmp_path / "killed", 2)
    resumed, _, _ = train(base, tmp_path / "killed", 4, resume=tmp_path / "killed/checkpoints/checkpoint-2")
    weights, again = straight.state_dict(), resumed.state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    moved = {name for name in weights if not torch.equal(weights[name], before[name])}
    assert moved == {name for name in weights if "lora_" in name}
    # and the checkpoint holds the base, too: a folder of its own
    stored = load_file(tmp_path / "killed/checkpoints/checkpoint-4/state.safetensors")
    assert {f"model.{name}" for name in weights} == set(stored)


def test_gradients_of_adapters_are_clipped(base, tmp_path):
    _, _, norms = train(base, tmp_path / "clipped", 2, max_grad_norm=1e-4)
    assert norms == pytest.approx([1e-4, 1e-4], rel=1e-2)


def test_adapters_train_in_bf16(base, tmp_path):
    model, before, _ = train(base, tmp_path / "bf16", 2, precision="bf16", device="cpu")
    weights = model.state_dict()
    assert any(not torch.equal(weights[name], before[name]) for name in weights)
    assert all(weight.isfinite().all() for weight in weights.values())


def test_a_folded_model_exports_and_loads_plainly(tmp_path):
    model = tiny("bert", tmp_path / "base")
    lora.add(model, rank=4)
    randomise(model)
    with pytest.raises(ModelError, match="adapter"):
        export(model, tmp_path / "out", verify=False)
    changed = embedded(model)
    export(lora.fold(model), tmp_path / "out", verify=False)
    loaded = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert (embedded(loaded) - changed).abs().max() < 1e-5


def test_a_weight_read_from_a_checkpoint_is_the_folded_one(tmp_path):
    model = tiny("bert", tmp_path)
    lora.add(model, rank=4, alpha=3.0)
    randomise(model)
    stored = {name: weight.clone() for name, weight in model.state_dict().items()}
    folded = lora.fold(model).state_dict()
    names = {lora.plain_name(name) for name in stored} - {None}
    assert names == set(folded)
    for name in filter(lora.plain_name, stored):
        if lora.is_adapted(name):
            read = lora.read_folded(stored.__getitem__, name, lora.scale(4, 3.0))
            assert torch.equal(read, folded[lora.plain_name(name)])


def test_a_model_without_adapters_is_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    model = tiny("bert", tmp_path)
    model[2].requires_grad_(False)
    model[0].requires_grad_(False)
    assert lora.fold(model) is model
    assert not any(weight.requires_grad for weight in model.parameters())


def test_without_peft_the_error_says_what_to_install(tmp_path, monkeypatch):
    model = tiny("bert", tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'stzoo\[lora\]'"):
        lora.add(model, rank=2)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("qurey", "did you mean 'query'.*dense, key, query, value; .*encoder.layer.0.attention.self.query"),
        ("ery", "ends in the target 'ery'"),  # no part of a name
        ("attention", "'attention'"),  # no linear layer
        ("pooler.dense", "'pooler.dense'"),  # that nothing reads
    ],
)
def test_a_target_that_is_not_there_is_refused_with_those_that_are(target, words, tmp_path):
    model = tiny("bert", tmp_path)
    with pytest.raises(RecipeError, match=words):
        lora.add(model, rank=2, targets=["value", target])
    assert not lora.adapted(model)


def test_models_that_cannot_have_adapters_are_refused(tmp_path):
    static = StaticEmbedding(tiny_tokenizer("bert").backend_tokenizer, embedding_dim=8)
    with pytest.raises(ModelError, match="begins with StaticEmbedding"):
        lora.add(SentenceTransformer(modules=[static], device="cpu"), rank=2)
    model = tiny("bert", tmp_path)
    lora.add(model, rank=2)
    with pytest.raises(ModelError, match="already has adapters"):
        lora.add(model, rank=2)
    model = tiny("bert", tmp_path)
    model[0].model = GPT2Model(GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1))
    for targets in ((), ("query",)):
        with pytest.raises(ModelError, match="GPT2Model has no linear layers"):
            lora.add(model, rank=2, targets=targets)
