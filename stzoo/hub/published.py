"""A checkpoint's files as published by its authors, read without running any code in them.

Weights are read from safetensors, or from pickles by `torch.load(weights_only=True)`, which only builds
tensors and plain containers.
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
from stzoo.hub.api_errors import hub_errors
from stzoo.hub.weights import plain
from stzoo.models.loading import load_tokenizer
from stzoo.plugins.hookspecs import Checkpoint
from stzoo.utils.network import interruptible

# files of a fast tokenizer; with a sentencepiece model alone, the base's tokenizer.json is used
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json")
TEXTS = (
    *("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt"),
    *TOKENIZERS,
)
SAFE = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")


class Published:
    """A checkpoint's files.

    Args:
        folder: Path to the folder with the files.
        checkpoint: Description of the checkpoint.

    Attributes:
        read: Paths of the files read so far, in order.
    """

    def __init__(self, folder: Path, checkpoint: Checkpoint):
        self.folder, self.checkpoint = folder, checkpoint
        self.read: list[Path] = []

    @cached_property
    def base(self) -> Path:
        """The folder of the base model, whose configuration and tokenizer replace missing ones.

        Raises:
            ModelError: If the checkpoint has no base model, or it cannot be downloaded.
        """
        if not self.checkpoint.base:
            raise ModelError(
                f"{self.folder} has no configuration or no fast tokenizer; expected config.json and "
                "tokenizer.json."
            )
        return fetch(self.checkpoint.base, "main", weights=False)

    def config(self, inside: str = "") -> Any:
        """The transformers configuration from a subfolder, the folder itself or the base model.

        Raises:
            ModelError: If there is none, or transformers cannot read it without remote code.
        """
        folder = self._find_folder(("config.json",), inside)
        try:
            return AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # damaged files raise errors of many kinds
            raise ModelError(f"{folder / 'config.json'} cannot be read: {first_line(error)}") from error

    def tokenizer(self, inside: str = "") -> Any:
        """The fast tokenizer from a subfolder, the folder itself or the base model.

        Raises:
            ModelError: If there is none.
        """
        return load_tokenizer(str(self._find_folder(TOKENIZERS, inside)))

    def tensors(self, inside: str = "") -> dict[str, Tensor]:
        """All weights of a transformers folder, from one file or several.

        Raises:
            ModelError: If there are none, or they are not plain tensors.
        """
        folder = self.folder / inside
        for whole, index in (SAFE[:2], PICKLED[:2]):
            if (folder / whole).is_file():
                return self.tensors_in(f"{inside}/{whole}")
            if (folder / index).is_file():
                listing = self._json(folder / index)
                names = sorted(set(listing.get("weight_map", {}).values()))
                if not names or any(Path(name).name != name for name in names):
                    raise ModelError(f"{folder / index} is invalid; expected names of files in its folder.")
                parts = [self.tensors_in(f"{inside}/{name}") for name in names]
                return {name: tensor for part in parts for name, tensor in part.items()}
        raise ModelError(f"{folder} has no weights; expected {SAFE[0]} or {PICKLED[0]}.")

    def tensors_in(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file by name.

        Raises:
            ModelError: If the file is missing, or has anything but tensors.
        """
        path = self.folder / name.lstrip("/")
        if path.suffix != ".safetensors":
            content = self.pickled(name)
        else:
            try:
                content = load_file(self._file(name))
            except Exception as error:  # safetensors raises an error of its own
                raise ModelError(f"{path} cannot be read: {first_line(error)}") from error
        return plain(content, str(path))

    def pickled(self, name: str) -> Any:
        """The content of a pickled file, which may only be tensors, numbers and text in plain containers.

        Raises:
            ModelError: If the file is missing, or has anything else.
        """
        path = self._file(name)
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # of the unpickler, zip or the disk
            called = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"it calls {called[1]}" if called else first_line(error)
            raise ModelError(
                f"{path} is refused: it is damaged, or has more than plain tensors, which could run code "
                f"when it is opened ({reason})."
            ) from error

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object from the folder.

        Raises:
            ModelError: If the file is missing, or is not a JSON object.
        """
        return self._json(self._file(name))

    def _json(self, path: Path) -> dict[str, Any]:
        self.read.append(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{path} is not JSON: {error}.") from error
        if not isinstance(content, dict):
            raise ModelError(f"{path} is not a JSON object.")
        return content

    def _file(self, name: str) -> Path:
        path = self.folder / name.lstrip("/")
        if not path.is_file():
            raise ModelError(f"{path} is missing; expected the files of {self.checkpoint.name}.")
        self.read.append(path)
        return path

    def _find_folder(self, names: Sequence[str], inside: str) -> Path:
        """The first folder with one of these files: the subfolder, the folder itself or the base model's."""
        for folder in (self.folder / inside, self.folder):
            paths = [folder / name for name in TEXTS if (folder / name).is_file()]
            if any(path.name in names for path in paths):
                self.read += [path for path in paths if path not in self.read]
                return folder
        return self.base


def fetch(hub_id: str, revision: str, more: Sequence[str] = (), *, weights: bool = True) -> Path:
    """Downloads a model's files from the Hub, but no code, and pickled weights only if there are no others.

    Args:
        hub_id: "owner/name", or a folder, which is returned unchanged.
        revision: Branch, tag or commit.
        more: Patterns of further files.
        weights: False skips the weights.

    Returns:
        The folder in the cache, named after the commit.

    Raises:
        ModelError: If the download fails.
    """
    if Path(hub_id).is_dir():
        return Path(hub_id)

    def get(**options: Any) -> str:
        return interruptible(lambda: snapshot_download(hub_id, **options))

    with hub_errors(f"downloading the files of {hub_id} at {revision}", kind=ModelError):
        folder = Path(get(revision=revision, allow_patterns=[*TEXTS, *more, *(SAFE if weights else ())]))
        if weights and not any((folder / name).is_file() for name in SAFE[:2]):
            folder = Path(get(revision=folder.name, allow_patterns=list(PICKLED)))
    return folder
