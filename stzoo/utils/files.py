"""Files that are written whole or not at all, locks on folders, and fingerprints of files."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from stzoo.errors import OutputError

LOCK = ".stzoo.lock"
WAIT_S = 0.2  # between two looks at what another process is using

# messages of torch, safetensors and tokenizers for a full disk, for which they raise no OSError
_DISK = (
    *("No space left", "os error 28", "file write failed", "failed writing file", "unexpected pos"),
    *("basic_ios::clear", "PytorchStreamWriter failed"),
)


def is_disk_full(error: BaseException) -> bool:
    """True if writing failed because there is no space left, judging by the error or its message."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(words in str(error) for words in _DISK)


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turns disk errors in the block into an OutputError that names `path`.

    Raises:
        OutputError: If the disk is full or `path` cannot be written.
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
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path that is renamed to `path` if the block succeeds.

    The temporary file is on the same disk, in a private folder next to `path` (see `draft_folder`).

    Raises:
        OutputError: If the disk is full or the folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    with writing(path), draft_folder(path) as box:
        draft = box / NEW
        yield draft
        _install(draft, path)


@contextlib.contextmanager
def claimed_file(path: Path) -> Iterator[Path | None]:
    """Like `atomic_file`, but gives None if another living process is in such a block for the same path.

    The claim is the draft's private folder, here under a fixed name, so it ends with the process at the
    latest. A file system without locks grants every claim. Nothing is renamed if no draft was written.

    Raises:
        OutputError: if the disk is full or the folder cannot be written; nothing is left behind.
    """
    with _open_box(path, claim=True) as box:
        yield box and box / NEW
        if box and (box / NEW).exists():
            with writing(path):
                _install(box / NEW, path)


def _install(draft: Path, path: Path) -> None:
    with draft.open("rb") as written:
        os.fsync(written.fileno())
    if path.suffix == ".safetensors":
        _use_mode_of(draft.with_name(_OWNER), draft)
    draft.replace(path)


def _use_mode_of(other: Path, file: Path) -> None:
    """Gives a file the mode of another. safetensors makes files that only their owner can read."""
    with contextlib.suppress(OSError):  # a file system without modes
        file.chmod(stat.S_IMODE(other.stat().st_mode))


@contextlib.contextmanager
def atomic_folder(path: str | Path, *, replaces: Sequence[str] = ()) -> Iterator[Path]:
    """Yields a temporary folder that replaces `path` if the block succeeds.

    Args:
        path: Folder to write. A symbolic link is replaced; its target is left unchanged.
        replaces: Regular expressions for the relative paths of files in `path` that may be removed.

    Raises:
        OutputError: If `path` contains a file that may not be removed, the disk is full or the folder cannot
            be written; nothing is left behind.
    """
    path = Path(path)
    with writing(path), draft_folder(path) as box:
        clear_drafts(path.parent)
        (box / NEW).mkdir()
        yield box / NEW
        check_replaceable(path, replaces)
        for file in (box / NEW).rglob("*.safetensors"):
            _use_mode_of(box / _OWNER, file)
        _swap(box, path)


def check_replaceable(path: Path, replaces: Sequence[str] = ()) -> None:
    """Refuses a folder with files that may not be removed; see `atomic_folder`.

    Raises:
        OutputError: If there are such files; the message lists them.
    """
    if not os.path.lexists(path) or path.is_symlink():
        return
    if not path.is_dir():
        raise OutputError(f"{path} is a file; expected the name of a folder.")
    patterns = [re.compile(pattern) for pattern in replaces]
    files = files_under(path, empty_folders=True)
    others = [name for name in files if not any(pattern.fullmatch(name) for pattern in patterns)]
    if others:
        raise OutputError(
            f"{path} contains files that stzoo does not replace: {_listed(others)}. Move them to another "
            "folder, or choose another folder."
        )


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# -- drafts

PART = ".stzoo.part"
NEW, _OLD, _OWNER = "new", "old", "owner"
_TEMPORARY = ".tmp"  # prefix of the temporary files that safetensors writes next to its output
_CLAIM = "_claimed"  # in place of a random name, where only one process may write
_cleared: set[Path] = set()  # folders that this process has cleared of drafts
_BOX = re.compile(r"\..*\.[a-z0-9_]{8}" + re.escape(PART))


@contextlib.contextmanager
def draft_folder(path: Path) -> Iterator[Path]:
    """A private folder next to `path`, `.NAME.xxxxxxxx.stzoo.part`, which is removed at the end.

    In it, `new` (see `NEW`) is the draft, `old` is what the draft replaces, and `owner` is locked as long as
    this process lives, so after a SIGKILL the next command that writes there removes the folder. Temporary
    files of libraries (safetensors) are also left in here.
    """
    with _open_box(path) as box:
        assert box is not None, "only a claim is refused"
        yield box


@contextlib.contextmanager
def _open_box(path: Path, *, claim: bool = False) -> Iterator[Path | None]:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.absolute() not in _cleared:  # only once, as thousands of files may be written there
            clear_drafts(path.parent)
        box, owner = _new_box(path, claim)
    if owner is None:
        yield None
        return
    try:
        yield box
    finally:
        shutil.rmtree(box, ignore_errors=True)
        os.close(owner)


def _new_box(path: Path, claim: bool) -> tuple[Path, int | None]:
    prefix = f".{os.fsdecode(os.fsencode(path.name)[:100])}."
    box = path.with_name(f"{prefix}{_CLAIM}{PART}")
    if claim:
        with contextlib.suppress(OSError):  # there is none
            _clear_box(box, without_locks=True)  # if a killed process left it
    while True:
        try:
            if claim:
                box.mkdir()
            else:
                box = Path(tempfile.mkdtemp(prefix=prefix, suffix=PART, dir=path.parent))
        except FileExistsError:  # another process has claimed it
            return box, None
        try:
            owner = _lock(box / _OWNER)
        except FileNotFoundError:  # another process considered it abandoned before it was locked
            continue
        if owner is not None:
            os.write(owner, os.fsencode(path.name))
            return box, owner


def _swap(box: Path, path: Path) -> None:
    try:
        if os.path.lexists(path):
            path.rename(box / _OLD)
        (box / NEW).rename(path)
    except BaseException:
        if os.path.lexists(box / _OLD) and not os.path.lexists(path):
            (box / _OLD).rename(path)
        raise


def clear_drafts(folder: Path) -> None:
    """Removes the drafts of killed processes from a folder, and completes replacements that they began."""
    _cleared.add(folder.absolute())
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        boxes = [Path(e) for e in entries if _BOX.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
        for box in boxes:
            with contextlib.suppress(OSError):  # another user's, or cleared by another process meanwhile
                _clear_box(box)


def _clear_box(box: Path, *, without_locks: bool = False) -> None:
    others = {entry.name for entry in box.iterdir()} - {NEW, _OLD, _OWNER}
    if not all(name.startswith(_TEMPORARY) for name in others):
        return
    owner = _lock(box / _OWNER, without_locks=without_locks)
    if owner is None:
        return
    try:
        name = os.fsdecode(os.read(owner, 4096))
        if name and (box / _OLD).exists() and (box / NEW).exists():  # killed between the two renames
            path = box.parent / Path(name).name
            if not os.path.lexists(path):
                _swap(box, path)
        shutil.rmtree(box)
    finally:
        os.close(owner)


# -- locks


# errors of file systems without locks
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


def _lock(path: Path, *, without_locks: bool = True) -> int | None:
    """Creates and locks a file without waiting; None if a living process has locked it.

    The lock ends when the descriptor is closed or the process ends. A file that was unlinked between opening
    and locking protects nothing and is not used.

    Args:
        path: Path to the file.
        without_locks: What to assume on a file system without locks: True that the file is free, False that
            it is locked.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    while True:
        opened = os.open(path, flags, 0o666)
        try:
            if not _try_lock(opened, without_locks):
                os.close(opened)
                return None
            if _is_at(opened, path):
                return opened
        except BaseException:
            os.close(opened)
            raise
        os.close(opened)


def _is_at(opened: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(opened), os.lstat(path))
    except FileNotFoundError:
        return False


def _try_lock(opened: int, without_locks: bool) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(opened, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno in _NO_LOCKS:
            return without_locks
        raise
    return True


@contextlib.contextmanager
def lock_folder(folder: str | Path, *, wait: bool = False) -> Iterator[Path]:
    """Locks an output folder for this process. The folder is created if needed, and removed if left empty.

    Drafts that killed processes left in it are removed.

    Args:
        folder: The folder.
        wait: True to wait while another process uses it.

    Raises:
        OutputError: If another process uses it and `wait` is False, or it cannot be written.
    """
    folder = Path(folder)
    created: list[Path] = []
    try:
        try:
            while (owner := _lock_new(folder, created)) is None and wait:
                time.sleep(WAIT_S)
        except OSError as error:
            raise OutputError(f"{folder} cannot be used as output: {error.strerror or error}.") from error
        if owner is None:
            raise OutputError(
                f"{folder} is in use by another run. Wait for it to end, or choose another folder."
            )
        try:
            clear_drafts(folder)
            yield folder
        finally:
            if _is_at(owner, folder / LOCK):  # the user may have removed the folder
                with contextlib.suppress(OSError):
                    (folder / LOCK).unlink()  # before the lock ends, or the file could be another process's
            os.close(owner)
    finally:
        for one in reversed(created):
            with contextlib.suppress(OSError):  # it is not empty
                one.rmdir()


def _lock_new(folder: Path, created: list[Path]) -> int | None:
    while True:
        missing = []
        above = folder
        while not above.exists():
            missing.append(above)
            above = above.parent
        try:
            for one in reversed(missing):
                one.mkdir(exist_ok=True)
                created.append(one)
            folder.mkdir(exist_ok=True)  # refuses a file
            return _lock(folder / LOCK)
        except FileNotFoundError:  # the process that created the folder has just removed it
            continue
        except FileExistsError:  # likewise, between mkdir's refusal and its look at what is there
            if any(os.path.lexists(one) and not one.is_dir() for one in (folder, *missing)):
                raise


# -- files in a folder


def files_under(folder: Path, *, empty_folders: bool = False) -> list[str]:
    """The relative paths ("a/b.txt") of all files in a folder, sorted; symbolic links are not followed.

    Args:
        folder: Folder to list.
        empty_folders: True to include empty folders, as "a/b/".
    """
    names: list[str] = []

    def walk(at: Path, above: str) -> None:
        with os.scandir(at) as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                name = above + entry.name
                if not entry.is_dir(follow_symlinks=False):
                    names.append(name)
                    continue
                before = len(names)
                walk(Path(entry), f"{name}/")
                if empty_folders and len(names) == before:
                    names.append(f"{name}/")

    walk(folder, "")
    return names


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Removes files from a folder, and the subfolders that become empty."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
        remove_empty(folder, name)


def move_files(folder: Path, names: Iterable[str], to: Path) -> None:
    """Moves files, one by one, to the same relative paths in another folder on the same disk."""
    for name in names:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).rename(to / name)
        remove_empty(folder, name)


def remove_empty(folder: Path, name: str) -> None:
    """Removes the empty folders between `folder` and the file `name` in it."""
    for parent in list(Path(name).parents)[:-1]:
        with contextlib.suppress(OSError):  # it is not empty
            (folder / parent).rmdir()


def write_json(path: str | Path, value: Any) -> None:
    """Writes indented UTF-8 JSON, whole or not at all. NaN and infinity are refused."""
    with atomic_file(path) as draft:
        draft.write_text(
            json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )


def sha256(path: Path) -> str:
    """SHA-256 (64 hex digits) of a file, which is not read into memory at once."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def fingerprint(*paths: str | Path) -> str:
    """SHA-256 (64 hex digits) of the names and bytes of files; folders are walked in the order of names."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            digest.update(str(file.relative_to(path.parent)).encode() + b"\0")
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
