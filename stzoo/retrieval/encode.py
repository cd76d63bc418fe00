"""encode(): a corpus becomes an embedding store, by one process, by several together, or on a Ray cluster."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stzoo.data.beir import RetrievalDataset, read_corpus
from stzoo.data.beir_layout import corpus_file
from stzoo.data.corpus_sources import find
from stzoo.data.objects import corpus_path
from stzoo.data.rows import refuse
from stzoo.errors import DataError
from stzoo.models.loaded import open_model
from stzoo.retrieval.search.retriever import Retriever, default_root
from stzoo.retrieval.store import SHARD_ROWS, Store
from stzoo.utils.distributed import local_device
from stzoo.utils.inputs import user_path
from stzoo.utils.messages import counted, show_progress
from stzoo.utils.outputs import check_output
from stzoo.utils.public import public
from stzoo.utils.workers import chosen_engine


@dataclass(frozen=True)
class Encoded:
    """The vectors of a corpus.

    Attributes:
        path: The embedding store.
        ids: Ids of the N passages, in the order of the vectors.
        store: The vectors: `store[a:b]` is float32 [b - a, D].
    """

    path: Path
    ids: Any
    store: Store

    def to_json(self) -> dict[str, Any]:
        """What it consists of."""
        rows, dimension = self.store.shape
        return {
            "path": str(self.path),
            "vectors": rows,
            "dimension": dimension,
            "precision": self.store.precision,
            "bytes": self.store.nbytes,
        }

    def __str__(self) -> str:
        rows, dimension = self.store.shape
        size = f"{self.store.nbytes / 2**20:,.1f} MiB of {self.store.precision}"
        return f"{self.path}: {counted(rows, 'vector')} of {dimension} dimensions, {size}"


@public()
def encode(
    model: Any,
    data: Any,
    *,
    output: str | Path | None = None,
    role: str = "document",
    precision: str = "float32",
    store: str | Path | None = None,
    max_tokens: int | None = None,
    dtype: str | None = None,
    backend: str = "torch",
    batch_tokens: int | None = None,
    shard_rows: int | None = None,
    device: str | None = None,
    threads: int | None = None,
    engine: str = "local",
    workers: int | None = None,
    ray_address: str | None = None,
    progress: bool | None = None,
) -> Encoded:
    """Encodes a corpus into an embedding store, or completes one that was interrupted.

    Several processes that are started with the same arguments, by torchrun, by SLURM or by hand, on one
    machine or on several with a shared file system, fill one store together.

    Args:
        model: Folder, Hub id or name of a model, or a SentenceTransformer.
        data: What `stzoo.search` takes: a BEIR folder, a file, a list of texts or dicts, a data frame.
        output: Folder of the store; None for stzoo's cache, where `bench`, `search` and `mine` find it.
        role: "document", or "query" to encode the texts as queries.
        precision: Precision of the stored vectors: float32, float16, int8 or binary. The ranges of int8 are
            those of the first shard.
        store: Root of the stores to use in place of stzoo's cache if there is no output.
        max_tokens: Maximum length of a text; longer texts are truncated. None keeps the model's own limit.
        dtype: Data type of the weights: float32, bfloat16 or float16; None keeps the published one.
        backend: Backend of sentence-transformers: torch, onnx or openvino.
        batch_tokens: Maximum number of tokens per batch, padding included; None chooses one for the device.
        shard_rows: Number of vectors per file, which an interruption loses at most; None for the default.
        device: Torch device, or several separated by commas to encode in parallel; None for the best
            available, or for the GPU of the process's rank.
        threads: Number of CPU threads; None keeps torch's default.
        engine: "local", or "ray" for the workers of a Ray cluster.
        workers: Number of Ray's workers; None for one per GPU, or else one per node.
        ray_address: Address of the Ray cluster; None for that in RAY_ADDRESS, or else this machine.
        progress: True shows progress bars on stderr; None shows them on a terminal only.

    Raises:
        DataError: If the corpus is missing, invalid or empty.
        ModelError: If the model cannot be loaded or used.
        OutputError: If the output has something else, such as the vectors of another model.
        RecipeError: If an option is invalid.
    """
    data = corpus_path(data)
    if output is not None:
        output = check_output(output, kind="results", inputs=[model, data])
    if store:
        store = check_output(store, kind="results", inputs=[model, data])
    if threads:
        torch.set_num_threads(threads)
    bars = show_progress(progress)
    with chosen_engine(engine, workers, ray_address):
        opened = open_model(
            model, max_tokens=max_tokens, device=device or local_device(), dtype=dtype, backend=backend
        )
        corpus = read_plain_corpus(user_path(data), bars)
        retriever = Retriever(
            opened,
            Path(store or default_root()),
            batch_tokens,
            shard_rows or SHARD_ROWS,
            precision=precision,
            progress=bars,
        )
        retriever.notes(corpus)  # shown to the user
        vectors = retriever.passages(corpus, role, output)
    return Encoded(vectors.folder, corpus.corpus_ids, vectors)


def read_plain_corpus(data: Path, progress: bool) -> RetrievalDataset:
    """Reads a corpus in any form, without queries.

    Raises:
        DataError: If it is missing or invalid.
    """
    file = corpus_file(data) or data
    if not file.name.endswith((".jsonl", ".jsonl.gz")):  # another form, or a folder of files
        sources = find(str(data))
        rows = (row for source in sources for _, row in source.read(progress, refuse))
        file = Path(corpus_path(rows), "corpus.jsonl")
    if not file.is_file():
        raise DataError(f"{data} does not exist; expected a BEIR folder or a corpus.jsonl(.gz).")
    ids, passages, notes = read_corpus(file, progress)
    name = file.resolve().parent.name
    return RetrievalDataset(name=name, folder=file.parent, corpus_ids=ids, passages=passages, notes=notes)
