"""Downloads the registry's data sets from the Hub or from BEIR's archives, each completely or not at all.

Nothing that comes over the network is run. Of a data set on the Hub only the rows are read, at the registry's
revision. An archive is unpacked only if its checksum is right, and only corpus.jsonl, queries.jsonl and
qrels/*.tsv. It is refused if it contains a link or a path outside its folder, or if a file would grow more
than MAX_RATIO times, or all files to more than MAX_BYTES.
"""

import contextlib
import hashlib
import os
import re
import shutil
import stat
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from stzoo.data.beir import BEIR_FILES, check_beir_or_empty, write_beir
from stzoo.data.qrels import as_grade
from stzoo.data.registry import Entry, entries
from stzoo.errors import DataError, StzooError
from stzoo.utils.files import NEW, atomic_folder, clear_drafts, draft_folder, lock_folder, writing
from stzoo.utils.logging import silence_hf_logging
from stzoo.utils.messages import note_if_slow
from stzoo.utils.network import limit_waits, retry, seconds
from stzoo.utils.progress import progress_bar

ARCHIVES = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets"
MAX_RATIO = 100  # JSON lines are compressed to a fifth, judgements to a tenth
MAX_BYTES = 16 << 30  # FEVER, the largest data set with an archive, takes about 3 GiB
_CHUNK = 1 << 20


def offline() -> bool:
    """True if HF_HUB_OFFLINE forbids the network; this includes the archives."""
    return bool(constants.HF_HUB_OFFLINE)


def hub_url() -> str:
    """The address of the Hub."""
    return str(constants.ENDPOINT)


def archive_url(entry: Entry) -> str:
    """The address of a data set's archive; the environment variable STZOO_BEIR_URL sets a mirror."""
    return f"{os.environ.get('STZOO_BEIR_URL', ARCHIVES)}/{entry.zip}"


@contextlib.contextmanager
def exclusive(entry: Entry, place: Path) -> Iterator[None]:
    """Waits while another process downloads the same data set, and removes the drafts of a killed one.

    Raises:
        OutputError: If `place` cannot be written.
    """
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
        lock = place / f".{entry.zip or entry.name}.lock"
        lock.mkdir(exist_ok=True)
    try:
        with contextlib.ExitStack() as stack:
            with note_if_slow(f"waiting for another process that downloads {entry.name} to {place} …"):
                stack.enter_context(lock_folder(lock, wait=True))
            clear_drafts(place)
            yield
    finally:
        with contextlib.suppress(OSError):  # another process waits for it
            lock.rmdir()


def from_hub(entry: Entry, place: Path, progress: bool | None = None, *, split: str = "test") -> None:
    """Streams mteb's copy of a data set into the BEIR folder place/NAME.

    The copies have the configurations "corpus", "queries", and "default" or "qrels" (with one split for each
    split's judgements), and ids in "_id" or "id".

    Args:
        entry: A registry entry with `mteb`.
        place: Path of the parent folder.
        progress: True for a progress bar on stderr; None shows it on a terminal only.
        split: Split whose corpus and queries to take if each split has its own.

    Raises:
        DataError: If the download fails.
        OutputError: If the folder cannot be written.
    """
    import datasets

    assert entry.mteb, "the entry has no copy by mteb"
    where = f"the Hub ({entry.mteb} at {entry.revision})"
    if Path(entry.mteb).exists():
        raise DataError(
            f"{where}: the current folder has {entry.mteb}, which the datasets library would read instead"
        )
    limit_waits()
    with silence_hf_logging(), _explained(where):
        configs = datasets.get_dataset_config_names(entry.mteb, revision=entry.revision)
        judgements = "default" if "default" in configs else "qrels"
        corpora, queries, qrels = (
            datasets.load_dataset(entry.mteb, config, revision=entry.revision, streaming=True)
            for config in ("corpus", "queries", judgements)
        )
        texts = {_name(row): row["text"] or "" for row in _of(queries, split)}
        common = len(corpora) == len(queries) == 1
        grades = {part: _grades(qrels[part]) for part in (qrels if common else [split])}

        def documents() -> Iterator[dict[str, str]]:
            with _explained(where):  # `write_beir` would attribute an OSError to the disk
                for row in progress_bar(_of(corpora, split), **_bar(progress, entry.name, entry.documents)):
                    yield {"_id": _name(row), "title": row.get("title") or "", "text": row["text"] or ""}

        write_beir(place / entry.name, documents(), texts, grades)


def from_zip(entry: Entry, place: Path, progress: bool | None = None) -> None:
    """Downloads BEIR's archive of a data set and unpacks it, with all that share it, into place/NAME.

    Args:
        entry: A registry entry with `zip` and `md5`.
        place: Path of the parent folder.
        progress: True for a progress bar on stderr; None shows it on a terminal only.

    Raises:
        DataError: If the download fails, the checksum is not the registry's, or the archive is unsafe.
        OutputError: If the folder cannot be written.
    """
    check_beir_or_empty(place / entry.name)
    with writing(place), draft_folder(place / str(entry.zip)) as box:
        _download(entry, box / NEW, progress)
        for each in _together(entry):
            if each == entry or not (place / each.name).exists():
                _unpack(box / NEW, each, place / each.name)


def _together(entry: Entry) -> list[Entry]:
    """The data set, and the others in its archive."""
    shared = [each for each in entries().values() if entry.zip and each.zip == entry.zip]
    return [entry, *(each for each in shared if each != entry)]


def _download(entry: Entry, path: Path, progress: bool | None) -> None:
    url, digest, size = archive_url(entry), hashlib.md5(usedforsecurity=False), 0
    if not url.startswith(("https://", "http://")):
        raise DataError(f"{url} is not a web address; set STZOO_BEIR_URL to one that begins with https://.")
    request = urllib.request.Request(url, headers={"User-Agent": "stzoo"})  # noqa: S310 - checked above
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _explained(url):  # errors of the network, not of the disk; both are OSErrors
            answer = retry(lambda: _open(request), url, (ConnectionError, TimeoutError))
        bar = _bar(progress, str(entry.zip), entry.zip_bytes) | {"unit": "B", "unit_scale": True}
        with answer, path.open("wb") as file, progress_bar(**bar) as shown:
            while True:
                with _explained(url):
                    chunk = answer.read(_CHUNK)
                if not chunk:
                    break
                digest.update(chunk)
                size += len(chunk)
                if entry.zip_bytes and size > entry.zip_bytes:
                    raise DataError(f"{url} is larger than the expected {entry.zip_bytes} bytes.")
                file.write(chunk)
                shown.update(len(chunk))
    if entry.zip_bytes and size < entry.zip_bytes:
        raise DataError(
            f"{url} has {size} bytes; expected {entry.zip_bytes}. The download was cut off, or the file has "
            "changed. Run the command again to download it."
        )
    if digest.hexdigest() != entry.md5:
        raise DataError(
            f"{url} has the MD5 {digest.hexdigest()} ({size} bytes), not {entry.md5} as expected: it was "
            "damaged in transit, or has changed. Run the command again to download it."
        )


def _open(request: urllib.request.Request) -> Any:
    """Opens a web address; failures that may be temporary raise ConnectionError or TimeoutError."""
    try:
        return urllib.request.urlopen(request, timeout=seconds())  # noqa: S310 - checked by the caller
    except urllib.error.HTTPError:
        raise
    except urllib.error.URLError as error:
        raise ConnectionError(error.reason) from error


def _unpack(path: Path, entry: Entry, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, entry)
            with atomic_folder(folder, replaces=BEIR_FILES) as draft:
                (draft / "qrels").mkdir()
                for name, member in members.items():
                    with archive.open(member) as source, (draft / name).open("wb") as target:
                        shutil.copyfileobj(source, target, _CHUNK)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{entry.zip} cannot be unpacked: {error}.") from error


def _members(archive: zipfile.ZipFile, entry: Entry) -> dict[str, zipfile.ZipInfo]:
    """Checks the whole archive, and returns the files of a data set by their names in its folder."""
    found = {}
    for member in archive.infolist():
        name = member.filename
        if name.startswith("/") or re.match(r"[A-Za-z]:", name) or "\\" in name or ".." in name.split("/"):
            raise DataError(
                f"{entry.zip} contains {name!r}, which is outside its folder; nothing was unpacked."
            )
        if stat.S_ISLNK(member.external_attr >> 16):
            raise DataError(f"{entry.zip} contains the link {name!r}; nothing was unpacked.")
        inside = name.removeprefix(f"{entry.folder}/")
        if inside != name and re.fullmatch(r"(corpus|queries)\.jsonl|qrels/[\w-]+\.tsv", inside):
            found[inside] = member
            # zipfile reads no more of a member than the size stated in the archive
            if member.file_size > max(_CHUNK, MAX_RATIO * member.compress_size):
                raise DataError(f"{name} in {entry.zip} would grow more than {MAX_RATIO} times; refused.")
    if sum(member.file_size for member in found.values()) > MAX_BYTES:
        raise DataError(f"{entry.folder} in {entry.zip} would take more than {MAX_BYTES >> 30} GiB; refused.")
    if not {"corpus.jsonl", "queries.jsonl"} < set(found):
        raise DataError(
            f"{entry.zip} has no {entry.folder}/ with corpus.jsonl, queries.jsonl and qrels/*.tsv."
        )
    return found


@contextlib.contextmanager
def _explained(source: str) -> Iterator[None]:
    """Turns any error in the block into a DataError that names the source.

    The client libraries raise many kinds of errors for faults of the network or the data set.
    """
    try:
        yield
    except StzooError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".rstrip(". ")
        raise DataError(f"{source}: {reason}") from error


def _of(splits: Mapping[str, Any], split: str) -> Any:
    """The rows of the split, or of the only split."""
    return next(iter(splits.values())) if len(splits) == 1 else splits[split]


def _grades(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    grades: dict[str, dict[str, int]] = {}
    for row in rows:
        grade = as_grade(str(row["score"]))
        if grade is None:
            raise ValueError(f"the score {row['score']!r}, which is not a whole number")
        grades.setdefault(str(row["query-id"]), {})[str(row["corpus-id"])] = grade
    return grades


def _name(row: Mapping[str, Any]) -> str:
    name = row["_id"] if "_id" in row else row["id"]
    if name is None:
        raise ValueError("a row without an id")
    return str(name)


def _bar(progress: bool | None, name: str, total: int | None) -> dict[str, Any]:
    """Options of tqdm."""
    hidden = None if progress is None else not progress
    return {"desc": f"Downloading {name}", "total": total, "disable": hidden, "delay": 2}
