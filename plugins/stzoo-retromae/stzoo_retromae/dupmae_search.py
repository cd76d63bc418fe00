"""Exact search with DupMAE's vectors, which have some 31,000 dimensions, of which 768 are used by a document.

Only the values that are not 0 are stored of a document, and queries, which have more of them, are encoded a
few hundred at a time. So neither the vectors of all documents nor those of all queries are ever in memory.

A score is the dot product of the vectors, or their cosine if that is the model's similarity. It is summed in
float32, always in the same order, so equal documents tie wherever they are in the corpus; ties are broken as
in `stzoo.search`.
"""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array

from stzoo.data.beir import RetrievalDataset
from stzoo.data.ranking import Ranked, Ranking
from stzoo.errors import ModelError
from stzoo.models.encode import encode
from stzoo.retrieval.store import Store, fill
from stzoo.utils.messages import show_progress
from stzoo.utils.progress import progress_bar

ENCODED = 512  # texts whose full vectors are in memory at once: 64 MB
QUERIES, PASSAGES = 128, 4096  # scored at once
SHORTEST = 1e-12  # lower bound of a vector's length, as in sentence-transformers


def retrieve(
    model: Any,
    judged: RetrievalDataset,
    k: int = 1000,
    *,
    folder: str | Path | None = None,
    batch_tokens: int | None = None,
    progress: bool | None = None,
) -> Ranked:
    """Retrieves the k best passages of each judged query, like `stzoo.retrieval.search.exact.retrieve`.

    Apart from the results and the order of the ids (8 bytes per document), it needs some 400 MB for any
    corpus and any number of queries, plus the memory that the model needs to encode. A document takes 4.6 kB
    on disk.

    Args:
        model: A SentenceTransformer with a DupMAEPooling, optionally followed by a Normalize.
        judged: The data set to search.
        k: Number of passages per query.
        folder: Folder of the document store. A later search reuses it, and a killed one continues in it. None
            for a temporary folder.
        batch_tokens: Number of tokens encoded at once, padding included; None to choose it for the device.
        progress: True to show progress bars on stderr; None to show them on a terminal only.

    Returns:
        float32 scores by document id by query id, best first.

    Raises:
        ModelError: If the model has no such pooling, its similarity is neither dot product nor cosine, or its
            vectors are not finite.
        OutputError: If the folder contains the documents of another model or corpus, or cannot be written.
    """
    progress = show_progress(progress)
    pooling = pooling_of(model)
    queries = list(judged.queries.values())
    ranking = Ranking(judged.corpus_ids, k, drop_self=judged.shares_ids)
    best = ranking.none(len(queries))
    with tempfile.TemporaryDirectory() as scratch:
        documents = encode_documents(
            model,
            judged.passages,
            folder or scratch,
            metadata={"model": _digest(model), "texts": judged.corpus_fingerprint} if folder else {},
            batch_tokens=batch_tokens,
            progress=progress,
        )
        total = len(queries) * len(documents)
        with progress_bar(
            total=total, desc="Search", unit=" pairs", unit_scale=True, disable=not progress
        ) as bar:
            for start in range(0, len(queries), ENCODED):
                texts = queries[start : start + ENCODED]
                vectors = encode(model, texts, role="query", batch_tokens=batch_tokens)
                if not np.isfinite(vectors).all():
                    raise ModelError(
                        "vectors of queries contain NaN or infinity; check the weights of the model."
                    )
                if model.similarity_fn_name == "cosine":
                    vectors /= _lengths(vectors)
                for first in range(0, len(documents), PASSAGES):
                    rows = sparse(documents[first : first + PASSAGES], pooling.projection, vectors.shape[1])
                    if model.similarity_fn_name == "cosine":
                        lengths = _lengths(rows.data.reshape(rows.shape[0], -1))
                        rows.data /= lengths.repeat(len(rows.data) // len(lengths))
                    for offset in range(0, len(vectors), QUERIES):
                        block = vectors[offset : offset + QUERIES]
                        part = slice(start + offset, start + offset + len(block))
                        scores = (rows @ np.ascontiguousarray(block.T)).T
                        query, document = np.nonzero(scores >= ranking.worst(best[part])[:, None])
                        found = scores[query, document]
                        best[part] = ranking.merge(best[part], query, document + first, found)
                    bar.update(len(vectors) * rows.shape[0])
    return ranking.run(list(judged.queries), best)


def pooling_of(model: Any) -> Any:
    """Finds the DupMAEPooling of a model; its class may come from the code in the model's folder.

    Raises:
        ModelError: If the model has none, other modules than a Normalize follow it, or the similarity is a
            distance.
    """
    modules = list(model)
    names = [type(module).__name__ for module in modules]
    if "DupMAEPooling" not in names or set(names[names.index("DupMAEPooling") + 1 :]) - {"Normalize"}:
        raise ModelError(
            f"the model consists of {', '.join(names)}; expected a DupMAEPooling, followed by nothing but a "
            "Normalize. Search its dense variant with stzoo.retrieval.search.exact.retrieve."
        )
    if model.similarity_fn_name not in ("cosine", "dot"):
        raise ModelError(
            f"the similarity of the model is {model.similarity_fn_name}; expected cosine or dot."
        )
    return modules[names.index("DupMAEPooling")]


def encode_documents(
    model: Any,
    texts: Sequence[str],
    folder: str | Path,
    *,
    metadata: dict[str, Any],
    batch_tokens: int | None = None,
    progress: bool = False,
) -> Store:
    """Encodes documents and stores the values of their vectors that are not 0. Continues a killed call.

    Args:
        model: A SentenceTransformer with a DupMAEPooling.
        texts: The N documents.
        folder: Path to the folder of the store.
        metadata: What the vectors depend on; a folder with other metadata is refused.
        batch_tokens: Number of tokens encoded at once, padding included; None to choose it for the device.
        progress: True to show a progress bar on stderr.

    Returns:
        A store of float32 [N, D + 2 K]: the projected [CLS] (D numbers), the ids of K words of the
        vocabulary (integers, ascending), and their K scores; if fewer words have a score, the rest is 0.

    Raises:
        ModelError: If the model has no such pooling, or its vectors are not finite.
        OutputError: If the folder contains another store or is in use, or the disk is full.
    """
    pooling = pooling_of(model)

    def encode_block(block: Sequence[str]) -> np.ndarray:
        parts = []
        for start in range(0, len(block), ENCODED):
            vectors = encode(
                model, block[start : start + ENCODED], role="document", batch_tokens=batch_tokens
            )
            parts.append(compact(vectors, pooling.projection, pooling.top_k))
        return np.concatenate(parts)

    return fill(folder, texts, metadata, encode_block, progress=progress)


def compact(vectors: np.ndarray, dense: int, words: int) -> np.ndarray:
    """Packs vectors into the rows of a store, as described in `encode_documents`.

    Args:
        vectors: float32 [N, D + V], of which at most K after the first D are not 0.
        dense: The dimension D of the projected [CLS].
        words: The number K of words that keep their score.

    Returns:
        float32 [N, D + 2 K].
    """
    rows, columns = np.nonzero(vectors[:, dense:])
    counts = np.bincount(rows, minlength=len(vectors))
    order = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
    packed = np.zeros((len(vectors), dense + 2 * words), np.float32)
    packed[:, :dense] = vectors[:, :dense]
    packed[rows, dense + order] = columns  # float32 is exact for integers up to 2**24
    packed[rows, dense + words + order] = vectors[rows, dense + columns]
    return packed


def sparse(stored: np.ndarray, dense: int, width: int) -> csr_array:
    """Unpacks the rows of a store into a sparse array, float32 [N, D + V], with D + K entries per row.

    Args:
        stored: float32 [N, D + 2 K], rows of a store.
        dense: The dimension D of the projected [CLS].
        width: The dimension D + V of the vectors.
    """
    words = (stored.shape[1] - dense) // 2
    word_columns = stored[:, dense : dense + words].astype(np.int32) + dense
    dense_columns = np.broadcast_to(np.arange(dense, dtype=np.int32), (len(stored), dense))
    columns = np.concatenate([dense_columns, word_columns], 1)
    values = np.concatenate([stored[:, :dense], stored[:, dense + words :]], 1)
    starts = np.arange(0, values.size + 1, dense + words, dtype=np.int32)
    return csr_array((values.ravel(), columns.ravel(), starts), shape=(len(stored), width))


def _lengths(rows: np.ndarray) -> np.ndarray:
    """The lengths of vectors, float32 [N, 1]."""
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))[:, None]
    return np.maximum(lengths, SHORTEST).astype(np.float32)


def _digest(model: Any) -> str:
    """SHA-256 of everything that a model's vectors depend on."""
    modules = [(type(module).__name__, module.get_config_dict()) for module in model]
    settings = [modules, model.prompts, model.default_prompt_name, model.max_seq_length]
    digest = hashlib.sha256(json.dumps(settings, default=str).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
