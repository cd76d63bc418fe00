"""Exports a model so that plain sentence-transformers 5.x and 6.x load it, and verifies that they do.

sentence-transformers 6 writes folders that 5.x cannot read. The layout here is the older one, with which both
give the same embeddings: module types `sentence_transformers.models.X`, one `pooling_mode_*` switch per
pooling, `sentence_bert_config.json` with the maximum length, and a tokenizer of the generic fast class.
Anything that this layout cannot express is refused, never dropped.

Before an export is finished, a process without stzoo loads it and must get the embeddings of the model in
memory. Until then the folder is a draft, and a failure leaves nothing behind.

Two differences between versions remain: before 5.4, white space at the ends of a text is stripped before
tokenisation (which matters to byte-level and Unigram tokenizers, for example for an empty text after the
prompt "query: "); before 6, mean pooling sums half-precision tokens in half precision (about 4e-3).
"""

import contextlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import is_sentence_transformer_model

from stzoo.errors import DataError, ExportError, ModelError, RecipeError, first_line
from stzoo.hub import card, layout, onnx_export, verify_standalone
from stzoo.hub.settings import ExportSettings
from stzoo.models.check_weights import first_not_finite
from stzoo.models.loaded import PICKLED
from stzoo.models.loading import load_plain
from stzoo.models.names import model_source
from stzoo.training.history import PICTURE, PRETRAINING
from stzoo.training.trained import TrainedModel
from stzoo.utils.files import atomic_folder, write_json
from stzoo.utils.logging import silence_hf_logging
from stzoo.utils.messages import note_if_slow, notify, show_progress
from stzoo.utils.outputs import (
    ADAPTATION,
    EXPORTED,
    IMPORTED,
    MERGED,
    RECORD,
    check_model_output,
    files_of,
    no_model,
)
from stzoo.utils.progress import STAGES, progress_bar
from stzoo.utils.public import public

TOLERANCE = 1e-6
HISTORY = (RECORD, IMPORTED, MERGED, ADAPTATION, PICTURE, PRETRAINING)  # files on how a model was made
Extra = Mapping[str, str | Path] | Callable[[Path], None]


@public()
def export(
    model: Any,
    output: str | Path,
    *,
    masked_lm: Any = None,
    extra: Extra | None = None,
    portable: bool = True,
    onnx: str | None = None,
    verify: bool = True,
    overwrite: bool = False,
    describe: bool = True,
    progress: bool | None = None,
) -> TrainedModel:
    """Writes a model folder that sentence-transformers loads without stzoo.

    Args:
        model: A SentenceTransformer, or its path or Hub id. It keeps its device, mode and weights. The
            folder's records of training runs, imports and merges, and its learning curves, are copied.
        output: Folder to write.
        masked_lm: A transformers `…ForMaskedLM` whose `base_model` is the model inside the first module. Its
            weights are stored in place of the base model's, so that the folder also loads as
            AutoModelForMaskedLM with its trained head. Parts that only the base class has (a BERT pooler
            that the masked LM was built without) are not stored; no module of sentence-transformers reads
            them, and loading reports them as newly initialised.
        extra: More files: {name inside the folder: file or folder to copy}, or a function that takes the
            draft folder and writes into it.
        portable: True stores only built-in modules, in the layout that 5.x and 6.x read; a module of another
            package is replaced by its `to_builtin_modules()`. False stores sentence-transformers' own layout
            with the code of the other modules, which users must trust to load it.
        onnx: "float32" also writes the encoder as onnx/model.onnx, for the ONNX backend of
            sentence-transformers and for text-embeddings-inference; "int8" also writes
            onnx/model_quantized.onnx. Their embeddings are compared with the model's, and the cosines are in
            onnx/export.json. It needs the extra `stzoo[onnx]`.
        verify: True loads the draft in a process without stzoo and compares embeddings to 1e-6 on the CPU.
        overwrite: True replaces a model folder at `output`, unless it has files that are not a model's.
        describe: True writes the model's card, README.md.
        progress: True for a progress bar on stderr; None shows it on a terminal only.

    Returns:
        The folder, a Path with `.model`, `.scores` and `.history`.

    Raises:
        ModelError: If `model` is not a sentence-transformers model, or its files lack some of its weights.
        ExportError: If it has no portable form or, with `onnx`, no ONNX graph, its weights are not finite, or
            the draft's embeddings differ from the model's.
        MissingExtraError: If the packages that `onnx` needs are not installed.
        OutputError: If `output` exists already, or cannot be written.
        RecipeError: If an option is invalid.

    Unlike `SentenceTransformer.save_pretrained`: module paths, pooling keys, `sentence_bert_config.json`,
    tokenizer class and rotary settings are those of 5.x, which no version warns about; nothing is pickled.
    """
    settings = ExportSettings.check(locals())
    portable, onnx = settings.portable, settings.onnx
    if onnx:
        onnx_export.check_installed()
    output = check_model_output(output, overwrite, [model])
    if isinstance(model, str | Path):
        model = model_source(str(model))
    source = Path(model) if isinstance(model, str) else None
    model = _loaded(model)
    if onnx:
        onnx_export.check_model(model)
    if masked_lm is not None and masked_lm.base_model is not getattr(model[0], "model", None):
        raise ExportError(
            "masked_lm belongs to another model; expected one whose base_model is the model in the first "
            "module."
        )
    tensors = [*model.named_parameters(), *(masked_lm.named_parameters() if masked_lm is not None else ())]
    if broken := first_not_finite(tensors):
        raise ExportError(
            f"{broken} has NaN or infinity, as after diverged training; such weights are not exported. "
            "Export an earlier checkpoint."
        )
    bar = progress_bar(total=2, desc="export", bar_format=STAGES, disable=not show_progress(progress))
    with silence_hf_logging(), bar, atomic_folder(output, replaces=files_of(output)) as draft:
        if portable:
            layout.write(model, draft, masked_lm)
        else:
            _write_with_code(model, draft, masked_lm)
        _write_extra(extra, draft)
        if source is not None:
            _copy_history(source, draft)
        if onnx:
            onnx_export.write(draft, onnx)
        if describe:
            (draft / card.README).write_bytes(_make_card(source, draft, output.name))
        if pickled := sorted(str(p.relative_to(draft)) for p in draft.rglob("*") if p.suffix in PICKLED):
            raise ExportError(f"{', '.join(pickled)} is pickled, which exports never are; use safetensors.")
        bar.update()
        if verify:
            _verify(model, draft, trust=not portable)
        bar.update()
        check_model_output(output, overwrite)  # another process may have created it in the meantime
    return TrainedModel(output)


def _copy_history(source: Path, draft: Path) -> None:
    for name in HISTORY:
        if (source / name).is_file():
            shutil.copyfile(source / name, draft / name)
    if (draft / RECORD).is_file():
        try:
            record = json.loads((draft / RECORD).read_text(encoding="utf-8"))
            record.pop("files", None)  # those of the run's folder
            write_json(draft / RECORD, record | {EXPORTED: True})
        except (ValueError, TypeError) as error:
            raise ModelError(f"{source / RECORD} is not a record of a training run: {error}.") from error


def _make_card(source: Path | None, draft: Path, name: str) -> bytes:
    """The model's card, with the metadata of its source's README, if that is valid."""
    if source is not None and (source / card.README).is_file():
        shutil.copyfile(source / card.README, draft / card.README)
        try:
            return card.make(draft, name=name)[card.README]
        except (DataError, RecipeError) as error:  # any model may have such a README
            notify(f"the card ignores {source / card.README}: {error}")
            (draft / card.README).unlink()
    return card.make(draft, name=name)[card.README]


def _loaded(model: Any) -> Any:
    if isinstance(model, SentenceTransformer):
        return model
    if not isinstance(model, str | Path):
        raise ModelError(f"expected a SentenceTransformer, a path or a Hub id, not {type(model).__name__}.")
    source = model_source(str(model))
    if Path(source).is_dir() and not Path(source, "modules.json").is_file():
        raise ModelError(no_model(Path(source)))
    try:
        if is_sentence_transformer_model(source):
            return load_plain(source, device="cpu")
    except (OSError, ValueError) as error:  # damaged settings, or an error of the Hub
        raise ModelError(f"{model} cannot be loaded: {first_line(error)}") from error
    raise ModelError(f"{model} is not a sentence-transformers model: it has no modules.json.")


def _write_extra(extra: Extra | None, draft: Path) -> None:
    if callable(extra):
        extra(draft)
        return
    for name, source in (extra or {}).items():
        target = draft / name
        if target.exists() or not target.resolve().is_relative_to(draft.resolve()):
            raise ExportError(f"extra {name!r} would replace one of the model's files; use another name.")
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if Path(source).is_dir() else shutil.copyfile)(source, target)


def _write_with_code(model: Any, draft: Path, masked_lm: Any) -> None:
    """Writes the library's own layout, with other packages' code at the root, where it is loaded from."""
    model.save_pretrained(str(draft), create_model_card=False)
    if masked_lm is not None:
        masked_lm.save_pretrained(draft)
    listings = [draft / "modules.json", *draft.rglob("router_config.json")]
    for cls in {type(module) for module in layout.flat(model) if not layout.is_built_in(module)}:
        try:
            source = Path(inspect.getfile(cls))
        except (OSError, TypeError) as error:
            raise ExportError(f"{cls.__name__} has no source file; move it into a module.") from error
        for copy in draft.glob(f"*/{source.name}"):  # save_pretrained's copies, which are never loaded
            copy.unlink()
        if (draft / source.name).exists() and (draft / source.name).read_bytes() != source.read_bytes():
            raise ExportError(f"two modules are from files named {source.name}; rename one.")
        shutil.copyfile(source, draft / source.name)
        for listing in filter(Path.exists, listings):
            text = listing.read_text(encoding="utf-8")
            full, short = f'"{cls.__module__}.{cls.__name__}"', f'"{source.stem}.{cls.__name__}"'
            listing.write_text(text.replace(full, short), encoding="utf-8")


@contextlib.contextmanager
def _as_reloaded(model: Any) -> Iterator[None]:
    """Lets the model run as if loaded on the CPU, and restores it on leaving."""
    device, modes = model.device, {module: module.training for module in model.modules()}
    transformers = [module for module in layout.flat(model) if hasattr(module, "can_flatten_inputs")]
    kernels = [
        (module, module.config._attn_implementation, module.can_flatten_inputs) for module in transformers
    ]
    try:
        for module, kernel, _ in kernels:
            if "flash" in str(kernel):  # needs a GPU
                module.config._attn_implementation, module.can_flatten_inputs = "sdpa", False
        yield
    finally:
        model.to(device)
        for module, kernel, flattens in kernels:
            module.config._attn_implementation, module.can_flatten_inputs = kernel, flattens
        for module, mode in modes.items():
            module.training = mode


def _verify(model: Any, draft: Path, *, trust: bool) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "answers.safetensors"
        asked = verify_standalone.ask(model)
        with _as_reloaded(model):
            try:
                embeddings = verify_standalone.answers(model, asked)
            except Exception as error:  # modules that do not fit raise errors of many kinds
                reason = f"{type(error).__name__}: {first_line(error)}"
                raise ExportError(
                    f"the model cannot encode the texts of the check, one of which is long ({reason}). Set "
                    "its max_seq_length to the length that it supports."
                ) from error
            verify_standalone.store(path, asked, embeddings)
        (result,) = check([(draft, path)], trust=trust)
    if "error" in result:
        raise ExportError(f"plain sentence-transformers cannot load the export: {result['error']}")
    if not (difference := max(result.values())) <= TOLERANCE:
        raise ExportError(
            f"loaded by plain sentence-transformers, the export's embeddings differ from the model's by"
            f" {difference:.1e}, more than {TOLERANCE:.0e}; check that every module saves all its state."
        )


def check(
    pairs: Iterable[tuple[Path, Path]], *, python: str = sys.executable, trust: bool = False
) -> list[dict[str, Any]]:
    """Loads models in one process without stzoo, and compares their embeddings with stored ones.

    Args:
        pairs: Model folder, and the file that `verify_standalone.store` wrote with the model's answers.
        python: Python interpreter; another environment may have another sentence-transformers.
        trust: True lets the folders run code of their own, which may import stzoo.

    Returns:
        What verify_standalone.py prints for each pair.
    """
    paths = [str(path) for pair in pairs for path in pair]
    threads = str(torch.get_num_threads())  # for sums in the same order
    words = [*["--trust"] * trust, *paths]
    return run_alone(words, len(paths) // 2, python=python, OMP_NUM_THREADS=threads)


def run_alone(
    words: list[str], expected: int, *, python: str = sys.executable, **environment: str
) -> list[dict[str, Any]]:
    """Runs verify_standalone.py with these arguments, and returns the lines of JSON that it prints.

    Raises:
        ExportError: If there are not as many lines as expected.
    """
    with tempfile.TemporaryDirectory() as scratch:
        env = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": scratch,  # trusted code is copied here
            "CUDA_VISIBLE_DEVICES": "",
            **environment,
        }
        command = [python, "-P", verify_standalone.__file__, *words]
        with note_if_slow("checking the model in another process, with plain sentence-transformers …"):
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if len(lines) != expected:
        raise ExportError(
            f"the check with plain sentence-transformers stopped early: {done.stderr[-2000:].strip()}"
        )
    return lines
