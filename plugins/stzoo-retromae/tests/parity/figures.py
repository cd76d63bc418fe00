"""The figures of RetroMAE's and DupMAE's authors in a parity file."""

import torch

from stzoo import Objective
from stzoo.testing.parity import build_objective, objective_errors, part

LOSSES = {"encoder_mlm_loss": "encoder", "decoder_mlm_loss": "decoder", "bow_loss": "bag"}


def matches(tensors: dict[str, torch.Tensor], about: dict[str, str]) -> bool:  # noqa: ARG001
    """True for a file of this form."""
    return "input.decoder_visibility" in tensors


def decoders(objective: Objective) -> dict[str, torch.nn.Module]:
    """The decoder's layer by the authors' prefix."""
    return {"c_head.": objective.head.layers[0]}


def errors(tensors: dict[str, torch.Tensor], about: dict[str, str]) -> dict[str, float]:
    """The relative error of each figure."""
    has_bag = "input.bow_weight" in tensors
    objective = build_objective("dupmae" if has_bag else "retromae", tensors, about, decoders)
    inputs = part(tensors, "input.")
    views = {
        "encoder_ids": inputs["encoder_input_ids"],
        "encoder_labels": inputs["encoder_labels"],
        "attention": inputs["attention_mask"].bool(),
        "decoder_ids": inputs["input_ids"],
        "decoder_labels": inputs["decoder_labels"],
        "visible": inputs["decoder_visibility"].bool(),
    }
    if has_bag:
        objective.set_weights({"bag": float(about["bow_loss_weight"])})
        views["bag"] = inputs["bow_weight"]
    losses = objective.losses(**views)
    expected = {ours: about[theirs] for theirs, ours in LOSSES.items() if theirs in about}
    return objective_errors(objective, losses, expected, tensors, about, decoders)
