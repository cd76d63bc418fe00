"""Copies published tensors into a transformers model.

Every tensor of a file must belong to the model, and every tensor of the model must be in the file; an error
names those that are not.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM

from stzoo.errors import ModelError, first_line

Rules = Sequence[tuple[str, str | None]]
# a constant that versions of transformers before 4.31 stored with the weights
ALL: Rules = ((r"(.+\.)?position_ids", None), (r"(.+)", r"\1"))
SHOWN = 12  # names of tensors in an error


def plain(content: Any, where: str) -> dict[str, Tensor]:
    """Checks that a file's content is a dict of tensors by name, and returns it.

    Raises:
        ModelError: If it is not.
    """
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(name, str) and isinstance(part, Tensor) for name, part in content.items())
    ):
        raise ModelError(f"{where} is not a file of weights; expected tensors by name.")
    return dict(content)


def renamed(tensors: Mapping[str, Tensor], rules: Rules, where: str) -> dict[str, Tensor]:
    """Renames tensors.

    Args:
        tensors: Tensors by name.
        rules: Regular expressions and their replacements; None drops a tensor. The first expression that
            matches the whole name applies.
        where: Origin of the tensors, for error messages.

    Raises:
        ModelError: If no rule matches a name, or two names become the same.
    """
    result: dict[str, Tensor] = {}
    unexpected = []
    for name, tensor in tensors.items():
        hits = [(match, to) for pattern, to in rules if (match := re.fullmatch(pattern, name))]
        if not hits:
            unexpected.append(name)
            continue
        match, to = hits[0]
        if to is None:
            continue
        new = match.expand(to)
        if new in result:
            raise ModelError(f"{where} has two tensors for the model's {new}; one is {name}.")
        result[new] = tensor
    if unexpected:
        raise ModelError(f"{where} does not have the expected tensors. {_some('unexpected', unexpected)}.")
    return result


def fill(model: Any, tensors: Mapping[str, Tensor], where: str) -> Any:
    """Copies tensors into a transformers model, and returns the model.

    A BERT pooler may be missing and is then removed from the model, as embeddings do not use it.

    Raises:
        ModelError: If a tensor is missing, unexpected or of another shape, or tied tensors differ.
    """
    state = model.state_dict(keep_vars=True)  # keep_vars: tied names have the same object
    if not any(name.startswith("pooler.") for name in tensors) and getattr(model, "pooler", None) is not None:
        model.pooler = None
        state = model.state_dict(keep_vars=True)
    present = {id(state[name]) for name in tensors if name in state}
    missing = [name for name, part in state.items() if id(part) not in present]
    unexpected = [name for name in tensors if name not in state]
    shapes = [
        f"{name} {list(tensor.shape)}, not {list(state[name].shape)}"
        for name, tensor in tensors.items()
        if name in state and tensor.shape != state[name].shape
    ]
    faults = [
        _some(*f)
        for f in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if f[1]
    ]
    if faults:
        raise ModelError(f"{where} does not fit its {type(model).__name__}. {'. '.join(faults)}.")
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)
    untied = [
        name for name, tensor in tensors.items() if not torch.equal(state[name], tensor.to(state[name]))
    ]
    if untied:
        raise ModelError(
            f"{where} has different values for tensors that the model ties, or NaN. "
            f"{_some('not kept', untied)}."
        )
    return model.eval()


def encoder_of(config: Any, tensors: Mapping[str, Tensor], where: str) -> Any:
    """Builds the transformers model of the tensors: a masked LM if they have its prefix, else a bare encoder.

    A pooler next to an MLM head is dropped, as no transformers model has both.

    Raises:
        ModelError: If the tensors are neither.
    """
    try:
        with torch.device("meta"):  # only needed for the prefix
            prefix = AutoModel.from_config(config).base_model_prefix
        whole = any(name.startswith(f"{prefix}.") for name in tensors)
        model = (AutoModelForMaskedLM if whole else AutoModel).from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise ModelError(f"{where}: its configuration is not an encoder's: {first_line(error)}") from error
    used = {name: part for name, part in tensors.items() if not name.startswith(f"{prefix}.pooler.")}
    return fill(model, used, where)


def _some(kind: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{kind.capitalize()}: {', '.join(names[:SHOWN])}{more}"
