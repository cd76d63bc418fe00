"""What is handed over: vectors from a store, texts from the corpus, and what they were made with."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stzoo.data.rows import read_lines
from stzoo.errors import DataError, quoted
from stzoo.retrieval.store import Store
from stzoo.utils.inputs import parse_json
from stzoo.utils.messages import counted
from stzoo.utils.progress import progress_bar

SCHEMA_VERSION = 1
KEY = "stzoo"  # of the record, in what an engine or a file format keeps for its users
_NOT_COMPARED = ("model", "shard_rows")  # names of the same weights; how an earlier call cut the work


class Row(NamedTuple):
    """A passage; `metadata` has the further columns of the corpus."""

    id: str
    title: str
    text: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Passages:
    """The vectors of a corpus with its texts, read in parts that fit into memory.

    Attributes:
        store: The vectors, complete.
        ids: Ids of the N passages, in the order of the vectors.
        file: The corpus.jsonl(.gz) that they are from.
        model: Name of the model.
        query_prompt: What the model puts before queries.
        progress: True shows a progress bar on stderr.
    """

    store: Store
    ids: Sequence[str]
    file: Path
    model: str
    query_prompt: str
    progress: bool = False

    def __len__(self) -> int:
        return len(self.store)

    @property
    def similarity(self) -> str:
        """The similarity function of the vectors."""
        return str(self.store.metadata["similarity"])

    def record(self, to: str, **options: Any) -> dict[str, Any]:
        """What a reader of the vectors needs to know, and what a second call must agree with."""
        rows, dimension = self.store.shape
        return {
            "schema_version": SCHEMA_VERSION,
            "format": to,
            "model": self.model,
            "query_prompt": self.query_prompt,
            "rows": rows,
            "dimension": dimension,
            "precision": self.store.precision,
            **self.store.metadata,
            **options,
            "shard_rows": self.store.manifest["shard_rows"],
        }

    def rows(self, start: int = 0) -> Iterator[Row]:
        """The passages from a place on.

        Raises:
            DataError: If the corpus has changed since it was encoded.
        """
        lines = itertools.islice(read_lines(self.file, False), start, None)
        place = start - 1
        for place, (at, line) in enumerate(lines, start):
            row = parse_json(line)
            known = row.pop("_id", None), row.pop("id", None)
            found = str(known[0] if known[0] is not None else known[1])
            if place >= len(self) or found != self.ids[place]:
                raise at.error(f"the id {quoted(found)}", "the corpus as it was when it was encoded")
            title, text = row.pop("title", None) or "", row.pop("text", None) or ""
            if isinstance(further := row.get("metadata"), dict):  # as in BEIR
                del row["metadata"]
                row |= further
            yield Row(found, title, text, row)
        if place + 1 < len(self):
            raise DataError(
                f"{self.file} has {counted(place + 1, 'passage')}, but {len(self):,} were encoded. Encode it "
                "again."
            )

    def parts(self, size: int, start: int = 0) -> Iterator[tuple[int, np.ndarray, list[Row]]]:
        """Consecutive parts: the number of the first vector, float32 [n, D], and the n passages."""
        rows = self.rows(start)
        with self.bar(start) as bar:
            for first in range(start, len(self), size):
                vectors = self.store[first : first + size]
                yield first, vectors, list(itertools.islice(rows, len(vectors)))
                bar.update(len(vectors))

    def bar(self, start: int) -> Any:
        """A progress bar over the vectors."""
        options = dict(unit=" vectors", unit_scale=True, delay=2, disable=not self.progress)
        return progress_bar(total=len(self), initial=start, desc="Writing", **options)


def compared(record: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a record that a second call must agree with."""
    return {k: v for k, v in record.items() if k not in _NOT_COMPARED or k in metadata}
