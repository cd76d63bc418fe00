"""Many texts in little memory, and files read line by line.

A Python string takes 49 to 76 bytes beside its characters, and up to four bytes for each of them. `Texts` are
UTF-8 in Arrow's memory, with eight bytes each beside them; strings are made of them when they are asked for.
"""

import gzip
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from json import JSONDecodeError
from operator import eq
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from stzoo.errors import DataError
from stzoo.utils.inputs import open_input, parse_json

CHUNK_BYTES = 1 << 20
R = TypeVar("R")
_kept: ContextVar[dict[Path, Any] | None] = ContextVar("what was read, by file", default=None)


@contextmanager
def each_file_once() -> Iterator[None]:
    """Inside, what is read by `once` is kept, and neither read nor held a second time."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def once(file: Path, read: Callable[[], R]) -> R:
    """What `read` makes of the file: inside `each_file_once` that of the first call."""
    kept = _kept.get()
    if kept is None:
        return read()
    name = file.resolve()
    if name not in kept:
        kept[name] = read()
    found: R = kept[name]
    return found


class Texts(Sequence[str]):
    """Strings that never change, held as UTF-8; equal to any list or tuple of the same strings.

    Args:
        texts: taken one by one, so that a stream is never held whole.

    Raises:
        UnicodeEncodeError: if a text holds half of a surrogate pair, which UTF-8 cannot.
    """

    _chunks: Any  # a pyarrow.ChunkedArray of large_string

    def __init__(self, texts: Iterable[str] = ()):
        writer = TextsWriter()
        for text in texts:
            writer.append(text)
        self._chunks = writer.finish()._chunks

    @classmethod
    def _of(cls, chunks: Any) -> "Texts":
        made = cls.__new__(cls)
        made._chunks = chunks
        return made

    def __len__(self) -> int:
        return len(self._chunks)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if not isinstance(place, slice):
            return self._chunks[place].as_py()
        if place.step in (None, 1):
            return self._chunks[place].to_pylist()
        # Arrow would copy all chunks into one first, and knows no steps beyond 64 bits.
        return [self[i] for i in range(*place.indices(len(self)))]

    def __iter__(self) -> Iterator[str]:
        for chunk in self._chunks.chunks:
            yield from chunk.to_pylist()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Texts | list | tuple):
            return NotImplemented
        return len(self) == len(other) and all(map(eq, self, other))

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the texts take."""
        return int(self._chunks.nbytes)

    def sort_order(self) -> np.ndarray:
        """int64 [N], the places of the texts in ascending order of their code points; equals keep theirs."""
        # Bytes of UTF-8 sort as the code points that they stand for, and Arrow sorts bytes.
        return pc.sort_indices(self._chunks).to_numpy().view(np.int64)

    def first_repeat(self) -> int | None:
        """The place of the first text that has stood before, or None; takes nine bytes of memory a text."""
        hashes = np.fromiter(map(hash, self), np.int64, len(self))
        hashes.sort()
        suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        seen: set[str] = set()
        for place, text in enumerate(self if suspects else ()):
            if hash(text) in suspects:
                if text in seen:  # equal hashes alone may be chance
                    return place
                seen.add(text)
        return None


class TextsWriter:
    """Takes texts one by one and makes `Texts` of them, of which no part is ever held twice."""

    def __init__(self) -> None:
        self._chunks: list[Any] = []
        self._waiting: list[bytes] = []
        self._size = 0

    def append(self, text: str) -> None:
        """Takes one text.

        Raises:
            UnicodeEncodeError: if it holds half of a surrogate pair.
        """
        raw = text.encode()
        self._waiting.append(raw)
        self._size += sys.getsizeof(raw)
        if self._size >= CHUNK_BYTES:
            self._flush()

    def finish(self) -> Texts:
        """All texts so far."""
        self._flush()
        return Texts._of(pa.chunked_array(self._chunks, pa.large_string()))

    def _flush(self) -> None:
        ends = np.cumsum([0, *map(len, self._waiting)], dtype=np.int64)
        # Arrow's own builders leave room to grow behind the texts.
        data = pa.py_buffer(b"".join(self._waiting))
        self._chunks.append(pa.LargeStringArray.from_buffers(len(self._waiting), pa.py_buffer(ends), data))
        self._waiting, self._size = [], 0


def numbered_lines(path: Path, progress: bool | None = None) -> Iterator[tuple[int, str]]:
    """Yields the lines of a UTF-8 file (.gz is unpacked) that are not blank, with their numbers from 1.

    Args:
        path: of the file; a byte order mark at its start is passed over.
        progress: True for a progress bar on stderr after two seconds; None shows it on a terminal only.

    Raises:
        DataError: if the file cannot be read to its end, or is not UTF-8.
    """
    number = 0
    off = None if progress is None else not progress
    try:
        with open_input(path) as raw, gzip.open(raw) if path.suffix == ".gz" else raw as file:
            options = dict(unit="B", unit_scale=True, delay=2, leave=False, disable=off)
            with tqdm(total=path.stat().st_size, desc=f"Reading {path.name}", **options) as bar:
                for number, line in enumerate(file, 1):
                    if not number % 1000 and raw.seekable():
                        bar.update(raw.tell() - bar.n)
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                    if text.strip():
                        yield number, text
    except UnicodeDecodeError:
        raise DataError.at(path, number, "bytes that are not UTF-8", "UTF-8 text") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read after line {number}: {error}.") from error


def numbered_objects(path: Path, progress: bool | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the JSON objects of a file that has one a line, as `numbered_lines` does its lines.

    Raises:
        DataError: also if a line is no JSON object.
    """
    for number, text in numbered_lines(path, progress):
        try:
            row = parse_json(text)
        except ValueError as error:
            kind = "no JSON" if isinstance(error, JSONDecodeError) else "JSON that cannot be read"
            raise DataError.at(path, number, f"{kind} ({error})", "one JSON object a line") from None
        if not isinstance(row, dict):
            raise DataError.at(path, number, f"a JSON {type(row).__name__}", "a JSON object")
        yield number, row
