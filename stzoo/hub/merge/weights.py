"""Weights as they lie on disk, read one by one under the names that the loaded model has for them."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from stzoo.errors import ModelError
from stzoo.hub.merge.compatibility import HEAD, WEIGHTS, places
from stzoo.hub.merge.sources import Source
from stzoo.models import lora
from stzoo.training.checkpoints import STATE


class Stored:
    """The weights of a source.

    Args:
        source: where they lie.
        expected: the tensors to be read, of the first source's model, as `kinds.tensors` names them.
        inner: what the names of the encoder's tensors begin with in a folder with an MLM head; "" in others.
        stack: closes the files.

    Raises:
        ModelError: if they are not the expected ones.
    """

    def __init__(
        self, source: Source, expected: Mapping[str, Tensor], inner: str, stack: contextlib.ExitStack
    ):
        self.name, self.factor, self.expected = source.name, source.factor, expected
        self.where: dict[str, tuple[Any, str]] = {}  # the open file, and the name in there
        for number, place in enumerate(places(source.folder)):
            for path in place.glob(WEIGHTS):
                file = stack.enter_context(safe_open(path, framework="pt"))
                for key in file.keys():  # noqa: SIM118 - it is no dict
                    self.where[_name(number, key, inner, expected)] = file, key
        if source.checkpoint is not None:
            # what the run did not train (modules behind a bottleneck) is as in the model that it made
            self.where |= self._of_checkpoint(source.checkpoint / STATE, stack)
        if missing := [name for name in expected if name not in self.where]:
            raise ModelError(
                f"{self.name} does not store {missing[0]}, which the loaded model has. Write the model anew "
                "with `stzoo export`."
            )

    def _of_checkpoint(self, path: Path, stack: contextlib.ExitStack) -> dict[str, tuple[Any, str]]:
        file = stack.enter_context(safe_open(path, framework="pt"))
        # The names are those in the loss, which holds the SentenceTransformer as "model"; a pre-training
        # objective holds it, and the masked LM beside it, in its "backbone".
        found = {}
        for key in file.keys():  # noqa: SIM118 - it is no dict
            name = (lora.plain_name(key) or "").removeprefix("backbone.")
            if name.startswith(("model.", HEAD)):
                found[name.removeprefix("model.")] = file, key
        trained = {name for name in self.expected if name.startswith("0.")}
        if odd := sorted((found.keys() - self.expected.keys()) | (trained - found.keys())):
            raise ModelError(
                f"the checkpoint {self.name} and the model that its run made have other weights ({odd[0]} is "
                "in one only), so it cannot take the model's place."
            )
        return found

    def read(self, name: str) -> Tensor:
        """One tensor, with the adapters of a LoRA run folded in.

        Raises:
            ModelError: if its shape is another than expected.
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
    """The expected name of a tensor in the folder of this module."""
    if number == 0 and not key.startswith(inner):
        return HEAD + key
    encoder = f"0.model.{key.removeprefix(inner)}"
    return encoder if number == 0 and encoder in expected else f"{number}.{key}"
