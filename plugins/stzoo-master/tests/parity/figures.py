"""The figures of MASTER's authors in a parity file."""

import json
from typing import NamedTuple

import torch

from stzoo import Objective
from stzoo.testing.parity import build_objective, objective_errors, part

# the decoders, and the prefixes of the inputs to its passes and decoders
HEADS = {
    "passage": "c_head",
    "query": "query_head",
    "continuation": "gpt_head",
    "neighbour": "next_head",
    "complement": "overlap_head",
}
VIEWS = {
    "encoder": "",
    "encoder-neighbour": "next_encoder_",
    "encoder-complement": "overlap_encoder_",
    "passage": "decoder_",
    "query": "query_",
    "continuation": "gpt_",
    "neighbour": "next_decoder_",
    "complement": "overlap_decoder_",
}


class MasterView(NamedTuple):
    """A text as MASTER's losses take it."""

    ids: torch.Tensor
    labels: torch.Tensor
    attention: torch.Tensor


def matches(tensors: dict[str, torch.Tensor], about: dict[str, str]) -> bool:  # noqa: ARG001
    """True for a file of this form."""
    return any(name.startswith("param.query_head") for name in tensors)


def decoders(objective: Objective) -> dict[str, torch.nn.Module]:
    """The decoders' layers by the authors' prefix."""
    return {f"{theirs}.": objective.heads[ours].layers for ours, theirs in HEADS.items()}


def errors(tensors: dict[str, torch.Tensor], about: dict[str, str]) -> dict[str, float]:
    """The relative error of each figure."""
    depth = int(about["decoder_layers"])
    objective = build_objective("master", tensors, about, decoders, layers=depth)
    inputs = part(tensors, "input.")
    shared = inputs["attention_mask"].bool()
    views = {
        name: MasterView(
            inputs[f"{prefix}input_ids"],
            inputs[f"{prefix}labels"],
            inputs.get(f"{prefix}attention_mask", shared).bool(),
        )
        for name, prefix in VIEWS.items()
    }
    expected = json.loads(about.get("decoder_losses", "{}"))
    return objective_errors(objective, objective.losses(**views), expected, tensors, about, decoders)
