"""Exact search with DupMAE's vectors: some 31,000 numbers wide, of which a document has 768 that are not 0.

Documents are kept on disk by those numbers alone, and queries, whose words are not cut, are taken a few
hundred at a time. So neither the vectors of all documents nor those of all queries are ever in memory.

A score is the dot product of the whole vectors, or the cosine if the model compares by it. It is summed in
float32, always in the same order, so that equal documents tie wherever they lie; ties are settled as in
`stzoo.search`.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from tqdm import tqdm

from stzoo.data.beir import RetrievalDataset
from stzoo.data.trec import Run
from stzoo.errors import ModelError
from stzoo.models.encode import encode
from stzoo.retrieval.search.ranking import Ranking
from stzoo.retrieval.store import Store, fill

ENCODED = 512  # texts whose whole vectors are in memory at once: 64 MB
QUERIES, PASSAGES = 128, 4096  # compared at once
SHORTEST = 1e-12  # as the length of a shorter vector, as in sentence-transformers


def retrieve(
    model: Any,
    judged: RetrievalDataset,
    k: int = 1000,
    *,
    folder: str | Path | None = None,
    batch_tokens: int | None = None,
    progress: bool | None = None,
) -> Run:
    """Finds the k best passages of each judged query, as stzoo's own `retrieve` does with narrower vectors.

    Beside the result and the order of the ids (8 bytes a document) it takes some 400 MB, whatever corpus and
    queries are, and what the model takes to encode. A document takes 4.6 kB on disk.

    Args:
        model: a SentenceTransformer with a DupMAEPooling; a Normalize may follow it.
        judged: what to search.
        k: passages kept a query.
        folder: where documents are kept: the next search finds them, and one that was killed goes on. None
            keeps them for this search only, among the system's temporary files.
        batch_tokens: tokens encoded at once, padding included; None suits the device.
        progress: True for progress bars on stderr; None shows them on a terminal only.

    Returns:
        float32 scores by document id by query id, best first.

    Raises:
        ModelError: if the model has no such pooling, compares otherwise than by dot product or cosine, or
            gives vectors that are not finite.
        OutputError: if the folder holds the documents of another model or corpus, or cannot be written.
    """
    bars = sys.stderr.isatty() if progress is None else progress
    pooling = pooling_of(model)
    questions = list(judged.queries.values())
    ranking = Ranking(judged.corpus_ids, k, drop_self=judged.shares_ids)
    kept = ranking.none(len(questions))
    with tempfile.TemporaryDirectory() as scratch:
        documents = encode_documents(
            model,
            judged.passages,
            folder or scratch,
            facts={"model": _digest(model), "texts": judged.corpus_fingerprint} if folder else {},
            batch_tokens=batch_tokens,
            progress=bars,
        )
        total = len(questions) * len(documents)
        with tqdm(total=total, desc="Search", unit_scale=True, leave=False, disable=not bars) as bar:
            for start in range(0, len(questions), ENCODED):
                some = slice(start, start + ENCODED)
                queries = encode(model, questions[some], role="query", batch_tokens=batch_tokens)
                if not np.isfinite(queries).all():
                    raise ModelError("vectors of queries hold NaN or infinity: the model is broken.")
                if model.similarity_fn_name == "cosine":
                    queries /= _lengths(queries)
                for begin in range(0, len(documents), PASSAGES):
                    rows = sparse(documents[begin : begin + PASSAGES], pooling.projection, queries.shape[1])
                    if model.similarity_fn_name == "cosine":
                        lengths = _lengths(rows.data.reshape(rows.shape[0], -1))
                        rows.data /= lengths.repeat(len(rows.data) // len(lengths))
                    for first in range(0, len(queries), QUERIES):
                        here = slice(start + first, min(start + first + QUERIES, start + len(queries)))
                        scores = (rows @ np.ascontiguousarray(queries[first : first + QUERIES].T)).T
                        near = np.nonzero(scores >= ranking.worst(kept[here])[:, None])
                        kept[here] = ranking.merge(kept[here], near[0], near[1] + begin, scores[near])
                    bar.update(len(queries) * rows.shape[0])
    return ranking.run(list(judged.queries), kept)


def pooling_of(model: Any) -> Any:
    """The DupMAEPooling of a model, which may be of the class that came with the model's folder.

    Raises:
        ModelError: if there is none, more than a Normalize follows it, or the model compares by a distance.
    """
    modules = list(model)
    names = [type(module).__name__ for module in modules]
    if "DupMAEPooling" not in names or set(names[names.index("DupMAEPooling") + 1 :]) - {"Normalize"}:
        raise ModelError(
            f"the model is made of {', '.join(names)}; expected a DupMAEPooling, and nothing but a Normalize "
            "behind it. Its dense variant is searched by stzoo.retrieval.search.retrieve."
        )
    if model.similarity_fn_name not in ("cosine", "dot"):
        raise ModelError(f"the model compares by {model.similarity_fn_name}; expected cosine or dot.")
    return modules[names.index("DupMAEPooling")]


def encode_documents(
    model: Any,
    texts: Sequence[str],
    folder: str | Path,
    *,
    facts: dict[str, Any],
    batch_tokens: int | None = None,
    progress: bool = False,
) -> Store:
    """Keeps documents by the numbers of their vectors that are not 0; what a kill left is gone on with.

    Args:
        model: a SentenceTransformer with a DupMAEPooling.
        texts: N documents.
        folder: of the store.
        facts: what the vectors depend on; a folder with others is refused.
        batch_tokens: tokens encoded at once, padding included; None suits the device.
        progress: True for a progress bar on stderr.

    Returns:
        a store of float32 [N, D + 2 K]: the D numbers of the projected [CLS], the places of K words in the
        vocabulary (whole numbers, ascending), and their K scores; 0 and 0 where fewer words have any.

    Raises:
        ModelError: if the model has no such pooling, or gives vectors that are not finite.
        OutputError: if the folder holds another store or is in use, or the disk is full.
    """
    pooling = pooling_of(model)

    def some(block: Sequence[str]) -> np.ndarray:
        parts = []
        for start in range(0, len(block), ENCODED):
            vectors = encode(
                model, block[start : start + ENCODED], role="document", batch_tokens=batch_tokens
            )
            parts.append(compact(vectors, pooling.projection, pooling.top_k))
        return np.concatenate(parts)

    return fill(folder, texts, facts, some, progress=progress)


def compact(vectors: np.ndarray, dense: int, words: int) -> np.ndarray:
    """The rows of a store, as `encode_documents` describes them.

    Args:
        vectors: float32 [N, D + V], at most K not 0 in each row behind the first D.
        dense: D.
        words: K.

    Returns:
        float32 [N, D + 2 K].
    """
    rows, places = np.nonzero(vectors[:, dense:])
    counts = np.bincount(rows, minlength=len(vectors))
    order = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
    out = np.zeros((len(vectors), dense + 2 * words), np.float32)
    out[:, :dense] = vectors[:, :dense]
    out[rows, dense + order] = places  # float32 holds whole numbers up to 2**24
    out[rows, dense + words + order] = vectors[rows, dense + places]
    return out


def sparse(stored: np.ndarray, dense: int, width: int) -> csr_array:
    """float32 [N, D + V] as a sparse array of a store's rows; every row has D + K entries, in one order.

    Args:
        stored: float32 [N, D + 2 K].
        dense: D.
        width: D + V.
    """
    words = (stored.shape[1] - dense) // 2
    places = stored[:, dense : dense + words].astype(np.int32) + dense
    columns = np.concatenate(
        [np.broadcast_to(np.arange(dense, dtype=np.int32), (len(stored), dense)), places], 1
    )
    values = np.concatenate([stored[:, :dense], stored[:, dense + words :]], 1)
    begins = np.arange(0, values.size + 1, dense + words, dtype=np.int32)
    return csr_array((values.ravel(), columns.ravel(), begins), shape=(len(stored), width))


def _lengths(rows: np.ndarray) -> np.ndarray:
    """float32 [N, 1], the lengths of vectors."""
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))[:, None]
    return np.maximum(lengths, SHORTEST).astype(np.float32)


def _digest(model: Any) -> str:
    """SHA-256 over all that a model's vectors depend on."""
    modules = [(type(module).__name__, module.get_config_dict()) for module in model]
    settings = [modules, model.prompts, model.default_prompt_name, model.max_seq_length]
    digest = hashlib.sha256(json.dumps(settings, default=str).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
