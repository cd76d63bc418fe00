"""A training run's folder: who holds it, what made it, whether it can go on."""

import contextlib
import datetime
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from . import host
from .errors import OutputError
from .files import held, write_json
from .recipe import SCHEMA_VERSION, Settings

RECORD = "run.json"
IMPORTED = "import.json"  # beside a model that `stzoo import` made
MERGED = "merge.json"  # beside one that is a mean of others
OLD = ".stzoo-old"  # where an overwritten run waits until the new one has read its inputs
# settings that may change between a kill and a resume, because they change no weight by more than rounding
FREE = {"log_steps", "save_steps", "keep_checkpoints", "report_to", "workers", "threads"}
PATIENCE = datetime.timedelta(days=30)  # of the processes that wait while the first one mines
PACKAGES = ("stzoo", "torch", "transformers", "sentence-transformers", "datasets", "tokenizers", "numpy")


def is_first_process() -> bool:
    """False in every process but the first of those that torchrun or accelerate started together."""
    return int(os.environ.get("RANK", "0")) == 0


def processes() -> int:
    """How many processes torchrun or accelerate started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def first_process_first(cpu: bool) -> Iterator[None]:
    """Lets the first process go through the block before the others do.

    Args:
        cpu: True if the processes compute on the CPU.
    """
    if processes() == 1:
        yield
        return
    from accelerate import PartialState
    from torch import distributed as dist

    PartialState(cpu=cpu)  # brings them together, with the time limit that their other exchanges keep
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    if not is_first_process():
        dist.barrier(group)
    yield
    if is_first_process():
        dist.barrier(group)
    dist.destroy_process_group(group)


class Run:
    """A run that holds its output folder.

    Attributes:
        folder: the output.
        goes_on: True if it resumes an earlier, unfinished run.
        facts: what run.json will hold.
        components: the parts of plugins that this process has used so far, with distribution and version.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], goes_on: bool):
        self.folder, self.facts, self.goes_on = folder, facts, goes_on
        self.components: list[dict[str, str]] = []
        self._begun = time.monotonic() - facts.get("seconds", 0)

    def record(self, **facts: Any) -> None:
        """Adds facts and, in the first process, writes run.json."""
        before = self.facts.get("components", [])
        used = [one for one in self.components if one not in before]
        self.facts = finite(self.facts | {"components": [*before, *used]} | facts)
        if not is_first_process():
            return
        self.facts["seconds"] = round(time.monotonic() - self._begun, 1)
        write_json(self.folder / RECORD, self.facts)

    def record_inputs(self, **facts: Any) -> None:
        """Adds what the run is made from; from here on, what it overwrites is gone.

        Raises:
            OutputError: if it goes on from other inputs.
        """
        for name, now in facts.items() if self.goes_on else ():
            before = self.facts.get(name)
            if before is not None and before != finite(now):
                raise OutputError(
                    f"{self.folder} holds a run whose {name} was another ({before} then, {now} now). "
                    "Resume it as it was, or begin anew with --overwrite."
                )
        self.record(**facts)
        if is_first_process():
            shutil.rmtree(self.folder / OLD, ignore_errors=True)

    def install(self, model: Path) -> None:
        """Moves an exported model's files from a folder inside this one to the top; modules.json goes last.

        So the folder is no model until all of it is there, and a kill in between is mended by a resume.
        """
        for entry in sorted(model.iterdir(), key=lambda path: path.name == "modules.json"):
            target = self.folder / entry.name
            if target.is_dir():
                shutil.rmtree(target)
            entry.replace(target)
        model.rmdir()


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

    Args:
        output: the folder; made if it is not there.
        settings: the run's.
        resume: go on with the unfinished run that is there, or begin if there is none.
        overwrite: remove the run that is there.
        worth: what of an unfinished run is worth keeping when it fails, as patterns of paths; without any,
            the folder is cleared.

    Raises:
        OutputError: if the folder is in use, holds another run's results, or holds something else.
    """
    output = Path(output)
    if not is_first_process():
        # The first holds the folder and writes; the others only need to agree with it on where to begin.
        facts = _read(output) if resume else None
        yield Run(output, facts or {"status": "running", "recipe": settings.dump()}, goes_on=resume)
        return
    fresh = not output.exists()
    try:
        with held(output) as folder:
            _clear_drafts(folder)
            run = _open(folder, settings, resume, overwrite)
            try:
                with host.recording() as run.components:
                    yield run
            except BaseException:
                if not any(any(folder.glob(one)) for one in worth) and not (folder / "modules.json").exists():
                    _clear(folder)  # nothing of worth yet: the place is left as it was found
                    _put_back(folder)
                raise
            finally:
                _clear_drafts(folder)
    finally:
        if fresh and output.is_dir() and not any(output.iterdir()):
            output.rmdir()


def _open(folder: Path, settings: Settings, resume: bool, overwrite: bool) -> Run:
    _mend(folder)
    old = _read(folder)
    if old is None and any(not entry.name.startswith(".stzoo") for entry in folder.iterdir()):
        raise OutputError(f"{folder} is not empty and holds no run of stzoo. Choose another --output.")
    if old is not None and overwrite:
        _set_aside(folder)
        old = None
    if old is not None:
        _may_go_on(folder, old, settings, resume)
    facts = old or {
        "schema_version": SCHEMA_VERSION,
        "status": "running",
        "recipe": settings.dump(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "hardware": _hardware(),
    }
    return Run(folder, facts, goes_on=old is not None)


def _set_aside(folder: Path) -> None:
    shutil.rmtree(folder / OLD, ignore_errors=True)
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".stzoo")]
    (folder / OLD).mkdir()
    for entry in sorted(entries, key=lambda path: path.name != RECORD):  # see _mend
        entry.rename(folder / OLD / entry.name)


def _put_back(folder: Path) -> None:
    if (folder / OLD).is_dir():
        for entry in sorted((folder / OLD).iterdir(), key=lambda path: path.name == RECORD):
            entry.rename(folder / entry.name)
        (folder / OLD).rmdir()


def _mend(folder: Path) -> None:
    """Puts back what a kill in the midst of --overwrite has left: an old run aside, and no new one begun."""
    if (folder / OLD).is_dir() and not (folder / RECORD).exists():
        _put_back(folder)


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if not entry.name.startswith(".stzoo"):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _clear_drafts(folder: Path) -> None:
    for draft in folder.glob(".*.part"):
        shutil.rmtree(draft) if draft.is_dir() else draft.unlink()


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        facts: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise OutputError(f"{folder / RECORD} cannot be read: {error}. Choose another --output.") from None
    return facts


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
            f"{folder} holds a run with other settings ({shown}). Resume it as it was, or begin anew with "
            "--overwrite."
        )


def _full_names(recipe: dict[str, Any], used: Sequence[Mapping[str, str]] = ()) -> dict[str, Any]:
    """Settings in which each component is named with its plugin, as it may or may not be in a recipe."""
    full = dict(recipe)
    for kind in ("objective", "pooling", "balancer", "preparation"):
        if isinstance(full.get(kind), str):
            full[kind] = host.full_name(kind, full[kind], used)
    for field in ("losses", "loss_options"):
        if isinstance(full.get(field), dict):
            full[field] = {host.full_name("loss", name, used): value for name, value in full[field].items()}
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


def told(record: Path) -> dict[str, Any]:
    """What a record beside a model says; {} where there is none, or none of ours."""
    found = None
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(record.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def _without_logs(facts: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in facts.items() if key != "log"}
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
    import torch

    facts: dict[str, Any] = {"machine": platform.machine(), "cpus": os.cpu_count()}
    if torch.cuda.is_available():
        facts |= {"gpu": torch.cuda.get_device_name(), "gpus": torch.cuda.device_count()}
    return facts
