"""Loading models to merge, and checking that the mean of their weights is meaningful."""

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from stzoo.errors import ModelError
from stzoo.hub import verify_standalone
from stzoo.models import lora
from stzoo.models.loading import load_masked_lm, load_plain
from stzoo.utils.inputs import read_json

HEAD = "masked_lm."  # prefix of the tensors that only the masked LM of a pre-trained model has
WEIGHTS, PICKLED = "model*.safetensors", "pytorch_model*.bin"
# keys of a transformer's config that do not change its output
IGNORED = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}


def module_folders(folder: Path) -> list[Path]:
    """The folders of a model's modules.

    Raises:
        ModelError: If modules.json is missing or invalid.
    """
    try:
        listing = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        return [folder / module["path"] for module in listing]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / 'modules.json'} cannot be read: {error!r}.") from None


def load(folder: Path) -> tuple[Any, Any]:
    """Loads a model, and its masked LM with the same encoder if the folder stores an MLM head, else None.

    Raises:
        ModelError: If it cannot be loaded, its weights are pickled, or it has a Router or adapters.
    """
    for module_folder in module_folders(folder):
        if any(module_folder.glob(PICKLED)) and not any(module_folder.glob(WEIGHTS)):
            raise ModelError(
                f"the weights in {module_folder} are pickled; expected safetensors. `stzoo export` converts "
                "them."
            )
    model, masked_lm = _load(folder)
    if any(type(module).__name__ == "Router" for module in model):
        raise ModelError(f"{folder} has a Router; models with a Router cannot be merged.")
    if lora.adapted(model) or hasattr(masked_lm, "peft_config"):
        raise ModelError(f"{folder} has adapters; fold them into its weights first (stzoo.models.lora.fold).")
    return model, masked_lm


def _load(folder: Path) -> tuple[Any, Any]:
    config = read_json(folder / "config.json")
    if "ForMaskedLM" in str(config.get("architectures")):
        model, masked_lm, new = load_masked_lm(str(folder))
        if not new:
            return model, masked_lm
    # the config may name a head whose weights are not stored
    return load_plain(str(folder), device="cpu"), None


def tensors(model: Any, masked_lm: Any) -> dict[str, Tensor]:
    """The tensors that a model's folder stores, by their names in the state_dict; HEAD precedes the head's.

    Tensors that share memory (the head's decoder and the word embeddings) have the first of their names.
    """
    items = list(model.state_dict(keep_vars=True).items())
    if masked_lm is not None:
        items += [(HEAD + name, tensor) for name, tensor in masked_lm.state_dict(keep_vars=True).items()]
    unique: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in items:
        unique.setdefault(id(tensor), (name, tensor))
    return dict(unique.values())


def kind_of(model: Any, masked_lm: Any) -> dict[str, Any]:
    """The properties that must be the same in all merged models, by their names in error messages."""
    kind: dict[str, Any] = {"modules": [type(module).__name__ for module in model]}
    config = getattr(model[0], "config", None)
    for key, value in ({} if config is None else config.to_dict()).items():
        if key not in IGNORED and "dropout" not in key:
            kind[f"{key} of the architecture"] = value
    for number, module in enumerate(model):
        for key, value in module.get_config_dict().items():
            kind[f"{key} of module {number} ({type(module).__name__})"] = value
    kind |= verify_standalone.settings(model)
    kind |= {"tokenizer (fingerprint)": _fingerprint(model.tokenizer)}
    for name, tensor in tensors(model, masked_lm).items():
        kind[f"shape of {name}"] = list(tensor.shape)
        kind[f"dtype of {name}"] = str(tensor.dtype).removeprefix("torch.")
    return kind


def _fingerprint(tokenizer: Any) -> str:
    inner = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(inner, "to_str"):  # without the truncation and padding of the last call
        content = json.loads(inner.to_str()) | {"truncation": None, "padding": None}
    else:
        content = tokenizer.get_vocab()
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def check_same(first: str, expected: dict[str, Any], other: str, actual: dict[str, Any]) -> None:
    """Checks that two models have the same properties.

    Args:
        first: Name of the first model.
        expected: Properties of the first model, from `kind_of`.
        other: Name of the other model.
        actual: Properties of the other model.

    Raises:
        ModelError: If a property differs; the message has both values.
    """
    for name in [*expected, *(actual.keys() - expected.keys())]:
        if expected.get(name) != actual.get(name):
            raise ModelError(
                f"{first} and {other} cannot be merged: {name} is {_shown(expected, name)} in the first, "
                f"{_shown(actual, name)} in the other."
            )


def _shown(properties: dict[str, Any], name: str) -> str:
    return repr(properties[name]) if name in properties else "missing"
