"""encode(): a corpus becomes an embedding store, by one process, by several together, or on a Ray cluster.

From the store, vectors are handed over to other software (see `stzoo.retrieval.handover`).
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from stzoo.data.beir import RetrievalDataset, read_corpus
from stzoo.data.beir_layout import corpus_file
from stzoo.data.corpus_sources import find
from stzoo.data.find_datasets import locate
from stzoo.data.objects import corpus_path
from stzoo.data.rows import refuse
from stzoo.errors import DataError, OutputError, RecipeError
from stzoo.models.encode.batches import prompt_of
from stzoo.models.loaded import open_model
from stzoo.retrieval.handover import HandedOver, Passages, check_target, hand_over
from stzoo.retrieval.search.retriever import Retriever, default_root
from stzoo.retrieval.store import SHARD_ROWS, Store
from stzoo.utils.distributed import is_main_process, local_device
from stzoo.utils.files import lock_folder
from stzoo.utils.inputs import is_url, user_path
from stzoo.utils.messages import counted, show_progress
from stzoo.utils.outputs import check_output
from stzoo.utils.public import public
from stzoo.utils.workers import chosen_engine

HAND_OVER = ".hand-over"  # folder in the store that is locked meanwhile


@dataclass(frozen=True)
class Encoded:
    """The vectors of a corpus.

    Attributes:
        path: The embedding store.
        ids: Ids of the N passages, in the order of the vectors.
        store: The vectors: `store[a:b]` is float32 [b - a, D].
        handed_over: Where they went, if `to` was given.
    """

    path: Path
    ids: Any
    store: Store
    handed_over: HandedOver | None = None

    def to_json(self) -> dict[str, Any]:
        """What it consists of."""
        rows, dimension = self.store.shape
        made = (
            {name: value for name, value in asdict(self.handed_over).items() if value}
            if self.handed_over
            else {}
        )
        return {
            **made,
            "path": str(self.path),
            "vectors": rows,
            "dimension": dimension,
            "precision": self.store.precision,
            "bytes": self.store.nbytes,
        }

    def __str__(self) -> str:
        rows, dimension = self.store.shape
        size = f"{self.store.nbytes / 2**20:,.1f} MiB of {self.store.precision}"
        what = f"{counted(rows, 'vector')} of {dimension} dimensions"
        if (made := self.handed_over) is None:
            return f"{self.path}: {what}, {size}"
        name = f", collection {made.collection}" if made.collection else ""
        return f"{made.output}{name}: {what} ({made.to})\n  {made.load}"


@public()
def encode(
    model: Any,
    data: Any,
    *,
    output: str | Path | None = None,
    to: str | None = None,
    index: str | None = None,
    collection: str | None = None,
    url: str | None = None,
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
    ray_workers: int | None = None,
    ray_address: str | None = None,
    progress: bool | None = None,
) -> Encoded:
    """Encodes a corpus into an embedding store, or completes one that was interrupted.

    Several processes that are started with the same arguments, by torchrun, by SLURM or by hand, on one
    machine or on several with a shared file system, fill one store together.

    Args:
        model: Folder, Hub id or name of a model, or a SentenceTransformer.
        data: What `stzoo.search` takes: a BEIR folder, a file, a list of texts or dicts, a data frame.
        output: Folder of the store; None for stzoo's cache, where `bench`, `search` and `mine` find it. With
            `to`, the folder or URL to write to; the store is then in the cache.
        to: What to make of the vectors: npy, parquet, faiss, qdrant or lancedb; None for the store alone.
        index: Factory string of the FAISS index; None for Flat.
        collection: Name of Qdrant's collection or LanceDB's table; None for the name of the corpus.
        url: Address of a server of Qdrant, in place of an output; QDRANT_API_KEY may have its key.
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
        ray_workers: Number of Ray's workers; None for one per GPU, or else one per node.
        ray_address: Address of the Ray cluster; None for that in RAY_ADDRESS, or else this machine.
        progress: True shows progress bars on stderr; None shows them on a terminal only.

    Raises:
        DataError: If the corpus is missing, invalid or empty.
        ModelError: If the model cannot be loaded or used.
        OutputError: If the output has something else, such as the vectors of another model.
        MissingExtraError: If the engine of `to` is not installed.
        RecipeError: If an option is invalid.
    """
    data = corpus_path(data)
    target = None
    if to is not None:
        inputs = [model, data, store]
        target = check_target(to, output, index=index, collection=collection, url=url, inputs=inputs)
        output = None
    elif given := [name for name, one in (("index", index), ("collection", collection), ("url", url)) if one]:
        raise RecipeError(f"--{given[0]} has no effect without --to; name a format by it.")
    if is_url(output):
        raise OutputError(f"a store must be in a local or shared folder, not {output}; or use --to parquet.")
    if output is not None:
        output = check_output(output, kind="results", inputs=[model, data])
    if store:
        store = check_output(store, kind="results", inputs=[model, data])
    if threads:
        torch.set_num_threads(threads)
    bars = show_progress(progress)
    with chosen_engine(engine, ray_workers, ray_address):
        opened = open_model(
            model, max_tokens=max_tokens, device=device or local_device(), dtype=dtype, backend=backend
        )
        if target:
            target.check_similarity(opened.similarity, opened.model.get_embedding_dimension())
        file = plain_corpus_file(user_path(data), bars)
        corpus = read_corpus_file(file, bars)
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
    made = None
    if target and is_main_process():
        query_prompt = prompt_of(opened.model, "query") or ""
        passages = Passages(vectors, corpus.corpus_ids, file, opened.name, query_prompt, bars)
        # of processes that no launcher started, one writes, and the others then find all of it there
        with lock_folder(vectors.folder / HAND_OVER, wait=True):
            made = hand_over(passages, target, corpus.name)
    return Encoded(vectors.folder, corpus.corpus_ids, vectors, made)


def read_plain_corpus(data: Path, progress: bool) -> RetrievalDataset:
    """Reads a corpus in any form, without queries.

    Raises:
        DataError: If it is missing or invalid.
    """
    return read_corpus_file(plain_corpus_file(data, progress), progress)


def plain_corpus_file(data: Path, progress: bool) -> Path:
    """The corpus.jsonl(.gz) of a corpus in any form; one of another form is copied to the cache.

    Raises:
        DataError: If it is missing or invalid.
    """
    data = locate(data, on_hub=True, progress=progress)
    file = corpus_file(data) or data
    if not file.name.endswith((".jsonl", ".jsonl.gz")):  # another form, or a folder of files
        sources = find(str(data))
        rows = (row for source in sources for _, row in source.read(progress, refuse))
        file = Path(corpus_path(rows), "corpus.jsonl")
    if not file.is_file():
        raise DataError(f"{data} does not exist; expected a BEIR folder or a corpus.jsonl(.gz).")
    return file


def read_corpus_file(file: Path, progress: bool) -> RetrievalDataset:
    """Reads a corpus.jsonl(.gz), without queries.

    Raises:
        DataError: If it is invalid.
    """
    ids, passages, notes = read_corpus(file, progress)
    name = file.resolve().parent.name
    return RetrievalDataset(name=name, folder=file.parent, corpus_ids=ids, passages=passages, notes=notes)
