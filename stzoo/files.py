"""Files that are whole or absent, folders that one run holds, fingerprints of what is inside them."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import OutputError

# what the writers of torch, safetensors and tokenizers, which raise no OSError, say of a full disk
_DISK = (
    *("No space left", "os error 28", "file write failed", "failed writing file", "unexpected pos"),
    *("basic_ios::clear", "PytorchStreamWriter failed"),
)


def is_disk_full(error: BaseException) -> bool:
    """True if a writer failed because there is no space left, as far as its error tells."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(words in str(error) for words in _DISK)


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turns what goes wrong with the disk in the block into an OutputError that names `path`.

    Raises:
        OutputError: if the disk is full or `path` cannot be written.
    """
    try:
        yield
    except OSError as error:
        of = f" ({error.filename})" if error.filename and str(error.filename) not in str(path) else ""
        raise OutputError(f"{path} could not be written: {error.strerror or error}{of}.") from error
    except Exception as error:
        if is_disk_full(error):
            raise OutputError(f"{path} could not be written: No space left on device.") from error
        raise


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path beside `path` and renames it to `path` when the block ends well.

    Raises:
        OutputError: if the disk is full or the folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield draft
            with draft.open("rb") as written:
                os.fsync(written.fileno())
            draft.replace(path)
    finally:
        with contextlib.suppress(OSError):  # where even the folder is none
            draft.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Gives a temporary folder beside `path` that replaces `path` when the block ends well.

    Raises:
        OutputError: if the disk is full or the folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    draft = None
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
            draft.chmod(0o777 & ~_umask())
            yield draft
            if path.exists():
                old = draft.with_suffix(".old")
                path.rename(old)
                draft.rename(path)
                shutil.rmtree(old)
            else:
                draft.rename(path)
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_json(path: str | Path, value: Any) -> None:
    """Writes indented UTF-8 JSON, whole or not at all. NaN and infinity are refused."""
    with whole_file(path) as draft:
        draft.write_text(
            json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )


@contextlib.contextmanager
def held(folder: str | Path) -> Iterator[Path]:
    """Holds an output folder for this process; it is made if it is not there.

    Raises:
        OutputError: if another living process holds it, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".stzoo.lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(
            f"{folder} is in use by another run. Wait for it to end, or choose another folder."
        ) from None
    except OSError as error:
        raise OutputError(f"{folder} cannot be used as output: {error.strerror or error}.") from error
    try:
        yield folder
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Of a file's bytes, 64 hex digits; it is not held in memory."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def fingerprint(*paths: str | Path) -> str:
    """SHA-256 (64 hex digits) over the names and bytes of files, folders walked in name order."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            digest.update(str(file.relative_to(path.parent)).encode() + b"\0")
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
