"""Many texts in little memory.

A Python string takes 49 to 76 bytes beside its characters, and up to four bytes for each of them. `Texts` are
UTF-8 in Arrow's memory, with eight bytes each beside them; strings are made of them when they are asked for.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from operator import eq
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

CHUNK_BYTES = 1 << 20


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
