"""Checks that a model's files store every tensor that its architecture has, whenever a model is loaded.

transformers fills a missing tensor with random numbers and says so in a log line. Here that is an error. The
names and shapes are those that transformers compares while it loads, so no file is read a second time.
"""

import contextlib
import json
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from sentence_transformers.util import load_file_path
from transformers import PreTrainedModel

from stzoo.errors import ModelError, abbreviated
from stzoo.utils.messages import notify

SHOWN = 5  # names of tensors in a message
# Parts that a checkpoint may have besides its encoder, at the top of their names: heads and decoders.
HEADS = {
    *(
        "cls",
        "lm_head",
        "head",
        "decoder",
        "predictions",
        "classifier",
        "pre_classifier",
        "qa_outputs",
        "score",
    ),
    *("vocab_transform", "vocab_layer_norm", "vocab_projector", "generator_predictions", "generator_lm_head"),
    *("discriminator_predictions", "lm_predictions", "mask_predictions", "sop_classifier", "pooler"),
}
Report = tuple[Any, dict[str, Any]]  # a model of transformers, and what was found while it was loaded
_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def loading_reports() -> Iterator[list[Report]]:
    """Collects what transformers reports of each model that is loaded while the block runs.

    sentence-transformers and other callers do not pass on what `output_loading_info` asks for, so
    `PreTrainedModel.from_pretrained` is asked in their place. Tensors of another shape are reported as well,
    where transformers would raise an error that does not name them.
    """
    reports: list[Report] = []
    original = PreTrainedModel.__dict__["from_pretrained"]

    def from_pretrained(cls: Any, *args: Any, output_loading_info: bool = False, **options: Any) -> Any:
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, report = original.__func__(cls, *args, **options)
        reports.append((model, report))
        return (model, report) if output_loading_info else model

    with _one_at_a_time:
        PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[assignment,method-assign]
        try:
            yield reports
        finally:
            PreTrainedModel.from_pretrained = original  # type: ignore[method-assign]


def check_model(name: str, model: Any, reports: Iterable[Report], *, revision: str | None = None) -> None:
    """Checks a model of sentence-transformers; tensors that no part of it reads are a note to the user.

    The pooler of BERT and its kin may be missing where no embedding is made of it.

    Args:
        name: folder or Hub id that it was loaded from.
        model: a SentenceTransformer or CrossEncoder.
        reports: of `loading_reports`.
        revision: of the Hub id.

    Raises:
        ModelError: if tensors are missing or of another shape, and the model would have random ones there, or
            if weights are not finite.
    """
    transformers = {
        id(module.model): module for module in model.modules() if hasattr(module, "modality_config")
    }
    for loaded, report in reports:
        module = transformers.get(id(loaded))
        spare = ("pooler.",) if module is None or "pooler_output" not in str(module.modality_config) else ()
        check_report(name, loaded, report, spare=spare)
        if left := _left_over(loaded, report):
            notify(f"{name} stores tensors that its architecture does not have: {names(left)}.")
    _check_modules(name, model, revision)
    if broken := first_not_finite(model.named_parameters()):
        raise ModelError(f"the weights of {name} are damaged: {broken} has NaN or infinity.")


def check_report(name: str, loaded: Any, report: dict[str, Any], *, spare: tuple[str, ...] = ()) -> None:
    """Checks one report of transformers.

    Args:
        name: folder or Hub id that was loaded.
        loaded: the model of transformers.
        report: missing, unexpected and mis-shaped tensors.
        spare: what the names of tensors begin with that may be missing.

    Raises:
        ModelError: if others are missing, or some are of another shape.
    """
    missing = [key for key in report["missing_keys"] if not key.startswith(spare)]
    shapes = [
        f"{key} {list(stored)} instead of {list(expected)}"
        for key, stored, expected in report["mismatched_keys"]
        if not key.startswith(spare)
    ]
    _refuse(name, missing, shapes, _left_over(loaded, report))


def _left_over(loaded: Any, report: dict[str, Any]) -> list[str]:
    """Tensors in the files that nothing reads, without heads of other classes of the architecture."""
    whole = (loaded, loaded.base_model)
    heads = {part for part in HEADS if all(getattr(one, part, None) is None for one in whole)}
    own = f"{loaded.base_model_prefix}."
    return [key for key in report["unexpected_keys"] if key.removeprefix(own).split(".")[0] not in heads]


def names(found: Iterable[str]) -> str:
    """The first names in their order, and how many more there are."""
    listed = sorted(abbreviated(name, 100) for name in found)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more


def first_not_finite(tensors: Iterable[tuple[str, Any]]) -> str | None:
    """The name of the first floating-point tensor with NaN or infinity in it, or None."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and not tensor.isfinite().all():
            return name
    return None


def _refuse(name: str, missing: list[str], shapes: list[str], unexpected: Iterable[str] = ()) -> None:
    faults = [f"missing {names(missing)}"] if missing else []
    faults += [f"of another shape {names(shapes)}"] if shapes else []
    if not faults:
        return
    left = names(unexpected)
    raise ModelError(
        f"the weights of {name} are not those of its architecture: {'; '.join(faults)}. Random numbers would "
        "take their place. Save the model again, or correct its config.json."
        + (f" Tensors in its files that fit nowhere: {left}." if left else "")
    )


def _check_modules(name: str, model: Any, revision: str | None) -> None:
    """Checks the modules of plugins; those of sentence-transformers refuse what does not fit themselves.

    The first row of each stored tensor is compared as well, as a module's `load` may not read its weights.
    """
    foreign = {
        key: module
        for key, module in getattr(model, "_modules", {}).items()
        if not type(module).__module__.startswith("sentence_transformers.") and list(module.parameters())
    }
    listing = load_file_path(name, "modules.json", revision=revision) if foreign else None
    for part in json.loads(Path(listing).read_text(encoding="utf-8")) if listing else ():
        if (module := foreign.get(part["name"])) is None:
            continue
        file = load_file_path(name, "model.safetensors", subfolder=part["path"], revision=revision)
        if file is None:  # a .bin file is read by the module alone
            continue
        own = module.state_dict(keep_vars=True)
        try:
            with safe_open(file, framework="pt") as opened:
                stored = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 - it is no dict
                there = {id(own[key]) for key in stored if key in own}
                missing = [key for key, value in own.items() if id(value) not in there]
                shapes = [
                    f"{key} {found.get_shape()} instead of {list(own[key].shape)}"
                    for key, found in stored.items()
                    if key in own and found.get_shape() != list(own[key].shape)
                ]
                unread = [
                    key
                    for key, found in stored.items()
                    if not shapes and key in own and own[key].ndim and not _same_start(found, own[key])
                ]
        except SafetensorError as error:
            raise ModelError(f"{file} cannot be read: {error}.") from error
        _refuse(f"{name} ({type(module).__name__})", missing, shapes, stored.keys() - own.keys())
        if unread:
            raise ModelError(
                f"{type(module).__name__} of {name} does not load what its file stores ({names(unread)}); "
                "its `load` must read the weights (load_torch_weights)."
            )


def _same_start(stored: Any, loaded: Any) -> bool:
    first = stored[:1].to(loaded.dtype)
    return bool((first == loaded.detach()[:1].cpu()).logical_or(first.isnan()).all())
