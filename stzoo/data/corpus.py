"""Passages to pre-train on, read once and then memory-mapped.

The sources are streamed into an Arrow file in a cache folder, and training maps that file: memory does not
grow with the corpus, and row i is the same passage in every run. The file's folder is named after all that it
was made from (path, size and times of each file, the settings, this code), is made under another name and
renamed when it is whole, and is made by one process while others wait. It may be deleted when no run uses it:
the same sources give the same rows again.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from filelock import FileLock
from tqdm import tqdm

from stzoo.data import corpus_rows, corpus_sources, pydocs, row_location, rows, words
from stzoo.errors import DataError, ModelError, OutputError, RecipeError
from stzoo.utils import inputs
from stzoo.utils.files import atomic_folder, clear_drafts, fingerprint, write_json

if TYPE_CHECKING:
    from datasets import Dataset

MIN_WORDS = 3
_BATCH_BYTES = 2 << 20
_MODULES = (corpus_rows, corpus_sources, rows, row_location, words, inputs, pydocs)  # decide the rows
_KINDS: tuple[type, ...] = (str, list[str])  # of a further column


@dataclass(frozen=True)
class Corpus:
    """Passages to pre-train on.

    Attributes:
        rows: a memory-mapped Dataset of "id" (str) and "text" (str, the title in front), and of those
            further columns asked for that any row fills (str or list of str; None where a row does not): the
            sources in the order given, each in its own order.
        sources: what they were read from, as given.
        dropped: how many near-empty passages were left out.
        bad_lines: how many lines that hold no passage were left out.
        fingerprint: SHA-256 (64 hex digits) of all ids, texts and further columns in their order.
    """

    rows: "Dataset"
    sources: tuple[str, ...]
    dropped: int
    bad_lines: int
    fingerprint: str

    def facts(self) -> dict[str, Any]:
        """What the record of a run says of it."""
        counts = {"dropped": self.dropped, "bad_lines": self.bad_lines}
        return {"fingerprint": self.fingerprint, "passages": len(self.rows), **counts}


def load_corpus(
    sources: str | Path | Sequence[str | Path],
    *,
    min_words: int = MIN_WORDS,
    skip_bad_lines: bool = False,
    cache: str | Path | None = None,
    columns: Mapping[str, type] | None = None,
    tokenizer: Any = None,
) -> Corpus:
    """Reads passages from one or more sources.

    A source is a file (.jsonl or .json with one object a line, .txt with one passage a non-empty line, all
    three also with .gz; .parquet), a BEIR folder (its corpus is read), another folder of such files (in name
    order, without subfolders, and without .json files, which must be named themselves: in folders they are
    most often settings), "pydocs" (docstrings of the standard library without the held-out queries, see
    `pydocs.py`), or the id of a data set on the Hub, "org/name" or "org/name:config:split" (the config may
    be empty; without them the split is "train").

    JSON objects, Parquet and Hub rows have a "text" and may have a "title", which is put in front of the
    text, and an "_id" or "id"; where it is missing it becomes the file's name and the line. Blank lines are
    passed over. One id may stand at several rows.

    A further column is null where a row lacks it, or has null, an empty list or (str) blank text. A column
    that no row fills is left out of the rows.

    Args:
        sources: one source or several.
        min_words: passages of fewer words (title included) are dropped. Words are those of `words.py`:
            in scripts without spaces each character is one, and each emoji. The default is 3: a shorter one,
            a stray heading or number, leaves nothing to rebuild it from once a word is hidden.
        skip_bad_lines: True counts lines that hold no passage and goes on.
        cache: the folder for the Arrow files; None for `cache_folder()`.
        columns: further columns to keep where a source has them: str or list[str] by name. "title" may be one
            and then still stands in front of the text.
        tokenizer: the fast tokenizer that made the token ids that stand in place of text (a list of int for
            each text), as in MASTER's released data; None where there are none. With a WordPiece tokenizer,
            tokenizing what is read gives back the ids of any whole text.

    Raises:
        DataError: if a source is missing, unreadable, damaged or half-made, a line holds no passage or a
            column of another type, or no passage is left.
        ModelError: if the tokenizer is no fast one.
        OutputError: if the cache cannot be written.
        RecipeError: if min_words is below 1, or a column is "id", "text" or of another type.
    """
    if min_words < 1:
        raise RecipeError(f"min_words is {min_words}; expected 1 or more, as an empty text teaches nothing.")
    given = [str(source) for source in ([sources] if isinstance(sources, str | Path) else sources)]
    if not given:
        raise DataError("No corpus was given; expected a file, a folder, 'pydocs' or the id of a data set.")
    columns = columns or {}
    for name, kind in columns.items():
        if name in ("id", "text") or kind not in _KINDS:
            raise RecipeError(
                f"The column {name!r} of {kind} cannot be kept; expected str or list[str] by a "
                "name other than id and text, which are always there."
            )
    parts = [part for source in given for part in corpus_sources.find(source, columns)]
    settings: dict[str, Any] = {"min_words": min_words, "skip_bad_lines": skip_bad_lines}
    key = _key(parts, settings, columns, tokenizer)
    folder = (inputs.user_path(cache, OutputError) if cache else cache_folder()) / "corpora" / key
    if not _is_whole(folder):
        with _alone(folder):
            if not _is_whole(folder):  # another process may have made it meanwhile
                with atomic_folder(folder, replaces=[r"rows\.arrow", r"corpus\.json"]) as draft:
                    text_of = corpus_rows.TextReader(tokenizer)
                    report = _write(parts, draft / "rows.arrow", columns, text_of, **settings)
                    if _key(parts, settings, columns, tokenizer) != key:
                        raise DataError("A file of the corpus was changed while it was read. Start again.")
                    write_json(draft / "corpus.json", report)
    return _open(folder, given)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 (64 hex digits) of what cuts a text into pieces: normaliser, splitter, vocabulary.

    Two fast tokenizers of one fingerprint cut a text into the same pieces, but for special and added tokens
    that the text spells out. Truncation, padding and decoder are not in it.

    Raises:
        ModelError: if it is no fast tokenizer (one with a tokenizer.json).
    """
    return _fingerprint_parts(tokenizer, "normalizer", "pre_tokenizer", "model")


def _fingerprint_parts(tokenizer: Any, *parts: str) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"A {type(tokenizer).__name__} was given; expected a fast tokenizer (one with a tokenizer.json), "
            "as AutoTokenizer.from_pretrained gives it."
        )
    whole = json.loads(backend.to_str())
    return hashlib.sha256(json.dumps([whole[part] for part in parts], sort_keys=True).encode()).hexdigest()


def cache_folder() -> Path:
    """Where stzoo keeps what it can make again: $STZOO_CACHE, or stzoo in $XDG_CACHE_HOME or ~/.cache."""
    given = os.environ.get("STZOO_CACHE")
    path = Path(given or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "stzoo"))
    return inputs.user_path(path, OutputError)


def _key(
    parts: Sequence[corpus_sources.Source],
    settings: dict[str, Any],
    columns: Mapping[str, type],
    tokenizer: Any,
) -> str:
    """Names the folder of the rows after all that decides what is in them."""
    known: list[Any] = [
        settings,
        fingerprint(*(str(module.__file__) for module in _MODULES), __file__),
    ]
    known.append([[name, str(kind)] for name, kind in columns.items()])
    if tokenizer is not None:
        decides = ("normalizer", "pre_tokenizer", "model", "added_tokens", "decoder")
        known.append(_fingerprint_parts(tokenizer, *decides))
    for part in parts:
        known.append(Path(part.name).name)
        for file in part.files:
            try:
                state = file.stat()
            except OSError as error:
                raise DataError(f"{file} could not be read: {error.strerror or error}.") from error
            # The change time too: a copied or unpacked file may bring an old modification time along.
            known.append([str(file.resolve()), state.st_size, state.st_mtime_ns, state.st_ctime_ns])
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits while another process makes the folder, and clears away what a killed one has left of it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_suffix(".lock"))
        lock.acquire()
    except OSError as error:
        raise OutputError(
            f"The cache {folder.parent} cannot be written: {error.strerror or error}. Name another folder in "
            "the environment variable STZOO_CACHE."
        ) from error
    try:
        clear_drafts(folder.parent)
        yield
    finally:
        lock.release()


def _is_whole(folder: Path) -> bool:
    """True if the rows are as long as when they were written; a crash of the machine may have cut them."""
    try:
        report = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        return bool((folder / "rows.arrow").stat().st_size == report["bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _open(folder: Path, sources: Sequence[str]) -> Corpus:
    from datasets import Dataset

    report = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    kept = Dataset.from_file(str(folder / "rows.arrow")).select_columns(["id", "text", *report["columns"]])
    counts = {name: report[name] for name in ("dropped", "bad_lines", "fingerprint")}
    return Corpus(rows=kept, sources=tuple(sources), **counts)


def _write(
    parts: Sequence[corpus_sources.Source],
    path: Path,
    columns: Mapping[str, type],
    text_of: corpus_rows.TextReader,
    min_words: int,
    skip_bad_lines: bool,
) -> dict[str, Any]:
    """Streams the rows of all parts into an Arrow file, and says what came of it."""
    counts = {"rows": 0, "dropped": 0, "bad_lines": 0}
    digest = hashlib.sha256()
    kinds = {"id": str, "text": str, **columns}
    schema = pa.schema(
        [(name, pa.string() if kind is str else pa.list_(pa.string())) for name, kind in kinds.items()]
    )
    filled: set[str] = set()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        batch: list[tuple[Any, ...]] = []
        size = 0
        for row in _passages(parts, columns, text_of, min_words, skip_bad_lines, counts):
            # The lengths keep apart what would be one string of bytes otherwise; a row's columns begin with
            # "{", the next row with a digit.
            digest.update(b"%d %d " % (len(row.id), len(row.text)) + row.id + row.text + row.columns_json)
            batch.append((row.id, row.text, *map(row.columns.get, columns)))
            filled.update(row.columns)
            size += len(row.id) + len(row.text) + len(row.columns_json)
            counts["rows"] += 1
            if size >= _BATCH_BYTES:
                writer.write_batch(pa.record_batch(list(zip(*batch, strict=True)), schema))
                batch, size = [], 0
        if batch:
            writer.write_batch(pa.record_batch(list(zip(*batch, strict=True)), schema))
    if not counts["rows"]:
        raise DataError(
            f"There is no passage in {', '.join(part.name for part in parts)}; {counts['dropped']} texts of "
            f"fewer than {min_words} words and {counts['bad_lines']} bad lines were left out. Give real text."
        )
    return {
        **counts,
        "columns": [name for name in columns if name in filled],
        "fingerprint": digest.hexdigest(),
        "bytes": path.stat().st_size,
    }


def _passages(
    parts: Sequence[corpus_sources.Source],
    columns: Mapping[str, type],
    text_of: corpus_rows.TextReader,
    min_words: int,
    skip_bad_lines: bool,
    counts: dict[str, int],
) -> Iterator[corpus_rows.Row]:
    """The passages to keep; the others are counted."""

    def bad_line(error: DataError) -> None:
        if not skip_bad_lines:
            raise error
        counts["bad_lines"] += 1

    sizes = [sum(file.stat().st_size for file in part.files) for part in parts]
    with tqdm(total=sum(sizes), unit="B", unit_scale=True, desc="reading the corpus", disable=None) as bar:
        for done, size, part in zip(accumulate(sizes, initial=0), sizes, parts, strict=False):

            def progress(share: float, done: int = done, size: int = size) -> None:
                bar.update(done + int(share * size) - bar.n)

            for at, values in part.read(progress, bad_line):
                try:
                    row = corpus_rows.read_row(values, at, columns, text_of)
                except DataError as error:
                    bad_line(error)
                    continue
                if not words.has_words(row.text.decode(), min_words):
                    counts["dropped"] += 1
                else:
                    yield row
            progress(1)
