"""The output folder of a run: its lock, its record (run.json), and how a run is resumed or overwritten."""

import contextlib
import datetime
import json
import math
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from stzoo.errors import OutputError, StzooError, TrainingError, first_line
from stzoo.plugins import manager
from stzoo.training.finetune_settings import FinetuneSettings
from stzoo.training.pretrain_settings import PrepareSettings, PretrainSettings
from stzoo.training.recipes import SCHEMA_VERSION
from stzoo.training.settings import Settings
from stzoo.utils.distributed import is_main_process
from stzoo.utils.files import (
    PART,
    clear_drafts,
    files_under,
    lock_folder,
    move_files,
    remove_files,
    sha256,
    write_json,
)
from stzoo.utils.outputs import IMPORTED, MODEL_FILES, RECORD, check_output, check_resume
from stzoo.utils.parts import check_manifest

OLD = ".stzoo-old"  # keeps an overwritten run until the new one has read its inputs
MODEL_DRAFT = ".model.part"  # a finished model or data set, before it is moved to the top of the folder
# in an episode's folder: the embeddings and parts from which its negatives are made
SCRATCH = r"(?:[^/]*negatives\.parts|embeddings/[^/]+/[^/]+)/[^/]+\.(?:json|safetensors|lock)"
_CHECKPOINT = r"(?:damaged-)?checkpoint-\d+(?:-\d+)?"
# files that any run, a training run and a preparation write before they finish: regular expressions of paths
RUN_FILES = (re.escape(RECORD), rf"{re.escape(MODEL_DRAFT)}/.*")
TRAINING_FILES = (
    rf"(?:episodes/\d+/)?checkpoints/{_CHECKPOINT}/(?:state|balancer|log_sums(?:_\d+)?)\.safetensors",
    rf"(?:episodes/\d+/)?checkpoints/{_CHECKPOINT}/(?:(?:optimizer|scheduler|scaler)\.pt|rng_state(?:_\d+)?\.pth)",
    rf"(?:episodes/\d+/)?checkpoints/{_CHECKPOINT}/(?:trainer_state|whole)\.json",
    r"(?:episodes/\d+/)?checkpoints/runs/(?:.*/)?events\.out\.tfevents\..*",
    r"episodes/\d+/(?:episode\.json|end\.safetensors|[^/]*negatives\.parquet)",
    rf"episodes/\d+/{SCRATCH}",
    r"(?:episodes/\d+/)?balancer\.safetensors",
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
# settings that name inputs; all settings that a plugin's preparation adds are treated as inputs too
INPUTS = ("base", "model", "corpus", "data", "dev_data", "probe", "teacher", "tokenizer")
_CORE = {name for kind in (PretrainSettings, FinetuneSettings, PrepareSettings) for name in kind.model_fields}
_CORE |= {"command", "schema_version"}
# settings that may differ when a run is resumed, because they change the weights by no more than rounding
FREE = {"log_steps", "save_steps", "save_minutes", "keep_checkpoints", "report_to", "workers", "threads"}
PACKAGES = ("stzoo", "torch", "transformers", "sentence-transformers", "datasets", "tokenizers", "numpy")


class Run:
    """A run, and the output folder that it has locked.

    Attributes:
        folder: Path to the output folder.
        resumed: True if the run resumes an earlier, unfinished one.
        metadata: Content of run.json.
        components: Components of plugins that this process has used so far, with distribution and version.
    """

    def __init__(self, folder: Path, metadata: dict[str, Any], resumed: bool):
        self.folder, self.metadata, self.resumed = folder, metadata, resumed
        self.components: list[dict[str, str]] = []
        self._begun = time.monotonic() - metadata.get("seconds", 0)
        self._recorded = False  # True once this process has written run.json
        self._has_inputs = False  # True once this process has read its inputs

    def record(self, **metadata: Any) -> None:
        """Updates the metadata and, in the main process, writes run.json."""
        before = self.metadata.get("components", [])
        used = [one for one in self.components if one not in before]
        self.metadata = finite(self.metadata | {"components": [*before, *used]} | metadata)
        if not is_main_process():
            return
        self.metadata["seconds"] = round(time.monotonic() - self._begun, 1)
        write_json(self.folder / RECORD, self.metadata)
        self._recorded = True

    def record_inputs(self, **metadata: Any) -> None:
        """Records the inputs of the run, and deletes the run that it overwrites.

        Raises:
            OutputError: If a resumed run was started with other inputs.
        """
        if self.resumed:  # older versions recorded fewer inputs
            stored = {name: self.metadata[name] for name in metadata if self.metadata.get(name) is not None}
            _check_same(self.folder, stored, {name: metadata[name] for name in stored}, "inputs")
        self.metadata.pop("error", None)  # of a run that failed before
        self.record(status="running", **metadata)
        self._has_inputs = True
        if is_main_process() and not (self.folder / OLD).is_symlink():
            shutil.rmtree(self.folder / OLD, ignore_errors=True)

    def install(self, draft: Path, also: Sequence[str] = ()) -> None:
        """Moves finished files from a folder inside this one to the top; modules.json goes last.

        The folder is therefore not a model until it is complete, and a resume completes a killed move. The
        files are first recorded with their SHA-256, so that later commands know them from the user's files.

        Args:
            draft: Folder with the finished files; removed at the end.
            also: Names of files that the caller will write at the top.

        Raises:
            OutputError: If one of them would overwrite a file that the run did not write; nothing is moved.
        """
        names = sorted(files_under(draft), key=lambda name: name == "modules.json")
        known = self.metadata.get("files", {})
        if blocked := [name for name in (*names, *also) if name not in known and self._is_taken(name)]:
            raise OutputError(
                f"{self.folder} contains files that the run did not write and would overwrite: "
                f"{', '.join(blocked)}. Move them to another folder, then run again with --resume."
            )
        self.record(files={**known, **dict.fromkeys(also), **{n: sha256(draft / n) for n in names}})
        move_files(draft, names, self.folder)
        draft.rmdir()

    def _is_taken(self, name: str) -> bool:
        above = [self.folder / parent for parent in list(Path(name).parents)[:-1]]
        return os.path.lexists(self.folder / name) or any(
            one.is_symlink() or (one.exists() and not one.is_dir()) for one in above
        )


@contextlib.contextmanager
def start(
    output: str | Path,
    settings: Settings,
    *,
    resume: bool,
    overwrite: bool,
    worth: Sequence[str] = ("checkpoints/checkpoint-*",),
) -> Iterator[Run]:
    """Locks the output folder, and starts or resumes a run in it.

    A run that fails after it has read its inputs keeps its record, with the status "failed" or "interrupted"
    and the reason. A run that fails earlier removes the files that it has written, and nothing else.

    Args:
        output: Path to the output folder, which is created if it does not exist.
        settings: Settings of the run.
        resume: True to continue the unfinished run in the folder, or start if there is none.
        overwrite: True to replace the run in the folder. Files that no run wrote stay.
        worth: Path patterns of files worth keeping if the run fails before it has read all its inputs.

    Raises:
        OutputError: If the folder is in use, is or contains an input, or contains other files or another run.
        RecipeError: If both `resume` and `overwrite` are set.
    """
    check_resume(resume, overwrite)
    output = check_output(output, kind="run", inputs=_inputs(settings))
    if not is_main_process():
        # The main process locks the folder and writes; the others only need to start from the same state.
        metadata = _read(output) if resume else None
        yield Run(output, metadata or {"status": "running", "recipe": settings.dump()}, resumed=resume)
        return
    with lock_folder(output) as folder:
        run = _open(folder, settings, resume, overwrite)
        before, kept = set(files_under(folder)), _matches(folder, worth)
        try:
            with manager.recording() as run.components:
                yield run
        except BaseException as error:
            _end_failed(run, error, before, has_more=bool(_matches(folder, worth) - kept))
            raise
        finally:
            _clear_drafts(folder)


def _inputs(settings: Settings) -> list[Any]:
    """The values of the settings that may be paths to inputs."""
    plain = settings.dump()
    named = [name for name in plain if name in INPUTS or name not in _CORE]
    values = [plain[name] for name in named] + list(plain.get("options", {}).values())
    for task in plain.get("tasks", ()):
        values += [task.get(name) for name in INPUTS]
    return [one for value in values for one in (value if isinstance(value, list) else [value])]


def _matches(folder: Path, patterns: Sequence[str]) -> set[Path]:
    return {path for one in patterns for path in folder.glob(one)}


def _end_failed(run: Run, error: BaseException, before: set[str], *, has_more: bool) -> None:
    """Records why a run failed, or removes the files of this process if none is worth keeping.

    Args:
        run: The failed run.
        error: The exception that ended it.
        before: Files that existed when the run began.
        has_more: True if the process has written something worth keeping.
    """
    is_mistake = isinstance(error, StzooError) and not isinstance(error, TrainingError | OutputError)
    has_begun = run._has_inputs and (not is_mistake or bool(run.metadata.get("log")))
    if run.resumed or has_begun or has_more:
        if run._recorded and run.metadata["status"] != "finished":
            failed = isinstance(error, Exception)
            kind = type(error).__name__
            text = str(error) if isinstance(error, StzooError) else f"{kind}: {first_line(error)}"
            reason = text if failed else "Ctrl-C" if kind == "KeyboardInterrupt" else "SIGTERM"
            with contextlib.suppress(OutputError):  # the disk is full, and `error` says so
                run.record(status="failed" if failed else "interrupted", error=reason)
        return
    command = run.metadata["recipe"]["command"]
    written = [name for name in files_under(run.folder) if name not in before and is_run_file(name, command)]
    remove_files(run.folder, written)
    for name in ("checkpoints", "work"):
        with contextlib.suppress(OSError):  # it is not empty, or does not exist
            (run.folder / name).rmdir()
    _put_back(run.folder)


def _open(folder: Path, settings: Settings, resume: bool, overwrite: bool) -> Run:
    _recover(folder)
    old = _read(folder)
    if old is None and any(not entry.name.startswith(".stzoo") for entry in folder.iterdir()):
        raise OutputError(f"{folder} is not empty and contains no run of stzoo. Choose another --output.")
    if old is not None:
        _clear_drafts(folder)
        if not overwrite:
            _check_resumable(folder, old, settings, resume)
        if not (resume and old["status"] == "finished"):
            _check_free(folder, old, settings)
    if old is not None and overwrite:
        _set_aside(folder, old)
        old = None
    if old is not None:
        if old["status"] == "finished":
            _check_finished(folder, old)
        else:
            old = {key: value for key, value in old.items() if key != "error"} | {"status": "running"}
    metadata = old or {
        "schema_version": SCHEMA_VERSION,
        "status": "running",
        "recipe": settings.dump(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "hardware": _hardware(),
    }
    return Run(folder, metadata, resumed=old is not None)


def is_run_file(name: str, command: str) -> bool:
    """True if a run of this command writes a file of this path in its folder before it finishes."""
    patterns = (*RUN_FILES, *(WORK_FILES if command == "prepare" else TRAINING_FILES))
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _written(folder: Path, metadata: dict[str, Any]) -> list[str]:
    """The files in a run's folder that the run wrote, according to its record and the layout."""
    recorded = metadata.get("files")
    if recorded is None and metadata["status"] == "finished":  # written by a version that did not list them
        recorded = [
            n for n in files_under(folder) if any(re.fullmatch(p, n) for p in _results(metadata["recipe"]))
        ]
    if not isinstance(recorded, dict):
        recorded = dict.fromkeys(recorded or ())
    command = metadata["recipe"]["command"]
    works = command == "prepare" and metadata["status"] != "finished"
    written = []
    for name in files_under(folder):
        link = (folder / name).is_symlink()
        if (
            (name in recorded and _is_as_recorded(folder / name, recorded[name]))
            or is_run_file(name, command)
            or (works and re.fullmatch(UNFINISHED_WORK, name))
            or (link and re.fullmatch(_FOLDERS, name))
        ):
            written.append(name)
    return [name for name in written if not name.startswith(f"{OLD}/")]


def _is_as_recorded(path: Path, digest: Any) -> bool:
    """True unless the file is the user's own; the record may have been copied from another folder.

    A card has no digest, because `stzoo card` rewrites it, and is recognised by the word stzoo.
    """
    if path.is_symlink():  # only the link is moved
        return True
    if digest:
        return sha256(path) == digest
    return path.name != "README.md" or b"stzoo" in path.read_bytes()


def _results(recipe: dict[str, Any]) -> tuple[str, ...]:
    return PREPARED_FILES if recipe["command"] == "prepare" else MODEL_FILES


def _check_free(folder: Path, metadata: dict[str, Any], settings: Settings) -> None:
    """Refuses a folder in which the run would overwrite files that it did not write."""
    ours = set(_written(folder, metadata))
    recipe = settings.dump()
    needed = _results(recipe)
    blocked = [
        name
        for name in files_under(folder)
        if name not in ours
        and (
            any(re.fullmatch(pattern, name) for pattern in needed)
            or re.fullmatch(_FOLDERS, name)
            or re.match(r"teacher/|episodes/\d+/", name)
            or is_run_file(name, recipe["command"])
        )
        and not name.startswith(".stzoo")
    ]
    if blocked:
        raise OutputError(
            f"{folder} contains files that this run would overwrite and that no run wrote, or that were "
            f"changed since: {', '.join(blocked)}. Move them to another folder, or choose another --output."
        )


def _check_finished(folder: Path, metadata: dict[str, Any]) -> None:
    """Checks that the files of a finished run are complete and unchanged.

    Raises:
        OutputError: If a file is missing or was changed.
    """
    files = metadata.get("files")
    if files is None:  # written by a version that did not list them
        prepared = metadata["recipe"]["command"] == "prepare"
        suffix, names = (".parquet" if prepared else ".safetensors"), files_under(folder)
        results = [name for name in names if any(re.fullmatch(p, name) for p in _results(metadata["recipe"]))]
        missing = [] if prepared or "modules.json" in results else ["modules.json"]
        missing += [] if any(name.endswith(suffix) for name in results) else [f"*{suffix}"]
        changed: list[str] = []
    else:
        written = {name: digest for name, digest in files.items() if digest}
        missing = [name for name in written if not (folder / name).is_file()]
        weights = [name for name in written if name.endswith((".safetensors", ".parquet"))]
        changed = [n for n in weights if n not in missing and sha256(folder / n) != written[n]]
    if missing or changed:
        faults = [f"{', '.join(missing)} missing"] * bool(missing)
        faults += [f"{', '.join(changed)} changed"] * bool(changed)
        raise OutputError(
            f"the run in {folder} is finished, but its files are incomplete or damaged: {'; '.join(faults)}. "
            "Restore them from a copy, or remove the changed files and run again with --overwrite."
        )


def _set_aside(folder: Path, metadata: dict[str, Any]) -> None:
    """Moves the files of a run into the folder OLD, the record first; see `_recover`."""
    old = folder / OLD
    if old.is_symlink():
        old.unlink()
    shutil.rmtree(old, ignore_errors=True)
    old.mkdir()
    move_files(folder, sorted(_written(folder, metadata), key=lambda name: name != RECORD), old)


def _put_back(folder: Path) -> None:
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


def _recover(folder: Path) -> None:
    """Moves an old run back if --overwrite was killed after setting it aside, before a new one began."""
    if not os.path.lexists(folder / RECORD) and is_record(read_record(folder / OLD / RECORD)):
        _put_back(folder)
    elif (folder / OLD).is_dir() and not (folder / OLD).is_symlink():
        with contextlib.suppress(OSError):  # it is not empty
            (folder / OLD).rmdir()


def _clear_drafts(folder: Path) -> None:
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


def _read(folder: Path) -> dict[str, Any] | None:
    """Reads the record of the run in a folder; None if there is no run.

    Raises:
        OutputError: If run.json is not a record that stzoo wrote.
    """
    path = folder / RECORD
    if not os.path.lexists(path):
        return None
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"{path} cannot be read: {first_line(error)}. Choose another --output.") from None
    if not is_record(metadata):
        raise OutputError(
            f"{path} was not written by stzoo, so {folder} is left unchanged. Choose another --output."
        )
    return dict(metadata)


def is_record(metadata: Any) -> bool:
    """True if the value is the content of a run.json that stzoo wrote."""
    if not isinstance(metadata, dict):
        return False
    recipe, made_by, files = (metadata.get(name) for name in ("recipe", "versions", "files"))
    used = metadata.get("components", [])
    return (
        metadata.get("schema_version") == SCHEMA_VERSION
        and metadata.get("status") in ("running", "failed", "interrupted", "finished")
        and isinstance(recipe, dict)
        and recipe.get("command") in ("pretrain", "finetune", "prepare")
        and isinstance(made_by, dict)
        and "stzoo" in made_by
        and (files is None or isinstance(files, dict))
        and type(metadata.get("seconds", 0)) in (int, float)
        and isinstance(used, list)
        and all(isinstance(one, dict) and {"kind", "name", "plugin"} <= one.keys() for one in used)
    )


def _check_resumable(folder: Path, old: dict[str, Any], settings: Settings, resume: bool) -> None:
    if not resume:
        what = "a finished run" if old.get("status") == "finished" else "an unfinished run"
        raise OutputError(
            f"{folder} contains {what}. Continue it with --resume, replace it with --overwrite, or choose "
            "another --output."
        )
    then, now = _full_names(old["recipe"], old.get("components", ())), _full_names(settings.dump())
    for name in FREE:
        then.pop(name, None)
        now.pop(name, None)
    _check_same(folder, then, now, "settings")


def _check_same(folder: Path, then: dict[str, Any], now: dict[str, Any], what: str) -> None:
    check_manifest(
        folder,
        then,
        finite(now),
        exact=True,
        fault=f"contains a run with other {what}",
        advice=f"Resume it with its own {what}, or replace it with --overwrite.",
    )


def _full_names(recipe: dict[str, Any], used: Sequence[Mapping[str, str]] = ()) -> dict[str, Any]:
    """The settings with the full name of each component, PLUGIN:NAME; a recipe may omit the plugin."""
    full = dict(recipe)
    for kind in ("objective", "pooling", "balancer", "preparation"):
        if isinstance(full.get(kind), str):
            full[kind] = manager.full_name(kind, full[kind], used)
    for field in ("losses", "loss_options"):
        if isinstance(full.get(field), dict):
            full[field] = {
                manager.full_name("loss", name, used): value for name, value in full[field].items()
            }
    return full


def earlier(base: str | Path) -> list[dict[str, Any]]:
    """The records, without logs, of the runs that made a model, oldest first; [] if no run made it."""
    metadata = read_record(Path(base) / RECORD)
    if metadata.get("status") != "finished" or "recipe" not in metadata:
        return []
    before = metadata.pop("before", [])
    return [*before, _without_logs(metadata)]


def imported(base: str | Path) -> dict[str, Any] | None:
    """The published checkpoint that `stzoo import` made a model of; None if it was not imported."""
    return read_record(Path(base) / IMPORTED).get("imported")


def read_record(path: Path, kind: type = dict) -> Any:
    """Reads a JSON record of a model folder; an empty `kind` if it is missing or not of that type."""
    record = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        record = json.loads(path.read_text(encoding="utf-8"))
    return record if isinstance(record, kind) else kind()


def _without_logs(metadata: dict[str, Any]) -> dict[str, Any]:
    short = {key: value for key, value in metadata.items() if key not in ("log", "files")}
    if "episodes" in short:
        short["episodes"] = [_without_logs(episode) for episode in short["episodes"]]
    return short


def finite(value: Any) -> Any:
    """Replaces NaN and infinity, which JSON has no form for, by None."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def versions() -> dict[str, str]:
    """The installed versions of Python and of the packages that a model depends on."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed


def _hardware() -> dict[str, Any]:
    hardware: dict[str, Any] = {"machine": platform.machine(), "cpus": os.cpu_count()}
    if torch.cuda.is_available():
        hardware |= {"gpu": torch.cuda.get_device_name(), "gpus": torch.cuda.device_count()}
    return hardware
