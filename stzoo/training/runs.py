"""A run and its lifecycle: how it locks its output folder, starts or resumes, records its state, and ends.

The record (run.json) is read by `records`; `run_files` knows which files of the folder belong to the run.
"""

import contextlib
import datetime
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stzoo.errors import OutputError, StzooError, TrainingError, first_line
from stzoo.plugins import manager
from stzoo.training import records, run_files
from stzoo.training.finetune_settings import FinetuneSettings
from stzoo.training.pretrain_settings import PrepareSettings, PretrainSettings
from stzoo.training.recipes import SCHEMA_VERSION
from stzoo.training.reports import logs_in
from stzoo.training.rerank_settings import RerankSettings
from stzoo.training.settings import Settings
from stzoo.utils.distributed import is_main_process, lost_processes, world_size
from stzoo.utils.files import files_under, lock_folder, move_files, remove_files, sha256, write_json
from stzoo.utils.messages import counted, notify
from stzoo.utils.outputs import RECORD, check_output, check_resume
from stzoo.utils.parts import check_manifest

# settings that name inputs; all settings that a plugin's preparation adds are treated as inputs too
INPUTS = ("base", "model", "corpus", "data", "dev_data", "probe", "retriever", "teacher", "tokenizer")
_KINDS = (PretrainSettings, FinetuneSettings, PrepareSettings, RerankSettings)
_CORE = {name for kind in _KINDS for name in kind.model_fields}
_CORE |= {"command", "schema_version"}
# settings that may differ when a run is resumed, because they change the weights by no more than rounding
FREE = {
    *("log_steps", "save_steps", "save_minutes", "keep_checkpoints", "report_to"),
    *("workers", "threads", "gradient_checkpointing", "shard_model"),
    "keep_base",  # which decides when training is over
}

CONTINUE = "Run the command again with --resume to continue from the last complete checkpoint."


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
        self.metadata = records.finite(self.metadata | {"components": [*before, *used]} | metadata)
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
        if is_main_process() and not (self.folder / run_files.OLD).is_symlink():
            shutil.rmtree(self.folder / run_files.OLD, ignore_errors=True)

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
        metadata = records.read_run_record(output) if resume else None
        with lost_processes(CONTINUE):
            yield Run(output, metadata or {"status": "running", "recipe": settings.dump()}, resumed=resume)
        return
    with lock_folder(output) as folder:
        run = _open(folder, settings, resume, overwrite)
        before, kept = set(files_under(folder)), _matches(folder, worth)
        try:
            loggers = getattr(settings, "report_to", ())
            with (
                manager.recording() as run.components,
                logs_in(folder, loggers),
                lost_processes(CONTINUE),
            ):
                yield run
        except BaseException as error:
            _end_failed(run, error, before, has_more=bool(_matches(folder, worth) - kept))
            raise
        finally:
            run_files.remove_drafts(folder)


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
    new = [name for name in files_under(run.folder) if name not in before]
    remove_files(run.folder, [name for name in new if run_files.is_run_file(name, command)])
    for name in ("checkpoints", "work"):
        with contextlib.suppress(OSError):  # it is not empty, or does not exist
            (run.folder / name).rmdir()
    run_files.put_back(run.folder)


def _open(folder: Path, settings: Settings, resume: bool, overwrite: bool) -> Run:
    run_files.recover(folder)
    old = records.read_run_record(folder)
    if old is None and any(not entry.name.startswith(".stzoo") for entry in folder.iterdir()):
        raise OutputError(f"{folder} is not empty and contains no run of stzoo. Choose another --output.")
    if old is not None:
        run_files.remove_drafts(folder)
        if not overwrite:
            _check_resumable(folder, old, settings, resume)
        if not (resume and old["status"] == "finished"):
            run_files.check_free(folder, old, settings)
    if old is not None and overwrite:
        run_files.set_aside(folder, old)
        old = None
    elif old is not None and old["status"] == "finished":
        run_files.check_finished(folder, old)
    elif old is not None:
        old = {key: value for key, value in old.items() if key != "error"} | {"status": "running"}
    metadata = old or {
        "schema_version": SCHEMA_VERSION,
        "status": "running",
        "recipe": settings.dump(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": records.versions(),
        "hardware": records.hardware(),
    }
    return Run(folder, metadata, resumed=old is not None)


def _check_resumable(folder: Path, old: dict[str, Any], settings: Settings, resume: bool) -> None:
    if not resume:
        if old.get("status") == "finished":
            raise OutputError(
                f"{folder} contains a finished run. Replace it with --overwrite, or choose another --output."
            )
        raise OutputError(
            f"{folder} contains an unfinished run. Continue it with --resume, replace it with --overwrite, "
            "or choose another --output."
        )
    then, now = _fixed(old["recipe"], old.get("components", ())), _fixed(settings.dump())
    if old["status"] != "finished" and _check_processes(folder, old, settings):
        then["accumulation"] = now["accumulation"]
    _check_same(folder, then, now, "settings")


def _check_processes(folder: Path, old: dict[str, Any], settings: Settings) -> bool:
    """Refuses to resume a run on another number of processes, unless its steps stay the same.

    Fine-tuning reads the same batches in the same steps as long as there are as many per step. Pre-training
    groups passages by length for its number of processes, the batches of several tasks are divided among the
    processes, and --cross-device makes the negatives depend on it.

    Returns:
        True if the number differs, and the steps stay the same.
    """
    before, count = old.get("processes"), world_size()
    if before in (None, count):
        return False
    recipe = settings.dump()
    batches = before * old["recipe"]["accumulation"]
    is_exact = isinstance(settings, FinetuneSettings) and not (settings.tasks or settings.cross_device)
    if is_exact and recipe["accumulation"] * count == batches:
        notify(
            f"The run was started on {counted(before, 'process')} and is resumed on {count}. Each step still "
            f"has {counted(batches, 'batch')}. Dropout draws other numbers, and the end of an epoch may "
            "differ by the batches that do not make a whole step."
        )
        return True
    way = f"Resume it on {counted(before, 'process')}"
    if is_exact and batches % count == 0:
        way += f" or with --accumulation {batches // count}, so that each step has the same batches"
    raise OutputError(
        f"{folder} contains a run on {counted(before, 'process')}; {count} would train on other batches. "
        f"{way}, or replace it with --overwrite."
    )


def _check_same(folder: Path, then: dict[str, Any], now: dict[str, Any], what: str) -> None:
    check_manifest(
        folder,
        then,
        records.finite(now),
        exact=True,
        fault=f"contains a run with other {what}",
        advice=f"Resume it with its own {what}, or replace it with --overwrite.",
    )


def _fixed(recipe: dict[str, Any], used: Sequence[Mapping[str, str]] = ()) -> dict[str, Any]:
    """The settings that a resume may not change; components as PLUGIN:NAME, which a recipe may shorten."""
    full = {name: value for name, value in recipe.items() if name not in FREE}
    for kind in ("objective", "pooling", "balancer", "preparation"):
        if isinstance(full.get(kind), str):
            full[kind] = manager.full_name(kind, full[kind], used)
    for field in ("losses", "loss_options"):
        if isinstance(full.get(field), dict):
            full[field] = {
                manager.full_name("loss", name, used): value for name, value in full[field].items()
            }
    return full
