"""The one check of where a command may write, before it reads or computes anything.

Every command calls `check_output` with what it reads. What may then be replaced in a folder is decided file
by file: `stzoo.utils.files.check_replaceable` for models, `stzoo.training.runs` for training runs.
"""

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from stzoo.errors import OutputError, RecipeError
from stzoo.utils.inputs import user_path

RECORD = "run.json"
IMPORTED = "import.json"  # beside a model that `stzoo import` made
MERGED = "merge.json"  # beside one that is a mean of others
_MARKS = ("modules.json", "corpus.jsonl", "corpus.jsonl.gz")  # of folders that are no place for results
Kind = Literal["run", "model", "results", "file"]
_MODULE = r"(?:(?:[\w-]+_)?\d+_\w+/|exact/)*"  # the folders of modules, of routes, and of a second form
# the files of a model folder, as `stzoo export` and sentence-transformers write them: regular expressions
MODEL_FILES = (
    rf"{_MODULE}(?:config|modules|sentence_\w+_config|config_sentence_transformers|router_config)\.json",
    rf"{_MODULE}(?:tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json",
    rf"{_MODULE}(?:generation|preprocessor|processor)_config\.json",
    rf"{_MODULE}(?:vocab\.txt|merges\.txt|chat_template\.jinja|spiece\.model|sentencepiece\.bpe\.model)",
    rf"{_MODULE}model(?:-\d+-of-\d+)?\.safetensors|{_MODULE}model\.safetensors\.index\.json",
    r"pretraining/(?:objective\.safetensors|run\.json)",
    r"(?:exact/)?README\.md|(?:run|import|merge)\.json|(?:learning|pretraining)_curve\.png",
)


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
        output: the path that the user gave.
        kind: "run" and "model" are folders that belong to one run or model alone, "results" is a folder that
            takes files of many, "file" is one file.
        inputs: what the command reads: paths, Hub ids, NAME=PATH or None; what is not a path is passed over.
        is_ours: for a file that exists: True if it is of the kind that the command writes.
        what: of that kind, for the message, e.g. "a model card".

    Raises:
        OutputError: if the output is empty, a root or the home folder, an input, lies in a model that is
            read, contains an input (and is a run or model), or if it exists and is of another kind.
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
    elif kind == "results" and (found := [name for name in _MARKS if (path / name).exists()]):
        raise OutputError(f"{path} is a model or a data set ({found[0]}); choose another folder as --output.")
    return path


def _paths(given: object) -> list[Path]:
    """The existing files or folders that an argument may mean: FOLDER, NAME=FOLDER."""
    if isinstance(given, Path):
        found = [given]
    elif isinstance(given, str) and given:
        found = [Path(given), *([Path(given.partition("=")[2])] if given.partition("=")[2] else [])]
    else:
        return []
    kept = []
    for path in found:
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # no path at all, e.g. "~nobody/x"
            if path.expanduser().exists():
                kept.append(path.expanduser().resolve())
    return kept


def _check_input(path: Path, here: Path, kind: Kind, there: Path) -> None:
    if here == there:
        raise OutputError(
            f"{path} is read by this command and cannot be its output; choose another --output."
        )
    if there.is_relative_to(here) and kind in ("run", "model"):
        raise OutputError(
            f"{path} contains {there}, which this command reads; choose a folder of its own as --output."
        )
    is_model = any((there / name).is_file() for name in ("modules.json", "config.json"))
    if kind != "file" and here.is_relative_to(there) and is_model:  # whose fingerprint would change
        raise OutputError(
            f"{path} lies in {there}, which this command reads; choose a folder elsewhere as --output."
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
        RecipeError: if both are set.
    """
    if resume and overwrite:
        raise RecipeError(
            "--resume continues what is there and --overwrite replaces it; give only one of them."
        )
