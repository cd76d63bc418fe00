"""Retrieval data sets by name, found on disk, on the Hub or in BEIR's archives, and checked.

`locate` is what every command calls for data that the user named; bench's --datasets call `find`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from stzoo.data import download, registry
from stzoo.data.beir import RetrievalDataset
from stzoo.data.beir_layout import is_beir, qrels_names
from stzoo.data.corpus_names import OFFLINE, cannot_download, check_exists, datasets_folder, known_dataset
from stzoo.data.registry import Entry
from stzoo.errors import DataError, suggest
from stzoo.utils.inputs import user_path
from stzoo.utils.messages import counted, notify
from stzoo.utils.network import is_cut_off


@dataclass(frozen=True)
class Found:
    """A data set on disk, ready for `read_beir(folder, split, name=name)`.

    Attributes:
        folder: Path of a BEIR folder, or FOLDER/TASK.
        split: Split to score on.
        entry: Entry in the registry, or None.
    """

    folder: Path
    split: str
    entry: Entry | None = None

    @property
    def name(self) -> str | None:
        """Name in the registry, the same wherever the data set came from; None to use the folder's name."""
        return self.entry.name if self.entry else None


def find(
    name: str,
    data: str | Path | None = None,
    *,
    cache: str | Path | None = None,
    split: str | None = None,
    progress: bool | None = None,
) -> Found:
    """Finds a data set, and downloads it into the cache if it is not on disk and the registry has it.

    The search order: DATA/NAME, or DATA itself if that is its name; CACHE/datasets/NAME; mteb's copy on
    the Hub, at the registry's revision; BEIR's archive, checked by its checksum. No downloaded code
    is run, and with HF_HUB_OFFLINE=1 the network is not used.

    Args:
        name: Name in the registry, or of a folder (or FOLDER/TASK) under `data`. For suites, see
            `registry.expand`.
        data: Path of a BEIR folder, or of the parent of several.
        cache: Folder for downloaded data sets; None for stzoo's cache ($STZOO_CACHE).
        split: Split to score on; None for the registry's, or "test".
        progress: True for progress bars on stderr; None shows them on a terminal only.

    Raises:
        DataError: If the data set is not found; the error says where to get its files and where to put them.
        OutputError: If the cache cannot be written.
    """
    entry = registry.find(name)
    split = split or (entry.split if entry else "test")
    data = None if data is None else user_path(data)
    if data is not None and not data.is_dir():
        raise DataError(f"{data} does not exist; expected a BEIR folder, or the parent of several.")
    folder = _local(name, entry, data)
    if folder:
        return Found(folder, split, entry)
    if entry is None:
        raise DataError(_unknown(name, data))
    place = Path(cache, "datasets") if cache else datasets_folder()
    return Found(obtain(entry, place, split, data, progress=progress), split, entry)


def locate(given: str | Path, *, on_hub: bool = False, progress: bool | None = None) -> Path:
    """The path of data that a user named.

    Args:
        given: A path, FOLDER/TASK, or the name of a data set of the registry, which is downloaded into
            stzoo's cache if it is not there. A path that exists comes first.
        on_hub: True if it may also be "pydocs" or the id of a data set on the Hub, which are returned
            unchanged.
        progress: True for progress bars on stderr; None shows them on a terminal only.

    Raises:
        DataError: If there is no such data, or it cannot be downloaded.
        OutputError: If the cache cannot be written.
    """
    check_exists(given, on_hub=on_hub)
    entry = known_dataset(given, on_hub=on_hub)
    return find(entry.name, progress=progress).folder if entry else user_path(given)


def obtain(
    entry: Entry, place: Path, split: str, data: Path | None = None, *, progress: bool | None = None
) -> Path:
    """The folder PLACE/NAME of a data set, which is downloaded unless it is there.

    Args:
        entry: The data set.
        place: Folder of downloaded data sets.
        split: Split that is needed, for sets whose splits have a corpus of their own.
        data: Folder in which it was not found, for messages.
        progress: See `find`.

    Raises:
        DataError: If it cannot be downloaded.
        OutputError: If the folder cannot be written.
    """
    if not is_beir(place / entry.name):
        _download(entry, data, place, split, progress)
    return place / entry.name


def check(entry: Entry, judged: RetrievalDataset) -> tuple[str, ...]:
    """Compares a data set's counts with the official ones, and returns a sentence for each difference.

    Args:
        entry: Entry in the registry, with the official counts.
        judged: The data set; its judgements are compared only if the split is the registry's.
    """
    counts = [("document", len(judged.corpus_ids), entry.documents)]
    if judged.split == entry.split:
        relevant = sum(grade > 0 for grades in judged.qrels.values() for grade in grades.values())
        counts += [
            ("judged query", len(judged.queries), entry.queries),
            ("relevant pair", relevant, entry.relevant),
            ("judged pair", judged.judgements, entry.judged),
        ]
    return tuple(
        f"{judged.name} has {counted(found, what)}, the official set has {official:,}"
        for what, found, official in counts
        if official is not None and found != official
    )


def _local(name: str, entry: Entry | None, data: Path | None) -> Path | None:
    """The data set's folder under `data`, by any of its names."""
    if data is None:
        return None
    user_path(data / name)  # refuses names that no file can have
    spellings = dict.fromkeys((name, *(entry.names if entry else ())))
    for folder in (data / spelling for spelling in spellings):
        if is_beir(folder) or (is_beir(folder.parent) and _has_task(folder)):
            return folder
    if is_beir(data) and data.resolve().name in spellings:
        return data
    if (data / name).is_dir():
        raise DataError(f"{data / name} exists, but is not a BEIR folder; expected {_layout()} in it.")
    return None


def _has_task(folder: Path) -> bool:
    return not folder.is_dir() and any(
        name.startswith(f"{folder.name}.") for name in qrels_names(folder.parent)
    )


def _download(entry: Entry, data: Path | None, place: Path, split: str, progress: bool | None) -> None:
    target = place / entry.name
    home = data / entry.name if data else target
    belongs = f"{_layout(split)} into {home}"
    if entry.get:
        raise DataError(f"{entry.name} is not public, and not in {home}: {entry.get}. Then put {belongs}.")
    sources: dict[str, Callable[[Entry, Path, bool | None], None]] = {
        download.hub_url(): partial(download.from_hub, split=split)
    }
    sources |= {download.archive_url(entry): download.from_zip} if entry.zip else {}
    reasons = [OFFLINE] if download.offline() else []
    if not reasons:
        notify(f"Downloading {entry.name} to {target}.", is_passing=True)
        with download.exclusive(entry, place):
            for url, source in sources.items():
                if is_beir(target):  # perhaps another process has downloaded it meanwhile
                    return
                try:
                    if is_cut_off(url):
                        raise DataError(f"{urlsplit(url).hostname} cannot be reached")
                    source(entry, place, progress)
                except DataError as error:
                    reasons.append(str(error).rstrip("."))
        if is_beir(target):
            return
    tried = "; ".join(reasons)
    if data is None:
        raise DataError(cannot_download(entry, place, tried))
    way = (
        f"They are in {download.archive_url(entry)} (MD5 {entry.md5}): on a computer with a network, run "
        f"`curl -O {download.archive_url(entry)}`, and unzip it in {home.parent}."
        if entry.zip
        else f"They are on the Hub ({entry.mteb} at {entry.revision}): on a computer with a network, run "
        f"`stzoo fetch {entry.name}`, and copy the folder that it prints."
    )
    raise DataError(f"{entry.name} was not found: no {home}, no {target}; {tried}. Put {belongs}. {way}")


def _layout(split: str = "test") -> str:
    return f"corpus.jsonl, queries.jsonl and qrels/{split}.tsv"


def _unknown(name: str, data: Path | None) -> str:
    inside = [folder.name for folder in data.iterdir() if is_beir(folder)] if data else []
    guess = suggest(name, [*inside, *registry.suites(), *registry.entries()])
    return (
        f"there is no data set {name!r}: "
        + (f"{data / name} is not a BEIR folder ({_layout()})" if data else "no folder was given")
        + f", and the registry has no such name{guess}"
        + (f" In {data}: {', '.join(sorted(inside))}." if inside else "")
    )
