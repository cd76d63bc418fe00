"""A finished model that was opened to be used: its name, its revision, and what its vectors depend on."""

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from stzoo.errors import ModelError
from stzoo.models.limits import longest, shortest
from stzoo.models.loading import load_plain
from stzoo.models.names import parse_name
from stzoo.utils.files import fingerprint
from stzoo.utils.inputs import user_path
from stzoo.utils.messages import collect_notes
from stzoo.utils.outputs import IMPORTED, MERGED, RECORD

# what at the top of a folder a plain load may read
PLAIN = {".json", ".safetensors", ".model", ".jinja"}
PICKLED = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}
VOCABULARIES = {"tokenizer.json", "vocab.txt", "vocab.json", "merges.txt"}
RECORDS = (RECORD, MERGED, IMPORTED)  # of which it reads nothing
NO_REVISION = "no_revision_available"  # as mteb files such models


@dataclass(frozen=True)
class LoadedModel:
    """A loaded model.

    Attributes:
        name: what results are filed under.
        given: the folder, made absolute, or Hub id that it was loaded from.
        revision: first 12 hex digits of a folder's fingerprint, or a Hub model's commit.
        model: the SentenceTransformer.
        devices: that encode side by side; the model is on the first.
        notes: what a reader of its scores should know, e.g. where its texts are cut.
    """

    name: str
    given: str
    revision: str
    model: Any
    devices: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def similarity(self) -> str:
        """How its vectors are compared: cosine, dot, euclidean or manhattan."""
        return str(self.model.similarity_fn_name)

    @property
    def settings(self) -> dict[str, Any]:
        """What of the model, beside its weights, the scores depend on; the usual is left out."""
        limit = self.model.max_seq_length
        found = {
            "max_tokens": None if limit == math.inf else limit,  # static embeddings have no limit
            "similarity": self.similarity,
            "prompts": {name: text for name, text in self.model.prompts.items() if text},
        }
        if self.dtype not in ("float32", "None"):  # files of other backends do not say
            found["dtype"] = self.dtype
        if self.model.backend != "torch":
            found["backend"] = self.model.backend
        if self.model.truncate_dim:
            found["truncate_dim"] = self.model.truncate_dim
        return found

    @property
    def dtype(self) -> str:
        """Of the weights."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def meta(self) -> dict[str, Any]:
        """For model_meta.json."""
        return {
            "name": self.name,
            "revision": self.revision,
            "n_parameters": sum(tensor.numel() for tensor in self.model.parameters()),
            "embed_dim": self.model.get_embedding_dimension(),
            "modules": [type(module).__name__ for module in self.model],
            **self.settings,
        }


def open_model(
    text: str,
    *,
    max_tokens: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    backend: str = "torch",
) -> LoadedModel:
    """Loads a model; code from its folder or repository is never run.

    Args:
        text: FOLDER, HUB_ID or NAME=FOLDER_OR_HUB_ID.
        max_tokens: longer texts are cut there; None keeps the model's own limit.
        device: of torch, several with commas between; None takes the best there is.
        dtype: of the weights: float32, bfloat16, float16; None as published.
        backend: torch, onnx or openvino.

    Raises:
        ModelError: if it is no model that plain sentence-transformers loads, or cannot read max_tokens.
        RecipeError: if the text holds no name, or an option does not hold.
    """
    name, given = parse_name(text)
    folder = user_path(given, ModelError)
    local = folder.is_dir()
    given = str(folder) if local else given
    devices = tuple(device.split(",")) if device else ()
    with collect_notes() as notes:
        model = load_plain(given, device=devices[0] if devices else None, dtype=dtype, backend=backend)
    if local and not (folder / "modules.json").is_file():
        logging.getLogger(__name__).warning(
            "%s has no modules.json, so nothing says how it pools; sentence-transformers takes the mean.",
            folder,
        )
    if max_tokens is not None:
        limit(model, max_tokens, given)
    revision = folder_revision(folder, backend) if local else commit_of(model, given)
    place = str(folder.resolve()) if local else given
    return LoadedModel(name, place, revision, model, devices, tuple(notes))


def limit(model: Any, max_tokens: int, given: str) -> None:
    """Lets a model read that many tokens of a text.

    Raises:
        ModelError: if it cannot read so many.
    """
    most, least = longest(model[0]), shortest(model[0])
    if max_tokens < least or (most and max_tokens > most):
        raise ModelError(f"max_tokens is {max_tokens}; {given} can read {least} to {most or 'any number'}.")
    try:
        model.max_seq_length = max_tokens
    except AttributeError as error:  # static embeddings
        raise ModelError(f"{given} reads texts whole, of any length; leave max_tokens out.") from error


def folder_revision(folder: Path, backend: str = "torch") -> str:
    """12 hex digits over the files that make the model: those at the top and those of its modules.

    At the top count weights, settings, tokenizer and code. With another backend than torch its own folder
    (onnx, openvino), whose weights are used, counts as well.

    Left out: hidden files, records, texts and pictures beside the model, and folders that modules.json does
    not name (checkpoints, decoders).
    """
    names = [""]
    if (folder / "modules.json").is_file():
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        names += sorted({module["path"] for module in modules if module["path"]})
    if backend != "torch":
        names.append(backend)
    files = []
    for name in names:
        found = (folder / name).rglob("*") if name else filter(_may_be_read, folder.iterdir())
        files += sorted(
            file for file in found if file.is_file() and not file.name.startswith((".", "README"))
        )
    return fingerprint(*files)[:12]


def _may_be_read(path: Path) -> bool:
    model = path.suffix in PLAIN | PICKLED | {".py"} or path.name in VOCABULARIES
    return model and path.name not in RECORDS


def commit_of(model: Any, given: str) -> str:
    """The commit of a model that was loaded by its Hub id, or NO_REVISION."""
    for module in model.modules():
        commit = getattr(getattr(module, "config", None), "_commit_hash", None)
        if commit:
            return str(commit)
    # static embeddings have no config that names it; .../snapshots/<commit>/modules.json does
    cached = try_to_load_from_cache(given, "modules.json")
    return Path(cached).parent.name if isinstance(cached, str) else NO_REVISION
