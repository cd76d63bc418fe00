"""Lessons of a teacher: the candidates of each generated query, and how well the teacher rates them.

The teacher is the fusion of BM25 and the model, which beats each of them on most collections
(benchmarks/fusion.py) and needs no labels, or a cross-encoder.

The passage that a query was made from is left out: it has the query's words, so both find it first, and a
student of that would learn nothing but to look for copies.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from stzoo.data.training_sets.sets import Lists, TrainingSet
from stzoo.finetuning.distillation import rescore
from stzoo.models.cross_encoder import Teacher
from stzoo.retrieval.bm25 import Lexical
from stzoo.utils.progress import progress_bar

DEPTH = 500  # results of each side, over which scores are standardised
AT_ONCE = 256  # queries whose similarities with all passages are in memory at once


@dataclass(frozen=True)
class Lessons:
    """Queries with candidates, rated by the teacher.

    Attributes:
        vectors: float32 [P, D], unit vectors of the queries.
        candidates: int64 [P, C], numbers of passages.
        scores: float32 [P, C], the teacher's scores; -inf leaves a candidate out.
        sources: int64 [P], the number of the passage that each query was made from.
        source_ranks: int64 [P], the teacher's rank of that passage, from 1.
        spread: Mean standard deviation of the model's similarities over a query's results.
    """

    vectors: np.ndarray
    candidates: np.ndarray
    scores: np.ndarray
    sources: np.ndarray
    source_ranks: np.ndarray
    spread: float

    def part(self, chosen: np.ndarray) -> "Lessons":
        """The lessons of some queries; `chosen` is bool [P]."""
        arrays = ("vectors", "candidates", "scores", "sources", "source_ranks")
        return replace(self, **{name: getattr(self, name)[chosen] for name in arrays})


def make_lessons(
    texts: Sequence[str],
    vectors: np.ndarray,
    sources: np.ndarray,
    documents: np.ndarray,
    bm25: Lexical,
    *,
    bm25_weight: float,
    candidates: int,
    hidden: np.ndarray,
    seed: int,
    progress: bool = False,
) -> Lessons:
    """Rates candidates for each query: the fusion's best, and as many random passages.

    The scores of both sides are exact for all candidates, and standardised over the union of the `DEPTH` best
    of each.

    Args:
        texts: P queries.
        vectors: float32 [P, D], their unit vectors.
        sources: int64 [P], the number of the passage that each was made from.
        documents: float32 [N, D], unit vectors of the passages.
        bm25: Index of the same passages.
        bm25_weight: Weight of BM25 in the fusion, 0..1.
        candidates: Number of the best to take, and of random ones.
        hidden: bool [N], passages that are no candidates, as they are held out.
        seed: Random seed.
        progress: True for a progress bar on stderr.
    """
    draw = np.random.default_rng(seed)
    number, best = len(documents), min(candidates, len(documents))
    numbers = np.zeros((len(texts), 2 * best), np.int64)
    scores = np.full((len(texts), 2 * best), -np.inf, np.float32)
    ranks = np.empty(len(texts), np.int64)
    spreads = np.empty(len(texts))
    passages, depth = torch.from_numpy(documents), min(DEPTH, number)
    with progress_bar(total=len(texts), desc="Teacher", unit=" queries", disable=not progress) as bar:
        for start in range(0, len(texts), AT_ONCE):
            batch = texts[start : start + AT_ONCE]
            similarities = torch.from_numpy(vectors[start : start + AT_ONCE]) @ passages.T
            nearest, dense = similarities.topk(depth, dim=1).indices.numpy(), similarities.numpy()
            found = bm25.retrieve({str(i): text for i, text in enumerate(batch)}, depth)
            for row, text in enumerate(batch):
                query = start + row
                pool = np.union1d(nearest[row], found.results(str(row))[0])
                extra = np.setdiff1d(draw.integers(number, size=best), pool)
                places = np.union1d(np.concatenate([pool, extra]), sources[query])
                in_pool = np.isin(places, pool)
                fused = bm25_weight * _standardised(bm25.scores(text, places), in_pool)
                fused += (1 - bm25_weight) * _standardised(dense[row, places], in_pool)
                spreads[query] = dense[row, pool].std()
                own = fused[places == sources[query]]
                ranks[query] = 1 + (fused > own).sum()
                fused[(places == sources[query]) | hidden[places]] = -np.inf
                order = np.argsort(-fused, kind="stable")
                chosen = np.concatenate([order[:best], np.flatnonzero(~in_pool)])
                chosen = chosen[np.sort(np.unique(chosen, return_index=True)[1])][: 2 * best]
                numbers[query, : len(chosen)] = places[chosen]
                scores[query, : len(chosen)] = fused[chosen]
            bar.update(len(batch))
    return Lessons(vectors, numbers, scores, sources, ranks, float(spreads.mean()))


def rate_by_teacher(
    lessons: Lessons,
    chosen: np.ndarray,
    texts: Sequence[str],
    passages: Sequence[str],
    teacher: Teacher,
    folder: Path,
    *,
    progress: bool = False,
) -> Lessons:
    """Replaces the scores of some lessons by those of a cross-encoder.

    The scores of each query are standardised over its candidates, as those of the fusion are. The source's
    rank is the cross-encoder's among the candidates.

    Args:
        lessons: Candidates of P queries.
        chosen: bool [P], the queries to score.
        texts: P queries.
        passages: N texts.
        teacher: The cross-encoder.
        folder: Folder for the scores, which get a folder of their own in it for these queries; those that it
            contains are not computed again.
        progress: True for a progress bar on stderr.

    Raises:
        ModelError: If a score is not finite.
        OutputError: If the scores there are another teacher's.

    Source: Wang et al. 2022, "GPL: Generative Pseudo Labeling for Unsupervised Domain Adaptation of Dense
    Retrieval", section 3, where a cross-encoder rates hard negatives of generated queries.
    Unlike GPL, whose student learns margins to the source passage; here it learns the ranking of the others.
    """
    rows = np.flatnonzero(chosen)
    rated = np.isfinite(lessons.scores[rows])
    starts = np.concatenate([[0], np.cumsum(rated.sum(1))])
    pairs = TrainingSet(
        name=folder.name,
        folder=folder,
        corpus_ids=list(map(str, range(len(passages)))),
        passages=passages,
        query_ids=list(map(str, rows.tolist())),
        queries=[texts[row] for row in rows.tolist()],
        positives=Lists(np.arange(len(rows) + 1), lessons.sources[rows]),
        negatives=Lists(starts, lessons.candidates[rows][rated]),
    )
    scored = rescore(pairs, teacher, folder / pairs.fingerprint[:12], progress=progress)
    scores, ranks = lessons.scores.copy(), lessons.source_ranks.copy()
    for place, row in enumerate(rows.tolist()):
        found = scored.negatives.scored(place)
        scores[row, rated[place]] = _standardised(found, np.ones(len(found), bool))
        ranks[row] = 1 + (found > scored.positives.scored(place)).sum()
    return replace(lessons, scores=scores, source_ranks=ranks)


def _standardised(scores: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Scores less their mean, over their standard deviation, both of those in `among`."""
    known = scores[among].astype(np.float64)
    return (scores - known.mean()) / (known.std() or 1.0)
