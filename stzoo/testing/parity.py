"""Compares an implementation with results of its authors' code, stored in a safetensors file.

For an objective, the file contains `param.*` (with the authors' names: `lm.*` is a BertForMaskedLM, others
belong to decoders), `input.*` and `grad.*`; its metadata has "config" (a BertConfig), "loss" (the total) and
single losses. Whatever depends on the method (inputs, losses, prefixes of decoders) is passed by the caller.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from stzoo.plugins import manager
from stzoo.pretraining.objective import Objective
from stzoo.pretraining.pretrain import load_base


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads the tensors and metadata of a parity file."""
    with safe_open(path, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by their names without it."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def build_objective(
    name: str,
    tensors: Mapping[str, Tensor],
    about: Mapping[str, str],
    decoders: Callable[[Objective], dict[str, nn.Module]],
    **options: Any,
) -> Objective:
    """Builds an installed objective with the weights of a parity file, loaded like any base model.

    Args:
        name: Name of the objective.
        tensors: Tensors of the file.
        about: Metadata of the file.
        decoders: Function that returns the modules of the objective's decoders by the authors' prefixes.
        options: Options of the objective.
    """
    weights = part(tensors, "param.")
    masked_lm = BertForMaskedLM(BertConfig(**json.loads(about["config"])))
    missing, unexpected = masked_lm.load_state_dict(part(weights, "lm."), strict=False)
    assert not unexpected, unexpected
    # tied weights are stored once
    assert all(key.startswith("cls.predictions.decoder.") for key in missing), missing
    masked_lm.tie_weights()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"w{number}" for number in range(len(words), masked_lm.config.vocab_size)]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    named = zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), words, strict=False)
    with tempfile.TemporaryDirectory() as folder:
        masked_lm.save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(named)).save_pretrained(folder)
        objective = manager.build("objective", name, load_base(folder).backbone, **options)
    for prefix, module in decoders(objective).items():
        module.load_state_dict(part(weights, prefix))
    return objective.eval()


def objective_errors(
    objective: Objective,
    losses: Mapping[str, Tensor],
    expected: Mapping[str, str | float],
    tensors: Mapping[str, Tensor],
    about: Mapping[str, str],
    decoders: Callable[[Objective], dict[str, nn.Module]],
) -> dict[str, float]:
    """Computes the relative error of the total loss, single losses, the bottleneck and every gradient.

    Args:
        objective: The objective of `build_objective`.
        losses: Its losses for the inputs of the file, by name.
        expected: Losses of the authors' code by the same names.
        tensors: Tensors of the file.
        about: Metadata of the file.
        decoders: Function as in `build_objective`.
    """
    total = torch.stack([objective.weights[name] * loss for name, loss in losses.items()]).sum()
    total.backward()
    errors = {"loss": relative(total, float(about["loss"]))}
    errors |= {f"loss {name}": relative(losses[name], float(value)) for name, value in expected.items()}
    if "cls" in tensors:
        with torch.no_grad():
            inputs = part(tensors, "input.")
            _, h = objective.encode(inputs["encoder_input_ids"], inputs["attention_mask"].bool())
        errors["bottleneck"] = relative(h, tensors["cls"])
    theirs = part(tensors, "grad.")
    ours = {f"lm.{name}": p.grad for name, p in objective.backbone.masked_lm.named_parameters()}
    for prefix, module in decoders(objective).items():
        ours |= {f"{prefix}{name}": p.grad for name, p in module.named_parameters()}
    unknown = theirs.keys() - ours.keys()
    assert not unknown, f"parameters that the objective lacks: {sorted(unknown)}"
    for name, gradient in ours.items():
        if name in theirs:
            # A key's bias shifts all scores of a row equally, so its gradient is 0 up to rounding; the error
            # is relative to the gradient of the key's weights.
            scale = theirs[name.replace("key.bias", "key.weight")]
            errors[f"gradient {name}"] = relative(gradient, theirs[name], scale)
        else:  # the authors' code computes none
            assert gradient is None or not gradient.any(), (
                f"{name} has a gradient here, but not in the authors' code"
            )
    return errors


def relative(value: Tensor | None, expected: Any, scale: Tensor | None = None) -> float:
    """The largest difference relative to the largest entry of `scale`, by default of the expected values."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    scale = expected if scale is None else scale.double()
    value = torch.zeros_like(expected) if value is None else value.detach().double()
    if not torch.isfinite(value).all():
        return float("inf")
    assert value.shape == expected.shape, f"{list(value.shape)} against {list(expected.shape)}"
    return ((value - expected).abs().max() / scale.abs().max().clamp(min=1e-12)).item()
