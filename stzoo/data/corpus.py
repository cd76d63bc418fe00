"""Passages to pre-train on, read once and then memory-mapped.

The sources are streamed into an Arrow file in a cache folder, and training maps that file: memory does not
grow with the corpus, and row i is the same passage in every run. The name of the file's folder is a hash of
everything that decides the rows (path, size and times of each file, the settings, this code). One process
writes the folder under another name and renames it when it is complete, while others wait. It may be deleted
when no run uses it: the same sources give the same rows again.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from filelock import FileLock

from stzoo.data import corpus_rows, corpus_sources, pydocs, row_location, rows, words
from stzoo.errors import DataError, ModelError, OutputError, RecipeError
from stzoo.utils import inputs
from stzoo.utils.cache import cache_folder
from stzoo.utils.files import atomic_folder, clear_drafts, fingerprint, write_json
from stzoo.utils.messages import counted
from stzoo.utils.progress import progress_bar

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
        rows: A memory-mapped Dataset with the columns "id" (str), "text" (str, with the title in front) and
            each further column that was requested and has a value in any row (str or list of str; None where
            a row has no value). The sources are in the given order, each in its own order.
        sources: The sources, as given.
        dropped: Number of passages that were left out because they are too short.
        bad_lines: Number of invalid lines that were skipped.
        fingerprint: SHA-256 (64 hex digits) of all ids, texts and further columns in order.
    """

    rows: "Dataset"
    sources: tuple[str, ...]
    dropped: int
    bad_lines: int
    fingerprint: str

    def reader(self) -> Callable[[int, int], list[dict[str, Any]]]:
        """A function that reads the rows `first` to `last - 1` by a mapping of its own.

        The pages that it reads count as memory of the process only as long as the function is kept.
        """
        from datasets import Dataset

        kept = self.rows
        if len(kept.cache_files) == 1:
            kept = Dataset.from_file(kept.cache_files[0]["filename"]).select_columns(kept.column_names)

        def read(first: int, last: int) -> list[dict[str, Any]]:
            columns = kept[first:last]
            return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

        return read

    def sample(self, blocks: int = 20, size: int = 50) -> list[dict[str, Any]]:
        """Rows in evenly spaced blocks of neighbouring rows, or all rows of a small corpus."""
        read, count = self.reader(), len(self.rows)
        if count <= blocks * size:
            return read(0, count)
        starts = [block * (count - size) // (blocks - 1) for block in range(blocks)]
        return [row for start in starts for row in read(start, start + size)]

    def record(self) -> dict[str, Any]:
        """The values for the record of a run."""
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

    A source is one of these:

    - a file: .jsonl or .json with one object per line, .txt with one passage per line, .csv or .tsv with a
      header (all also with .gz), or .parquet;
    - a BEIR folder, whose corpus is read, or another folder of such files, which are read in name order
      without subfolders and .json, .csv and .tsv files (in folders these are usually settings or
      judgements; name them to read them);
    - "pydocs": docstrings of the standard library without the held-out queries, see `pydocs.py`;
    - the id of a data set on the Hub, "org/name" or "org/name:config:split" (the config may be empty; the
      default split is "train").

    JSON objects, Parquet and Hub rows have a "text". They may have a "title", which is put in front of the
    text, and an "_id" or "id"; the default id is the file's name and the line. Blank lines are skipped. An id
    may be repeated.

    A further column is null where a row lacks it, or has null, an empty list or (str) blank text. A column
    without any value is left out of the rows.

    Args:
        sources: One source or several.
        min_words: Passages with fewer words (including the title) are dropped. Words are those of `words.py`:
            each character in scripts without spaces is a word, and so is each emoji. Shorter passages (stray
            headings or numbers) give the decoder no context once a word is masked.
        skip_bad_lines: True to skip and count invalid lines.
        cache: Folder for the Arrow files; None for `cache_folder()`.
        columns: Further columns to keep if a source has them: str or list[str] by name. A "title" that is
            kept is still put in front of the text.
        tokenizer: The fast tokenizer of the token ids that some rows have in place of text (a list of int
            per text), as in MASTER's released data; None if there are none. With a WordPiece tokenizer,
            tokenizing the decoded text gives the same ids for any complete text.

    Raises:
        DataError: If a source is missing, unreadable, damaged or unfinished, a line has no passage or a value
            of another type, or no passage is left.
        ModelError: If the tokenizer is not a fast one.
        OutputError: If the cache cannot be written.
        RecipeError: If min_words is below 1, or a column is "id" or "text" or has another type.
    """
    if min_words < 1:
        raise RecipeError(f"min_words is {min_words}; expected 1 or more.")
    given = [str(source) for source in ([sources] if isinstance(sources, str | Path) else sources)]
    if not given:
        raise DataError("No corpus was given; expected a file, a folder, 'pydocs' or the id of a data set.")
    columns = columns or {}
    for name, kind in columns.items():
        if name in ("id", "text") or kind not in _KINDS:
            raise RecipeError(
                f"The column {name!r} of {kind} cannot be kept; expected str or list[str] by a "
                "name other than id and text, which are always kept."
            )
    parts = [part for source in given for part in corpus_sources.find(source, columns)]
    settings: dict[str, Any] = {"min_words": min_words, "skip_bad_lines": skip_bad_lines}
    key = _key(parts, settings, columns, tokenizer)
    folder = (inputs.user_path(cache, OutputError) if cache else cache_folder()) / "corpora" / key
    if not _is_whole(folder):
        with exclusive(folder):
            if not _is_whole(folder):  # another process may have written it meanwhile
                with atomic_folder(folder, replaces=[r"rows\.arrow", r"corpus\.json"]) as draft:
                    text_of = corpus_rows.TextReader(tokenizer)
                    report = _write(parts, draft / "rows.arrow", columns, text_of, **settings)
                    if _key(parts, settings, columns, tokenizer) != key:
                        raise DataError(
                            "A file of the corpus was changed while it was read. Run the command again."
                        )
                    write_json(draft / "corpus.json", report)
    return _open(folder, given)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 (64 hex digits) of a tokenizer's normaliser, pre-tokeniser and vocabulary.

    Two fast tokenizers with the same fingerprint split a text into the same tokens, except for special and
    added tokens in the text. Truncation, padding and decoder are not included.

    Raises:
        ModelError: If it is not a fast tokenizer (one with a tokenizer.json).
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


def _key(
    parts: Sequence[corpus_sources.Source],
    settings: dict[str, Any],
    columns: Mapping[str, type],
    tokenizer: Any,
) -> str:
    """The name of the rows' folder: a hash of everything that decides the rows."""
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
            # The change time too: a copied or unpacked file may keep an old modification time.
            known.append([str(file.resolve()), state.st_size, state.st_mtime_ns, state.st_ctime_ns])
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Waits while another process writes the folder, and removes the drafts of a killed one."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f"{folder.name}.lock"))
        lock.acquire()
    except OSError as error:
        raise OutputError(
            f"The cache {folder.parent} cannot be written: {error.strerror or error}. Set the environment "
            "variable STZOO_CACHE to another folder."
        ) from error
    try:
        clear_drafts(folder.parent)
        yield
    finally:
        lock.release()


def _is_whole(folder: Path) -> bool:
    """True if the rows still have the size that was written; a crash of the system may have cut them."""
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
    """Streams the rows of all parts into an Arrow file, and returns the values of corpus.json."""
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
            # With the lengths, different rows never give the same bytes; a row's columns begin with "{", the
            # next row with a digit.
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
            f"There is no passage in {', '.join(part.name for part in parts)} after leaving out "
            f"{counted(counts['dropped'], 'text')} of fewer than {counted(min_words, 'word')} and "
            f"{counted(counts['bad_lines'], 'bad line')}. Give other files, or a lower min_words."
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
    """The passages to keep; others are counted."""

    def bad_line(error: DataError) -> None:
        if not skip_bad_lines:
            raise error
        counts["bad_lines"] += 1

    sizes = [sum(file.stat().st_size for file in part.files) for part in parts]
    with progress_bar(total=sum(sizes), unit="B", unit_scale=True, desc="Reading the corpus") as bar:
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
