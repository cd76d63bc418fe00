"""Checks where a command may write, before it reads or computes anything.

Every command calls `check_output` with its inputs. Which files in a folder may be replaced is decided later,
file by file: by `stzoo.utils.files.check_replaceable` for models, and by `stzoo.training.run_files` for runs.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from stzoo.errors import OutputError, RecipeError
from stzoo.utils.files import check_replaceable
from stzoo.utils.inputs import read_json, user_path

RECORD = "run.json"
IMPORTED = "import.json"  # in the folder of a model that `stzoo import` made
MERGED = "merge.json"  # in the folder of a model that is a mean of others
ADAPTATION = "adaptation.json"  # in the folder of a model that `stzoo adapt` made
EXPORTED = "exported"  # true in the record of a run that belongs to an exported copy of its model
_MARKS = ("modules.json", "corpus.jsonl", "corpus.jsonl.gz")  # files of folders that must not get results
Kind = Literal["run", "model", "results", "file"]
_MODULE = r"(?:(?:[\w-]+_)?\d+_\w+/|exact/)*"  # folders of modules, of routes, and of a second form
# files of a model folder that `stzoo export` and sentence-transformers write: regular expressions
MODEL_FILES = (
    rf"{_MODULE}(?:config|modules|sentence_\w+_config|config_sentence_transformers|router_config)\.json",
    rf"{_MODULE}(?:tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json",
    rf"{_MODULE}(?:generation|preprocessor|processor)_config\.json",
    rf"{_MODULE}(?:vocab\.txt|merges\.txt|chat_template\.jinja|spiece\.model|sentencepiece\.bpe\.model)",
    rf"{_MODULE}model(?:-\d+-of-\d+)?\.safetensors|{_MODULE}model\.safetensors\.index\.json",
    rf"{_MODULE}onnx/(?:model(?:_quantized)?\.onnx(?:_data)?|export\.json)",
    r"pretraining/(?:objective\.safetensors|run\.json)",
    r"(?:exact/)?README\.md|(?:run|import|merge|adaptation)\.json|(?:learning|pretraining)_curve\.png",
)


def no_model(folder: Path) -> str:
    """A sentence on why a folder is no model, and what to do."""
    if not folder.is_dir():
        return f"there is no folder {folder}."
    if (folder / RECORD).is_file():
        return f"the run {folder} is not finished, so it has no model yet. Continue it with --resume."
    if (folder / "adapted").is_dir():
        return f"{folder} is a run of `stzoo adapt`, whose model is in {folder / 'adapted'}."
    return f"{folder} is not a model: it has no modules.json, as models of sentence-transformers have."


def check_output(
    output: str | Path,
    *,
    kind: Kind,
    inputs: Iterable[object] = (),
    is_ours: Callable[[Path], bool] | None = None,
    what: str = "",
) -> Path:
    """Refuses an output that would damage something else, and returns its path, with `~` expanded.

    Args:
        output: The path that the user gave.
        kind: "run" and "model" are folders for a single run or model, "results" is a folder for files of
            several calls, "file" is a single file.
        inputs: Inputs of the command: paths, Hub ids, NAME=PATH or None. Whatever is not a path is ignored.
        is_ours: Function that returns True for an existing file of the kind that the command writes.
        what: Name of that kind for the message, e.g. "a model card".

    Raises:
        OutputError: If the output is empty, a root or the home folder, an input, inside a model that is read,
            contains an input (for a run or model), or exists and is of another kind.
    """
    path = user_path(output, OutputError)
    if str(path) in ("", "."):
        raise OutputError("the output is empty or the current folder; give the name of a file or folder.")
    try:
        here = path.resolve()
    except (OSError, RuntimeError) as error:
        raise OutputError(f"{path} cannot be used as output: {error}.") from None
    if here == here.parent:
        raise OutputError(f"{path} is the root of a file system; choose a folder in it.")
    with contextlib.suppress(RuntimeError):  # there is no home folder
        if here == Path.home().resolve():
            raise OutputError(f"{path} is your home folder; choose a folder in it.")
    for one in inputs:
        for there in _paths(one):
            _check_input(path, here, kind, there)
    if kind == "file":
        _check_file(path, is_ours, what)
    elif os.path.lexists(path) and not path.is_dir():
        raise OutputError(f"{path} is a file; expected the name of a folder.")
    elif kind == "results" and (marks := [name for name in _MARKS if (path / name).exists()]):
        raise OutputError(f"{path} is a model or a data set ({marks[0]}); choose another folder as --output.")
    return path


def check_model_output(output: str | Path, overwrite: bool, inputs: Iterable[object] = ()) -> Path:
    """Checks that a model may be written to `output`, and returns the path.

    With `overwrite`, any model folder is replaced whose files are all those of a model
    (`MODEL_FILES`).

    Raises:
        OutputError: If not.
    """
    output = check_output(output, kind="model", inputs=inputs)
    if not output.is_dir() or not any(output.iterdir()):
        return output
    if not (output / "modules.json").is_file():
        raise OutputError(
            f"{output} is not a model folder (it has no modules.json) and is not replaced. Use another "
            "--output."
        )
    if (output / RECORD).exists() and read_json(output / RECORD).get(EXPORTED) is not True:
        raise OutputError(f"{output} is a training run ({RECORD}) and is not replaced. Use another --output.")
    check_replaceable(output, files_of(output))
    if not overwrite:  # last, so that it is only suggested where it would help
        raise OutputError(f"{output} exists already. Use --overwrite, or another --output.")
    return output


def files_of(output: Path) -> tuple[str, ...]:
    """Patterns of the files of the model in a folder, including its own code."""
    listing = read_json(output / "modules.json", list) or []
    types = [module.get("type") for module in listing if isinstance(module, dict)]
    code = [str(kind).partition(".")[0] for kind in types]
    return (*MODEL_FILES, *(rf"{re.escape(stem)}\.py" for stem in code))


def _paths(given: object) -> list[Path]:
    """The existing files or folders that an argument may refer to: FOLDER or NAME=FOLDER."""
    if isinstance(given, Path):
        candidates = [given]
    elif isinstance(given, str) and given:
        candidates = [Path(given), *([Path(given.partition("=")[2])] if given.partition("=")[2] else [])]
    else:
        return []
    existing = []
    for path in candidates:
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # not a path, e.g. "~nobody/x"
            if path.expanduser().exists():
                existing.append(path.expanduser().resolve())
    return existing


def _check_input(path: Path, here: Path, kind: Kind, there: Path) -> None:
    if here == there:
        raise OutputError(
            f"{path} is read by this command and cannot be its output; choose another --output."
        )
    if there.is_relative_to(here) and kind in ("run", "model"):
        raise OutputError(
            f"{path} contains {there}, which this command reads; choose another folder as --output."
        )
    is_model = any((there / name).is_file() for name in ("modules.json", "config.json"))
    if kind != "file" and here.is_relative_to(there) and is_model:  # whose fingerprint would change
        raise OutputError(
            f"{path} is inside {there}, which this command reads; choose a folder elsewhere as --output."
        )


def _check_file(path: Path, is_ours: Callable[[Path], bool] | None, what: str) -> None:
    if not os.path.lexists(path):
        return
    if path.is_dir():
        raise OutputError(f"{path} is a folder; expected the name of a file.")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is not a regular file and is not replaced; choose another --output.")
    if is_ours is not None and not is_ours(path):
        raise OutputError(f"{path} exists and is not {what}, so it is not replaced; choose another --output.")


def check_resume(resume: bool, overwrite: bool) -> None:
    """Refuses `--resume` together with `--overwrite`.

    Raises:
        RecipeError: If both are set.
    """
    if resume and overwrite:
        raise RecipeError("--resume continues a run and --overwrite replaces it; give only one of them.")
