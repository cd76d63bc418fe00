"""A checkpoint's files as its authors published them, read without running anything that is in them.

Weights come from safetensors, or from pickles that `torch.load(weights_only=True)` opens, which makes tensors
and plain containers of them and nothing else.
"""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from stzoo.errors import ModelError, first_line
from stzoo.hub.api_errors import asking
from stzoo.hub.weights import plain
from stzoo.models.loading import load_tokenizer
from stzoo.plugins.hookspecs import Checkpoint
from stzoo.utils.network import interruptible

# of a fast tokenizer; a sentencepiece model alone is none, and the base's tokenizer.json stands in for it
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json")
TEXTS = (
    *("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt"),
    *TOKENIZERS,
)
SAFE = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")


class Published:
    """A checkpoint's files, and which of them were read.

    Args:
        folder: where they lie.
        checkpoint: the row of data that says what they are.

    Attributes:
        read: paths of the files that were read, in their order.
    """

    def __init__(self, folder: Path, checkpoint: Checkpoint):
        self.folder, self.checkpoint = folder, checkpoint
        self.read: list[Path] = []

    @cached_property
    def base(self) -> Path:
        """The folder of the model whose configuration and tokenizer stand in for missing ones.

        Raises:
            ModelError: if the checkpoint names none, or it cannot be fetched.
        """
        if not self.checkpoint.base:
            raise ModelError(
                f"{self.folder} has no configuration or no fast tokenizer; expected config.json and "
                "tokenizer.json."
            )
        return fetch(self.checkpoint.base, "main", weights=False)

    def config(self, inside: str = "") -> Any:
        """The transformers configuration, of a folder inside or of the base.

        Raises:
            ModelError: if there is none, or none that transformers knows without code from elsewhere.
        """
        place = self._home(("config.json",), inside)
        try:
            return AutoConfig.from_pretrained(place, trust_remote_code=False)
        except Exception as error:  # whatever a broken file makes the library raise
            raise ModelError(f"{place / 'config.json'} cannot be read: {first_line(error)}") from error

    def tokenizer(self, inside: str = "") -> Any:
        """The fast tokenizer, of a folder inside, of the folder itself or of the base.

        Raises:
            ModelError: if there is none.
        """
        return load_tokenizer(str(self._home(TOKENIZERS, inside)))

    def tensors(self, inside: str = "") -> dict[str, Tensor]:
        """All weights that a transformers folder holds, in one file or in several.

        Raises:
            ModelError: if there are none, or they cannot be read as plain tensors.
        """
        place = self.folder / inside
        for whole, index in (SAFE[:2], PICKLED[:2]):
            if (place / whole).is_file():
                return self.tensors_in(f"{inside}/{whole}")
            if (place / index).is_file():
                listing = self._json(place / index)
                names = sorted(set(listing.get("weight_map", {}).values()))
                if not names or any(Path(name).name != name for name in names):
                    raise ModelError(f"{place / index} names no files that lie beside it.")
                parts = [self.tensors_in(f"{inside}/{name}") for name in names]
                return {name: tensor for part in parts for name, tensor in part.items()}
        raise ModelError(f"{place} holds no weights; expected {SAFE[0]} or {PICKLED[0]}.")

    def tensors_in(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file by their names.

        Raises:
            ModelError: if it is not there, or holds anything else.
        """
        path = self.folder / name.lstrip("/")
        if path.suffix != ".safetensors":
            found = self.pickled(name)
        else:
            try:
                found = load_file(self._file(name))
            except Exception as error:  # safetensors has an error of its own
                raise ModelError(f"{path} cannot be read: {first_line(error)}") from error
        return plain(found, str(path))

    def pickled(self, name: str) -> Any:
        """What a pickled file holds, if it is nothing but tensors, numbers and text in plain containers.

        Raises:
            ModelError: if it is not there, or is not such a file.
        """
        path = self._file(name)
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # the unpickler's own, zip's, or the disk's
            called = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"it asks for {called[1]}" if called else first_line(error)
            raise ModelError(
                f"{path} is refused: it is damaged, or holds more than plain tensors, which could run code "
                f"when it is opened ({reason})."
            ) from error

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object from the folder.

        Raises:
            ModelError: if it is not there, or is none.
        """
        return self._json(self._file(name))

    def _json(self, path: Path) -> dict[str, Any]:
        self.read.append(path)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{path} is no JSON: {error}.") from error
        if not isinstance(found, dict):
            raise ModelError(f"{path} is no JSON object.")
        return found

    def _file(self, name: str) -> Path:
        path = self.folder / name.lstrip("/")
        if not path.is_file():
            raise ModelError(f"{path} is not there, which a checkpoint like {self.checkpoint.name} has.")
        self.read.append(path)
        return path

    def _home(self, names: Sequence[str], inside: str) -> Path:
        """The folder that has one of these files: the one inside, the whole, or the base."""
        for place in (self.folder / inside, self.folder):
            found = [place / name for name in TEXTS if (place / name).is_file()]
            if any(path.name in names for path in found):
                self.read += [path for path in found if path not in self.read]
                return place
        return self.base


def fetch(hub_id: str, revision: str, more: Sequence[str] = (), *, weights: bool = True) -> Path:
    """Fetches a model's files from the Hub, never code; pickled weights only where there are no others.

    Args:
        hub_id: "owner/name", or a folder, which is returned as it is.
        revision: branch, tag or commit.
        more: patterns of further files.
        weights: False leaves the weights there.

    Returns:
        the folder in the cache, named by the commit.

    Raises:
        ModelError: if the Hub does not give them.
    """
    if Path(hub_id).is_dir():
        return Path(hub_id)

    def get(**options: Any) -> str:
        return interruptible(lambda: snapshot_download(hub_id, **options))

    with asking(f"for the files of {hub_id} at {revision}", kind=ModelError):
        folder = Path(get(revision=revision, allow_patterns=[*TEXTS, *more, *(SAFE if weights else ())]))
        if weights and not any((folder / name).is_file() for name in SAFE[:2]):
            folder = Path(get(revision=folder.name, allow_patterns=list(PICKLED)))
    return folder
