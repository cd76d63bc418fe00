"""Names of data: paths, names of data sets, and ids on the Hub; it imports nothing heavy."""

import glob
import os
from pathlib import Path

from huggingface_hub import constants

from stzoo.data import registry
from stzoo.data.beir_layout import is_beir, names_beir
from stzoo.errors import DataError, suggest
from stzoo.utils.cache import cache_folder
from stzoo.utils.inputs import is_url, user_path

IN_FOLDERS = (".jsonl", ".jsonl.gz", ".parquet", ".txt", ".txt.gz")
# A .json file in a folder is usually a record or settings (run.json), and a .tsv file is judgements, so these
# are read only if they are named.
SUFFIXES = (*IN_FOLDERS, ".json", ".json.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz")
PYDOCS = "pydocs"
OFFLINE = "HF_HUB_OFFLINE forbids the network"


def check_exists(source: str | Path, *, on_hub: bool = True) -> None:
    """Checks that data of this name can exist, without downloading anything.

    Args:
        source: A path, FOLDER/TASK, or the name of a data set of the registry, as the user gave it.
        on_hub: True if it may also be the id of a data set on the Hub, "pydocs" or a URL.

    Raises:
        DataError: If it is none of these, or is to be downloaded although HF_HUB_OFFLINE forbids the network.
    """
    text = str(source)
    if on_hub and (text == PYDOCS or is_url(text)):
        return
    if names_path(source):
        return
    if entry := known_dataset(source, on_hub=on_hub):
        if constants.HF_HUB_OFFLINE and not entry.get and not is_beir(datasets_folder() / entry.name):
            raise DataError(cannot_download(entry, datasets_folder(), OFFLINE))
        return
    if on_hub and is_hub_id(text):
        if constants.HF_HUB_OFFLINE and not _is_in_cache(text):
            raise DataError(
                f"{text} is not a file or folder, and cannot be loaded from the Hub: HF_HUB_OFFLINE is set, "
                "and the Hub's cache has no such data set. Check the name; or load it on a computer with a "
                "network (datasets.load_dataset) and copy its cache, or give a file."
            )
        return
    if suite := registry.suite(text):
        raise DataError(
            f"{text} is a suite of data sets; give one of them ({', '.join(suite)}), or score models on all "
            f"by `stzoo bench --datasets {text}`."
        )
    guess = suggest(text, [*registry.entries(), *([PYDOCS] if on_hub else ())])
    expected = "a path or a name that `stzoo list datasets` shows"
    if on_hub:
        expected = (
            "a path, a name that `stzoo list datasets` shows, or the id of a data set on the Hub (org/name "
            "or org/name:config:split)"
        )
    raise DataError(
        f"there is no file or folder {text}, and no data set of that name{guess} Expected {expected}."
    )


def cannot_download(entry: registry.Entry, place: Path, reason: str) -> str:
    """A message for a data set that is not in the folder of downloaded ones."""
    other = "; or set STZOO_CACHE to a cache that has it" if place == datasets_folder() else ""
    return (
        f"{entry.name} is not in {place}, and cannot be downloaded: {reason}. On a computer with a network, "
        f"run `stzoo fetch {entry.name}`, and copy the folder that it prints to {place / entry.name}{other}."
    )


def datasets_folder() -> Path:
    """The folder of downloaded data sets in stzoo's cache."""
    return cache_folder() / "datasets"


def names_path(source: str | Path) -> bool:
    """True if it is the path of a file or folder, or of a task in a BEIR folder (FOLDER/TASK)."""
    return user_path(source).exists() or names_beir(source)


def known_dataset(source: str | Path, *, on_hub: bool = True) -> registry.Entry | None:
    """The data set of the registry that has this name, or None. A path that exists comes first.

    Args:
        source: The name, as the user gave it.
        on_hub: True if names with a slash are ids on the Hub.
    """
    text = str(source)
    return None if names_path(source) or (on_hub and "/" in text) else registry.find(text)


def is_hub_id(source: str) -> bool:
    """True if it has the form of a data set's id on the Hub: org/name or org/name:config:split."""
    name, *rest = source.split(":")
    owner, slash, short = name.partition("/")
    is_id = owner.strip(".~") and slash and short and "/" not in short and len(rest) in (0, 2)
    return bool(is_id) and not name.lower().endswith(SUFFIXES)


def _is_in_cache(source: str) -> bool:
    """True if files or rows of the Hub's data set are in the cache of huggingface_hub or of `datasets`."""
    owner, _, name = source.partition(":")[0].partition("/")
    rows = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets"))
    files = Path(constants.HF_HUB_CACHE, f"datasets--{owner}--{name}")
    return files.exists() or any(rows.glob(f"{glob.escape(owner)}___*"))
