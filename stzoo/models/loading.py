"""Loads models: sentence-transformers folders and Hub ids, bare transformers, masked LMs and tokenizers."""

import contextlib
import inspect
import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer, WordWeights
from sentence_transformers.util import is_sentence_transformer_model, load_file_path
from transformers import AutoTokenizer

from stzoo.errors import ModelError, RecipeError, check_known, first_line, is_failure
from stzoo.models import check_weights, limits
from stzoo.models.names import model_source, similar
from stzoo.plugins import builders, manager
from stzoo.utils.logging import silence_hf_logging
from stzoo.utils.network import limit_waits
from stzoo.utils.outputs import no_model

# sentence-transformers' own repr has all words, twice
WordWeights.__repr__ = lambda self: f"WordWeights({len(self.vocab):,} words)"  # type: ignore[method-assign]

DTYPES = ("float32", "bfloat16", "float16")
# The module that each backend needs, and why pip may find none that is compatible with transformers 5.23.
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
    """Loads a SentenceTransformer with all its weights. Code from the folder or repository is never run.

    Modules from outside sentence-transformers must belong to installed plugins. The limits of the model are
    applied, see `limits.prepare`.

    Args:
        name: Path to the model folder, its Hub id, or the name of a published checkpoint.
        device: Device of torch; None for the best available.
        dtype: Type of the weights, one of DTYPES; None for the published one.
        backend: Backend of sentence-transformers, one of BACKENDS.
        revision: Branch, tag or commit on the Hub; None for main.

    Raises:
        ModelError: If the model does not exist, its files lack weights of its architecture, its tokenizer
            does not fit it, or the backend is not installed.
        RecipeError: If the device, dtype or backend does not exist.
    """
    check_device(device)
    check_known("backend", backend, BACKENDS)
    options: dict[str, Any] = {"backend": backend}
    if dtype is not None:
        check_known("dtype", dtype, DTYPES)
        if backend != "torch":
            raise RecipeError(
                f"dtype is {dtype}, which requires the backend torch; {backend} files have a fixed dtype."
            )
        options["model_kwargs"] = {"dtype": dtype}
    _check_backend(backend)
    name = model_source(name)
    folder = Path(name)
    if folder.is_dir() and not any((folder / file).is_file() for file in ("modules.json", "config.json")):
        raise ModelError(no_model(folder))
    with loading_errors("model", name), check_weights.loading_reports() as reports:
        options |= dict(device=device, trust_remote_code=False, revision=revision)
        options["local_files_only"] = is_self_contained(folder)
        model = SentenceTransformer._load_with_module_classes(name, _of_plugins(name, revision), **options)
    check_weights.check_model(name, model, reports)
    align_weights(model)
    limits.prepare(model, name)
    return model


def align_weights(model: torch.nn.Module) -> None:
    """Copies weights on the CPU that do not begin at a multiple of 64 bytes, where torch allocates its own.

    safetensors maps files into memory, so the addresses of their weights depend on the size of the header.
    MKL's AVX2 code rounds differently at different addresses. Without this, the scores of a copy of the
    model, as Ray's workers get it, would differ by some 1e-7.
    """
    moved: dict[Any, torch.Tensor] = {}  # so that equal views of the same memory go on sharing it
    for tensor in chain(model.parameters(), model.buffers()):
        # neither quantised nor sparse
        plain = type(tensor) in (torch.nn.Parameter, torch.Tensor) and tensor.layout is torch.strided
        if plain and tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            place = tensor.data_ptr(), tensor.shape, tensor.stride()
            if place not in moved:
                moved[place] = tensor.data.clone()
            tensor.data = moved[place]


def is_self_contained(folder: Path) -> bool:
    """True for a folder with all files of a model; False if its adapter needs a base from elsewhere.

    For such a folder no library needs the Hub, which they would ask for a model of the folder's name.
    """
    return folder.is_dir() and next(folder.rglob("adapter_config.json"), None) is None


def load_masked_lm(name: str, dtype: str | None = None) -> tuple[Any, Any, frozenset[str]]:
    """Loads a SentenceTransformer on the CPU together with the masked LM that its encoder is a part of.

    Args:
        name: Path to the model folder, or its Hub id.
        dtype: Type of the weights, one of DTYPES; None for the published one.

    Returns:
        The SentenceTransformer; the `…ForMaskedLM`, which shares its encoder; and the names of its randomly
        initialised parameters: those of the MLM head if the files contain an encoder only, otherwise none.

    Raises:
        ModelError: If the model cannot be loaded (see `load_plain`), does not begin with a Transformer, has
            no masked LM of its architecture, or stores only a part of an MLM head.
    """
    with check_weights.loading_masked_lms() as masked_lms:
        model = load_plain(name, device="cpu", dtype=dtype)
    _check_transformer(name, model)
    masked_lm, report = masked_lms[0]
    inside = f"{masked_lm.base_model_prefix}."
    head = {key for key, _ in masked_lm.named_parameters() if not key.startswith(inside)}
    new = frozenset(key for key in report["missing_keys"] if not key.startswith(inside))
    check_weights.check_report(name, masked_lm, report, spare=tuple(new) if head <= new else ())
    align_weights(masked_lm)  # its head
    return model, masked_lm, new


def _check_transformer(name: str, model: Any) -> None:
    if not isinstance(model[0], Transformer):
        raise ModelError(
            f"{name} begins with {type(model[0]).__name__}; expected a Transformer, which can be trained."
        )


@contextlib.contextmanager
def loading_errors(kind: str, name: str) -> Iterator[None]:
    """Silences the libraries that load a model in the block, and turns their errors into a ModelError.

    Args:
        kind: What is loaded, e.g. "tokenizer".
        name: Folder or Hub id that it is loaded from.

    Raises:
        ModelError: With the first line of the library's error, or all of it if it lists tensors.
    """
    limit_waits()
    try:
        with silence_hf_logging():
            yield
    except ModelError:
        raise
    except BaseException as error:  # a broken folder may raise anything
        if not is_failure(error):
            raise
        local = Path(name).is_dir()
        folder, where = ("", "") if local else ("is not a folder, and ", " from the Hub")
        reason = first_line(error)
        if "trust_remote_code" in str(error):
            reason += " stzoo does not run code from a model's files (trust_remote_code); install its plugin."
        if "state_dict" in reason:
            reason = " ".join(str(error).split())[:600]
        hint = "" if local or (hint := similar(name)) == "." else f" ({hint.removeprefix('; ')})"
        raise ModelError(f"the {kind} {name} {folder}cannot be loaded{where}{hint}: {reason}") from error


def _of_plugins(model: str, revision: str | None) -> dict[str, type]:
    """The classes named in modules.json that installed poolings define, by their names there.

    An export with its own code names a class FILE.CLASS; FILE is the last part of the plugin's module.
    """
    listing = load_file_path(model, "modules.json", revision=revision)
    types = [module["type"] for module in json.loads(Path(listing).read_text())] if listing else []
    classes = {}
    if foreign := [kind for kind in types if not kind.startswith("sentence_transformers.")]:
        for name, component in manager.all("pooling").items():
            module = inspect.getmodule(builders.resolve(component))
            for kind in foreign:
                file, _, cls = kind.rpartition(".")
                if module and module.__name__.rpartition(".")[2] == file and hasattr(module, cls):
                    manager.use("pooling", name)
                    classes[kind] = getattr(module, cls)
    return classes


def _check_backend(backend: str) -> None:
    module, conflict = BACKENDS[backend]
    try:
        installed = find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        installed = False
    if not installed:
        raise ModelError(
            f"the backend {backend} is not installed. Run: pip install 'sentence-transformers[{backend}]'. "
            f"If pip finds no solution ({conflict}, stzoo needs 5.23), use the backend torch."
        )


def load_tokenizer(name: str) -> Any:
    """Loads the fast tokenizer of a folder or Hub id.

    Raises:
        ModelError: If there is none, or it is not a fast one.
    """
    name = model_source(name)
    with loading_errors("tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise ModelError(f"{name} has no fast tokenizer (tokenizer.json); whole-word masking requires one.")
    return tokenizer


def check_device(device: str | None) -> None:
    """Checks that torch can use a device; None, for the default device, is always accepted.

    Raises:
        RecipeError: If torch cannot use it.
    """
    try:
        kind = torch.device(device or "cpu").type
        available = kind == "cpu" or getattr(torch, kind).is_available()
    except (RuntimeError, AttributeError):
        available = False
    if not available:
        raise RecipeError(
            f"the device {device!r} is not available; expected cpu, or a cuda or mps that torch can use."
        )


def load_model(
    name: str,
    *,
    pooling: str | None = None,
    pooling_options: Mapping[str, Any] | None = None,
    device: str | None = None,
) -> Any:
    """Loads a SentenceTransformer for training, on the CPU and in float32.

    Args:
        name: Path to the model folder, or its Hub id.
        pooling: Name of the pooling; None for the model's own, or cls for a bare transformer. A pooling with
            weights that the model already has is kept.
        pooling_options: Options of that pooling.
        device: Device that the model will be trained on. It is only checked here.

    Raises:
        ModelError: If the model does not exist, does not begin with a Transformer, or the pooling does not
            fit.
        RecipeError: If the pooling has no such option, or options are given without a pooling.

    Unlike: sentence-transformers, which pools a bare transformer by the mean. That is wrong for RetroMAE and
        all other encoders pre-trained through [CLS].
    """
    check_device(device)
    name = model_source(name)
    model = load_plain(name, device="cpu")
    _check_transformer(name, model)
    return with_pooling(model, name, pooling, pooling_options)


def with_pooling(
    model: Any, name: str, pooling: str | None, pooling_options: Mapping[str, Any] | None = None
) -> Any:
    """A loaded model in float32 with the pooling to train it with; see `load_model`."""
    model.float()  # weights are trained in float32, also if they were published in half precision
    first, *rest = list(model)
    if pooling_options and pooling is None:
        raise RecipeError(
            f"pooling_options ({', '.join(pooling_options)}) have no effect without a pooling; set --pooling."
        )
    chosen = pooling or (None if is_sentence_transformer_model(name) else "cls")
    if chosen is None:
        return model
    # modules from outside sentence-transformers are installed poolings
    before = [
        module
        for module in rest
        if isinstance(module, Pooling) or not type(module).__module__.startswith("sentence_transformers.")
    ]
    rest = [module for module in rest if module not in before]
    try:
        module = manager.build("pooling", chosen, first.get_embedding_dimension(), **(pooling_options or {}))
        if hasattr(module, "init_from_base"):
            if any(type(old) is type(module) for old in before):
                return model  # trained with this pooling, which is already initialised
            with silence_hf_logging():
                module.init_from_base(name, first)
    except ValueError as error:  # poolings raise no StzooError, as they must run without stzoo
        raise ModelError(f"the pooling {chosen!r} does not fit {name}: {error}.") from error
    wide = module.get_embedding_dimension()
    if misfit := next((part for part in rest if getattr(part, "in_features", wide) != wide), None):
        raise ModelError(
            f"the output of the pooling {chosen!r} has the dimension {wide}; the next module of {name}, a "
            f"{type(misfit).__name__}, expects {misfit.in_features}. Start from a model that ends in its "
            "pooling."
        )
    return like(model, [first, module, *rest])


def like(model: Any, modules: list[Any]) -> Any:
    """A SentenceTransformer of other modules, with the prompts and similarity of this model."""
    return SentenceTransformer(
        modules=modules,
        prompts=model.prompts,
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
        device="cpu",
    )
