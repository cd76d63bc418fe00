"""A folder of files that are written whole or not at all, on disk or in the storage of a URL.

stzoo.json   the record: what the files were made from. A folder without it that has files is refused. Its
             name is _stzoo.json where readers take all files but those.

A file that takes long is first written to a partial file, which an interrupted call leaves and the next one
continues: `.NAME.partial` in the folder, or, for a URL, in stzoo's cache.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stzoo.errors import OutputError, first_line
from stzoo.retrieval.handover.passages import compared
from stzoo.utils.cache import cache_folder
from stzoo.utils.files import atomic_file, lock_folder, writing
from stzoo.utils.inputs import is_url, parse_json
from stzoo.utils.parts import check_manifest
from stzoo.utils.remote import file_system, reaching


class Folder:
    """An output folder.

    Args:
        output: Its path or URL.
        record: Name of the record.

    Raises:
        OutputError: If it has files but no record.
    """

    def __init__(self, output: str, *, record: str = "stzoo.json"):
        self.output, self.record = output, record
        self.is_remote = is_url(self.output)
        self.system, self.path = file_system(self.output, OutputError)
        self.system.invalidate_cache()
        names = self.names()
        if self.record not in names and names:
            raise OutputError(
                f"{self.output} has no {self.record} but other files ({', '.join(names[:5])}); expected an "
                "empty folder or one that stzoo has made. Move them away, or choose another folder."
            )

    def names(self) -> list[str]:
        """The sorted names in it that are not hidden."""
        with reaching(self.output, OutputError):
            try:
                found = self.system.ls(self.path, detail=False)
            except FileNotFoundError:
                return []
        names = {
            name.rstrip("/").rpartition("/")[2] for name in found if name.strip("/") != self.path.strip("/")
        }
        return sorted(name for name in names if name and not name.startswith("."))

    def at(self, name: str) -> str:
        """The path of a file, in its file system."""
        return f"{self.path.rstrip('/')}/{name}"

    def shown(self, name: str) -> str:
        """The path or URL of a file, for the user."""
        return f"{self.output.rstrip('/')}/{name}"

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it does not exist."""
        with reaching(self.output, OutputError):
            return self.system.size(self.at(name)) if self.system.isfile(self.at(name)) else None

    @contextlib.contextmanager
    def opened(self, record: Mapping[str, Any], metadata: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Takes the folder for these vectors, and yields its record.

        Args:
            record: See `Passages.record`.
            metadata: What the vectors depend on.

        Raises:
            OutputError: If it has other vectors, or another process is writing to it.
        """
        self.work = Path(self.path)
        if self.is_remote:
            digest = hashlib.sha256(json.dumps([self.output, record]).encode()).hexdigest()[:12]
            self.work = cache_folder() / "handover" / digest
        with lock_folder(self.work, wait=True):  # what another process of the same call writes is complete
            if self.size(self.record) is None:
                found = json.loads(json.dumps(dict(record)))
                self.write_json(self.record, found)
            else:
                found = self._record()
                check_manifest(
                    self.output, found, compared(record, metadata), advice="Choose another output."
                )
            yield found
        if self.is_remote:
            with contextlib.suppress(OSError):  # an earlier call left it
                self.work.rmdir()

    def _record(self) -> dict[str, Any]:
        with reaching(self.output, OutputError):
            content = self.system.cat_file(self.at(self.record))
        try:
            found = parse_json(content.decode())
        except ValueError as error:
            raise OutputError(f"{self.shown(self.record)} cannot be read: {first_line(error)}.") from None
        if not isinstance(found, dict) or "format" not in found:
            raise OutputError(f"{self.shown(self.record)} is not a record of stzoo; choose another output.")
        return found

    def write_json(self, name: str, value: Any) -> None:
        """Writes indented JSON."""
        with self.draft(name) as draft:
            draft.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @contextlib.contextmanager
    def draft(self, name: str) -> Iterator[Path]:
        """Yields a local path; what the block writes there becomes the file."""
        with atomic_file(self.work / name) as draft:
            yield draft
            if self.is_remote:
                self._upload(draft, name)
        if self.is_remote:
            (self.work / name).unlink()

    @contextlib.contextmanager
    def partial(self, name: str) -> Iterator[Path]:
        """Yields a local path that is kept if the block fails; at the end it becomes the file."""
        path = self.work / f".{name}.partial"
        with writing(path):
            yield path
        if not self.is_remote:
            with path.open("rb") as written:
                os.fsync(written.fileno())
            path.replace(self.at(name))
            return
        self._upload(path, name)
        path.unlink()

    def _upload(self, path: Path, name: str) -> None:
        with reaching(self.shown(name), OutputError):
            if not self.system.async_impl:  # the others are object stores: without folders, but with buckets
                self.system.makedirs(self.path, exist_ok=True)
            if self.system.async_impl:  # object stores have a file whole or not at all
                self.system.put_file(str(path), self.at(name))
                return
            draft = self.at(f".{name}.part")
            self.system.put_file(str(path), draft)
            self.system.mv(draft, self.at(name))
