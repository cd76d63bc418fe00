"""Compares an implementation with figures of its authors' own code, stored in a safetensors file.

Of an objective, the file holds `param.*` (the authors' names: `lm.*` is a BertForMaskedLM, others are of
decoders), `input.*` and `grad.*`; its metadata has "config" (a BertConfig), "loss" (the total) and single
losses. What belongs to one method (its inputs, its losses, its decoders' prefixes) is the caller's.
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
    """Tensors and metadata of a parity file."""
    with safe_open(path, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def build_objective(
    name: str,
    tensors: Mapping[str, Tensor],
    about: Mapping[str, str],
    decoders: Callable[[Objective], dict[str, nn.Module]],
    **options: Any,
) -> Objective:
    """An installed objective with the file's weights, loaded as any base model is.

    Args:
        name: of the objective.
        tensors: of the file.
        about: its metadata.
        decoders: gives the modules of the objective's decoders by the authors' prefix.
        options: of the objective.
    """
    weights = part(tensors, "param.")
    masked_lm = BertForMaskedLM(BertConfig(**json.loads(about["config"])))
    missing, unexpected = masked_lm.load_state_dict(part(weights, "lm."), strict=False)
    assert not unexpected, unexpected
    # tied weights stand in the file once
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
    """The relative error of the total loss, single losses, the bottleneck and every gradient.

    Args:
        objective: of `build_objective`.
        losses: what it gives for the file's inputs, by name.
        expected: single losses of the authors' code by the same names.
        tensors: of the file.
        about: its metadata.
        decoders: as for `build_objective`.
    """
    total = torch.stack([objective.weights[name] * loss for name, loss in losses.items()]).sum()
    total.backward()
    found = {"loss": relative(total, float(about["loss"]))}
    found |= {f"loss {name}": relative(losses[name], float(value)) for name, value in expected.items()}
    if "cls" in tensors:
        with torch.no_grad():
            inputs = part(tensors, "input.")
            _, h = objective.encode(inputs["encoder_input_ids"], inputs["attention_mask"].bool())
        found["bottleneck"] = relative(h, tensors["cls"])
    theirs = part(tensors, "grad.")
    ours = {f"lm.{name}": p.grad for name, p in objective.backbone.masked_lm.named_parameters()}
    for prefix, module in decoders(objective).items():
        ours |= {f"{prefix}{name}": p.grad for name, p in module.named_parameters()}
    unknown = theirs.keys() - ours.keys()
    assert not unknown, f"parameters that the objective does not have: {sorted(unknown)}"
    for name, gradient in ours.items():
        if name in theirs:
            # A key's bias moves all scores of a row alike, so its gradient is 0 but for rounding; it is
            # measured against the gradient of the key's weights.
            scale = theirs[name.replace("key.bias", "key.weight")]
            found[f"gradient {name}"] = relative(gradient, theirs[name], scale)
        else:  # theirs has none
            assert gradient is None or not gradient.any(), f"{name} has a gradient here and none there"
    return found


def relative(value: Tensor | None, expected: Any, scale: Tensor | None = None) -> float:
    """The largest difference, relative to the largest entry of `scale`, or of what is expected."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    scale = expected if scale is None else scale.double()
    value = torch.zeros_like(expected) if value is None else value.detach().double()
    if not torch.isfinite(value).all():
        return float("inf")
    assert value.shape == expected.shape, f"{list(value.shape)} against {list(expected.shape)}"
    return ((value - expected).abs().max() / scale.abs().max().clamp(min=1e-12)).item()
