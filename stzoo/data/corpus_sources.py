"""The sources of a corpus (files, folders, data sets on the Hub), each as a stream of rows."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stzoo.data import pydocs, registry
from stzoo.data.beir_layout import names_beir
from stzoo.data.corpus_names import IN_FOLDERS, PYDOCS, SUFFIXES, datasets_folder, is_hub_id, known_dataset
from stzoo.data.find_datasets import locate
from stzoo.data.row_location import RowLocation
from stzoo.data.rows import OnBad, Progress, Rows, read_dataset, read_rows
from stzoo.errors import DataError
from stzoo.utils.inputs import check_is_file, is_url, parse_json, user_path
from stzoo.utils.network import limit_waits

COLUMNS = ("_id", "id", "title", "text")


@dataclass(frozen=True)
class Source:
    """A file, or another source of rows.

    Attributes:
        name: Path of the file or id of the data set, for messages.
        files: The files that have the rows; they change when the rows do.
        read: Streams the rows; its arguments are `progress` and `on_bad` of `stzoo.data.rows.read_rows`.
    """

    name: str
    files: Sequence[Path]
    read: Callable[[Progress, OnBad], Rows]


def find(source: str, columns: Collection[str] = ()) -> list[Source]:
    """Finds the files or the data set of a source; see `stzoo.data.corpus.load_corpus`.

    Args:
        source: The source, as the user gave it.
        columns: Columns to read in addition to id, title and text, if a source has them.

    Raises:
        DataError: If the source does not exist, its type is unknown, or `stzoo prepare` has not finished it.
    """
    if source == PYDOCS:
        return [Source(source, pydocs.source_files(), _pydocs)]
    path = locate(source, on_hub=True)
    if not path.exists() and names_beir(path):  # a task of a BEIR folder
        path = path.parent
    if path.is_dir():
        _refuse_unfinished(path)
        return [_file(file, columns) for file in _readable(path)]
    if path.exists():
        check_is_file(path)
        if not path.name.lower().endswith(SUFFIXES):
            raise DataError(f"{source} has an unknown type; expected {', '.join(SUFFIXES)} or a folder.")
        return [_file(path, columns)]
    return [_hub(source, columns)]


def hub_ids(sources: Iterable[str]) -> list[str]:
    """The ids on the Hub of those sources that have one, each once.

    These are data sets of the Hub, and those of the registry, by name or by the folder that they were
    downloaded to.
    """
    return list(dict.fromkeys(found for one in sources if (found := _hub_id(one))))


def _hub_id(source: str) -> str | None:
    if source == PYDOCS or is_url(source):
        return None
    path = user_path(source)
    if is_hub_id(source) and not path.exists():
        return source.partition(":")[0]
    # a folder of the user's may have such a name by chance
    downloaded = path.is_dir() and path.resolve().parent == datasets_folder().resolve()
    entry = registry.find(path.name) if downloaded else known_dataset(source)
    return (entry.mteb or entry.beir) if entry else None


def load_hub(source: str, split: str = "train") -> Any:
    """The rows of a data set on the Hub, a `datasets.Dataset`.

    Args:
        source: org/name or org/name:config:split; the config may be empty.
        split: Split to read if the source has none.

    Raises:
        DataError: If it cannot be loaded.
    """
    import datasets

    limit_waits()
    name, config, named = [*source.split(":"), "", ""][:3]
    try:
        return datasets.load_dataset(name, config or None, split=named or split)
    except Exception as error:  # of the network, of the client libraries, of the data
        reason = "HF_HUB_OFFLINE is set" if datasets.config.HF_HUB_OFFLINE else error
        raise DataError(
            f"{source} is not a file or folder, and cannot be loaded from the Hub: {reason}. Check the name "
            "and, in org/name:config:split, the config and split. Without a network, load it on a computer "
            "with one (datasets.load_dataset) and copy its cache, or give a file."
        ) from error


def _refuse_unfinished(folder: Path) -> None:
    try:
        record = parse_json((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if not isinstance(record, dict) or record.get("status") == "finished":
        return
    recipe = record.get("recipe")
    if "prepare" in (record.get("command"), recipe.get("command") if isinstance(recipe, dict) else None):
        raise DataError(
            f"{folder} is an unfinished data set: its run.json says that `stzoo prepare` has not finished. "
            f"Continue with the same command (stzoo prepare ... --output {folder} --resume)."
        )


def _readable(folder: Path) -> list[Path]:
    try:
        files = sorted(path for path in folder.iterdir() if path.name.lower().endswith(IN_FOLDERS))
    except OSError as error:
        raise DataError(f"{folder} could not be read: {error.strerror or error}.") from error
    beir = [path for path in files if path.name in ("corpus.jsonl", "corpus.jsonl.gz")][:1]
    found = beir or [path for path in files if not path.name.startswith(".")]
    if not found:
        raise DataError(
            f"{folder} has no file of a known type ({', '.join(IN_FOLDERS)}). Subfolders are not searched; "
            "give the folder with the files, or name a .json file itself."
        )
    return found


def _file(path: Path, columns: Collection[str]) -> Source:
    choose = partial(_columns, columns, path)
    return Source(
        str(path),
        [path],
        lambda progress, on_bad: read_rows(
            path, progress, columns=lambda schema: choose(schema.names), on_bad=on_bad
        ),
    )


def _hub(source: str, columns: Collection[str]) -> Source:
    found = load_hub(source)
    kept = found.select_columns(_columns(columns, source, found.column_names))
    files = [Path(file["filename"]) for file in kept.cache_files]
    return Source(source, files, partial(read_dataset, source, kept))


def _pydocs(_: Progress, __: OnBad) -> Rows:
    for number, row in enumerate(pydocs.passages(), 1):
        yield RowLocation(PYDOCS, number), row


def _columns(further: Collection[str], where: object, names: Sequence[str]) -> list[str]:
    if "text" not in names:
        raise DataError(f'{where} has the columns {", ".join(names) or "none"}; expected one named "text".')
    inside = (name.partition(".")[0] for name in further)  # the column of "metadata.language"
    return [name for name in dict.fromkeys((*COLUMNS, *further, *inside)) if name in names]
