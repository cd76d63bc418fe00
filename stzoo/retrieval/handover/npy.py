"""One NumPy array, and the passages in its order.

vectors.npy      float32 [N, D], as the model returns them
passages.jsonl   {"id", "title", "text", "metadata"} per vector
stzoo.json       model, similarity, prompts
"""

import io
import itertools
import json
import os
from pathlib import Path

import numpy as np

from stzoo.retrieval.handover.folder import Folder
from stzoo.retrieval.handover.passages import Passages


def write(passages: Passages, folder: Folder) -> str:
    """Writes the folder, or completes it, and returns a line of Python that loads it."""
    with folder.opened(passages.record("npy"), passages.store.metadata):
        if folder.size("vectors.npy") is None:
            with folder.partial("vectors.npy") as path:
                _append_vectors(path, passages)
        write_passages(passages, folder)
    if folder.is_remote:
        return f"import fsspec, numpy; numpy.load(fsspec.open({folder.shown('vectors.npy')!r}).open())"
    return f'import numpy; numpy.load({folder.shown("vectors.npy")!r}, mmap_mode="r")'


def _append_vectors(path: Path, passages: Passages) -> None:
    """Appends the vectors that a partial file lacks."""
    header = io.BytesIO()
    described = {"descr": "<f4", "fortran_order": False, "shape": passages.store.shape}
    np.lib.format.write_array_header_1_0(header, described)
    begin, width = len(header.getvalue()), 4 * passages.store.shape[1]
    with path.open("ab") as file:
        start = max(0, file.tell() - begin) // width
        file.truncate(begin + start * width if start else 0)
        if not start:
            file.write(header.getvalue())
        size = passages.store.manifest["shard_rows"]
        with passages.bar(start) as bar:
            for first in range(start, len(passages), size):
                vectors = passages.store[first : first + size]
                file.write(np.ascontiguousarray(vectors, "<f4").data)
                file.flush()
                os.fsync(file.fileno())
                bar.update(len(vectors))


def write_passages(passages: Passages, folder: Folder) -> None:
    """Writes passages.jsonl, or completes it."""
    if folder.size("passages.jsonl") is not None:
        return
    with folder.partial("passages.jsonl") as path, path.open("a+b") as file:
        file.seek(0)
        start = end = 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            start, end = start + 1, end + len(line)
        file.truncate(end)
        rows = passages.rows(start)
        while some := list(itertools.islice(rows, passages.store.manifest["shard_rows"])):
            file.writelines(json.dumps(row._asdict(), ensure_ascii=False).encode() + b"\n" for row in some)
            file.flush()
