"""Reads the weights of a source from disk one by one, by their names in the loaded model."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from stzoo.errors import ModelError
from stzoo.hub.merge.compatibility import HEAD, WEIGHTS, module_folders
from stzoo.hub.merge.sources import Source
from stzoo.models import lora
from stzoo.training.checkpoints import STATE


class Stored:
    """The weights of a source.

    Args:
        source: Model or checkpoint to read.
        expected: Tensors of the first source's model, by name from `compatibility.tensors`.
        inner: Prefix of the encoder's tensors in a folder with an MLM head; "" in others.
        stack: Stack that closes the files.

    Raises:
        ModelError: If the tensors are not the expected ones.
    """

    def __init__(
        self, source: Source, expected: Mapping[str, Tensor], inner: str, stack: contextlib.ExitStack
    ):
        self.name, self.factor, self.expected = source.name, source.factor, expected
        self.where: dict[str, tuple[Any, str]] = {}  # the open file, and the tensor's name in it
        for number, folder in enumerate(module_folders(source.folder)):
            for path in folder.glob(WEIGHTS):
                file = stack.enter_context(safe_open(path, framework="pt"))
                for key in file.keys():  # noqa: SIM118 - it is not a dict
                    self.where[_name(number, key, inner, expected)] = file, key
        if source.checkpoint is not None:
            # tensors that the run did not train (modules after a bottleneck) stay those of its model
            self.where |= self._of_checkpoint(source.checkpoint / STATE, stack)
        if missing := [name for name in expected if name not in self.where]:
            raise ModelError(
                f"{self.name} does not store {missing[0]}, which the loaded model has. Export the model "
                "again with `stzoo export`."
            )

    def _of_checkpoint(self, path: Path, stack: contextlib.ExitStack) -> dict[str, tuple[Any, str]]:
        file = stack.enter_context(safe_open(path, framework="pt"))
        # The names are those in the loss, whose SentenceTransformer is "model"; a pre-training objective has
        # it, and the masked LM, in its "backbone".
        where = {}
        for key in file.keys():  # noqa: SIM118 - it is not a dict
            name = (lora.plain_name(key) or "").removeprefix("backbone.")
            if name.startswith(("model.", HEAD)):
                where[name.removeprefix("model.")] = file, key
        trained = {name for name in self.expected if name.startswith("0.")}
        if odd := sorted((where.keys() - self.expected.keys()) | (trained - where.keys())):
            raise ModelError(
                f"the checkpoint {self.name} does not fit the model of its run: only one has {odd[0]}."
            )
        return where

    def read(self, name: str) -> Tensor:
        """Reads a tensor, with the adapters of a LoRA run folded in.

        Raises:
            ModelError: If its shape is not the expected one.
        """
        file, key = self.where[name]
        if lora.is_adapted(key):
            tensor = lora.read_folded(file.get_tensor, key, self.factor)
        else:
            tensor = file.get_tensor(key)
        if tensor.shape != self.expected[name].shape:
            raise ModelError(
                f"{name} has the shape {list(tensor.shape)} in {self.name}; expected "
                f"{list(self.expected[name].shape)}."
            )
        return tensor


def _name(number: int, key: str, inner: str, expected: Mapping[str, Tensor]) -> str:
    """The name in the model of a tensor in a module's folder."""
    if number == 0 and not key.startswith(inner):
        return HEAD + key
    encoder = f"0.model.{key.removeprefix(inner)}"
    return encoder if number == 0 and encoder in expected else f"{number}.{key}"
