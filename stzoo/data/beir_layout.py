"""Where the files of BEIR folders are."""

from pathlib import Path
from typing import NamedTuple

from stzoo.errors import DataError, suggest
from stzoo.utils.inputs import user_path

_QRELS_ENDS = (".tsv", ".tsv.gz")


class SplitFiles(NamedTuple):
    """The files of one split of a data set."""

    name: str
    corpus: Path
    queries: Path
    qrels: Path


def find_split(folder: str | Path, split: str = "test") -> SplitFiles:
    """Finds the files of one split of a BEIR folder, or of a task in it (FOLDER/TASK); reads none of them.

    Raises:
        DataError: If the folder or the split does not exist; the error lists the splits that do.
    """
    folder, prefix = user_path(folder), ""
    name = folder_name(folder)
    if not folder.is_dir() and is_beir(folder.parent):
        prefix = f"{name}."
        folder, name = folder.parent, f"{folder_name(folder.parent)}-{name}"
    if not folder.is_dir():
        raise DataError(
            f"{folder} does not exist; expected a BEIR folder (corpus.jsonl, queries.jsonl, qrels/)."
        )
    corpus, queries = find_jsonl(folder, "corpus"), find_jsonl(folder, "queries")
    for end in _QRELS_ENDS if Path(split).name == split else ():  # a split is not a path
        qrels = user_path(folder / "qrels" / f"{prefix}{split}{end}")
        if qrels.is_file():
            return SplitFiles(name, corpus, queries, qrels)
    known = [each[len(prefix) :] for each in qrels_names(folder) if each.startswith(prefix)]
    raise DataError(
        f"{folder} has no split {split!r} (qrels/{prefix}{split}.tsv){suggest(split, known)} "
        f"Available splits: {', '.join(known) or 'none'}."
    )


def qrels_names(folder: Path) -> list[str]:
    """The sorted names (SPLIT or TASK.SPLIT) of the files in the folder's qrels/."""
    files = (folder / "qrels").glob("*.tsv*")
    return sorted({file.name.partition(".tsv")[0] for file in files if file.name.endswith(_QRELS_ENDS)})


def folder_name(folder: str | Path) -> str:
    """A folder's name, even if the path ends in "." or ".."; "root" for the root of the file system."""
    path = Path(folder)
    return path.name if path.name not in ("", "..") else path.resolve().name or "root"


def is_beir(folder: Path) -> bool:
    """True if the folder looks like BEIR's layout: a corpus and qrels/."""
    return (
        any((folder / f"corpus.jsonl{end}").is_file() for end in ("", ".gz")) and (folder / "qrels").is_dir()
    )


def names_beir(data: str | Path) -> bool:
    """True if the path is a BEIR folder or a task in one (FOLDER/TASK); False for a file in one."""
    path = user_path(data)
    return is_beir(path) or (not path.exists() and is_beir(path.parent))


def corpus_file(path: Path) -> Path | None:
    """The file of the passages, if the path is a BEIR folder or a corpus.jsonl(.gz)."""
    for end in ("", ".gz"):
        if path.name == f"corpus.jsonl{end}" and path.is_file():
            return path
        if (path / f"corpus.jsonl{end}").is_file():
            return path / f"corpus.jsonl{end}"
    return None


def find_jsonl(folder: Path, stem: str) -> Path:
    """FOLDER/STEM.jsonl, or its .gz.

    Raises:
        DataError: If neither exists.
    """
    for end in (".jsonl", ".jsonl.gz"):
        if (folder / (stem + end)).is_file():
            return folder / (stem + end)
    raise DataError(f"{folder} has no {stem}.jsonl (or .jsonl.gz); expected a folder in BEIR's layout.")
