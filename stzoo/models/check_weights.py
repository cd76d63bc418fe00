"""Checks, whenever a model is loaded, that its files contain every tensor of its architecture.

transformers initialises missing tensors at random and reports that in a log line only; here it is an error.
Names and shapes are those that transformers compares while it loads, so no file is read twice.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from sentence_transformers.util import load_file_path
from transformers import MODEL_FOR_MASKED_LM_MAPPING, PreTrainedModel

from stzoo.errors import ModelError, abbreviated
from stzoo.utils.messages import notify

SHOWN = 5  # number of tensor names in a message
# Parts that a checkpoint may have besides its encoder, by the first part of their names: heads and decoders.
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
Report = tuple[Any, dict[str, Any]]  # a transformers model and its loading info
_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def loading_reports() -> Iterator[list[Report]]:
    """Collects transformers' loading info of each model that is loaded while the block runs.

    Tensors of another shape are reported too; transformers would raise an error that does not name them.
    """
    reports: list[Report] = []

    def load(original: Any, cls: Any, *args: Any, output_loading_info: bool = False, **options: Any) -> Any:
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, report = original(cls, *args, **options)
        reports.append((model, report))
        return (model, report) if output_loading_info else model

    with _replacing_from_pretrained(load):
        yield reports


@contextlib.contextmanager
def loading_masked_lms() -> Iterator[list[Report]]:
    """Loads the next encoder as a part of its masked LM while the block runs, and collects the masked LM.

    The caller gets the encoder with the loading info of its own tensors, for `loading_reports`. The masked LM
    is collected with the loading info of all tensors.
    """
    masked_lms: list[Report] = []

    def load(original: Any, cls: Any, *args: Any, **options: Any) -> Any:
        if masked_lms or "config" not in options:
            return original(cls, *args, **options)
        config = options.pop("config")  # of the caller, which has changed it
        cls = MODEL_FOR_MASKED_LM_MAPPING.get(type(config), None)
        if cls is None:
            raise ValueError(f"transformers has no masked LM of the type {config.model_type!r}.")
        masked_lm, report = original(cls, *args, **options)
        masked_lms.append((masked_lm, report))
        inside = f"{masked_lm.base_model_prefix}."
        missing = [key for key in report["missing_keys"] if key.startswith(inside)]
        shapes = [one for one in report["mismatched_keys"] if one[0].startswith(inside)]
        return masked_lm.base_model, report | {"missing_keys": missing, "mismatched_keys": shapes}

    with _replacing_from_pretrained(load):
        yield masked_lms


@contextlib.contextmanager
def _replacing_from_pretrained(load: Callable[..., Any]) -> Iterator[None]:
    """Calls `load(original, cls, …)` for each `from_pretrained`, as its callers do not pass options on."""
    original = PreTrainedModel.__dict__["from_pretrained"]

    def from_pretrained(cls: Any, *args: Any, **options: Any) -> Any:
        return load(original.__func__, cls, *args, **options)

    with _one_at_a_time:
        PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[assignment,method-assign]
        try:
            yield
        finally:
            PreTrainedModel.from_pretrained = original  # type: ignore[method-assign]


def check_model(name: str, model: Any, reports: Iterable[Report]) -> None:
    """Checks the weights of a sentence-transformers model, and notes stored tensors that it does not use.

    The pooler of BERT and similar models may be missing if no embedding is computed from it.

    Args:
        name: Folder or Hub id that the model was loaded from.
        model: A SentenceTransformer or CrossEncoder.
        reports: Loading info from `loading_reports`.

    Raises:
        ModelError: If tensors are missing or have another shape, so that the model would have random weights,
            or if weights are not finite.
    """
    transformers = {
        id(module.model): module for module in model.modules() if hasattr(module, "modality_config")
    }
    for loaded, report in reports:
        module = transformers.get(id(loaded))
        spare = ("pooler.",) if module is None or "pooler_output" not in str(module.modality_config) else ()
        check_report(name, loaded, report, spare=spare)
        if left := _left_over(loaded, report):
            notify(f"{name} contains tensors that its architecture does not have: {names(left)}.")
    _check_modules(name, model)
    check_finite(name, model)


def check_finite(name: str, model: Any) -> None:
    """Refuses a model with weights that are not finite.

    Raises:
        ModelError: With the name of the first such tensor.
    """
    if broken := first_not_finite(model.named_parameters()):
        raise ModelError(
            f"the weights of {name} are damaged: {broken} contains NaN or infinity. Get the model again."
        )


def check_report(name: str, loaded: Any, report: dict[str, Any], *, spare: tuple[str, ...] = ()) -> None:
    """Checks the loading info of one model.

    Args:
        name: Folder or Hub id that the model was loaded from.
        loaded: The transformers model.
        report: Loading info: missing, unexpected and mismatched tensors.
        spare: Prefixes of the names of tensors that may be missing.

    Raises:
        ModelError: If other tensors are missing, or tensors have another shape.
    """
    missing = [key for key in report["missing_keys"] if not key.startswith(spare)]
    shapes = [
        f"{key} {list(stored)} instead of {list(expected)}"
        for key, stored, expected in report["mismatched_keys"]
        if not key.startswith(spare)
    ]
    _refuse(name, missing, shapes, _left_over(loaded, report))


def _left_over(loaded: Any, report: dict[str, Any]) -> list[str]:
    """Stored tensors that the model does not use, except heads of other classes of its architecture."""
    whole = (loaded, loaded.base_model)
    heads = {part for part in HEADS if all(getattr(one, part, None) is None for one in whole)}
    prefix = f"{loaded.base_model_prefix}."
    return [key for key in report["unexpected_keys"] if key.removeprefix(prefix).split(".")[0] not in heads]


def names(keys: Iterable[str]) -> str:
    """Lists the first names in alphabetical order, and the number of further ones."""
    listed = sorted(abbreviated(name, 100) for name in keys)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more


def first_not_finite(tensors: Iterable[tuple[str, Any]]) -> str | None:
    """The name of the first floating-point tensor that contains NaN or infinity, or None."""
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
        f"the weights of {name} do not match its architecture: {'; '.join(faults)}. These weights would be "
        "random. Save the model again, or correct its config.json."
        + (f" Stored tensors that do not belong to the model: {left}." if left else "")
    )


def _check_modules(name: str, model: Any) -> None:
    """Checks the modules of plugins; those of sentence-transformers check themselves.

    The first row of each stored tensor is compared too, because a module's `load` may not read its weights.
    """
    foreign = {
        key: module
        for key, module in getattr(model, "_modules", {}).items()
        if not type(module).__module__.startswith("sentence_transformers.") and list(module.parameters())
    }
    listing = load_file_path(name, "modules.json") if foreign else None
    for part in json.loads(Path(listing).read_text(encoding="utf-8")) if listing else ():
        if (module := foreign.get(part["name"])) is None:
            continue
        file = load_file_path(name, "model.safetensors", subfolder=part["path"])
        if file is None:  # a .bin file, which only the module reads
            continue
        loaded = module.state_dict(keep_vars=True)
        try:
            with safe_open(file, framework="pt") as opened:
                stored = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 - it is no dict
                there = {id(loaded[key]) for key in stored if key in loaded}
                missing = [key for key, value in loaded.items() if id(value) not in there]
                shapes = [
                    f"{key} {found.get_shape()} instead of {list(loaded[key].shape)}"
                    for key, found in stored.items()
                    if key in loaded and found.get_shape() != list(loaded[key].shape)
                ]
                unread = [
                    key
                    for key, found in stored.items()
                    if not shapes
                    and key in loaded
                    and loaded[key].ndim
                    and not _same_start(found, loaded[key])
                ]
        except SafetensorError as error:
            raise ModelError(f"{file} cannot be read: {error}.") from error
        _refuse(f"{name} ({type(module).__name__})", missing, shapes, stored.keys() - loaded.keys())
        if unread:
            raise ModelError(
                f"{type(module).__name__} of {name} does not load all tensors of its file ({names(unread)}). "
                "Its `load` must read the weights with load_torch_weights."
            )


def _same_start(stored: Any, loaded: Any) -> bool:
    first = stored[:1].to(loaded.dtype)
    return bool((first == loaded.detach()[:1].cpu()).logical_or(first.isnan()).all())
