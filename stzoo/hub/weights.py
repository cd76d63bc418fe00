"""Published tensors into a model of transformers, each into its place.

Every tensor of a file has to find its place, and every place its tensor. What is left over is named, never
passed over.
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


def plain(found: Any, where: str) -> dict[str, Tensor]:
    """The object itself if it is a dict of tensors by name.

    Raises:
        ModelError: if it is not.
    """
    if (
        not isinstance(found, dict)
        or not found
        or not all(isinstance(name, str) and isinstance(part, Tensor) for name, part in found.items())
    ):
        raise ModelError(f"{where} holds no weights; expected tensors by their names.")
    return dict(found)


def renamed(tensors: Mapping[str, Tensor], rules: Rules, where: str) -> dict[str, Tensor]:
    """The tensors under other names.

    Args:
        tensors: by name.
        rules: patterns with the names that they make, as of `re`; None leaves a tensor out. The first pattern
            that matches a whole name counts.
        where: they come from, for errors.

    Raises:
        ModelError: if no rule matches some of the names, or two names become one.
    """
    made: dict[str, Tensor] = {}
    lost = []
    for name, tensor in tensors.items():
        hits = [(match, to) for pattern, to in rules if (match := re.fullmatch(pattern, name))]
        if not hits:
            lost.append(name)
            continue
        match, to = hits[0]
        if to is None:
            continue
        new = match.expand(to)
        if new in made:
            raise ModelError(f"{where}: two tensors are the model's {new}; one is {name}.")
        made[new] = tensor
    if lost:
        raise ModelError(f"{where} is not of the expected form. {_some('unexpected', lost)}.")
    return made


def fill(model: Any, tensors: Mapping[str, Tensor], where: str) -> Any:
    """Copies tensors into a model of transformers, each into its place, and returns the model.

    A BERT's pooler may be missing; the model then has none, as no vector is made of it.

    Raises:
        ModelError: if a tensor is missing, unexpected or of another shape, or two that the model ties differ.
    """
    own = model.state_dict(keep_vars=True)  # so that tied names have the same object
    if not any(name.startswith("pooler.") for name in tensors) and getattr(model, "pooler", None) is not None:
        model.pooler = None
        own = model.state_dict(keep_vars=True)
    given = {id(own[name]) for name in tensors if name in own}
    missing = [name for name, part in own.items() if id(part) not in given]
    unexpected = [name for name in tensors if name not in own]
    shapes = [
        f"{name} {list(tensor.shape)}, not {list(own[name].shape)}"
        for name, tensor in tensors.items()
        if name in own and tensor.shape != own[name].shape
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
            own[name].copy_(tensor)
    untied = [name for name, tensor in tensors.items() if not torch.equal(own[name], tensor.to(own[name]))]
    if untied:
        raise ModelError(
            f"{where} holds two versions of what the model ties, or NaN. {_some('not kept', untied)}."
        )
    return model.eval()


def encoder_of(config: Any, tensors: Mapping[str, Tensor], where: str) -> Any:
    """The transformers model that the tensors are of: a masked LM if they have its prefix, or a bare encoder.

    A pooler beside an MLM head, for which transformers has no model, is left out.

    Raises:
        ModelError: if they are neither.
    """
    try:
        with torch.device("meta"):  # to learn the family's prefix only
            prefix = AutoModel.from_config(config).base_model_prefix
        whole = any(name.startswith(f"{prefix}.") for name in tensors)
        model = (AutoModelForMaskedLM if whole else AutoModel).from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise ModelError(f"{where}: its configuration makes no encoder: {first_line(error)}") from error
    kept = {name: part for name, part in tensors.items() if not name.startswith(f"{prefix}.pooler.")}
    return fill(model, kept, where)


def _some(kind: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{kind.capitalize()}: {', '.join(names[:SHOWN])}{more}"
