"""SentenceTransformer objects that are given in place of a path or Hub id."""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from stzoo.data.objects import keep
from stzoo.errors import ModelError, first_line
from stzoo.models.names import slug
from stzoo.utils.files import is_disk_full
from stzoo.utils.logging import silence_hf_logging

USED = ("prompts", "default_prompt_name", "max_seq_length", "truncate_dim", "similarity_fn_name")
OF_FILES = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")  # set by saving
EXPECTED = "a SentenceTransformer, the path of its folder, or its Hub id"


def model_path(given: Any) -> str:
    """The path or Hub id of a model: as given, or that of a copy in stzoo's cache.

    The copy is named after the model and the fingerprints of its weights and settings; the object itself is
    never changed.

    Raises:
        ModelError: If it is no model; the message does not show the object.
    """
    if isinstance(given, str | os.PathLike):
        return os.fspath(given)
    check_model(given)
    return _path_of_copy(given)


def teacher_path(given: Any) -> str:
    """The path or Hub id of a cross-encoder, as `model_path` for a CrossEncoder.

    Raises:
        ModelError: If it is no cross-encoder; the message does not show the object.
    """
    if isinstance(given, str | os.PathLike):
        return os.fspath(given)
    if not isinstance(given, CrossEncoder):
        raise ModelError(
            f"an object of type {type(given).__name__} was given as cross-encoder; expected a CrossEncoder, "
            "the path of its folder, or its Hub id."
        )
    _check_backend(given)
    return _path_of_copy(given)


def base_path(given: Any) -> str:
    """The path or Hub id of an encoder or a cross-encoder, as `model_path`."""
    return teacher_path(given) if isinstance(given, CrossEncoder) else model_path(given)


def _path_of_copy(given: Any) -> str:
    used = [getattr(given, name, None) for name in USED]
    settings = hashlib.sha256(json.dumps(used, default=str).encode()).hexdigest()

    def write(draft: Path) -> str:
        try:
            with silence_hf_logging():
                given.save_pretrained(str(draft), create_model_card=False)
        except Exception as error:  # modules of other libraries may raise anything
            if isinstance(error, OSError) or is_disk_full(error):
                raise
            raise ModelError(
                f"the model {name} cannot be saved ({type(error).__name__}: {first_line(error)}). Give the "
                "path of its folder, or its Hub id."
            ) from error
        return ""

    name = f"{slug(model_name(given))}-{model_revision(given)}-{settings[:12]}"
    return str(keep(write, name=name))


def model_paths(given: Any) -> list[str]:
    """The paths or Hub ids of one or several models; see `model_path`."""
    return [model_path(one) for one in (given if isinstance(given, list | tuple) else [given])]


def option_paths(given: Any) -> Any:
    """Options with the path of its copy in place of each model; see `model_path`."""
    if isinstance(given, Mapping):
        return {name: option_paths(value) for name, value in given.items()}
    is_plain = given is None or isinstance(given, bool | int | float | list | tuple) or hasattr(given, "item")
    return given if is_plain else base_path(given)


def check_model(given: Any) -> None:
    """Checks that an object is a SentenceTransformer whose weights can be read.

    Raises:
        ModelError: If it is of another type, or of another backend than torch.
    """
    if not isinstance(given, SentenceTransformer):
        raise ModelError(f"an object of type {type(given).__name__} was given as model; expected {EXPECTED}.")
    _check_backend(given)


def _check_backend(given: Any) -> None:
    if given.backend != "torch":  # its state_dict is empty, so that two models would look the same
        raise ModelError(
            f"a {type(given).__name__} of the backend {given.backend} was given, whose weights cannot be "
            "read from the object. Give the path of its folder, or its Hub id, and the backend."
        )


def model_name(model: Any) -> str:
    """The Hub id or the name of the folder that a model was loaded from; "model" if there is none."""
    config = getattr(getattr(model[0], "model", None), "config", None)
    name = model.model_card_data.base_model or getattr(config, "_name_or_path", "") or ""
    if not name:
        return "model"
    return Path(name).resolve().name if Path(name).is_dir() or Path(name).is_absolute() else name


def model_revision(model: Any) -> str:
    """A fingerprint (12 hex digits) of a model's weights, modules and tokenizer.

    The weights of a pooler that no embedding is computed from are left out: if the files lack them, they are
    drawn at random whenever the model is loaded.
    """
    digest = hashlib.sha256()
    unused = tuple(
        f"{name}.model.pooler."
        for name, module in model.named_modules()
        if hasattr(module, "modality_config") and "pooler_output" not in str(module.modality_config)
    )
    for module in model:
        settings = module.get_config_dict() if hasattr(module, "get_config_dict") else {}
        digest.update(json.dumps([type(module).__name__, settings], sort_keys=True, default=str).encode())
    tokenizer = getattr(model, "tokenizer", None)
    backend: Any = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "to_str"):
        whole = json.loads(backend.to_str()) | {"truncation": None, "padding": None}  # which calls change
        sides = [getattr(tokenizer, name, "") for name in ("padding_side", "truncation_side")]
        digest.update(json.dumps([whole, sides], sort_keys=True).encode())
    for part in model.modules():
        config: Any = getattr(part, "config", None)
        if hasattr(config, "to_diff_dict"):
            kept = {name: value for name, value in config.to_diff_dict().items() if name not in OF_FILES}
            digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
        if isinstance(getattr(part, "disable_adapters", None), bool):  # a layer of PEFT
            state = [part.disable_adapters, part.active_adapters, part.scaling]
            digest.update(json.dumps(state, default=str).encode())
    for name, tensor in model.state_dict().items():
        if name.startswith(unused):
            continue
        if not isinstance(tensor, torch.Tensor):  # packed weights of torch's quantization
            torch.save([name, tensor], packed := io.BytesIO())
            digest.update(packed.getvalue())
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        raw: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(memoryview(raw.numpy()))
    return digest.hexdigest()[:12]


def listed(models: Any) -> list[tuple[str, Any]]:
    """Models, each with the name of its results ("" for its own).

    Args:
        models: A name, path or object, a list of these, or a dict of these by name.

    Raises:
        ModelError: If one is of another type.
    """
    if isinstance(models, Mapping):
        named = [(str(name), one) for name, one in models.items()]
    else:
        several = isinstance(models, list | tuple)
        named = [("", one) for one in (models if several else [models])]
    for _, one in named:
        if not isinstance(one, str | os.PathLike):
            check_model(one)
    return named
