"""The second stage: a cross-encoder ranks the best passages of a first ranking again.

FOLDER/manifest.json         the cross-encoder, the texts and the candidates
FOLDER/000000.safetensors    scores of the candidates of PART_QUERIES queries
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stzoo.data.beir import RetrievalDataset
from stzoo.data.ranking import Ranked, Ranking
from stzoo.data.texts import indices_of
from stzoo.models.cross_encoder import BAR, Teacher
from stzoo.retrieval.store import place
from stzoo.utils.parts import ArrayParts, Part, open_manifest
from stzoo.utils.progress import advancing, progress_bar
from stzoo.utils.workers import started

SCHEMA_VERSION = 1
DEPTH = 100  # passages per query that are ranked again
PART_QUERIES = 32  # of 100 candidates each, about half a minute for MiniLM on two CPU cores


def rerank(
    run: Ranked,
    queries: Mapping[str, str],
    judged: RetrievalDataset,
    reranker: Teacher,
    *,
    k: int,
    depth: int = DEPTH,
    root: Path | None = None,
    progress: bool = False,
) -> Ranked:
    """Ranks the first passages of each query by a cross-encoder; those after them follow in their order.

    Args:
        run: The first ranking.
        queries: Texts of the queries by id.
        judged: Data set with the corpus.
        reranker: The cross-encoder.
        k: Number of passages to keep per query.
        depth: Number of passages per query that are ranked again.
        root: Folder of stores for the scores, which are then not computed again; None keeps none.
        progress: True shows a progress bar on stderr.

    Raises:
        ModelError: If a score is not finite.
        OutputError: If the folder for the scores cannot be written, or another process writes it.
    """
    found = {query: [run.corpus_ids[i] for i in run.results(query)[0].tolist()] for query in queries}
    places = indices_of({document for ids in found.values() for document in ids}, judged.corpus_ids)
    rows = [np.array([places[document] for document in ids], np.int64) for ids in found.values()]
    scores = _scores(list(queries.values()), [row[:depth] for row in rows], judged, reranker, root, progress)
    ranking = Ranking(judged.corpus_ids, k, drop_self=False)
    kept = ranking.none(len(rows))
    for number, (row, first) in enumerate(zip(rows, scores, strict=True)):
        rest = first.min(initial=0) - 1 - np.arange(len(row) - len(first), dtype=np.float32)
        one = slice(number, number + 1)
        both = np.concatenate([first, rest]).astype(np.float32)
        kept[one] = ranking.merge(kept[one], np.zeros_like(row), row, both)
    return ranking.run(list(queries), kept)


def _scores(
    queries: list[str],
    candidates: list[np.ndarray],
    judged: RetrievalDataset,
    reranker: Teacher,
    root: Path | None,
    progress: bool,
) -> list[np.ndarray]:
    """The scores of each query's candidates, which are indices of passages."""
    ends = np.cumsum([0, *map(len, candidates)])
    with progress_bar(total=int(ends[-1]), disable=not progress, **BAR) as bar:

        def pairs(part: Part) -> list[tuple[str, str]]:
            return [
                (queries[number], judged.passages[passage])
                for number in range(part.first, part.last)
                for passage in candidates[number].tolist()
            ]

        if root is None:
            with advancing(bar):
                scored = reranker(pairs(Part(0, 0, len(queries), Path())))
            return np.split(scored, ends[1:-1])
        manifest = _manifest(queries, candidates, judged, reranker)
        folder = place(root, reranker.name, judged.name, "rerank", manifest)
        folder.mkdir(parents=True, exist_ok=True)
        open_manifest(folder / "manifest.json", manifest)
        parts = ArrayParts(folder, "{number:06d}.safetensors", len(queries), PART_QUERIES)
        scores = np.empty(int(ends[-1]), np.float32)

        def keep(part: Part, content: dict[str, np.ndarray]) -> None:
            scores[ends[part.first] : ends[part.last]] = content["scores"]

        with started(reranker) as workers:
            parts.complete(
                workers,
                pairs,
                pack=lambda _, scored: {"scores": scored},
                each=keep,
                bar=bar,
                weight=lambda part: int(ends[part.last] - ends[part.first]),
            )
        return np.split(scores, ends[1:-1]) if len(queries) else []


def _manifest(
    queries: list[str], candidates: list[np.ndarray], judged: RetrievalDataset, reranker: Teacher
) -> dict[str, Any]:
    digest = hashlib.sha256()
    for query, passages in zip(queries, candidates, strict=True):
        digest.update(f"{len(passages)} {query}\0".encode() + passages.tobytes())
    return {
        "schema_version": SCHEMA_VERSION,
        "reranker": reranker.metadata,
        "corpus": judged.corpus_fingerprint,
        "candidates": digest.hexdigest(),
        "part_queries": PART_QUERIES,
    }
