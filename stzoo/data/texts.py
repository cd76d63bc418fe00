"""Many texts in little memory.

A Python string takes 49 to 76 bytes and up to four bytes per character. `Texts` are stored as UTF-8 by Arrow
with eight further bytes per text, and become Python strings when they are accessed.

What exceeds `MEMORY_BYTES` is in a temporary file that is mapped into memory, so the system can drop its
pages. The file has no name and disappears with the texts, even if the process is killed. On Windows it has a
name and is removed when the texts are.
"""

import contextlib
import mmap
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from operator import eq
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stzoo.errors import OutputError

CHUNK_BYTES = 1 << 20
MEMORY_BYTES = 64 << 20  # of one `Texts`
_SCHEMA = pa.schema({"text": pa.large_string()})


class Texts(Sequence[str]):
    """An immutable sequence of strings, stored as UTF-8; equal to any list or tuple of the same strings.

    Args:
        texts: The strings; an iterator is consumed without keeping all of its strings in memory.

    Raises:
        UnicodeEncodeError: If a text contains half of a surrogate pair, which UTF-8 cannot represent.
        OutputError: If there is no space for the temporary file.
    """

    _chunks: Any  # a pyarrow.ChunkedArray of large_string

    def __init__(self, texts: Iterable[str] = ()):
        if isinstance(texts, list):
            self._chunks = pa.chunked_array([pa.array(texts, pa.large_string())])
            return
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
        # Arrow would first copy all chunks into one, and refuses steps beyond 64 bits.
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
        """Size of the texts in memory and in the temporary file, in bytes."""
        return int(self._chunks.nbytes)

    def sort_order(self) -> np.ndarray:
        """int64 [N], the indices that sort the texts by code points, stably."""
        # Arrow sorts bytes, and UTF-8 bytes sort like their code points.
        return pc.sort_indices(self._chunks).to_numpy().view(np.int64)

    def first_repeat(self) -> int | None:
        """The index of the first text that repeats an earlier one, or None.

        Raises:
            OutputError: If there is no space for the temporary file that the hashes of many texts need.
        """
        hashes, suspects = self._sorted_hashes(), set()
        for first in range(0, len(self), CHUNK_BYTES):
            part = hashes[first : first + CHUNK_BYTES + 1]
            suspects.update(part[1:][part[1:] == part[:-1]].tolist())
        seen: set[str] = set()
        for place, text in enumerate(self if suspects else ()):
            if hash(text) in suspects:
                if text in seen:  # equal hashes may be a coincidence
                    return place
                seen.add(text)
        return None

    def _sorted_hashes(self) -> np.ndarray:
        if 8 * len(self) <= MEMORY_BYTES:
            hashes = np.fromiter(map(hash, self), np.int64, len(self))
        else:
            with _explain_errors(), tempfile.TemporaryFile(prefix="stzoo-") as file:
                for chunk in self._chunks.chunks:
                    file.write(np.fromiter(map(hash, chunk.to_pylist()), np.int64, len(chunk)).data)
                file.flush()
                hashes = np.memmap(file, np.int64, "r+")
        hashes.sort()
        return hashes


def indices_of(needed: Iterable[str], ids: Iterable[str]) -> dict[str, int]:
    """The index in `ids` of each needed id that is there, in the order of `ids`."""
    needed = frozenset(needed)
    return {name: place for place, name in enumerate(ids) if name in needed}


class TextsWriter:
    """Builds `Texts` from texts that are added one by one, without a second copy in memory."""

    def __init__(self) -> None:
        self._chunks: list[Any] = []
        self._free = MEMORY_BYTES
        self._spill: _Spill | None = None
        self._waiting: list[bytes] = []
        self._size = 0

    def append(self, text: str) -> None:
        """Adds a text.

        Raises:
            UnicodeEncodeError: If it contains half of a surrogate pair.
            OutputError: If there is no space for the temporary file.
        """
        raw = text.encode()
        self._waiting.append(raw)
        self._size += sys.getsizeof(raw)
        if self._size >= CHUNK_BYTES:
            self._flush()

    def finish(self) -> Texts:
        """Returns all texts.

        Raises:
            OutputError: If there is no space for the temporary file.
        """
        self._flush()
        spilled = self._spill.chunks() if self._spill else []
        return Texts._of(pa.chunked_array(self._chunks + spilled, pa.large_string()))

    def _flush(self) -> None:
        ends = np.cumsum([0, *map(len, self._waiting)], dtype=np.int64)
        # Arrow's own builders allocate more memory than the texts need.
        data = pa.py_buffer(b"".join(self._waiting))
        chunk = pa.LargeStringArray.from_buffers(len(self._waiting), pa.py_buffer(ends), data)
        self._waiting, self._size = [], 0
        self._free -= chunk.nbytes
        if self._free >= 0:
            self._chunks.append(chunk)
        else:
            self._spill = self._spill or _Spill()
            self._spill.add(chunk)


class _Spill:
    """Chunks in a temporary file, as Arrow's IPC format."""

    def __init__(self) -> None:
        with _explain_errors():
            self._file = tempfile.TemporaryFile(prefix="stzoo-")  # noqa: SIM115 - it outlives this call
            self._writer = pa.ipc.new_file(self._file, _SCHEMA)

    def add(self, chunk: Any) -> None:
        """Writes a chunk."""
        with _explain_errors():
            self._writer.write_batch(pa.record_batch([chunk], _SCHEMA))

    def chunks(self) -> list[Any]:
        """The chunks, mapped into memory; nothing can be added any more."""
        with _explain_errors():
            self._writer.close()
            with self._file as file:
                file.flush()
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        chunks: list[Any] = pa.ipc.open_file(pa.py_buffer(mapped)).read_all().column(0).chunks
        return chunks


@contextlib.contextmanager
def _explain_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f" in {tempfile.tempdir}" if tempfile.tempdir else ""
        raise OutputError(
            f"many texts need a temporary file, which could not be written{where}: {error.strerror}. Make "
            "room there, or set TMPDIR to a folder on a larger disk."
        ) from error
