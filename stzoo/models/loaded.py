"""Loads a model for use, with its name, its revision, and the settings that its vectors depend on."""

import contextlib
import copy
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache

from stzoo.errors import ModelError, RecipeError, StzooError, first_line
from stzoo.models import check_weights
from stzoo.models.limits import longest, prepare, shortest
from stzoo.models.loading import align_weights, check_device, load_plain
from stzoo.models.names import model_source, parse_name, slug
from stzoo.models.objects import USED, check_model, model_name, model_revision
from stzoo.utils.files import fingerprint
from stzoo.utils.inputs import user_path
from stzoo.utils.messages import collect_notes, no_notes, notify
from stzoo.utils.outputs import ADAPTATION, IMPORTED, MERGED, RECORD

# suffixes of files at the top of a folder that loading may read
PLAIN = {".json", ".safetensors", ".model", ".jinja"}
PICKLED = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}
VOCABULARIES = {"tokenizer.json", "vocab.txt", "vocab.json", "merges.txt"}
RECORDS = (RECORD, MERGED, IMPORTED, ADAPTATION)  # which loading does not read
NO_REVISION = "no_revision_available"  # mteb's name for it


@dataclass(frozen=True)
class LoadedModel:
    """A loaded model.

    Attributes:
        name: Name that results are stored under.
        given: Absolute path to the folder, or Hub id, that it was loaded from; the name of an object.
        revision: First 12 hex digits of the fingerprint of a folder or object, or the commit of a Hub model.
            An object that is unchanged since it was loaded from a folder has the folder's.
        model: The SentenceTransformer.
        devices: Devices that encode in parallel; the model is on the first.
        notes: Notes for readers of its scores, e.g. that long texts are truncated.
        is_object: True if an object was given that differs from its folder, so that `given` is only a name.
    """

    name: str
    given: str
    revision: str
    model: Any
    devices: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    is_object: bool = False

    @property
    def similarity(self) -> str:
        """The similarity function of its vectors: cosine, dot, euclidean or manhattan."""
        return str(self.model.similarity_fn_name)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings, besides the weights, that scores depend on; without the usual values."""
        limit = self.model.max_seq_length
        settings = {
            "max_tokens": None if limit == math.inf else limit,  # static embeddings have no limit
            "similarity": self.similarity,
            "prompts": {name: text for name, text in self.model.prompts.items() if text},
        }
        if self.dtype not in ("float32", "None"):  # files of other backends do not state it
            settings["dtype"] = self.dtype
        if self.model.backend != "torch":
            settings["backend"] = self.model.backend
        if self.model.truncate_dim:
            settings["truncate_dim"] = self.model.truncate_dim
        return settings

    @property
    def dtype(self) -> str:
        """The type of the weights, e.g. "float32"."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def meta(self) -> dict[str, Any]:
        """The content of model_meta.json."""
        return {
            "name": self.name,
            "revision": self.revision,
            "n_parameters": sum(tensor.numel() for tensor in self.model.parameters()),
            "embed_dim": self.model.get_embedding_dimension(),
            "modules": [type(module).__name__ for module in self.model],
            **self.settings,
        }


def open_model(
    text: Any,
    *,
    max_tokens: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    backend: str = "torch",
    name: str = "",
) -> LoadedModel:
    """Loads a model. Code from its folder or repository is never run.

    Args:
        text: FOLDER, HUB_ID, CHECKPOINT or NAME=SOURCE, where SOURCE is any of these; or a
            SentenceTransformer, of which a copy with the same weights is used; the object is not changed.
        max_tokens: Number of tokens to which texts are truncated; None for the model's limit.
        device: Device of torch, or several separated by commas; None for the best available, or that of
            the object.
        dtype: Type of the weights: float32, bfloat16 or float16; None for the published one.
        backend: torch, onnx or openvino.
        name: Name that results are stored under; by default that of the text, or of the object.

    Raises:
        ModelError: If plain sentence-transformers cannot load the model, or the model cannot read max_tokens.
        RecipeError: If the text contains no name, or an option is invalid.
    """
    if not isinstance(text, str | os.PathLike):
        return _of_object(text, name, max_tokens, device, dtype, backend)
    text = os.fspath(text)
    name, source = parse_name(f"{name}={text}" if name else text)
    source = model_source(source)
    folder = user_path(source, ModelError)
    local = folder.is_dir()
    source = str(folder) if local else source
    devices = tuple(device.split(",")) if device else ()
    with collect_notes() as notes:
        model = load_plain(source, device=devices[0] if devices else None, dtype=dtype, backend=backend)
        if local and not (folder / "modules.json").is_file():
            notify(
                f"{folder} has no modules.json, so its pooling is unknown; sentence-transformers takes "
                "the mean."
            )
    if max_tokens is not None:
        limit(model, max_tokens, source)
    revision = folder_revision(folder, backend) if local else commit_of(model, source)
    place = str(folder.resolve()) if local else source
    return LoadedModel(name, place, revision, model, devices, tuple(notes))


def _of_object(
    model: Any, name: str, max_tokens: int | None, device: str | None, dtype: str | None, backend: str
) -> LoadedModel:
    """A copy of a model that is loaded already, prepared as `load_plain` prepares those that it loads."""
    check_model(model)
    if dtype is not None or backend != "torch":
        raise RecipeError(
            "dtype and backend are for models that stzoo loads; give the model's folder or Hub id, or leave "
            "them out."
        )
    devices = tuple(device.split(",")) if device else ()
    if devices:
        check_device(devices[0])
    name = name or model_name(model)
    if not slug(name):
        raise RecipeError(f"the model's name {name!r} has no letters or digits; give it another one.")
    copied = _copy(model, devices[0] if devices else None, name)
    align_weights(copied)
    with collect_notes() as notes:
        check_weights.check_finite(name, copied)
        prepare(copied, name)
    folder = _folder_of(copied)
    if max_tokens is not None:
        limit(copied, max_tokens, name)
    given = str(folder.resolve()) if folder else model_name(model)
    revision = folder_revision(folder) if folder else model_revision(model)
    return LoadedModel(name, given, revision, copied, devices, tuple(notes), is_object=folder is None)


def _folder_of(model: Any) -> Path | None:
    """The folder that a prepared model was loaded from; None if another model is loaded from it now."""
    folder = Path(getattr(getattr(model[0], "config", None), "_name_or_path", None) or "no folder")
    if not (folder / "modules.json").is_file():
        return None
    with contextlib.suppress(StzooError), no_notes():
        return folder if _is_same(model, load_plain(str(folder), device="cpu")) else None
    return None


def _is_same(model: Any, loaded: Any) -> bool:
    """True if a model does what one that was loaded from files does; False if in doubt, as for hooks."""
    edits = ("_forward_hooks", "_forward_pre_hooks", "forward")
    buffers = dict(loaded.named_buffers())  # `model_revision` leaves out those that are not saved
    return (
        [type(part) for part in model.modules()] == [type(part) for part in loaded.modules()]
        and not any(vars(part).get(name) for part in (model, *model.modules()) for name in edits)
        and all(getattr(model, name) == getattr(loaded, name) for name in USED)
        and model_revision(model) == model_revision(loaded)
        and all(
            name in buffers and torch.equal(tensor.cpu(), buffers[name])
            for name, tensor in model.named_buffers()
        )
    )


def _copy(model: Any, device: str | None, name: str) -> Any:
    """A copy of a SentenceTransformer for inference, which shares the memory of its weights.

    Args:
        model: The model, which keeps its device, training mode, prompts and tokenizer.
        device: Device of the copy, which has its own weights if that is another one; None for the model's.
        name: Name of the model, for messages.
    """
    # new tensors with the same memory: moving them to a device leaves those of the model where they are
    shared = {id(tensor): copy.copy(tensor) for tensor in (*model.parameters(), *model.buffers())}
    try:
        copied = copy.deepcopy(model, shared).eval()
    except Exception as error:  # modules of other libraries may raise anything
        raise ModelError(
            f"the model {name} cannot be copied ({type(error).__name__}: {first_line(error)}). Give the path "
            "of its folder, or its Hub id."
        ) from error
    return copied.to(device) if device else copied


def limit(model: Any, max_tokens: int, name: str) -> None:
    """Sets the number of tokens to which a model truncates texts.

    Args:
        model: A SentenceTransformer.
        max_tokens: Number of tokens, special tokens included.
        name: Name of the model, for messages.

    Raises:
        ModelError: If the model cannot read so many tokens.
    """
    most, least = longest(model[0]), shortest(model[0])
    if max_tokens < least or (most and max_tokens > most):
        raise ModelError(
            f"max_tokens is {max_tokens}; expected {least} to {most or 'any number'} for {name}."
        )
    try:
        model.max_seq_length = max_tokens
    except AttributeError as error:  # static embeddings
        raise ModelError(
            f"{name} reads texts of any length and never truncates them; leave out max_tokens."
        ) from error


def folder_revision(folder: Path, backend: str = "torch") -> str:
    """A fingerprint (12 hex digits) of the files that make up the model, at the top and in its modules.

    At the top it covers weights, settings, tokenizer and code; with a backend other than torch, also the
    backend's folder (onnx, openvino), whose weights are used.

    Hidden files, records, texts and pictures are left out, as are folders that modules.json does not name
    (checkpoints, decoders).
    """
    names = [""]
    if (folder / "modules.json").is_file():
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        names += sorted({module["path"] for module in modules if module["path"]})
    if backend != "torch":
        names.append(backend)
    files = []
    for name in names:
        paths = (folder / name).rglob("*") if name else filter(_may_be_read, folder.iterdir())
        files += sorted(
            file for file in paths if file.is_file() and not file.name.startswith((".", "README"))
        )
    return fingerprint(*files)[:12]


def _may_be_read(path: Path) -> bool:
    model = path.suffix in PLAIN | PICKLED | {".py"} or path.name in VOCABULARIES
    return model and path.name not in RECORDS


def commit_of(model: Any, hub_id: str) -> str:
    """The commit of a model that was loaded from the Hub, or NO_REVISION."""
    for module in model.modules():
        commit = getattr(getattr(module, "config", None), "_commit_hash", None)
        if commit:
            return str(commit)
    # static embeddings have no config with the commit; the path .../snapshots/<commit>/modules.json has it
    cached = try_to_load_from_cache(hub_id, "modules.json")
    return Path(cached).parent.name if isinstance(cached, str) else NO_REVISION
