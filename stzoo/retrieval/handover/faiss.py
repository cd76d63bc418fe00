"""A FAISS index, and the passages in its order.

index.faiss      any index of FAISS's factory; if the similarity is cosine, of vectors of length 1
passages.jsonl   {"id", "title", "text", "metadata"} per vector
stzoo.json       model, similarity, prompts, factory string

The index is built in memory, so an interruption costs the whole of it.
"""

import faiss

from stzoo.retrieval.handover.folder import Folder
from stzoo.retrieval.handover.npy import write_passages
from stzoo.retrieval.handover.passages import Passages
from stzoo.retrieval.search.faiss_build import built


def write(passages: Passages, folder: Folder, factory: str) -> str:
    """Writes the folder, or completes it, and returns a line of Python that loads it."""
    with folder.opened(passages.record("faiss", index=factory), passages.store.metadata):
        if folder.size("index.faiss") is None:
            index = built(passages.store, factory, passages.similarity, 0, 2.0, passages.progress)
            with folder.draft("index.faiss") as draft:
                faiss.write_index(index, str(draft))
        write_passages(passages, folder)
    if folder.is_remote:
        read = f"fsspec.open({folder.shown('index.faiss')!r}).open().read()"
        return f'import faiss, fsspec, numpy; faiss.deserialize_index(numpy.frombuffer({read}, "uint8"))'
    return f"import faiss; faiss.read_index({folder.shown('index.faiss')!r})"
