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
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import pydocs
from . import sources as readers
from .errors import DataError, OutputError, RecipeError
from .files import fingerprint, whole_folder, write_json

if TYPE_CHECKING:
    from datasets import Dataset

MIN_WORDS = 3

# Scripts that put no spaces between words: here every character counts as a word.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_BATCH_BYTES = 2 << 20


@dataclass(frozen=True)
class Corpus:
    """Passages to pre-train on.

    Attributes:
        rows: a memory-mapped Dataset of "id" (str) and "text" (str, the title in front): the sources in the
            order given, each in its own order.
        sources: what they were read from, as given.
        dropped: how many near-empty passages were left out.
        bad_lines: how many lines that hold no passage were left out.
        fingerprint: SHA-256 (64 hex digits) of all ids and texts in their order.
    """

    rows: "Dataset"
    sources: tuple[str, ...]
    dropped: int
    bad_lines: int
    fingerprint: str


def load_corpus(
    sources: str | Path | Sequence[str | Path],
    *,
    min_words: int = MIN_WORDS,
    skip_bad_lines: bool = False,
    cache: str | Path | None = None,
) -> Corpus:
    """Reads passages from one or more sources.

    A source is a file (.jsonl, .jsonl.gz, .parquet; .txt and .txt.gz with one passage a non-empty line), a
    BEIR folder (its corpus is read), another folder of such files (in name order, without subfolders),
    "pydocs" (docstrings of the standard library without the held-out queries, see `stzoo.pydocs`), or the id
    of a data set on the Hub, "org/name" or "org/name:config:split" (the config may be empty; without them the
    split is "train").

    JSON objects, Parquet and Hub rows have a "text" and may have a "title", which is put in front of the
    text, and an "_id" or "id"; where it is missing it becomes the file's name and the line. Blank lines are
    passed over. One id may stand at several rows.

    Args:
        sources: one source or several.
        min_words: passages of fewer words (title included) are dropped. The default is 3: a shorter one, a
            stray heading or number, leaves nothing to rebuild it from once a word is hidden.
        skip_bad_lines: True counts lines that hold no passage and goes on.
        cache: the folder for the Arrow files; None for `cache_folder()`.

    Raises:
        DataError: if a source is missing, unreadable or damaged, a line holds no passage, or none is left.
        OutputError: if the cache cannot be written.
        RecipeError: if min_words is below 1.
    """
    if min_words < 1:
        raise RecipeError(f"min_words is {min_words}; expected 1 or more, as an empty text teaches nothing.")
    given = [str(source) for source in ([sources] if isinstance(sources, str | Path) else sources)]
    if not given:
        raise DataError("No corpus was given; expected a file, a folder, 'pydocs' or the id of a data set.")
    parts = [part for source in given for part in readers.find(source)]
    settings: dict[str, Any] = {"min_words": min_words, "skip_bad_lines": skip_bad_lines}
    key = _key(parts, settings)
    folder = (Path(cache) if cache else cache_folder()).expanduser() / "corpora" / key
    if not _is_whole(folder):
        with _alone(folder):
            if not _is_whole(folder):  # another process may have made it meanwhile
                with whole_folder(folder) as draft:
                    report = _write(parts, draft / "rows.arrow", **settings)
                    if _key(parts, settings) != key:
                        raise DataError("A file of the corpus was changed while it was read. Start again.")
                    write_json(draft / "corpus.json", report)
    return _open(folder, given)


def cache_folder() -> Path:
    """Where stzoo keeps what it can make again: $STZOO_CACHE, or stzoo in $XDG_CACHE_HOME or ~/.cache."""
    given = os.environ.get("STZOO_CACHE")
    return Path(given or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "stzoo")).expanduser()


def _key(parts: Sequence[readers.Source], settings: dict[str, Any]) -> str:
    """Names the folder of the rows after all that decides what is in them."""
    known: list[Any] = [settings, fingerprint(__file__, readers.__file__, pydocs.__file__)]
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
    from filelock import FileLock

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
        for left in folder.parent.glob(f".{folder.name}.*"):
            shutil.rmtree(left, ignore_errors=True)
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
    rows = Dataset.from_file(str(folder / "rows.arrow"))
    counts = {name: report[name] for name in ("dropped", "bad_lines", "fingerprint")}
    return Corpus(rows=rows, sources=tuple(sources), **counts)


def _write(
    parts: Sequence[readers.Source], path: Path, min_words: int, skip_bad_lines: bool
) -> dict[str, Any]:
    """Streams the rows of all parts into an Arrow file, and says what came of it."""
    import pyarrow as pa

    counts = {"rows": 0, "dropped": 0, "bad_lines": 0}
    digest = hashlib.sha256()
    schema = pa.schema({"id": pa.string(), "text": pa.string()})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        ids: list[bytes] = []
        texts: list[bytes] = []
        size = 0
        for row_id, text in _passages(parts, min_words, skip_bad_lines, counts):
            # The lengths keep apart what would be one string of bytes otherwise.
            digest.update(b"%d %d " % (len(row_id), len(text)) + row_id + text)
            ids.append(row_id)
            texts.append(text)
            size += len(row_id) + len(text)
            counts["rows"] += 1
            if size >= _BATCH_BYTES:
                writer.write_batch(pa.record_batch([ids, texts], schema))
                ids, texts, size = [], [], 0
        writer.write_batch(pa.record_batch([ids, texts], schema))
    if not counts["rows"]:
        raise DataError(
            f"There is no passage in {', '.join(part.name for part in parts)}; {counts['dropped']} texts of "
            f"fewer than {min_words} words and {counts['bad_lines']} bad lines were left out. Give real text."
        )
    return {**counts, "fingerprint": digest.hexdigest(), "bytes": path.stat().st_size}


def _passages(
    parts: Sequence[readers.Source], min_words: int, skip_bad_lines: bool, counts: dict[str, int]
) -> Iterator[tuple[bytes, bytes]]:
    """The id and text of each passage to keep, in UTF-8; the others are counted."""
    from tqdm import tqdm

    sizes = [sum(file.stat().st_size for file in part.files) for part in parts]
    with tqdm(total=sum(sizes), unit="B", unit_scale=True, desc="reading the corpus", disable=None) as bar:
        for done, size, part in zip(accumulate(sizes, initial=0), sizes, parts, strict=False):

            def progress(share: float, done: int = done, size: int = size) -> None:
                bar.update(done + int(share * size) - bar.n)

            for number, parse, line in part.read(progress):
                try:
                    row_id, text = readers.row_text(parse(line), f"{Path(part.name).name}:{number}")
                except readers.BadLineError as bad:
                    if not skip_bad_lines:
                        raise DataError.at(part.name, number, *bad.args) from None
                    counts["bad_lines"] += 1
                    continue
                if sum(1 for _ in islice(WORD.finditer(text.decode()), min_words)) < min_words:
                    counts["dropped"] += 1
                else:
                    yield row_id, text
            progress(1)
