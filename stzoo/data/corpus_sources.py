"""The sources of a corpus, each as a stream of lines that become rows when they are parsed.

Reading a line and parsing it are apart, so that a bad line can be counted and the next one read. A damaged
file is never taken for one with bad lines: what follows the damage is unknown.
"""

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stzoo.data import pydocs
from stzoo.data.corpus_rows import EXPECTED, BadLineError
from stzoo.errors import DataError
from stzoo.utils.inputs import (
    arrow_value,
    check_is_file,
    check_tables,
    open_input,
    open_parquet,
    parse_json,
    user_path,
)
from stzoo.utils.network import limit_waits

IN_FOLDERS = (".jsonl", ".jsonl.gz", ".parquet", ".txt", ".txt.gz")
# In a folder a .json file is most often a record or settings (run.json), so it is read only when it is named.
SUFFIXES = (*IN_FOLDERS, ".json", ".json.gz")
COLUMNS = ("_id", "id", "title", "text")
ONE_A_LINE = f"on each line {EXPECTED}; a document spread over many lines is not read"

Progress = Callable[[float], None]
Line = tuple[int, Callable[[Any], Any], Any]


@dataclass(frozen=True)
class Source:
    """A file, or another stretch of rows.

    Attributes:
        name: of the file or data set, for messages.
        files: that hold the rows; they change when the rows do.
        read: tells its argument the share read so far (0 to 1), and yields of each line its number (from 1),
            a function that makes a row of it or raises BadLineError, and the line.
    """

    name: str
    files: Sequence[Path]
    read: Callable[[Progress], Iterator[Line]]


def find(source: str, columns: Collection[str] = ()) -> list[Source]:
    """The files or the data set that a source is, as `stzoo.data.corpus.load_corpus` describes them.

    Args:
        source: as the user gave it.
        columns: to read beside id, title and text, where a source has them.

    Raises:
        DataError: if there is no such source, it is of no known kind, or `stzoo prepare` has not finished it.
    """
    if source == "pydocs":
        return [Source(source, pydocs.source_files(), _pydocs)]
    path = user_path(source)
    if path.is_dir():
        _refuse_half_made(path)
        return [_file(file, columns) for file in _readable(path)]
    if path.exists():
        check_is_file(path)
        if not path.name.lower().endswith(SUFFIXES):
            raise DataError(f"{source} is of no known kind; expected {', '.join(SUFFIXES)} or a folder.")
        return [_file(path, columns)]
    if not is_hub_id(source):
        raise DataError(
            f"There is no file or folder {source}; expected one, 'pydocs', or the id of a data set on the "
            "Hub (org/name or org/name:config:split)."
        )
    return [_hub(source, columns)]


def is_hub_id(source: str) -> bool:
    """True if it is spelt as the id of a data set on the Hub: org/name or org/name:config:split."""
    name, *rest = source.split(":")
    owner, slash, short = name.partition("/")
    is_id = owner.strip(".~") and slash and short and "/" not in short and len(rest) in (0, 2)
    return bool(is_id) and not name.lower().endswith(SUFFIXES)


def hub_ids(sources: Iterable[str]) -> list[str]:
    """Of sources that were read, the data sets that came from the Hub, each once."""
    there = (one for one in sources if is_hub_id(one) and not user_path(one).exists())
    return list(dict.fromkeys(one.partition(":")[0] for one in there))


def load_hub(source: str, split: str = "train") -> Any:
    """The rows of a data set on the Hub, a `datasets.Dataset`.

    Args:
        source: org/name or org/name:config:split; the config may be empty.
        split: where the source names none.

    Raises:
        DataError: if it does not come.
    """
    import datasets

    limit_waits()
    name, config, named = [*source.split(":"), "", ""][:3]
    try:
        return datasets.load_dataset(name, config or None, split=named or split)
    except Exception as error:  # of many kinds: of the network, of the client libraries, of the data
        raise DataError(
            f"{source} is no file or folder here, and no data set came from the Hub: {error}. Check the name "
            "and, in org/name:config:split, the config and split. Without a network, fetch it where there is "
            "one (datasets.load_dataset) and bring the cache along, or give a file."
        ) from error


def _refuse_half_made(folder: Path) -> None:
    try:
        facts = parse_json((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if not isinstance(facts, dict) or facts.get("status") == "finished":
        return
    recipe = facts.get("recipe")
    if "prepare" in (facts.get("command"), recipe.get("command") if isinstance(recipe, dict) else None):
        raise DataError(
            f"{folder} is a half-made data set: its run.json says that `stzoo prepare` has not finished. "
            f"Finish it with the command that began it (stzoo prepare ... --output {folder} --resume)."
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
            f"{folder} has no file of any known kind ({', '.join(IN_FOLDERS)}). Give the folder that has "
            "them, as subfolders are not searched, or name a .json file itself."
        )
    return found


def _file(path: Path, columns: Collection[str]) -> Source:
    name = path.name.lower()
    if name.endswith(".parquet"):
        return Source(str(path), [path], lambda progress: _parquet(path, columns, progress))
    parse = _from_text if name.removesuffix(".gz").endswith(".txt") else _from_json
    return Source(str(path), [path], lambda progress: _lines(path, parse, progress))


def _lines(path: Path, parse: Callable[[bytes], Any], progress: Progress) -> Iterator[Line]:
    number = 0
    try:
        with open_input(path) as raw, gzip.open(raw) if path.suffix.lower() == ".gz" else raw as opened:
            size = path.stat().st_size
            for number, line in enumerate(opened, 1):
                if number % 1000 == 0:
                    progress(raw.tell() / size)
                text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if text.strip():
                    yield number, parse, text
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path} is damaged after line {number} ({error}); expected a whole gzip file. "
            "Fetch or compress it again."
        ) from error
    except OSError as error:
        raise DataError(f"{path} could not be read: {error.strerror or error}.") from error


def _parquet(path: Path, columns: Collection[str], progress: Progress) -> Iterator[Line]:
    with open_parquet(path) as opened:
        names = _columns(opened.schema_arrow.names, columns, path)
        yield from _rows(opened.iter_batches(1000, columns=names), opened.metadata.num_rows, progress)


def _hub(source: str, columns: Collection[str]) -> Source:
    found = load_hub(source)
    rows = found.select_columns(_columns(found.column_names, columns, source)).with_format("arrow")
    files = [Path(file["filename"]) for file in rows.cache_files]
    return Source(
        source, files, lambda progress: _rows(check_tables(source, rows.iter(1000)), len(rows), progress)
    )


def _pydocs(_: Progress) -> Iterator[Line]:
    for number, row in enumerate(pydocs.passages(), 1):
        yield number, dict, row


def _columns(names: Sequence[str], wanted: Collection[str], where: object) -> list[str]:
    if "text" not in names:
        raise DataError(f'{where} has the columns {", ".join(names) or "none"}; expected one named "text".')
    return [name for name in dict.fromkeys((*COLUMNS, *wanted)) if name in names]


def _rows(tables: Iterator[Any], total: int, progress: Progress) -> Iterator[Line]:
    done = 0
    for table in tables:
        for row in range(len(table)):
            yield done + row + 1, _from_table, (table, row)
        done += len(table)
        progress(done / total)


def _from_table(place: tuple[Any, int]) -> Any:
    table, row = place
    try:
        return {name: arrow_value(table, name, row) for name in table.schema.names}
    except ValueError as error:
        raise BadLineError(str(error)) from None


def _from_json(line: bytes) -> Any:
    try:
        return parse_json(_from_text(line)["text"])
    except json.JSONDecodeError as error:
        raise BadLineError(f"no JSON ({error.msg} at character {error.pos + 1})", ONE_A_LINE) from None
    except ValueError as error:
        raise BadLineError(f"JSON that cannot be read ({error})") from None


def _from_text(line: bytes) -> dict[str, str]:
    try:
        return {"text": line.decode()}
    except UnicodeDecodeError as error:
        raise BadLineError(f"byte {error.start + 1} of the line is no UTF-8", "text in UTF-8") from None
