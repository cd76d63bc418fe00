"""A training run's folder: who holds it, what made it, whether it can go on."""

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
from stzoo.training.settings import (
    SCHEMA_VERSION,
    FinetuneSettings,
    PrepareSettings,
    PretrainSettings,
    Settings,
)
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

OLD = ".stzoo-old"  # where an overwritten run waits until the new one has read its inputs
MODEL_DRAFT = ".model.part"  # a finished model or data set on its way to the top of the folder
# of an episode's folder: what is encoded and found on the way to the negatives
SCRATCH = r"(?:[^/]*negatives\.parts|embeddings/[^/]+/[^/]+)/[^/]+\.(?:json|safetensors|lock)"
_CHECKPOINT = r"(?:damaged-)?checkpoint-\d+(?:-\d+)?"
# what any run, a training run and a preparation write before they are finished: regular expressions of paths
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
WORK_FILES = (  # what remains of a preparation that a kill stopped at its very end
    r"work/(?:rows-\d{9}|words)\.parquet|work/(?:bm25|embeddings)/.*\.(?:safetensors|npy|json|lock)",
)
UNFINISHED_WORK = r"work/.*\.(?:parquet|safetensors|npy|json|lock)"  # those of plugins, too
PREPARED_FILES = (r"README\.md", r"passages-\d+-of-\d+\.parquet")
_FOLDERS = (  # which a file or a link may stand in the place of
    rf"checkpoints(?:/{_CHECKPOINT})?|episodes(?:/\d+(?:/(?:checkpoints|embeddings))?)?|teacher|work|pretraining"
    r"|exact|" + re.escape(MODEL_DRAFT)
)
# settings that name what is read; the further ones of a plugin's preparation are taken for such
INPUTS = ("base", "model", "corpus", "data", "dev_data", "probe", "teacher", "tokenizer")
_CORE = {name for kind in (PretrainSettings, FinetuneSettings, PrepareSettings) for name in kind.model_fields}
_CORE |= {"command", "schema_version"}
# settings that may change between a kill and a resume, because they change no weight by more than rounding
FREE = {"log_steps", "save_steps", "save_minutes", "keep_checkpoints", "report_to", "workers", "threads"}
PACKAGES = ("stzoo", "torch", "transformers", "sentence-transformers", "datasets", "tokenizers", "numpy")


class Run:
    """A run that holds its output folder.

    Attributes:
        folder: the output.
        goes_on: True if it resumes an earlier, unfinished run.
        facts: what run.json will hold.
        components: the parts of plugins that this process has used so far, with distribution and version.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], goes_on: bool):
        self.folder, self.facts, self.resumed = folder, facts, goes_on
        self.components: list[dict[str, str]] = []
        self._begun = time.monotonic() - facts.get("seconds", 0)
        self._recorded = False  # True once this process has written run.json
        self._has_inputs = False  # True once this process has read its inputs

    def record(self, **facts: Any) -> None:
        """Adds facts and, in the first process, writes run.json."""
        before = self.facts.get("components", [])
        used = [one for one in self.components if one not in before]
        self.facts = finite(self.facts | {"components": [*before, *used]} | facts)
        if not is_main_process():
            return
        self.facts["seconds"] = round(time.monotonic() - self._begun, 1)
        write_json(self.folder / RECORD, self.facts)
        self._recorded = True

    def record_inputs(self, **facts: Any) -> None:
        """Adds what the run is made from; from here on, what it overwrites is gone.

        Raises:
            OutputError: if it goes on from other inputs.
        """
        for name, now in facts.items() if self.resumed else ():
            before = self.facts.get(name)
            if before is not None and before != finite(now):
                raise OutputError(
                    f"{self.folder} holds a run whose {name} was another ({before} then, {now} now). "
                    "Resume it with that one, or replace it with --overwrite."
                )
        self.facts.pop("error", None)  # of a run that failed before
        self.record(status="running", **facts)
        self._has_inputs = True
        if is_main_process() and not (self.folder / OLD).is_symlink():
            shutil.rmtree(self.folder / OLD, ignore_errors=True)

    def install(self, made: Path, also: Sequence[str] = ()) -> None:
        """Moves finished files from a folder inside this one to the top; modules.json goes last.

        So the folder is no model until all of it is there, and a kill in between is mended by a resume. The
        record names the files first, with their SHA-256, so that no later command takes them for the user's.

        Args:
            made: the folder; removed at the end.
            also: names of files that the caller will write at the top.

        Raises:
            OutputError: if another file stands in the way of one of them; nothing is moved.
        """
        names = sorted(files_under(made), key=lambda name: name == "modules.json")
        known = self.facts.get("files", {})
        if blocked := [name for name in (*names, *also) if name not in known and self._is_taken(name)]:
            raise OutputError(
                f"{self.folder} has files that the run did not write and that stand in its way: "
                f"{', '.join(blocked)}. Move them away, then --resume."
            )
        self.record(files={**known, **dict.fromkeys(also), **{n: sha256(made / n) for n in names}})
        move_files(made, names, self.folder)
        made.rmdir()

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
    """Takes the output folder for a run.

    A run that fails after it has read its inputs keeps its record, with the status "failed" or
    "interrupted" and the reason. One that fails before removes what it has written, and nothing else.

    Args:
        output: the folder; made if it is not there.
        settings: the run's.
        resume: go on with the unfinished run that is there, or begin if there is none.
        overwrite: replace the run that is there. Files that no run wrote stay.
        worth: what of a run that fails before it has read all its inputs is worth keeping, as patterns of
            paths.

    Raises:
        OutputError: if the folder is in use, is or contains an input, holds another run's results, or holds
            something else.
        RecipeError: if both `resume` and `overwrite` are set.
    """
    check_resume(resume, overwrite)
    output = check_output(output, kind="run", inputs=_inputs(settings))
    if not is_main_process():
        # The first holds the folder and writes; the others only need to agree with it on where to begin.
        facts = _read(output) if resume else None
        yield Run(output, facts or {"status": "running", "recipe": settings.dump()}, goes_on=resume)
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
    """Values of the settings that may be paths of what the run reads."""
    plain = settings.dump()
    named = [name for name in plain if name in INPUTS or name not in _CORE]
    found = [plain[name] for name in named] + list(plain.get("options", {}).values())
    for task in plain.get("tasks", ()):
        found += [task.get(name) for name in INPUTS]
    return [one for value in found for one in (value if isinstance(value, list) else [value])]


def _matches(folder: Path, patterns: Sequence[str]) -> set[Path]:
    return {path for one in patterns for path in folder.glob(one)}


def _end_failed(run: Run, error: BaseException, before: set[str], *, has_more: bool) -> None:
    """Records why a run failed, or removes what this process has made if that is nothing of worth.

    Args:
        run: that failed.
        error: why.
        before: the files that were there when the run began.
        has_more: True if the process has made something that is worth keeping.
    """
    is_mistake = isinstance(error, StzooError) and not isinstance(error, TrainingError | OutputError)
    has_begun = run._has_inputs and (not is_mistake or bool(run.facts.get("log")))
    if run.resumed or has_begun or has_more:
        if run._recorded and run.facts["status"] != "finished":
            failed = isinstance(error, Exception)
            kind = type(error).__name__
            text = str(error) if isinstance(error, StzooError) else f"{kind}: {first_line(error)}"
            reason = text if failed else "Ctrl-C" if kind == "KeyboardInterrupt" else "SIGTERM"
            with contextlib.suppress(OutputError):  # the disk is full, and `error` says so
                run.record(status="failed" if failed else "interrupted", error=reason)
        return
    command = run.facts["recipe"]["command"]
    made = [name for name in files_under(run.folder) if name not in before and is_run_file(name, command)]
    remove_files(run.folder, made)
    for name in ("checkpoints", "work"):
        with contextlib.suppress(OSError):  # it is not empty, or not there
            (run.folder / name).rmdir()
    _put_back(run.folder)


def _open(folder: Path, settings: Settings, resume: bool, overwrite: bool) -> Run:
    _mend(folder)
    old = _read(folder)
    if old is None and any(not entry.name.startswith(".stzoo") for entry in folder.iterdir()):
        raise OutputError(f"{folder} is not empty and holds no run of stzoo. Choose another --output.")
    if old is not None:
        _clear_drafts(folder)
        if not overwrite:
            _may_go_on(folder, old, settings, resume)
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
    facts = old or {
        "schema_version": SCHEMA_VERSION,
        "status": "running",
        "recipe": settings.dump(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "hardware": _hardware(),
    }
    return Run(folder, facts, goes_on=old is not None)


def is_run_file(name: str, command: str) -> bool:
    """True if a run of this command writes a file of this path in its folder before it is finished."""
    patterns = (*RUN_FILES, *(WORK_FILES if command == "prepare" else TRAINING_FILES))
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _written(folder: Path, facts: dict[str, Any]) -> list[str]:
    """The files in a run's folder that the run wrote, as far as its record and the layout say."""
    recorded = facts.get("files")
    if recorded is None and facts["status"] == "finished":  # by a version that did not list them
        recorded = [
            n for n in files_under(folder) if any(re.fullmatch(p, n) for p in _results(facts["recipe"]))
        ]
    if not isinstance(recorded, dict):
        recorded = dict.fromkeys(recorded or ())
    command = facts["recipe"]["command"]
    works = command == "prepare" and facts["status"] != "finished"
    found = []
    for name in files_under(folder):
        link = (folder / name).is_symlink()
        if (
            (name in recorded and _is_as_recorded(folder / name, recorded[name]))
            or is_run_file(name, command)
            or (works and re.fullmatch(UNFINISHED_WORK, name))
            or (link and re.fullmatch(_FOLDERS, name))
        ):
            found.append(name)
    return [name for name in found if not name.startswith(f"{OLD}/")]


def _is_as_recorded(path: Path, digest: Any) -> bool:
    """True unless a file is the user's own: the record may be a copy from another folder.

    A card is written again by `stzoo card`, so it has no digest; it names stzoo.
    """
    if path.is_symlink():  # only the link is moved
        return True
    if digest:
        return sha256(path) == digest
    return path.name != "README.md" or b"stzoo" in path.read_bytes()


def _results(recipe: dict[str, Any]) -> tuple[str, ...]:
    return PREPARED_FILES if recipe["command"] == "prepare" else MODEL_FILES


def _check_free(folder: Path, facts: dict[str, Any], settings: Settings) -> None:
    """Refuses a folder in which other files have names that the run will write."""
    ours = set(_written(folder, facts))
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
            f"{folder} has files that no run wrote, or that were changed since, and that stand in the way of "
            f"what this run writes: {', '.join(blocked)}. Move them away, or choose another --output."
        )


def _check_finished(folder: Path, facts: dict[str, Any]) -> None:
    """Sees that the files of a finished run are there and whole."""
    files = facts.get("files")
    if files is None:  # by a version that did not list them
        prepared = facts["recipe"]["command"] == "prepare"
        suffix, names = (".parquet" if prepared else ".safetensors"), files_under(folder)
        own = [name for name in names if any(re.fullmatch(p, name) for p in _results(facts["recipe"]))]
        missing = [] if prepared or "modules.json" in own else ["modules.json"]
        missing += [] if any(name.endswith(suffix) for name in own) else [f"*{suffix}"]
        changed: list[str] = []
    else:
        written = {name: digest for name, digest in files.items() if digest}
        missing = [name for name in written if not (folder / name).is_file()]
        weights = [name for name in written if name.endswith((".safetensors", ".parquet"))]
        changed = [n for n in weights if n not in missing and sha256(folder / n) != written[n]]
    if missing or changed:
        faults = [f"{', '.join(missing)} missing"] * bool(missing)
        faults += [f"{', '.join(changed)} changed since"] * bool(changed)
        raise OutputError(
            f"{folder / RECORD} says that the run is finished, but its files are not whole: "
            f"{'; '.join(faults)}. Restore them from a copy, or remove what has changed and run again with "
            "--overwrite."
        )


def _set_aside(folder: Path, facts: dict[str, Any]) -> None:
    """Moves the files of a run into OLD, the record first; see _mend."""
    old = folder / OLD
    if old.is_symlink():
        old.unlink()
    shutil.rmtree(old, ignore_errors=True)
    old.mkdir()
    move_files(folder, sorted(_written(folder, facts), key=lambda name: name != RECORD), old)


def _put_back(folder: Path) -> None:
    old = folder / OLD
    if not old.is_dir() or old.is_symlink():
        return
    names = sorted(files_under(old), key=lambda name: name == RECORD)
    if taken := [name for name in names if os.path.lexists(folder / name)]:
        raise OutputError(
            f"{old} holds a run that was to be overwritten. These files are in the way of putting it back: "
            f"{', '.join(taken)}. Move them away."
        )
    move_files(old, names, folder)
    old.rmdir()


def _mend(folder: Path) -> None:
    """Puts back what a kill in the midst of --overwrite has left: an old run aside, and no new one begun."""
    if not os.path.lexists(folder / RECORD) and is_record(told(folder / OLD / RECORD)):
        _put_back(folder)
    elif (folder / OLD).is_dir() and not (folder / OLD).is_symlink():
        with contextlib.suppress(OSError):  # it is not empty
            (folder / OLD).rmdir()


def _clear_drafts(folder: Path) -> None:
    """Removes what a killed process has left half-written in a run's folders, and the model on its way."""
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
    """The record of the run in a folder; None if there is none.

    Raises:
        OutputError: if run.json is not a record that stzoo wrote.
    """
    path = folder / RECORD
    if not os.path.lexists(path):
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"{path} cannot be read: {first_line(error)}. Choose another --output.") from None
    if not is_record(facts):
        raise OutputError(
            f"{path} was not written by a run of stzoo, so nothing in {folder} is touched. Choose another "
            "--output."
        )
    return dict(facts)


def is_record(facts: Any) -> bool:
    """True if this is the content of a run.json that stzoo wrote."""
    if not isinstance(facts, dict):
        return False
    recipe, made_by, files = (facts.get(name) for name in ("recipe", "versions", "files"))
    used = facts.get("components", [])
    return (
        facts.get("schema_version") == SCHEMA_VERSION
        and facts.get("status") in ("running", "failed", "interrupted", "finished")
        and isinstance(recipe, dict)
        and recipe.get("command") in ("pretrain", "finetune", "prepare")
        and isinstance(made_by, dict)
        and "stzoo" in made_by
        and (files is None or isinstance(files, dict))
        and type(facts.get("seconds", 0)) in (int, float)
        and isinstance(used, list)
        and all(isinstance(one, dict) and {"kind", "name", "plugin"} <= one.keys() for one in used)
    )


def _may_go_on(folder: Path, old: dict[str, Any], settings: Settings, resume: bool) -> None:
    before, now = old.get("recipe", {}), settings.dump()
    then, new = _full_names(before, old.get("components", ())), _full_names(now)
    differing = sorted(k for k in then.keys() | new.keys() if k not in FREE and then.get(k) != new.get(k))
    if not resume:
        what = "a finished run" if old.get("status") == "finished" else "an unfinished run"
        raise OutputError(f"{folder} holds {what}. Use --resume to go on, --overwrite, or another --output.")
    if differing:
        shown = "; ".join(f"{k}: {before.get(k)!r} then, {now.get(k)!r} now" for k in differing)
        raise OutputError(
            f"{folder} holds a run with other settings ({shown}). Resume it with its settings, or replace "
            "it with --overwrite."
        )


def _full_names(recipe: dict[str, Any], used: Sequence[Mapping[str, str]] = ()) -> dict[str, Any]:
    """Settings in which each component is named with its plugin, as it may or may not be in a recipe."""
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
    """The records of the runs that made a base, the first one first, without their logs; [] of others."""
    facts = told(Path(base) / RECORD)
    if facts.get("status") != "finished" or "recipe" not in facts:
        return []
    before = facts.pop("before", [])
    return [*before, _without_logs(facts)]


def imported(base: str | Path) -> dict[str, Any] | None:
    """Which published checkpoint a base is, as `stzoo import` recorded it; None of others."""
    return told(Path(base) / IMPORTED).get("imported")


def told(record: Path, kind: type = dict) -> Any:
    """What a record beside a model says; empty where there is none, or one that is no JSON of this kind."""
    found = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(record.read_text(encoding="utf-8"))
    return found if isinstance(found, kind) else kind()


def _without_logs(facts: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in facts.items() if key not in ("log", "files")}
    if "episodes" in kept:
        kept["episodes"] = [_without_logs(episode) for episode in kept["episodes"]]
    return kept


def finite(value: Any) -> Any:
    """The value with None where a number is no number, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def versions() -> dict[str, str]:
    """The installed versions of what a model depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _hardware() -> dict[str, Any]:
    facts: dict[str, Any] = {"machine": platform.machine(), "cpus": os.cpu_count()}
    if torch.cuda.is_available():
        facts |= {"gpu": torch.cuda.get_device_name(), "gpus": torch.cuda.device_count()}
    return facts
