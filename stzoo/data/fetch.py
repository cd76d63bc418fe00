"""fetch(): downloads a data set of the registry."""

from dataclasses import dataclass
from pathlib import Path

from stzoo.data import registry
from stzoo.data.beir_layout import find_jsonl, find_split, qrels_names
from stzoo.data.corpus_names import datasets_folder
from stzoo.data.find_datasets import obtain
from stzoo.data.qrels import read_judgements
from stzoo.data.rows import read_lines
from stzoo.errors import DataError, OutputError, suggest
from stzoo.utils.inputs import user_path
from stzoo.utils.public import public


@public()
def fetch(name: str, *, output: str | Path | None = None, progress: bool | None = None) -> Path:
    """Downloads a data set by its name, whole or not at all, and returns its folder.

    It comes from mteb's copy on the Hub, at a pinned revision, or from BEIR's archive, checked by its
    checksum. A data set that is there already is not downloaded again. Every command that reads data takes
    its name, too: `stzoo.bench(model, data="scifact")`.

    Args:
        name: Name of the data set; `stzoo list datasets` shows all.
        output: Folder that the data set's folder is put into; None for stzoo's cache, where all commands
            find it ($STZOO_CACHE/datasets).
        progress: True for progress bars on stderr; None shows them on a terminal only.

    Raises:
        DataError: If there is no such data set, or it cannot be downloaded.
        OutputError: If the folder cannot be written.

    Example:
        >>> import stzoo
        >>> stzoo.fetch("scifact")                                                # doctest: +SKIP
        PosixPath('/home/me/.cache/stzoo/datasets/scifact')
    """
    entry = registry.find(name)
    if entry is None:
        if suite := registry.suite(name):
            raise DataError(f"{name} is a suite of data sets; fetch them one by one: {', '.join(suite)}.")
        guess = suggest(name, registry.entries())
        raise DataError(f"there is no data set {name!r}{guess} `stzoo list datasets` shows all.")
    place = user_path(output, OutputError) if output is not None else datasets_folder()
    return obtain(entry, place, entry.split, progress=progress)


@dataclass(frozen=True)
class Contents:
    """What is in the folder of a data set.

    Attributes:
        passages: Number of passages.
        queries: Number of queries, also those without judgements.
        splits: Numbers of "judged queries" and of "judgements", by split.
        licence: Its licence, if known.
    """

    passages: int
    queries: int
    splits: dict[str, dict[str, int]]
    licence: str | None


def contents(folder: Path) -> Contents:
    """Counts what is in the folder of a data set.

    Raises:
        DataError: If a file is missing or damaged.
    """
    entry = registry.find(folder.name)
    splits = {}
    for split in qrels_names(folder):
        file = find_split(folder, split).qrels
        judged = read_judgements(file, read_lines(file))
        splits[split] = {"judged queries": len(judged), "judgements": sum(map(len, judged.values()))}
    passages, queries = (sum(1 for _ in read_lines(find_jsonl(folder, one))) for one in ("corpus", "queries"))
    return Contents(passages, queries, splits, entry.licence if entry else None)
