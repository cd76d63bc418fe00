"""What two models must have in common, so that a mean of their weights can mean something."""

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from stzoo.errors import ModelError
from stzoo.hub import verify_standalone
from stzoo.models import lora
from stzoo.models.loading import load_masked_lm, load_plain

HEAD = "masked_lm."  # before the names of what only the masked LM of a pre-trained model has
WEIGHTS, PICKLED = "model*.safetensors", "pytorch_model*.bin"
# what of a transformer's config does not change what it computes
NOISE = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}


def places(folder: Path) -> list[Path]:
    """The folder of each module of a model folder.

    Raises:
        ModelError: if modules.json does not say.
    """
    try:
        listing = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        return [folder / module["path"] for module in listing]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / 'modules.json'} cannot be read: {error!r}.") from None


def load(folder: Path) -> tuple[Any, Any]:
    """Loads a model folder, and the masked LM if it stores an MLM head, which shares the encoder; else None.

    Raises:
        ModelError: if it cannot be loaded, its weights are pickled, or it has several routes or adapters.
    """
    for place in places(folder):
        if any(place.glob(PICKLED)) and not any(place.glob(WEIGHTS)):
            raise ModelError(
                f"the weights in {place} are pickled, and pickles are not merged. Write the model anew with "
                "`stzoo export`."
            )
    model = load_plain(str(folder), device="cpu")
    if any(type(module).__name__ == "Router" for module in model):
        raise ModelError(f"{folder} has a Router; models of several routes cannot be merged.")
    if lora.adapted(model):
        raise ModelError(f"{folder} has adapters; fold them into its weights first (stzoo.models.lora.fold).")
    config = getattr(model[0], "config", None)
    if not any(name.endswith("ForMaskedLM") for name in getattr(config, "architectures", None) or ()):
        return model, None
    masked_lm, new = load_masked_lm(str(folder), model.dtype)
    if new:  # only the name of a head is left
        return model, None
    model[0].model = masked_lm.base_model  # as it was trained: without a pooler that nobody stored
    return model, masked_lm


def tensors(model: Any, masked_lm: Any) -> dict[str, Tensor]:
    """What a model's folder stores: named as in the model's state_dict, or, of the head, HEAD and its name.

    Tensors that share their memory (the head's decoder and the word embeddings) go under the first name.
    """
    named = list(model.state_dict(keep_vars=True).items())
    if masked_lm is not None:
        named += [(HEAD + name, tensor) for name, tensor in masked_lm.state_dict(keep_vars=True).items()]
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in named:
        found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def kind_of(model: Any, masked_lm: Any) -> dict[str, Any]:
    """The facts that must be the same in all models that are merged, by what they are called in an error."""
    found: dict[str, Any] = {"modules": [type(module).__name__ for module in model]}
    config = getattr(model[0], "config", None)
    for key, value in ({} if config is None else config.to_dict()).items():
        if key not in NOISE and "dropout" not in key:
            found[f"{key} of the architecture"] = value
    for number, module in enumerate(model):
        for key, value in module.get_config_dict().items():
            found[f"{key} of module {number} ({type(module).__name__})"] = value
    found |= verify_standalone.settings(model)
    found |= {"tokenizer (fingerprint)": _fingerprint(model.tokenizer)}
    for name, tensor in tensors(model, masked_lm).items():
        found[f"shape of {name}"] = list(tensor.shape)
        found[f"dtype of {name}"] = str(tensor.dtype).removeprefix("torch.")
    return found


def _fingerprint(tokenizer: Any) -> str:
    inner = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(inner, "to_str"):  # what the last call cut and padded to is stored beside, and is no part
        said = json.loads(inner.to_str()) | {"truncation": None, "padding": None}
    else:
        said = tokenizer.get_vocab()
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


def check_same(first: str, expected: dict[str, Any], other: str, found: dict[str, Any]) -> None:
    """Sees that two kinds are one.

    Args:
        first: name of the one model.
        expected: its kind.
        other: name of the other.
        found: its kind.

    Raises:
        ModelError: that names the first fact that differs, and both its values.
    """
    for what in [*expected, *(found.keys() - expected.keys())]:
        if expected.get(what) != found.get(what):
            raise ModelError(
                f"{first} and {other} cannot be merged: {what} is {expected.get(what)!r} in the first, "
                f"{found.get(what)!r} in the other."
            )
