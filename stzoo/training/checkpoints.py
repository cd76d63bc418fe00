"""Checkpoints of a training run: complete or absent, and verified before they are used.

RUN/checkpoints/checkpoint-STEP/ contains the weights (state.safetensors), the states of optimizer, scheduler,
random generators and trainer, the sums from which the next log line is computed and, written last, whole.json
with the SHA-256 of each file. A checkpoint without whole.json is incomplete; one with a file of another
checksum is damaged.
"""

import contextlib
import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import distributed as dist
from transformers.trainer_pt_utils import safe_globals

from stzoo.errors import OutputError, first_line
from stzoo.utils.distributed import is_main_process
from stzoo.utils.files import sha256, write_json
from stzoo.utils.messages import notify

STATE = "state.safetensors"
LOG_SUMS = (
    "log_sums"  # one file per process, like rng_state: log_sums.safetensors or log_sums_RANK.safetensors
)
MARKER = "whole.json"
KEPT = 2  # checkpoints of an unfinished run
NEEDED = {STATE, "optimizer.pt", "scheduler.pt", "trainer_state.json"}
WRITTEN = (
    *(*sorted(NEEDED), "scaler.pt", "rng_state*.pth", f"{LOG_SUMS}*.safetensors", "balancer.safetensors"),
    *(MARKER, ".*.part"),
)


def seal(folder: Path) -> None:
    """Completes a checkpoint: flushes its files to disk, then writes whole.json."""
    files = [file for file in _written(folder) if file.name != MARKER and not file.name.startswith(".")]
    for path in (*files, folder):
        _sync(path)
    write_json(folder / MARKER, {file.name: sha256(file) for file in sorted(files)})
    for path in (folder, folder.parent):
        _sync(path)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return  # Windows cannot open folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _written(folder: Path) -> list[Path]:
    return [file for pattern in WRITTEN for file in folder.glob(pattern) if file.is_file()]


def fault(folder: Path) -> str | None:
    """Describes in a few words why a checkpoint is unusable; None if it is complete and undamaged."""
    try:
        stored = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"{MARKER} cannot be read: {first_line(error)}"
    if not isinstance(stored, dict) or not stored.keys() >= NEEDED:
        return f"{MARKER} is damaged"
    try:
        for name, expected in stored.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if isinstance(expected, int):  # a size, from older versions, which wrote no checksums
                if (folder / name).stat().st_size != expected:
                    return f"{name} is cut short"
                _open(folder / name)
            elif sha256(folder / name) != expected:
                return f"{name} does not match its checksum"
    except Exception as error:  # of any type; torch's message would advise to load the file unsafely
        return f"{name} cannot be read ({type(error).__name__})"
    if any(isinstance(expected, int) for expected in stored.values()):
        notify(f"{folder} was written by an older stzoo, without checksums; its files can be read.")
    return None


def is_whole(folder: Path) -> bool:
    """True if a checkpoint is complete and undamaged."""
    return fault(folder) is None


def _open(file: Path) -> None:
    """Reads a file of a checkpoint without checksums, to see whether it can be read."""
    if file.suffix == ".safetensors":
        load_file(file)
    elif file.suffix == ".json":
        json.loads(file.read_text(encoding="utf-8"))
    elif file.suffix in (".pt", ".pth"):
        with safe_globals():
            torch.load(file, map_location="cpu", weights_only=True)


def last_checkpoint(output: Path) -> Path | None:
    """The newest usable checkpoint of a run; None if none was completed. The main process decides for all.

    Incomplete checkpoints, which a killed run leaves, are removed. Damaged ones are moved to
    checkpoints/damaged-checkpoint-STEP if an older one is usable.

    Raises:
        OutputError: If there are checkpoints, and all of them are damaged.
    """
    if not dist.is_initialized():
        return _find(output)
    answer: list[Path | OutputError | None] = [None]
    if is_main_process():
        try:
            answer = [_find(output)]
        except OutputError as error:
            answer = [error]
    dist.broadcast_object_list(answer, 0)
    if isinstance(answer[0], OutputError):
        raise answer[0]
    return answer[0]


def _find(output: Path) -> Path | None:
    whole, incomplete, damaged = None, [], {}
    for folder in reversed(_numbered(output / "checkpoints")):
        if not (folder / MARKER).exists():
            incomplete.append(folder)
        elif reason := fault(folder):
            damaged[folder] = reason
        else:
            whole = folder
            break
    if damaged and whole is None:
        raise OutputError(
            f"no checkpoint in {output / 'checkpoints'} is usable: "
            + "; ".join(f"{folder.name} is damaged ({reason})" for folder, reason in damaged.items())
            + ". Restore one from a backup, or start again with --overwrite."
        )
    after = f"training continues from {whole.name}" if whole else "training starts from the beginning"
    for folder in incomplete:
        is_ours = bool(_written(folder))
        remove(folder)
        if is_ours:
            rest = " except for files that no run wrote" if folder.exists() else ""
            notify(f"{folder} was not saved completely and was removed{rest}; {after}.")
    for folder, reason in damaged.items():
        notify(f"{folder} is damaged ({reason}) and was moved to {_set_aside(folder).name}; {after}.")
    return whole


def _numbered(folder: Path) -> list[Path]:
    """The folders of checkpoints, complete or not, oldest first."""
    folders = [one for one in folder.glob("checkpoint-*") if one.is_dir() and one.name[11:].isdecimal()]
    return sorted(folders, key=lambda one: int(one.name[11:]))


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    return [one for one in _numbered(folder) if (one / MARKER).exists()]


def _set_aside(folder: Path) -> Path:
    target = folder.with_name(f"damaged-{folder.name}")
    number = 1
    while target.exists():
        number += 1
        target = folder.with_name(f"damaged-{folder.name}-{number}")
    return folder.rename(target)


def remove(folder: Path) -> None:
    """Removes a checkpoint. Files that the trainer did not write stay, and so does their folder."""
    for file in sorted(_written(folder), key=lambda file: file.name != MARKER):  # incomplete from here on
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def rotate(folder: Path, keep: int, best: str | None) -> None:
    """Removes old checkpoints.

    Args:
        folder: Folder that contains the checkpoints.
        keep: Number of checkpoints to keep, the newest and the best among them.
        best: Name of the best checkpoint; None if it is unknown.
    """
    whole = complete(folder)
    old = [one for one in whole[:-1] if one.name != best]
    for one in old[: max(len(whole) - keep, 0)]:
        remove(one)
