"""Which files of an output folder belong to a run, and how they are checked, set aside and removed."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stzoo.errors import OutputError
from stzoo.training.records import is_record
from stzoo.training.settings import Settings
from stzoo.utils.files import PART, clear_drafts, files_under, move_files, remove_empty, remove_files, sha256
from stzoo.utils.inputs import read_json
from stzoo.utils.outputs import MODEL_FILES, RECORD

OLD = ".stzoo-old"  # keeps an overwritten run until the new one has read its inputs
MODEL_DRAFT = ".model.part"  # a finished model or data set, before it is moved to the top of the folder
# in an episode's folder: the embeddings and parts from which its negatives are made
SCRATCH = r"(?:[^/]*negatives\.parts|embeddings/[^/]+/[^/]+)/[^/]+\.(?:json|safetensors|lock)"
_CHECKPOINT = r"(?:damaged-)?checkpoint-\d+(?:-\d+)?"
# files that any run, a training run and a preparation write before they finish: regular expressions of paths
RUN_FILES = (re.escape(RECORD), rf"{re.escape(MODEL_DRAFT)}/.*")
CHECKPOINTS = (  # which a finished run no longer needs
    rf"(?:episodes/\d+/)?checkpoints/{_CHECKPOINT}/(?:state|balancer|log_sums(?:_\d+)?)\.safetensors",
    rf"(?:episodes/\d+/)?checkpoints/{_CHECKPOINT}/(?:(?:optimizer|scheduler|scaler)\.pt|rng_state(?:_\d+)?\.pth)",
    rf"(?:episodes/\d+/)?checkpoints/{_CHECKPOINT}/(?:trainer_state|whole)\.json",
    r"(?:episodes/\d+/)?checkpoints/eval/step-\d+\.json",
    r"episodes/\d+/end\.safetensors",
    r"(?:episodes/\d+/)?balancer\.safetensors",
)
LOGS = r"logs/(?:tensorboard|wandb|mlflow|trackio)/.*"
TRAINING_FILES = (
    *CHECKPOINTS,
    r"(?:episodes/\d+/)?checkpoints/runs/(?:.*/)?events\.out\.tfevents\..*",  # of older versions
    LOGS,
    r"episodes/\d+/(?:episode\.json|[^/]*negatives\.parquet)",
    rf"episodes/\d+/{SCRATCH}",
    r"teacher/(?:[^/]+/)?(?:manifest\.json|\d+\.safetensors|\.stzoo\.lock)",
)
WORK_FILES = (  # files that a preparation leaves if it is killed at the very end
    r"work/(?:rows-\d{9}|words)\.parquet|work/(?:bm25|embeddings)/.*\.(?:safetensors|npy|json|lock)",
)
UNFINISHED_WORK = r"work/.*\.(?:parquet|safetensors|npy|json|lock)"  # including those of plugins
PREPARED_FILES = (r"README\.md", r"passages-\d+-of-\d+\.parquet")
_FOLDERS = (  # folders that a run writes; a file or link may be in their place
    rf"checkpoints(?:/{_CHECKPOINT})?|episodes(?:/\d+(?:/(?:checkpoints|embeddings))?)?|teacher|work|pretraining"
    r"|exact|" + re.escape(MODEL_DRAFT)
)


def is_run_file(name: str, command: str) -> bool:
    """True if a run of this command writes a file of this path in its folder before it finishes."""
    own = WORK_FILES if command == "prepare" else TRAINING_FILES
    return _fits(name, (*RUN_FILES, *own))


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def matching(folder: Path, patterns: Iterable[str]) -> list[str]:
    """The files in a folder whose path matches one of the regular expressions."""
    return [name for name in files_under(folder) if _fits(name, patterns)]


def written(folder: Path, metadata: dict[str, Any]) -> list[str]:
    """The files in a run's folder that the run wrote, according to its record and the layout."""
    recorded, command = metadata.get("files"), metadata["recipe"]["command"]
    finished = metadata["status"] == "finished"
    if recorded is None:  # by a version that did not list them
        recorded = dict.fromkeys(matching(folder, _results(command)) if finished else ())
    return [
        name
        for name in files_under(folder)
        if not name.startswith(f"{OLD}/")
        and (
            (name in recorded and _is_as_recorded(folder / name, recorded[name]))
            or is_run_file(name, command)
            or (command == "prepare" and not finished and re.fullmatch(UNFINISHED_WORK, name))
            or ((folder / name).is_symlink() and re.fullmatch(_FOLDERS, name))
        )
    ]


def _is_as_recorded(path: Path, digest: Any) -> bool:
    """True unless the file is the user's own; the record may have been copied from another folder.

    A card has no digest, because `stzoo card` rewrites it, and is recognised by the word stzoo.
    """
    if path.is_symlink():  # only the link is moved
        return True
    if digest:
        return sha256(path) == digest
    return path.name != "README.md" or b"stzoo" in path.read_bytes()


def _results(command: str) -> tuple[str, ...]:
    return PREPARED_FILES if command == "prepare" else MODEL_FILES


def remove_checkpoints(folder: Path) -> None:
    """Removes the checkpoints of a finished run."""
    remove_files(folder, matching(folder, CHECKPOINTS))
    remove_empty(folder, "checkpoints/eval/step")  # the host makes the folder before it has scores


def check_free(folder: Path, metadata: dict[str, Any], settings: Settings) -> None:
    """Checks that a run would overwrite no files but those of the run before it.

    Raises:
        OutputError: If it would.
    """
    ours = set(written(folder, metadata))
    needed = (*_results(settings.command), _FOLDERS, r"(?s:(?:teacher|episodes/\d+)/.*)")
    blocked = [
        name
        for name in files_under(folder)
        if name not in ours
        and (_fits(name, needed) or is_run_file(name, settings.command))
        and not name.startswith(".stzoo")
    ]
    if blocked:
        raise OutputError(
            f"{folder} contains files that this run would overwrite and that no run wrote, or that were "
            f"changed since: {', '.join(blocked)}. Move them to another folder, or choose another --output."
        )


def check_finished(folder: Path, metadata: dict[str, Any]) -> None:
    """Checks that the files of a finished run are complete and unchanged.

    Raises:
        OutputError: If a file is missing or was changed.
    """
    files = metadata.get("files")
    if files is None:  # written by a version that did not list them
        prepared = metadata["recipe"]["command"] == "prepare"
        suffix = ".parquet" if prepared else ".safetensors"
        results = matching(folder, _results(metadata["recipe"]["command"]))
        missing = [] if prepared or "modules.json" in results else ["modules.json"]
        missing += [] if any(name.endswith(suffix) for name in results) else [f"*{suffix}"]
        changed: list[str] = []
    else:
        digests = {name: digest for name, digest in files.items() if digest}
        missing = [name for name in digests if not (folder / name).is_file()]
        weights = [name for name in digests if name.endswith((".safetensors", ".parquet"))]
        changed = [n for n in weights if n not in missing and sha256(folder / n) != digests[n]]
    if missing or changed:
        faults = [f"{', '.join(missing)} missing"] * bool(missing)
        faults += [f"{', '.join(changed)} changed"] * bool(changed)
        raise OutputError(
            f"the run in {folder} is finished, but its files are incomplete or damaged: {'; '.join(faults)}. "
            "Restore them from a copy, or remove the changed files and run again with --overwrite."
        )


def set_aside(folder: Path, metadata: dict[str, Any]) -> None:
    """Moves the files of a run into the folder OLD, the record first; see `recover`."""
    old = folder / OLD
    if old.is_symlink():
        old.unlink()
    shutil.rmtree(old, ignore_errors=True)
    old.mkdir()
    move_files(folder, sorted(written(folder, metadata), key=lambda name: name != RECORD), old)


def put_back(folder: Path) -> None:
    """Moves the files of a run that was set aside back.

    Raises:
        OutputError: If one of them would overwrite a file; nothing is moved.
    """
    old = folder / OLD
    if not old.is_dir() or old.is_symlink():
        return
    names = sorted(files_under(old), key=lambda name: name == RECORD)
    if taken := [name for name in names if os.path.lexists(folder / name)]:
        raise OutputError(
            f"{old} contains a run that was about to be overwritten, and moving it back would overwrite "
            f"these files: {', '.join(taken)}. Move them to another folder."
        )
    move_files(old, names, folder)
    old.rmdir()


def recover(folder: Path) -> None:
    """Moves an old run back if --overwrite was killed after setting it aside, before a new one began."""
    if not os.path.lexists(folder / RECORD) and is_record(read_json(folder / OLD / RECORD)):
        put_back(folder)
    elif (folder / OLD).is_dir() and not (folder / OLD).is_symlink():
        with contextlib.suppress(OSError):  # it is not empty
            (folder / OLD).rmdir()


def remove_drafts(folder: Path) -> None:
    """Removes drafts that a killed process left in a run's folders, including that of the model."""
    draft = folder / MODEL_DRAFT
    if draft.is_symlink():
        draft.unlink()
    elif draft.is_dir():
        shutil.rmtree(draft)
    clear_drafts(folder)
    for name in ("checkpoints", "episodes", "teacher", "work"):
        if not (folder / name).is_symlink():
            for place, folders, _ in os.walk(folder / name):
                if any(one.endswith(PART) for one in folders):
                    clear_drafts(Path(place))
