"""Loading a model: a sentence-transformers folder or Hub id, or a bare transformer."""

import inspect
import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from sentence_transformers.util import is_sentence_transformer_model, load_file_path
from transformers import AutoModelForMaskedLM, AutoTokenizer

from stzoo.errors import ModelError, RecipeError, check_known, first_line, is_failure
from stzoo.models import check_weights, limits
from stzoo.plugins import manager
from stzoo.utils.logging import silence_hf_logging

DTYPES = ("float32", "bfloat16", "float16")
# The module that each backend needs, and why pip may find none that goes with transformers 5.23.
BACKENDS = {
    "torch": ("torch", ""),
    "onnx": ("optimum.onnxruntime", "optimum-onnx up to 0.1.0 needs transformers below 4.58"),
    "openvino": ("optimum.intel", "optimum-intel up to 2.2.0 needs transformers below 5.6"),
}


def load_plain(
    name: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    backend: str = "torch",
    revision: str | None = None,
) -> Any:
    """Loads a SentenceTransformer with all its weights; code from the folder or repository is never run.

    Modules that are no part of sentence-transformers are those of installed plugins, or it is not loaded.
    Limits of what the model can read are applied, see `limits.prepare`.

    Args:
        name: folder or Hub id.
        device: of torch; None takes the best there is.
        dtype: of the weights, one of DTYPES; None as published.
        backend: of sentence-transformers, one of BACKENDS.
        revision: branch, tag or commit of a Hub id; None takes main.

    Raises:
        ModelError: if there is no such model, its files lack weights of its architecture, it cannot read what
            its tokenizer makes of texts, or the backend is not installed.
        RecipeError: if there is no such device, dtype or backend, or a folder is given a revision.
    """
    check_device(device)
    check_known("backend", backend, BACKENDS)
    options: dict[str, Any] = {"backend": backend, "revision": revision}
    if dtype is not None:
        check_known("dtype", dtype, DTYPES)
        if backend != "torch":
            raise RecipeError(f"dtype {dtype} goes with the backend torch; {backend} files have their own.")
        options["model_kwargs"] = {"dtype": dtype}
    _check_backend(backend)
    folder = Path(name)
    if folder.is_dir() and revision is not None:
        raise RecipeError(f"{name} is a folder, which has no revision {revision!r}; only a Hub id has.")
    if folder.is_dir() and not any((folder / file).is_file() for file in ("modules.json", "config.json")):
        raise ModelError(
            f"{name} is no model; expected modules.json (of sentence-transformers) or a config.json."
        )
    try:
        with silence_hf_logging(), check_weights.loading_reports() as reports:
            options |= dict(device=device, trust_remote_code=False)
            classes = _of_plugins(name, revision)
            model = SentenceTransformer._load_with_module_classes(name, classes, **options)
    except BaseException as error:  # whatever a broken folder makes the loaders raise
        if not is_failure(error):
            raise
        what = "cannot be loaded" if folder.is_dir() else "is no folder, and no Hub id that can be loaded"
        raise ModelError(f"the model {name} {what}: {reason(error)}") from error
    check_weights.check_model(name, model, reports, revision=revision)
    limits.prepare(model, name)
    return model


def load_masked_lm(name: str, dtype: Any = None) -> tuple[Any, frozenset[str]]:
    """Loads a masked LM of transformers whose encoder has all its weights.

    Args:
        name: folder or Hub id.
        dtype: of torch; None as published.

    Returns:
        the `…ForMaskedLM`, and the names of the parameters of its MLM head if none of them is stored, as in
        the folder of an encoder; they have random numbers.

    Raises:
        ModelError: if there is no masked LM of this architecture, or its files lack some of its weights.
    """
    how = {} if dtype is None else {"dtype": dtype}
    try:
        with silence_hf_logging(), check_weights.loading_reports() as reports:
            masked_lm = AutoModelForMaskedLM.from_pretrained(name, trust_remote_code=False, **how)
    except BaseException as error:  # whatever a broken folder makes the loaders raise
        if not is_failure(error):
            raise
        raise ModelError(f"{name} cannot be loaded as a masked LM: {reason(error)}") from error
    report = reports[-1][1]
    inside = f"{masked_lm.base_model_prefix}."
    head = {key for key, _ in masked_lm.named_parameters() if not key.startswith(inside)}
    new = frozenset(key for key in report["missing_keys"] if not key.startswith(inside))
    all_new = bool(new) and head <= new
    check_weights.check_report(name, masked_lm, report, spare=tuple(new) if all_new else ())
    return masked_lm, new


def reason(error: BaseException) -> str:
    """What a library says of its error: the first line, or all of it where it lists tensors."""
    first = first_line(error)
    if "trust_remote_code" in str(error):
        first += " Code that comes with a model is not run (trust_remote_code); install its plugin."
    return first if "state_dict" not in first else " ".join(str(error).split())[:600]


def _of_plugins(model: str, revision: str | None) -> dict[str, type]:
    """The classes in modules.json that the code of installed poolings has, by their names there.

    An export with its own code names them FILE.CLASS; FILE is the last part of the plugin's module.
    """
    listing = load_file_path(model, "modules.json", revision=revision)
    types = [module["type"] for module in json.loads(Path(listing).read_text())] if listing else []
    found = {}
    if foreign := [kind for kind in types if not kind.startswith("sentence_transformers.")]:
        for name, component in manager.all("pooling").items():
            module = inspect.getmodule(manager.resolve(component))
            for kind in foreign:
                file, _, cls = kind.rpartition(".")
                if module and module.__name__.rpartition(".")[2] == file and hasattr(module, cls):
                    manager.use("pooling", name)
                    found[kind] = getattr(module, cls)
    return found


def _check_backend(backend: str) -> None:
    module, conflict = BACKENDS[backend]
    try:
        there = find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package around it
        there = False
    if not there:
        raise ModelError(
            f"the backend {backend} is not installed. Run: pip install 'sentence-transformers[{backend}]'. "
            f"If pip finds no solution ({conflict}, stzoo needs 5.23), stay with the backend torch."
        )


def load_tokenizer(name: str) -> Any:
    """The fast tokenizer of a folder or Hub id.

    Raises:
        ModelError: if there is none, or it is no fast one.
    """
    try:
        with silence_hf_logging():
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except BaseException as error:  # whatever a broken folder makes the loaders raise
        if not is_failure(error):
            raise
        reason = first_line(error)
        raise ModelError(f"the tokenizer of {name} cannot be loaded: {reason}") from error
    if not tokenizer.is_fast:
        raise ModelError(f"the tokenizer of {name} is no fast one (with a tokenizer.json), which words need.")
    return tokenizer


def check_device(device: str | None) -> None:
    """Sees that torch has such a device; None is none in particular.

    Raises:
        RecipeError: if it has not.
    """
    try:
        kind = torch.device(device or "cpu").type
        there = kind == "cpu" or getattr(torch, kind).is_available()
    except (RuntimeError, AttributeError):
        there = False
    if not there:
        raise RecipeError(
            f"the device {device!r} is not there; expected cpu, or a cuda or mps that torch sees."
        )


def load_model(
    name: str,
    *,
    pooling: str | None = None,
    pooling_options: Mapping[str, Any] | None = None,
    device: str | None = None,
) -> Any:
    """Loads a SentenceTransformer on the CPU to be trained.

    Args:
        name: folder or Hub id.
        pooling: name of the pooling; None is the model's own, or cls for a bare transformer. One that the
            model has already is not made anew where it has weights of its own.
        pooling_options: of the pooling that is named.
        device: it will be trained on; only looked for here.

    Raises:
        ModelError: if there is no such model, it does not begin with a Transformer, or the pooling cannot go
            on it.
        RecipeError: if the pooling has no such option, or options are given without a pooling.

    Unlike: sentence-transformers pools a bare transformer by the mean, which is wrong for the RetroMAE family
        and for every other encoder pre-trained through [CLS].
    """
    check_device(device)
    model = load_plain(name, device="cpu")
    model.float()  # published in half precision or not: weights are trained in float32
    first, *rest = list(model)
    if not isinstance(first, Transformer):
        raise ModelError(f"{name} begins with {type(first).__name__}; only a Transformer can be trained.")
    if pooling_options and pooling is None:
        raise RecipeError(f"pooling_options ({', '.join(pooling_options)}) need the pooling that has them.")
    chosen = pooling or (None if is_sentence_transformer_model(name) else "cls")
    if chosen is None:
        return model
    # a module that is no part of sentence-transformers was loaded as an installed pooling's
    before = [
        module
        for module in rest
        if isinstance(module, Pooling) or not type(module).__module__.startswith("sentence_transformers.")
    ]
    rest = [module for module in rest if module not in before]
    try:
        made = manager.build("pooling", chosen, first.get_embedding_dimension(), **(pooling_options or {}))
        if hasattr(made, "init_from_base"):
            if any(type(module) is type(made) for module in before):
                return model  # trained with that very pooling, which has taken all it needs
            with silence_hf_logging():
                made.init_from_base(name, first)
    except ValueError as error:  # all that a pooling's code can raise, which must also run without stzoo
        raise ModelError(f"the pooling {chosen!r} cannot go on {name}: {error}.") from error
    wide = made.get_embedding_dimension()
    if misfit := next((module for module in rest if getattr(module, "in_features", wide) != wide), None):
        raise ModelError(
            f"the pooling {chosen!r} gives {wide} numbers; the {type(misfit).__name__} behind it in {name} "
            f"takes {misfit.in_features}. Begin with a model that ends in its pooling."
        )
    return like(model, [first, made, *rest])


def like(model: Any, modules: list[Any]) -> Any:
    """A SentenceTransformer of other modules with the prompts and the similarity of this one."""
    return SentenceTransformer(
        modules=modules,
        prompts=model.prompts,
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
        device="cpu",
    )
