"""Judged sets of the registry from the Hub or from BEIR's archives, each written whole or not at all.

Nothing that comes over the network is run. Of a data set on the Hub only its rows are read, at the revision
that the registry names. Of an archive, whose checksum comes first, only corpus.jsonl, queries.jsonl and
qrels/*.tsv are unpacked, and none of it if it holds a link or a path that leaves its folder, or if a file
grows more than MAX_RATIO times or all of them to more than MAX_BYTES.
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

from filelock import FileLock
from huggingface_hub import constants
from tqdm import tqdm

from stzoo.data.beir import BEIR_FILES, write_beir
from stzoo.data.beir_layout import is_beir
from stzoo.data.qrels import as_grade
from stzoo.data.registry import Entry, entries
from stzoo.errors import DataError, StzooError
from stzoo.utils.files import NEW, atomic_folder, clear_drafts, draft_folder, writing
from stzoo.utils.logging import silence_hf_logging
from stzoo.utils.network import limit_waits, retry, seconds

ARCHIVES = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets"
MAX_RATIO = 100  # JSON lines shrink to a fifth, judgements to a tenth
MAX_BYTES = 16 << 30  # FEVER, the largest set with an archive, takes some 3 GiB
_CHUNK = 1 << 20


def offline() -> bool:
    """True if HF_HUB_OFFLINE forbids the network; the archives keep to it too."""
    return bool(constants.HF_HUB_OFFLINE)


def archive_url(entry: Entry) -> str:
    """Where the archive of a set lies; STZOO_BEIR_URL names a mirror."""
    return f"{os.environ.get('STZOO_BEIR_URL', ARCHIVES)}/{entry.zip}"


@contextlib.contextmanager
def exclusive(entry: Entry, place: Path) -> Iterator[None]:
    """Waits while another process fetches the same set, and clears away what a killed one has left of it.

    Raises:
        OutputError: if `place` cannot be written.
    """
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place / f"{entry.zip or entry.name}.lock")
        lock.acquire()
    try:
        clear_drafts(place)
        yield
    finally:
        lock.release()


def from_hub(entry: Entry, place: Path, progress: bool | None = None, *, split: str = "test") -> None:
    """Streams mteb's copy of a set into the BEIR folder place/NAME.

    The copies have the configurations "corpus", "queries", and "default" or "qrels" (a split each for the
    judgements), and "_id" or "id".

    Args:
        entry: with `mteb`.
        place: the parent folder.
        progress: True for a progress bar on stderr, None for one on a terminal only.
        split: whose corpus and queries are taken where each split has its own.

    Raises:
        DataError: if the Hub does not give it.
        OutputError: if it cannot be written.
    """
    import datasets

    assert entry.mteb, "a set without a copy of mteb's"
    where = f"the Hub ({entry.mteb} at {entry.revision})"
    if Path(entry.mteb).exists():
        raise DataError(
            f"{where}: a folder {entry.mteb} lies here, which the datasets library would read instead"
        )
    limit_waits()
    with silence_hf_logging(), _told(where):
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
            with _told(where):  # here, as `write_beir` would take an OSError for one of the disk
                for row in tqdm(_of(corpora, split), **_bar(progress, entry.name, entry.documents)):
                    yield {"_id": _name(row), "title": row.get("title") or "", "text": row["text"] or ""}

        write_beir(place / entry.name, documents(), texts, grades)


def from_zip(entry: Entry, place: Path, progress: bool | None = None) -> None:
    """Fetches BEIR's archive of a set and unpacks it, and all sets that share it, into place/NAME.

    Args:
        entry: with `zip` and `md5`.
        place: the parent folder.
        progress: True for a progress bar on stderr, None for one on a terminal only.

    Raises:
        DataError: if the archive does not come, or is not what the registry says, or not fit to be unpacked.
        OutputError: if it cannot be written.
    """
    with writing(place), draft_folder(place / str(entry.zip)) as box:
        _download(entry, box / NEW, progress)
        for each in _together(entry):
            if each == entry or not is_beir(place / each.name):
                _unpack(box / NEW, each, place / each.name)


def _together(entry: Entry) -> list[Entry]:
    """The set, and those in the same archive."""
    shared = [each for each in entries().values() if entry.zip and each.zip == entry.zip]
    return [entry, *(each for each in shared if each != entry)]


def _download(entry: Entry, path: Path, progress: bool | None) -> None:
    url, digest, size = archive_url(entry), hashlib.md5(usedforsecurity=False), 0
    if not url.startswith(("https://", "http://")):
        raise DataError(f"{url} is no web address; expected one in STZOO_BEIR_URL.")
    request = urllib.request.Request(url, headers={"User-Agent": "stzoo"})  # noqa: S310 - checked above
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _told(url):  # apart from the disk, whose errors are OSErrors as well
            answer = retry(lambda: _open(request), url, (ConnectionError, TimeoutError))
        bar = _bar(progress, str(entry.zip), entry.zip_bytes) | {"unit": "B", "unit_scale": True}
        with answer, path.open("wb") as file, tqdm(**bar) as shown:
            while True:
                with _told(url):
                    chunk = answer.read(_CHUNK)
                if not chunk:
                    break
                digest.update(chunk)
                size += len(chunk)
                if entry.zip_bytes and size > entry.zip_bytes:
                    raise DataError(f"{url} is larger than the {entry.zip_bytes} bytes it should have.")
                file.write(chunk)
                shown.update(len(chunk))
    if entry.zip_bytes and size < entry.zip_bytes:
        raise DataError(
            f"{url} gave {size} bytes, not the {entry.zip_bytes} it should have: it broke off, or is another "
            "file. Run the command again to fetch it."
        )
    if digest.hexdigest() != entry.md5:
        raise DataError(
            f"{url} has the MD5 {digest.hexdigest()} ({size} bytes), not {entry.md5} as it should: it was "
            "damaged on the way, or is another file."
        )


def _open(request: urllib.request.Request) -> Any:
    """Opens a web address; what may go away by itself is a ConnectionError or a TimeoutError."""
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
    """The files of a set by their names in its folder, once all of the archive has been looked at."""
    found = {}
    for member in archive.infolist():
        name = member.filename
        if name.startswith("/") or re.match(r"[A-Za-z]:", name) or "\\" in name or ".." in name.split("/"):
            raise DataError(
                f"{entry.zip} holds {name!r}, which leads out of its folder; nothing was unpacked."
            )
        if stat.S_ISLNK(member.external_attr >> 16):
            raise DataError(f"{entry.zip} holds the link {name!r}; nothing was unpacked.")
        inside = name.removeprefix(f"{entry.folder}/")
        if inside != name and re.fullmatch(r"(corpus|queries)\.jsonl|qrels/[\w-]+\.tsv", inside):
            found[inside] = member
            # zipfile reads no more of a member than the size that the archive states
            if member.file_size > max(_CHUNK, MAX_RATIO * member.compress_size):
                raise DataError(f"{name} in {entry.zip} would grow more than {MAX_RATIO} times; refused.")
    if sum(member.file_size for member in found.values()) > MAX_BYTES:
        raise DataError(f"{entry.folder} in {entry.zip} would take more than {MAX_BYTES >> 30} GiB; refused.")
    if not {"corpus.jsonl", "queries.jsonl"} < set(found):
        raise DataError(
            f"{entry.zip} holds no {entry.folder}/ with corpus.jsonl, queries.jsonl and qrels/*.tsv."
        )
    return found


@contextlib.contextmanager
def _told(source: str) -> Iterator[None]:
    """Makes a DataError that names the source of whatever fails in the block.

    The client libraries raise errors of many kinds for what the network or the data set lacks.
    """
    try:
        yield
    except StzooError:
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {error}".rstrip(". ")
        raise DataError(f"{source}: {told}") from error


def _of(splits: Mapping[str, Any], split: str) -> Any:
    """The rows of the split, or of the only one there is."""
    return next(iter(splits.values())) if len(splits) == 1 else splits[split]


def _grades(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    grades: dict[str, dict[str, int]] = {}
    for row in rows:
        grade = as_grade(str(row["score"]))
        if grade is None:
            raise ValueError(f"the score {row['score']!r}, which is no whole number")
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
    return {"desc": f"fetching {name}", "total": total, "disable": hidden, "delay": 2}
