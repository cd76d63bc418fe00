"""Parquet files of a fixed number of rows.

part-00000.parquet   id, title, text, metadata (JSON, or null), vector (fixed_size_list<float32>); the record
                     is in the schema's metadata, under "stzoo"
_stzoo.json          the record: model, similarity, prompts
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stzoo.retrieval.handover.folder import Folder
from stzoo.retrieval.handover.passages import KEY, Passages, Row


def write(passages: Passages, folder: Folder) -> str:
    """Writes the files that are missing, and returns a line of Python that loads them."""
    with folder.opened(passages.record("parquet"), passages.store.metadata) as record:
        size = record["shard_rows"]
        names = [f"part-{number:05}.parquet" for number in range(-(-len(passages) // size))]
        there = set(folder.names())
        for number, name in enumerate(names):
            if name not in there:
                missing = passages.parts(size, number * size)
                break
        else:
            missing = iter(())
        for first, vectors, rows in missing:
            name = names[first // size]
            if name not in there:
                with folder.draft(name) as draft:
                    pq.write_table(as_table(vectors, rows, record), draft, compression="zstd")
    return f"import pandas; pandas.read_parquet({folder.output!r})"


def schema(dimension: int, record: dict[str, Any]) -> pa.Schema:
    """The columns, with the record."""
    texts = [pa.field(name, pa.string(), nullable=name == "metadata") for name in Row._fields]
    vector = pa.field("vector", pa.list_(pa.float32(), dimension), nullable=False)
    return pa.schema([*texts, vector], metadata={KEY: json.dumps(record, ensure_ascii=False)})


def as_table(vectors: np.ndarray, rows: Sequence[Row], record: dict[str, Any]) -> pa.Table:
    """A table of some passages."""
    kind = schema(vectors.shape[1], record)
    texts = {name: [getattr(row, name) for row in rows] for name in ("id", "title", "text")}
    metadata = [json.dumps(row.metadata, ensure_ascii=False) if row.metadata else None for row in rows]
    values = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
    vector = pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])
    return pa.table({**texts, "metadata": metadata, "vector": vector}, schema=kind)
