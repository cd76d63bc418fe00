"""MASTER's losses and gradients are those of the authors' own code, and the check can fail."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertForMaskedLM
from transformers.models.bert.modeling_bert import BertLayer

from stzoo.testing.parity import read

HERE = Path(__file__).with_name("parity")
errors = runpy.run_path(str(HERE / "figures.py"))["errors"]


def first_label_off(labels):
    labels.view(-1)[labels.view(-1).ne(-100).nonzero()[0]] = -100


def exchange(tensors, one, other):
    tensors[one], tensors[other] = tensors[other].clone(), tensors[one].clone()


CHANGES = {
    "a gradient": lambda tensors: tensors["grad.next_head.1.output.dense.weight"].mul_(1.001),
    "an attention weight": lambda tensors: tensors["param.gpt_head.1.attention.self.query.weight"].mul_(1.1),
    "a label less for a decoder": lambda tensors: first_label_off(tensors["input.query_labels"]),
    "a label less for an encoder": lambda tensors: first_label_off(tensors["input.overlap_encoder_labels"]),
    "two decoders' views exchanged": lambda tensors: exchange(
        tensors, "input.gpt_input_ids", "input.query_input_ids"
    ),
    "two decoders' layers exchanged": lambda tensors: exchange(
        tensors, "param.c_head.0.output.dense.weight", "param.next_head.0.output.dense.weight"
    ),
    "another pass for the neighbour": lambda tensors: exchange(
        tensors, "input.next_encoder_input_ids", "input.overlap_encoder_input_ids"
    ),
    "no number": lambda tensors: tensors["param.c_head.0.output.dense.bias"].fill_(float("nan")),
}


@pytest.mark.parametrize("path", sorted(HERE.glob("*.safetensors")), ids=lambda path: path.stem)
def test_the_figures_are_those_of_the_authors(path):
    assert max(errors(*read(path)).values()) < 1e-5


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("path", sorted(HERE.glob("*.safetensors")), ids=lambda path: path.stem)
def test_the_check_notices(path, change):
    tensors, about = read(path)
    CHANGES[change](tensors)
    assert max(errors(tensors, about).values()) > 1e-5


def masters_file(path, *, layers, lengths, width, heads):
    """A file of MASTER's form and other shapes, by transformers' own layers and logits at every position."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=width, num_attention_heads=heads, intermediate_size=2 * width, vocab_size=61)
    config = dict(num_hidden_layers=1, max_position_embeddings=32, hidden_dropout_prob=0.0, **sizes)
    config["attention_probs_dropout_prob"] = 0.0
    lm = BertForMaskedLM(BertConfig(**config))
    prefixes = ("c_head", "query_head", "gpt_head", "next_head", "overlap_head")
    decoders = nn.ModuleDict(
        {name: nn.ModuleList(BertLayer(lm.config) for _ in range(layers)) for name in prefixes}
    )
    inputs = {}

    def view(prefix, length, attention=None):
        ids = torch.randint(5, 61, (2, length))
        inputs[f"{prefix}input_ids"] = ids
        inputs[f"{prefix}labels"] = torch.where(torch.rand(ids.shape) < 0.4, ids.roll(1), -100)
        if attention is None:
            attention = (torch.arange(length) < torch.tensor([[length], [4]])).long()
            inputs[f"{prefix}attention_mask"] = attention
        return ids, inputs[f"{prefix}labels"], attention

    def loss(hidden, labels):
        return functional.cross_entropy(lm.cls(hidden).flatten(0, 1), labels.flatten())

    whole, query, following, near = lengths
    total, parts = 0, {}
    first = view("", whole)
    of_first = [
        ("passage", "c_head", "decoder_", whole),
        ("query", "query_head", "query_", query),
        ("continuation", "gpt_head", "gpt_", following),
    ]
    views = [
        (first, of_first),
        (view("next_encoder_", whole // 2), [("neighbour", "next_head", "next_decoder_", near)]),
        (
            view("overlap_encoder_", whole, first[2]),
            [("complement", "overlap_head", "overlap_decoder_", whole)],
        ),
    ]
    for (ids, labels, attention), tasks in views:
        hidden = lm.bert(ids, attention).last_hidden_state
        total = total + loss(hidden, labels)
        for name, head, prefix, length in tasks:
            shared = first[2] if prefix in ("decoder_", "overlap_decoder_") else None
            ids, labels, seen = view(prefix, length, shared)
            rebuilt = torch.cat([hidden[:, :1], lm.bert.embeddings(ids)[:, 1:]], 1)
            blocked = (1.0 - seen[:, None, None, :]) * -1e9
            for layer in decoders[head]:
                rebuilt = layer(rebuilt, blocked)
            parts[name] = loss(rebuilt, labels)
    total = total + sum(parts.values())
    total.backward()
    named = [*((f"lm.{n}", p) for n, p in lm.named_parameters()), *decoders.named_parameters()]
    tensors = {f"param.{n}": p.detach().clone() for n, p in named}
    tensors |= {f"grad.{n}": p.grad.clone() for n, p in named if p.grad is not None}
    tensors |= {f"input.{n}": t.contiguous() for n, t in inputs.items()}
    about = {"config": json.dumps(config), "decoder_layers": str(layers), "loss": str(total.item())}
    about["decoder_losses"] = json.dumps({name: part.item() for name, part in parts.items()})
    save_file(tensors, path, metadata=about)


@pytest.mark.parametrize(
    "shape",
    [
        dict(layers=1, lengths=(12, 9, 20, 7), width=16, heads=2),
        dict(layers=3, lengths=(16, 25, 6, 11), width=24, heads=3),
    ],
)
def test_master_agrees_in_other_shapes_and_depths(shape, tmp_path):
    masters_file(tmp_path / "other.safetensors", **shape)
    assert max(errors(*read(tmp_path / "other.safetensors")).values()) < 1e-5
