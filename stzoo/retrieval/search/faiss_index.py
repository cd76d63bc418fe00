"""Approximate search by FAISS indexes, built from FAISS's factory strings and saved to disk.

FOLDER/<factory>-<8 hex digits>.faiss    the index
FOLDER/<factory>-<8 hex digits>.json     its settings and vectors, which must match to reuse it

Factory strings: https://github.com/facebookresearch/faiss/wiki/The-index-factory
Search parameters: https://github.com/facebookresearch/faiss/wiki/Index-IO,-cloning-and-hyper-parameter-tuning

Unlike beir's FAISS searchers (https://github.com/beir-cellar/beir, beir/retrieval/search/dense/faiss_*.py):
- every factory string works, including rotations (OPQ) and graphs over compressed vectors (HNSW32,SQ8);
- FAISS's padding (-1) is not a result, and a query that finds itself still gets k results;
- an index is used only for the vectors that it was built from, and a search does not change it;
- vectors are added chunk by chunk, never stacked.
"""

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from stzoo.data.ranking import Ranked, Ranking
from stzoo.data.trec import Run
from stzoo.errors import OutputError, ShapeError
from stzoo.retrieval.search.exact import Vectors
from stzoo.retrieval.search.exact_kernels import checked
from stzoo.retrieval.search.faiss_build import built, faiss_errors, normalized, set_parameters
from stzoo.utils.files import atomic_file, sha256, write_json
from stzoo.utils.parts import damaged, differences, read_manifest
from stzoo.utils.progress import progress_bar

SCHEMA_VERSION = 1
QUERIES_AT_ONCE = 1024


class Index:
    """A FAISS index, opened or built by `open_index`.

    Attributes:
        path: Path to its file.
        metadata: Its manifest: factory, similarity, seed, the vectors' manifest, FAISS's version, build time.
        reused: True if the file existed before.
    """

    def __init__(self, path: Path, metadata: dict[str, Any], *, reused: bool):
        self.path, self.metadata, self.reused = path, metadata, reused
        self._index = _read(path)
        self._applied: str | None = None

    @property
    def nbytes(self) -> int:
        """Size of its file in bytes, which is about its size in memory."""
        return self.path.stat().st_size

    def search(
        self,
        query_vectors: np.ndarray,
        query_ids: Sequence[str],
        corpus_ids: Sequence[str],
        k: int,
        *,
        drop_self: bool,
        search_params: str | None = None,
        progress: bool = False,
    ) -> Ranked:
        """Finds approximately the k nearest passages of each query, on as many threads as torch uses.

        The scores are FAISS's: those of compressed vectors, if the index compresses them. Order, ties and
        self-hits are handled as in exact search.

        Args:
            query_vectors: float32 [Q, D].
            query_ids: Q ids.
            corpus_ids: N unique ids of the vectors that the index was built from, in the same order.
            k: Number of results per query; there may be fewer.
            drop_self: True drops the document whose id is the query's.
            search_params: Search parameters of FAISS, e.g. "nprobe=16" or "efSearch=64"; None keeps the
                index's defaults.
            progress: True shows a progress bar on stderr.

        Returns:
            float32 scores by query id and document id, best first; the score of a distance is its negative.

        Raises:
            ModelError: If a query's vector has NaN or infinity.
            ShapeError: If ids, vectors and index do not match.
            RecipeError: If k is below 1, or the index does not have these search parameters.
        """
        Q, N, D = len(query_ids), self._index.ntotal, self._index.d
        if query_vectors.shape != (Q, D) or len(corpus_ids) != N:
            raise ShapeError(
                f"query vectors have the shape {list(query_vectors.shape)}, and there are {len(corpus_ids)} "
                f"corpus ids; expected [{Q}, {D}] and {N} ids for this index."
            )
        self._apply(search_params)
        ranking = Ranking(corpus_ids, k, drop_self=drop_self)
        kept = ranking.none(Q)
        vectors = normalized(checked(query_vectors, "query"), self.metadata["similarity"])
        with (
            progress_bar(total=Q, desc="Search", unit=" queries", disable=not progress) as bar,
            faiss_errors(
                f"the search of {self.metadata['factory']!r} with {search_params or 'no parameters'} failed"
            ),
        ):
            for start in range(0, Q, QUERIES_AT_ONCE):
                here = slice(start, start + QUERIES_AT_ONCE)
                scores, neighbours = self._index.search(vectors[here], ranking.width)
                if self.metadata["similarity"] == "euclidean":
                    scores = -np.sqrt(np.maximum(scores, 0))  # FAISS returns squared distances
                rows, columns = np.nonzero(neighbours >= 0)
                indices = neighbours[rows, columns]
                kept[here] = ranking.merge(kept[here], rows, indices, scores[rows, columns])
                bar.update(len(scores))
        return ranking.run(query_ids, kept)

    def _apply(self, search_params: str | None) -> None:
        """Sets search parameters, independently of those of earlier searches."""
        if search_params == self._applied:
            return
        if self._applied is not None:
            self._index, self._applied = _read(self.path), None
        if search_params is not None:
            self._applied = search_params  # set first, as some may be applied before one fails
            set_parameters(self._index, self.metadata["factory"], search_params)


def open_index(
    folder: str | Path,
    vectors: Vectors,
    factory: str,
    *,
    similarity: str,
    metadata: Mapping[str, Any] | None = None,
    seed: int = 0,
    memory_gib: float = 2.0,
    progress: bool = False,
) -> Index:
    """Opens the index of these vectors in a folder, or builds it.

    An index of other vectors, or with a damaged file, is built again. A graph (HNSW) depends on the timing of
    threads; only builds with one thread are identical.

    Args:
        folder: Folder for indexes; it may have several.
        vectors: float32 [N, D]; a store is read chunk by chunk, once or, to train on a sample, twice.
        factory: FAISS factory string: Flat, HNSW32, IVF4096,PQ64np, OPQ16,IVF64,PQ16np, SQ8 … Without "np"
            (no polysemous training) a PQ takes long to train, which only the search parameter ht needs.
        similarity: cosine (inner product of normalised vectors), dot or euclidean.
        metadata: JSON values that identify the vectors; None uses those of a store, or a digest of an array.
        seed: Random seed of the training sample.
        memory_gib: Memory limit in GiB for the training sample, or a chunk of vectors, and their copies; the
            index itself comes on top.
        progress: True shows a progress bar on stderr.

    Raises:
        RecipeError: If FAISS cannot build such an index of these vectors, or for this similarity.
        ModelError: If a vector has NaN or infinity.
        OutputError: If the folder cannot be written.
    """
    if metadata is None:
        metadata = getattr(vectors, "metadata", None) or {"sha256": _digest(vectors)}
    settings = {
        "schema_version": SCHEMA_VERSION,
        "factory": factory,
        "similarity": similarity,
        "seed": seed,
        "documents": vectors.shape[0],
        "width": vectors.shape[1],
        "precision": getattr(vectors, "precision", "float32"),
        "vectors": dict(metadata),
    }
    label = re.sub(r"[^\w.+-]", "_", factory)[:80]
    name = f"{label}-{hashlib.sha256(json.dumps([factory, similarity, seed]).encode()).hexdigest()[:8]}"
    path, manifest_path = Path(folder) / f"{name}.faiss", Path(folder) / f"{name}.json"
    with contextlib.suppress(OutputError):  # there is no note, or a damaged one
        known = read_manifest(manifest_path)
        if not differences(known, settings) and not damaged(path.parent, {path.name: known.get("sha256")}):
            return Index(path, known, reused=True)

    begun = time.monotonic()
    index = built(vectors, factory, similarity, seed, memory_gib, progress)
    with atomic_file(path) as draft:
        faiss.write_index(index, str(draft))
    del index
    details = {
        "sha256": sha256(path),
        "faiss": faiss.__version__,
        "seconds": round(time.monotonic() - begun, 2),
    }
    write_json(manifest_path, settings | details)
    return Index(path, settings | details, reused=False)


def recall(exact: Run, approximate: Run, k: int) -> float:
    """The share of the first k documents of `exact` that are among the first k of `approximate`.

    It is the mean over the queries for which `exact` has results.
    """
    shares = []
    for query, scores in exact.items():
        best = set(list(scores)[:k])
        if best:
            shares.append(len(best.intersection(list(approximate.get(query, {}))[:k])) / len(best))
    return sum(shares) / len(shares)


def _read(path: Path) -> Any:
    return faiss.read_index(str(path))


def _digest(vectors: Vectors) -> str:
    digest = hashlib.sha256()
    for start in range(0, vectors.shape[0], 2**16):
        digest.update(np.ascontiguousarray(vectors[start : start + 2**16], np.float32).data)
    return digest.hexdigest()
