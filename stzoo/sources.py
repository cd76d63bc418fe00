"""The sources of a corpus, each as a stream of lines that become rows when they are parsed.

Reading a line and parsing it are apart, so that a bad line can be counted and the next one read. A damaged
file is never taken for one with bad lines: what follows the damage is unknown.
"""

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from . import pydocs
from .errors import DataError

IN_FOLDERS = (".jsonl", ".jsonl.gz", ".parquet", ".txt", ".txt.gz")
# In a folder a .json file is most often a record or settings (run.json), so it is read only when it is named.
SUFFIXES = (*IN_FOLDERS, ".json", ".json.gz")
COLUMNS = ("_id", "id", "title", "text")
EXPECTED = 'an object with a string "text" (a string "title" and an "_id" or "id" may be there too)'
A_STRING = "a string there, or its token ids and a tokenizer to read them with"
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


class BadLineError(Exception):
    """What was found, and what was expected, on a line that holds no passage."""

    def __init__(self, found: str, expected: str = EXPECTED) -> None:
        super().__init__(found, expected)


class Row(NamedTuple):
    """A passage: id and text (title first) in UTF-8, and the further columns that are filled.

    `columns_json` is the columns as one JSON object in UTF-8, its keys sorted; b"" if there is none.
    """

    id: bytes
    text: bytes
    columns: dict[str, str | list[str]]
    columns_json: bytes


class TextReader:
    """Reads values that are text, or the token ids of a text.

    Args:
        tokenizer: the fast tokenizer that made the ids; None where there are none.
    """

    def __init__(self, tokenizer: Any = None) -> None:
        self._tokenizer = tokenizer
        self._known = frozenset(tokenizer.get_vocab().values() if tokenizer is not None else ())

    def __call__(self, key: str, value: Any) -> str:
        """The text.

        Args:
            key: the value's place in the row, for messages.
            value: a text, or token ids, special ones included.

        Raises:
            BadLineError: if it is neither, or an id is not the tokenizer's.
        """
        if isinstance(value, str):
            return value
        if not isinstance(value, list):
            raise BadLineError(f'a "{key}" of type {type(value).__name__}', A_STRING)
        kinds = set(map(type, value))
        if self._tokenizer is None and kinds == {int}:
            raise BadLineError(f'token ids in "{key}" and no tokenizer', "text, or the tokenizer of the ids")
        if self._tokenizer is None or not kinds <= {int}:
            names = ", ".join(sorted(kind.__name__ for kind in kinds)) or "nothing"
            raise BadLineError(f'a "{key}" of type list (of {names})', A_STRING)
        return self._decode(key, value)

    def _decode(self, key: str, ids: list[int]) -> str:
        if not self._known.issuperset(ids):
            raise BadLineError(
                f'a "{key}" with the token id {min(set(ids) - self._known)}',
                f"ids of the tokenizer's {len(self._known)} tokens; is it the one that made them?",
            )
        decoded = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(decoded)


def find(source: str, columns: Collection[str] = ()) -> list[Source]:
    """The files or the data set that a source is, as `stzoo.corpus.load_corpus` describes them.

    Args:
        source: as the user gave it.
        columns: to read beside id, title and text, where a source has them.

    Raises:
        DataError: if there is no such source, it is of no known kind, or `stzoo prepare` has not finished it.
    """
    path = Path(source).expanduser()
    if source == "pydocs":
        return [Source(source, pydocs.source_files(), _pydocs)]
    if path.is_dir():
        _refuse_half_made(path)
        return [_file(file, columns) for file in _readable(path)]
    if path.exists():
        if not path.name.lower().endswith(SUFFIXES):
            raise DataError(f"{source} is of no known kind; expected {', '.join(SUFFIXES)} or a folder.")
        return [_file(path, columns)]
    name, *rest = source.split(":")
    owner, slash, short = name.partition("/")
    is_id = owner.strip(".~") and slash and short and "/" not in short and len(rest) in (0, 2)
    if not is_id or name.lower().endswith(SUFFIXES):
        raise DataError(
            f"There is no file or folder {source}; expected one, 'pydocs', or the id of a data set on the "
            "Hub (org/name or org/name:config:split)."
        )
    config, split = rest or ("", "")
    return [_hub(source, name, config or None, split or "train", columns)]


def read_row(row: Any, default_id: str, columns: Mapping[str, type], text_of: TextReader) -> Row:
    """The passage that a parsed line holds.

    Args:
        row: what the line's parser made of it.
        default_id: where the row has none.
        columns: str or list[str] by the name of each further column to keep.
        text_of: reads a text, or token ids.

    Raises:
        BadLineError: if the row is no object, or has no text, or something in it is of the wrong type.
    """
    if not isinstance(row, dict):
        raise BadLineError(f"JSON that is no object but of type {type(row).__name__}")
    if "text" not in row:
        raise BadLineError(f"an object with the keys {', '.join(sorted(row)[:9]) or 'none'}")
    row_id = row["_id"] if row.get("_id") is not None else row.get("id")
    if not isinstance(row_id, str | int | None):
        raise BadLineError(f'an "id" of type {type(row_id).__name__}')
    text, title = text_of("text", row["text"]), row.get("title")
    if title is not None:
        text = f"{text_of('title', title)} {text}"
    filled = _filled(row, columns, text_of) if columns else {}
    try:
        return Row(
            str(default_id if row_id is None else row_id).encode(),
            text.strip().encode(),
            filled,
            json.dumps(filled, ensure_ascii=False, sort_keys=True).encode() if filled else b"",
        )
    except UnicodeEncodeError:
        raise BadLineError("half of a surrogate pair, which is no character") from None


def _filled(
    row: dict[str, Any], columns: Mapping[str, type], text_of: TextReader
) -> dict[str, str | list[str]]:
    filled: dict[str, str | list[str]] = {}
    for name, kind in columns.items():
        value = row.get(name)
        if value is None or value == []:
            continue
        if kind is str:
            if (text := text_of(name, value)).strip():
                filled[name] = text
            continue
        if not isinstance(value, list):
            raise BadLineError(f'a "{name}" of type {type(value).__name__}', "a list of strings")
        # An empty list is a text of no tokens: where a model had nothing to say, released data hold one.
        texts = [text_of(f"{name}[{place}]", part) for place, part in enumerate(value) if part != []]
        if not all(map(str.strip, texts)):
            raise BadLineError(f'a blank string in "{name}"', "text in each string of the list")
        if texts:
            filled[name] = texts
    return filled


def _refuse_half_made(folder: Path) -> None:
    try:
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
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
        with path.open("rb") as raw, gzip.open(raw) if path.suffix.lower() == ".gz" else raw as opened:
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
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # With a buffer it reads a column piece by piece, not a whole row group at once.
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as opened:
            names = _columns(opened.schema_arrow.names, columns, path)
            tables = opened.iter_batches(1000, columns=names)
            yield from _rows(tables, opened.metadata.num_rows, progress)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} could not be read ({error}); expected a whole Parquet file.") from error


def _hub(source: str, name: str, config: str | None, split: str, columns: Collection[str]) -> Source:
    import datasets

    try:
        found = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{source} is no file or folder here, and no data set came from the Hub: {error}. Check the name "
            "and, in org/name:config:split, the config and split. Without a network, fetch it where there is "
            "one (datasets.load_dataset) and bring the cache along, or give a file."
        ) from error
    rows = found.select_columns(_columns(found.column_names, columns, source)).with_format("arrow")
    files = [Path(file["filename"]) for file in rows.cache_files]
    return Source(source, files, lambda progress: _rows(rows.iter(1000), len(rows), progress))


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
        return {name: table.column(name)[row].as_py() for name in table.schema.names}
    except UnicodeDecodeError:
        raise BadLineError("a string that is no UTF-8") from None


def _from_json(line: bytes) -> Any:
    try:
        return json.loads(_from_text(line)["text"])
    except json.JSONDecodeError as error:
        raise BadLineError(f"no JSON ({error.msg} at character {error.pos + 1})", ONE_A_LINE) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise BadLineError(f"JSON that cannot be read ({error})") from None


def _from_text(line: bytes) -> dict[str, str]:
    try:
        return {"text": line.decode()}
    except UnicodeDecodeError as error:
        raise BadLineError(f"byte {error.start + 1} of the line is no UTF-8", "text in UTF-8") from None
