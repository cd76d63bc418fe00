"""The files of a folder that can be read as documents, in a stable order, and those that are skipped."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stzoo.errors import DataError, abbreviated
from stzoo.utils.files import PART
from stzoo.utils.inputs import check_is_file, user_path

KINDS = {
    **dict.fromkeys((".md", ".markdown"), "md"),
    **dict.fromkeys((".txt", ".text"), "txt"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    **{f".{kind}": kind for kind in ("pdf", "docx", "csv", "tsv", "jsonl", "json", "parquet")},
}
ROWS = ("csv", "tsv", "jsonl", "json", "parquet")  # kinds whose rows are documents
_WITH_CORPUS = ("qrels", "queries.jsonl", "queries.jsonl.gz", "passages.json")  # what BEIR or `read` adds
KNOWN = ", ".join(sorted({*KINDS.values()}))


def check_there(source: str | Path) -> Path:
    """The path of a source of documents.

    Raises:
        DataError: If it does not exist.
    """
    path = user_path(source)
    if not path.exists():
        raise DataError(f"there is no file or folder {source}; expected documents ({KNOWN}) or a folder.")
    return path


@dataclass(frozen=True)
class File:
    """A file to read.

    Attributes:
        name: Path relative to the source, with slashes; the file's own name if it is the source.
        path: Its path.
        kind: One of the values of `KINDS`.
        size: In bytes.
        is_source: True if it is the source, or its only corpus; then ids of rows need no file name.
    """

    name: str
    path: Path
    kind: str
    size: int
    is_source: bool = False


@dataclass(frozen=True)
class Skipped:
    """A file or folder that is not read, or a file with rows that are not.

    Attributes:
        file: Path relative to the source.
        reason: Why.
        rows: Number of rows that are skipped; None for the whole file. The reason is that of the first row.
    """

    file: str
    reason: str
    rows: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The values as JSON."""
        return {"file": self.file, "reason": self.reason, **({"rows": self.rows} if self.rows else {})}


def find_files(source: str | Path, leave_out: Path | None = None) -> tuple[list[File], list[Skipped]]:
    """Finds the files of a source: itself if it is a file, otherwise those in the folder and its subfolders.

    Links are followed, except to a folder that contains them or that was read before. Of a folder in BEIR's
    layout, or that `stzoo read` wrote, only the corpus is read. Names that begin with a dot are skipped.

    Args:
        source: The file or folder.
        leave_out: A folder that is not searched, e.g. the output.

    Raises:
        DataError: If the source does not exist, cannot be listed, or is a file of another kind.
    """
    path = check_there(source)
    if not path.is_dir():
        check_is_file(path)
        if (kind := _kind(path.name)) is None:
            raise DataError(f"{source} has an unknown type; expected {KNOWN}, or a folder of such files.")
        return [File(path.name, path, kind, path.stat().st_size, True)], []
    try:
        os.scandir(path).close()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    corpus = next(filter(Path.is_file, (path / "corpus.jsonl", path / "corpus.jsonl.gz")), None)
    if corpus and any((path / name).exists() for name in _WITH_CORPUS):
        return [File(corpus.name, corpus, "jsonl", corpus.stat().st_size, True)], []
    files: list[File] = []
    skipped: list[Skipped] = []
    hidden = leave_out.resolve() if leave_out is not None else None
    for found in _walk(path, "", {path.resolve()}, hidden):
        (files if isinstance(found, File) else skipped).append(found)  # type: ignore[arg-type]
    return files, skipped


def check_size(size: int, max_bytes: int) -> None:
    """Refuses a file that is too large to be read at once.

    Raises:
        DataError: If it has more than `max_bytes`.
    """
    if size > max_bytes:
        found, limit = f"{size / 2**20:,.1f}", f"{max_bytes / 2**20:,g}"
        raise DataError(f"{found} MiB, over the limit of {limit}; split it, or raise --max-file-mib")


def shown(name: str) -> str:
    """A file's name that can be printed and written, whatever its bytes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _kind(name: str) -> str | None:
    name = name.lower()
    plain = name.removesuffix(".gz")
    kind = KINDS.get(os.path.splitext(plain)[1])  # noqa: PTH122 - of a name
    return kind if plain == name or kind in ROWS[:-1] else None


def _walk(folder: Path, above: str, seen: set[Path], leave_out: Path | None) -> Iterator[File | Skipped]:
    try:
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError as error:
        yield Skipped(shown(above), f"cannot be read: {error.strerror or error}")
        return
    for entry in entries:
        if entry.name.endswith(PART):  # the draft of an output
            continue
        name, path = above + entry.name, Path(entry.path)
        try:
            if entry.is_dir():
                here = path.resolve()
                if here == leave_out:
                    continue
                if entry.name.startswith("."):
                    yield Skipped(shown(f"{name}/"), "a hidden folder")
                elif here in seen:
                    yield Skipped(shown(f"{name}/"), "a link to a folder that is read already")
                else:
                    seen.add(here)
                    yield from _walk(path, f"{name}/", seen, leave_out)
                continue
            yield _file(name, path)
        except (OSError, RuntimeError, DataError) as error:
            yield Skipped(shown(name), reason_of(error, path))


def _file(name: str, path: Path) -> File | Skipped:
    if path.name.startswith("."):
        return Skipped(shown(name), "a hidden file")
    if path.is_symlink() and not path.exists():
        return Skipped(shown(name), "a link to nothing, or to itself")
    check_is_file(path)
    if (kind := _kind(path.name)) is None:
        end = path.suffix.lower()
        return Skipped(shown(name), f"{end} files are not read" if end else "a file without an extension")
    if shown(name) != name:
        return Skipped(shown(name), "its name is not UTF-8; rename it")
    if not (size := path.stat().st_size):
        return Skipped(name, "empty")
    return File(name, path, kind, size)


def reason_of(error: Exception, path: Path) -> str:
    """The reason in the message of an error, without the path."""
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    reason = str(error).removeprefix(str(path)).lstrip(": ").rstrip(".")
    return abbreviated(re.sub(r"^(\d+): ", r"line \1: ", reason))
