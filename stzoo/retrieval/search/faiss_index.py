"""Approximate search: FAISS indexes by FAISS's own factory strings, kept on disk.

FOLDER/<factory>-<8 hex digits>.faiss    the index
FOLDER/<factory>-<8 hex digits>.json     what it was made from and of: all that must agree to use it again

Factory strings: https://github.com/facebookresearch/faiss/wiki/The-index-factory
Search parameters: https://github.com/facebookresearch/faiss/wiki/Index-IO,-cloning-and-hyper-parameter-tuning

Unlike beir's FAISS searchers (https://github.com/beir-cellar/beir, beir/retrieval/search/dense/faiss_*.py):
- every factory string works, with rotations (OPQ) and graphs over compressed vectors (HNSW32,SQ8) among them;
- FAISS's padding (-1) is no result, and a query that finds itself does not lose a place for that;
- an index serves the vectors that it was built from and no others, and a search leaves nothing in it;
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
from tqdm import tqdm

from stzoo.data.trec import Run
from stzoo.errors import OutputError, ShapeError
from stzoo.retrieval.search.exact import Vectors
from stzoo.retrieval.search.exact_kernels import checked
from stzoo.retrieval.search.faiss_build import built, faiss_errors, lengthened, set_parameters
from stzoo.retrieval.search.ranking import Ranking
from stzoo.utils.files import atomic_file, sha256, write_json
from stzoo.utils.parts import damaged, differences, read_manifest

SCHEMA_VERSION = 1
QUERIES_AT_ONCE = 1024


class Index:
    """A FAISS index of some vectors; `open_index` makes it.

    Attributes:
        path: of its file.
        facts: what it was made from: factory, similarity, seed, the vectors' facts, and how: faiss, seconds.
        reused: True if it lay there already.
    """

    def __init__(self, path: Path, facts: dict[str, Any], *, reused: bool):
        self.path, self.facts, self.reused = path, facts, reused
        self._index = _read(path)
        self._applied: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its file, which are nearly those that it takes in memory."""
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
    ) -> Run:
        """Finds about the k nearest passages of each query, by as many threads as torch has been given.

        Which are found is FAISS's choice, and the scores are its own, of compressed vectors if it compresses.
        Among these, order, ties and self-hits are those of exact search.

        Args:
            query_vectors: float32 [Q, D].
            query_ids: Q ids.
            corpus_ids: N unique ids, of the vectors that the index was built from, in their order.
            k: passages kept a query; fewer may be found.
            drop_self: True to leave out the document whose id is the query's.
            search_params: of FAISS, e.g. "nprobe=16" or "efSearch=64"; None leaves the index's own.
            progress: True for a progress bar on stderr.

        Returns:
            float32 scores by document id by query id, best first; Euclidean distances count negative.

        Raises:
            ModelError: if a query's vector holds NaN or infinity.
            ShapeError: if ids, vectors and index do not agree.
            RecipeError: if k is below 1, or the index does not have these search parameters.
        """
        Q, N, D = len(query_ids), self._index.ntotal, self._index.d
        if query_vectors.shape != (Q, D) or len(corpus_ids) != N:
            raise ShapeError(
                f"queries {query_vectors.shape} for {Q} ids, and {len(corpus_ids)} corpus ids for an index "
                f"of [{N}, {D}]."
            )
        self._apply(search_params)
        ranking = Ranking(corpus_ids, k, drop_self=drop_self)
        kept = ranking.none(Q)
        vectors = lengthened(checked(query_vectors, "query"), self.facts["similarity"])
        with (
            tqdm(total=Q, desc="Search", leave=False, disable=not progress) as bar,
            faiss_errors(
                f"the search of {self.facts['factory']!r} with {search_params or 'no parameters'} failed"
            ),
        ):
            for start in range(0, Q, QUERIES_AT_ONCE):
                here = slice(start, start + QUERIES_AT_ONCE)
                scores, places = self._index.search(vectors[here], ranking.width)
                if self.facts["similarity"] == "euclidean":
                    scores = -np.sqrt(np.maximum(scores, 0))  # FAISS gives squares
                rows, columns = np.nonzero(places >= 0)
                found = places[rows, columns]
                kept[here] = ranking.merge(kept[here], rows, found, scores[rows, columns])
                bar.update(len(scores))
        return ranking.run(query_ids, kept)

    def _apply(self, search_params: str | None) -> None:
        """Sets parameters as if no other search had been before."""
        if search_params == self._applied:
            return
        if self._applied is not None:
            self._index, self._applied = _read(self.path), None
        if search_params is not None:
            self._applied = search_params  # some may be set before one fails
            set_parameters(self._index, self.facts["factory"], search_params)


def open_index(
    folder: str | Path,
    vectors: Vectors,
    factory: str,
    *,
    similarity: str,
    facts: Mapping[str, Any] | None = None,
    seed: int = 0,
    memory_gib: float = 2.0,
    progress: bool = False,
) -> Index:
    """Opens the index of these vectors that lies in the folder, or builds it there.

    One that was built from other vectors, or whose file is damaged, is not used but built again. How a graph
    (HNSW) comes out depends on the timing of threads: only with one are two builds the same to the bit.

    Args:
        folder: for indexes; several can lie in it.
        vectors: float32 [N, D]; a store is read once or, to train on a sample, twice, chunk by chunk.
        factory: of FAISS: Flat, HNSW32, IVF4096,PQ64np, OPQ16,IVF64,PQ16np, SQ8 … Without its np ("no
            polysemous training") a PQ takes long to train, for nothing but the search parameter ht.
        similarity: cosine (the inner product of vectors made one long), dot or euclidean.
        facts: JSON values that tell these vectors from others; None takes the store's own `facts`, or of an
            array a digest.
        seed: of the sample that the index is trained on.
        memory_gib: GiB that the sample to train on or a chunk of vectors and their copies may take; beside it
            comes the index.
        progress: True for a progress bar on stderr.

    Raises:
        RecipeError: if FAISS cannot make such an index of these vectors, or not for this similarity.
        ModelError: if a vector holds NaN or infinity.
        OutputError: if the folder cannot be written.
    """
    if facts is None:
        facts = getattr(vectors, "facts", None) or {"sha256": _digest(vectors)}
    settings = {
        "schema_version": SCHEMA_VERSION,
        "factory": factory,
        "similarity": similarity,
        "seed": seed,
        "documents": vectors.shape[0],
        "width": vectors.shape[1],
        "precision": getattr(vectors, "precision", "float32"),
        "vectors": dict(facts),
    }
    label = re.sub(r"[^\w.+-]", "_", factory)[:80]
    name = f"{label}-{hashlib.sha256(json.dumps([factory, similarity, seed]).encode()).hexdigest()[:8]}"
    path, noted = Path(folder) / f"{name}.faiss", Path(folder) / f"{name}.json"
    with contextlib.suppress(OutputError):  # there is no note, or a damaged one
        known = read_manifest(noted)
        if not differences(known, settings) and not damaged(path.parent, {path.name: known.get("sha256")}):
            return Index(path, known, reused=True)

    begun = time.monotonic()
    index = built(vectors, factory, similarity, seed, memory_gib, progress)
    with atomic_file(path) as draft:
        faiss.write_index(index, str(draft))
    del index
    made = {
        "sha256": sha256(path),
        "faiss": faiss.__version__,
        "seconds": round(time.monotonic() - begun, 2),
    }
    write_json(noted, settings | made)
    return Index(path, settings | made, reused=False)


def recall(exact: Run, approximate: Run, k: int) -> float:
    """The share of the first k documents of `exact` that are among the first k of `approximate`.

    It is the mean over the queries; one for which `exact` has nothing is left out.
    """
    shares = []
    for query, found in exact.items():
        best = set(list(found)[:k])
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
