"""Writes a model so that plain sentence-transformers loads it, 5.x and 6.x alike, and proves it.

sentence-transformers 6 writes folders that 5.x cannot read. The layout here is the older one, which both read
to the same embeddings: module types `sentence_transformers.models.X`, one `pooling_mode_*` switch a pooling,
`sentence_bert_config.json` with the length, and a tokenizer that needs no class but the generic fast one.
What that layout cannot say is refused, never dropped.

A finished folder has been loaded once by a process without stzoo and gave the embeddings of the model in
memory. Until then it is a draft, and a failure leaves nothing behind.

What remains different, whatever a folder says: before 5.4, white space at the ends of a text is cut before it
is tokenised (a byte-level or Unigram tokenizer sees the difference, as in an empty text after the prompt
"query: "); before 6, a mean over half-precision tokens is summed in half precision (about 4e-3).
"""

import contextlib
import inspect
import json
import os
import re
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
from tqdm import tqdm

from stzoo.errors import DataError, ExportError, ModelError, OutputError, RecipeError, first_line
from stzoo.hub import card, layout, verify_standalone
from stzoo.models.check_weights import first_not_finite
from stzoo.models.loaded import PICKLED
from stzoo.models.loading import load_plain
from stzoo.training.history import PICTURE, PRETRAINING
from stzoo.training.runs import read_record
from stzoo.utils.files import atomic_folder, check_replaceable, write_json
from stzoo.utils.logging import silence_hf_logging
from stzoo.utils.outputs import IMPORTED, MERGED, MODEL_FILES, RECORD, check_output

TOLERANCE = 1e-6
TOLD = (RECORD, IMPORTED, MERGED, PICTURE, PRETRAINING)  # how a model was made
EXPORTED = "exported"  # is true in the record of a run that lies beside a copy of its model
Extra = Mapping[str, str | Path] | Callable[[Path], None]


def export(
    model: Any,
    output: str | Path,
    *,
    masked_lm: Any = None,
    extra: Extra | None = None,
    portable: bool = True,
    verify: bool = True,
    overwrite: bool = False,
    describe: bool = True,
) -> Path:
    """Writes a model folder that sentence-transformers loads without stzoo, and returns its path.

    Args:
        model: a SentenceTransformer, or the path or Hub id of one. It keeps its device, mode and weights.
            What a folder holds of how its model was made comes along: records of runs, imports and merges,
            and learning curves.
        output: the folder to write.
        masked_lm: a transformers `…ForMaskedLM` whose `base_model` is the model inside the first module. Its
            weights are stored in place of the base model's, so that the folder also loads as
            AutoModelForMaskedLM with its trained head. What only the base class has (a BERT pooler that the
            masked LM was built without) is not stored; no module of sentence-transformers reads it, and
            loading reports it as newly made.
        extra: further files: {name inside the folder: file or folder to copy}, or a function that is given
            the draft folder and writes into it.
        portable: True stores built-in modules only (a module of another package is asked for
            `to_builtin_modules()`), in the layout that 5.x and 6.x read. False stores sentence-transformers'
            own layout with the code of the other modules beside it, which users must trust to load it.
        verify: True loads the draft in a process without stzoo and compares embeddings to 1e-6 on the CPU.
        overwrite: True replaces a model folder at `output`; never one with files that are not a model's.
        describe: True writes the model's card, README.md; see `card.py`.

    Raises:
        ModelError: if `model` is no sentence-transformers model, or its files lack some of its weights.
        ExportError: if it has no portable form, its weights are not finite, or the draft does not answer as
            the model does.
        OutputError: if `output` is there, or cannot be written.

    Unlike `SentenceTransformer.save_pretrained`: module paths, pooling keys, `sentence_bert_config.json`,
    tokenizer class and rotary settings are those of 5.x, of which no version then warns; nothing is pickled.
    """
    output = check_model_output(output, overwrite, [model])
    source = Path(model) if isinstance(model, str | Path) else None
    model = _loaded(model)
    if masked_lm is not None and masked_lm.base_model is not getattr(model[0], "model", None):
        raise ExportError(
            "masked_lm is another model's: its base_model is not the model in the first module."
        )
    tensors = [*model.named_parameters(), *(masked_lm.named_parameters() if masked_lm is not None else ())]
    if broken := first_not_finite(tensors):
        raise ExportError(
            f"{broken} has NaN or infinity, as after a training that diverged; such weights are not exported."
        )
    bar = tqdm(total=2, desc="export", disable=None)
    with silence_hf_logging(), bar, atomic_folder(output, replaces=_files_of(output)) as draft:
        if portable:
            layout.write(model, draft, masked_lm)
        else:
            _write_with_code(model, draft, masked_lm)
        _write_extra(extra, draft)
        if source is not None:
            _copy_read_record(source, draft)
        if describe:
            (draft / card.README).write_bytes(_described(source, draft, output.name))
        if pickled := sorted(str(p.relative_to(draft)) for p in draft.rglob("*") if p.suffix in PICKLED):
            raise ExportError(f"{', '.join(pickled)}: an export holds no pickled files; use safetensors.")
        bar.update()
        if verify:
            _verify(model, draft, trust=not portable)
        bar.update()
        check_model_output(output, overwrite)  # it may have come into being meanwhile
    return output


def check_model_output(output: str | Path, overwrite: bool, inputs: Iterable[object] = ()) -> Path:
    """Sees that a model may be written there, and returns the path.

    With `overwrite` a model folder is replaced, whoever made it, as long as every file in it is one that a
    model folder has (see `stzoo.utils.outputs.MODEL_FILES`).

    Raises:
        OutputError: if not.
    """
    output = check_output(output, kind="model", inputs=inputs)
    if not output.is_dir() or not any(output.iterdir()):
        return output
    if not overwrite:
        raise OutputError(f"{output} is there already. Choose another folder, or pass --overwrite.")
    if not (output / "modules.json").is_file():
        raise OutputError(f"{output} is no model folder (it has no modules.json) and is not replaced.")
    if (output / RECORD).exists() and read_record(output / RECORD).get(EXPORTED) is not True:
        raise OutputError(f"{output} holds a training run ({RECORD}) and is not replaced.")
    check_replaceable(output, _files_of(output))
    return output


def _files_of(output: Path) -> tuple[str, ...]:
    """Patterns of the files of the model in a folder, those of its own code included."""
    listing = read_record(output / "modules.json", list) or []
    types = [module.get("type") for module in listing if isinstance(module, dict)]
    code = [str(kind).partition(".")[0] for kind in types]
    return (*MODEL_FILES, *(rf"{re.escape(stem)}\.py" for stem in code))


def _copy_read_record(source: Path, draft: Path) -> None:
    for name in TOLD:
        if (source / name).is_file():
            shutil.copyfile(source / name, draft / name)
    if (draft / RECORD).is_file():
        try:
            facts = json.loads((draft / RECORD).read_text(encoding="utf-8"))
            facts.pop("files", None)  # of the folder of the run
            write_json(draft / RECORD, facts | {EXPORTED: True})
        except (ValueError, TypeError) as error:
            raise ModelError(f"{source / RECORD} is no record of a training run: {error}.") from error


def _described(source: Path | None, draft: Path, name: str) -> bytes:
    """The model's card, with the metadata of the README that lies beside its source, where that holds."""
    if source is not None and (source / card.README).is_file():
        shutil.copyfile(source / card.README, draft / card.README)
        try:
            return card.make(draft, name=name)[card.README]
        except (DataError, RecipeError) as error:  # which no model's README has to satisfy
            print(f"stzoo: the card has nothing of {source / card.README}: {error}", file=sys.stderr)
            (draft / card.README).unlink()
    return card.make(draft, name=name)[card.README]


def _loaded(model: Any) -> Any:
    if isinstance(model, SentenceTransformer):
        return model
    if not isinstance(model, str | Path):
        raise ModelError(f"expected a SentenceTransformer, a path or a Hub id, not {type(model).__name__}.")
    try:
        if is_sentence_transformer_model(str(model)):
            return load_plain(str(model), device="cpu")
    except (OSError, ValueError) as error:  # of its settings or the Hub
        raise ModelError(f"{model} cannot be loaded: {first_line(error)}") from error
    raise ModelError(f"{model} is no sentence-transformers model: it has no modules.json.")


def _write_extra(extra: Extra | None, draft: Path) -> None:
    if callable(extra):
        extra(draft)
        return
    for name, source in (extra or {}).items():
        target = draft / name
        if target.exists() or not target.resolve().is_relative_to(draft.resolve()):
            raise ExportError(f"extra {name!r} would fall on the model's own files; give it another name.")
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if Path(source).is_dir() else shutil.copyfile)(source, target)


def _write_with_code(model: Any, draft: Path, masked_lm: Any) -> None:
    """The library's own layout; code of other packages at the root, where a trusting load looks for it."""
    model.save_pretrained(str(draft), create_model_card=False)
    if masked_lm is not None:
        masked_lm.save_pretrained(draft)
    listings = [draft / "modules.json", *draft.rglob("router_config.json")]
    for cls in {type(module) for module in layout.flat(model) if not layout.is_built_in(module)}:
        try:
            source = Path(inspect.getfile(cls))
        except (OSError, TypeError) as error:
            raise ExportError(f"{cls.__name__} has no source file; move it into a module.") from error
        for copy in draft.glob(f"*/{source.name}"):  # where save_pretrained leaves it and no load finds it
            copy.unlink()
        if (draft / source.name).exists() and (draft / source.name).read_bytes() != source.read_bytes():
            raise ExportError(f"two modules come from files named {source.name}; rename one.")
        shutil.copyfile(source, draft / source.name)
        for listing in filter(Path.exists, listings):
            text = listing.read_text(encoding="utf-8")
            full, short = f'"{cls.__module__}.{cls.__name__}"', f'"{source.stem}.{cls.__name__}"'
            listing.write_text(text.replace(full, short), encoding="utf-8")


@contextlib.contextmanager
def _as_reloaded(model: Any) -> Iterator[None]:
    """The model as a plain load on the CPU would run it; on leaving, as it was."""
    device, modes = model.device, {module: module.training for module in model.modules()}
    transformers = [module for module in layout.flat(model) if hasattr(module, "can_flatten_inputs")]
    kernels = [
        (module, module.config._attn_implementation, module.can_flatten_inputs) for module in transformers
    ]
    try:
        for module, kernel, _ in kernels:
            if "flash" in str(kernel):  # runs on a GPU only
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
            except Exception as error:  # whatever modules that do not fit raise
                reason = f"{type(error).__name__}: {first_line(error)}"
                raise ExportError(
                    f"the model cannot encode the texts of the check, one of which is long ({reason}). Set "
                    "its max_seq_length to what it can read."
                ) from error
            verify_standalone.store(path, asked, embeddings)
        (found,) = check([(draft, path)], trust=trust)
    if "error" in found:
        raise ExportError(f"plain sentence-transformers does not load the export: {found['error']}")
    if not (far := max(found.values())) <= TOLERANCE:
        raise ExportError(
            f"loaded by plain sentence-transformers, the export's embeddings are {far:.1e} away from the"
            f" model's, not within {TOLERANCE:.0e}; does a module keep state that it does not save?"
        )


def check(
    pairs: Iterable[tuple[Path, Path]], *, python: str = sys.executable, trust: bool = False
) -> list[dict[str, Any]]:
    """Loads each (model folder, answers file) in one process without stzoo; what `alone` prints of each.

    Args:
        pairs: what to load, and what `alone.store` wrote of the model that it was.
        python: the interpreter; another environment's may have another sentence-transformers.
        trust: True lets the folders bring code of their own, which may import stzoo.
    """
    paths = [str(path) for pair in pairs for path in pair]
    threads = str(torch.get_num_threads())  # sums in the same order
    words = [*["--trust"] * trust, *paths]
    return run_alone(words, len(paths) // 2, python=python, OMP_NUM_THREADS=threads)


def run_alone(
    words: list[str], expected: int, *, python: str = sys.executable, **environment: str
) -> list[dict[str, Any]]:
    """Runs alone.py with these words, and returns the lines of JSON that it prints.

    Raises:
        ExportError: if they are not as many as expected.
    """
    with tempfile.TemporaryDirectory() as scratch:
        env = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": scratch,  # where trusted code would be left behind
            "CUDA_VISIBLE_DEVICES": "",
            **environment,
        }
        command = [python, "-P", verify_standalone.__file__, *words]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if len(lines) != expected:
        raise ExportError(
            f"the check with plain sentence-transformers broke off: {done.stderr[-2000:].strip()}"
        )
    return lines
