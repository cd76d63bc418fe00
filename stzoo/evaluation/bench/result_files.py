"""Paths of result files and TREC runs, and the lock of their folder."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from stzoo.errors import OutputError, RecipeError, quoted
from stzoo.evaluation.bench.results import META
from stzoo.models.names import slug
from stzoo.utils.files import lock_folder

MAX_NAME = 180  # bytes of a file's name before its extension; file systems allow 255


@contextlib.contextmanager
def output_folder(output: str | Path) -> Iterator[Path]:
    """Locks the folder of results for this process, and removes folders it created if they stay empty.

    Raises:
        OutputError: If another process uses the folder, or it cannot be written.
    """
    output = Path(output)
    created = [folder for folder in (output, *output.parents) if not folder.exists()]
    try:
        with lock_folder(output):
            yield output
    finally:
        for folder in created:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def check_paths(output: Path, systems: Iterable[tuple[str, str]], names: Iterable[str]) -> None:
    """Checks that every system and data set has a file of its own, on case-insensitive file systems too.

    Args:
        output: Folder for the results.
        systems: Name and revision of each model.
        names: Names of the data sets.

    Raises:
        OutputError: If a folder has the name of a result file.
        RecipeError: If two names give the same file, or a name cannot be a file's name.
    """
    names, owners = list(names), dict[str, tuple[str, str, str]]()
    for first, second in zip(sorted(names), sorted(names)[1:], strict=False):
        if first == second:
            raise RecipeError(
                f"two data sets are named {first!r}, so their results would be the same file. Score them in "
                "separate calls, each with its own --output."
            )
    for model, revision in systems:
        for name in names:
            path = result_file(output, model, revision, name)
            owner = owners.setdefault(str(path).casefold(), (model, revision, name))
            if owner != (model, revision, name):
                kind, one, other = "data sets", owner[2], name
                if one == other:
                    kind, one, other = "models", owner[0], model
                raise RecipeError(
                    f"the {kind} {one!r} and {other!r} would have their results in the same file, {path}: "
                    "their names differ only in case or in characters that file names cannot have. Rename "
                    "one, or score them in separate calls, each with its own --output."
                )
            for file in (path, path.with_name(META)):
                if file.exists() and not file.is_file():
                    raise OutputError(
                        f"{file} is a folder; expected a file or nothing there. Choose another --output."
                    )


def result_file(output: Path, model: str, revision: str, dataset: str) -> Path:
    """The path of a result file.

    Raises:
        RecipeError: If a name cannot be a file's name.
    """
    parts = slug(model), slug(revision), slug(dataset)
    for name, part in zip((model, revision, dataset), parts, strict=True):
        if not part or len(part.encode()) > MAX_NAME:
            raise RecipeError(
                f"the name {quoted(name)} cannot be used as a file name: it "
                + ("is too long" if part else "has neither letters nor digits")
                + ". Rename the folder, or name a model by NAME=MODEL."
            )
    if f"{parts[2].casefold()}.json" == META:
        raise RecipeError(
            f"a data set cannot be named {dataset!r}: {META} is the name of the model's record among the "
            "results. Rename the data set's folder."
        )
    return output / parts[0] / parts[1] / f"{parts[2]}.json"


def run_file(path: Path, split: str) -> Path:
    """The path of the TREC run of a result."""
    return path.with_name(f"{path.stem}.{split}.run")
