"""Scores a training set with a teacher, for distillation.

FOLDER/manifest.json         the teacher and the training set
FOLDER/000000.safetensors    scores of the positives and negatives of PART_QUERIES queries

Batches never mix the pairs of several parts, so that a resumed run computes exactly the same scores.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stzoo.data.training_sets.sets import TrainingSet
from stzoo.models.cross_encoder import BAR, Teacher
from stzoo.utils.parts import ArrayParts, Part, open_manifest
from stzoo.utils.progress import progress_bar
from stzoo.utils.workers import started

SCHEMA_VERSION = 1
PART_QUERIES = 128  # with 30 passages each, about a minute for MiniLM on two CPU cores


def rescore(
    training: TrainingSet, teacher: Teacher, folder: str | Path, *, progress: bool | None = None
) -> TrainingSet:
    """Scores every positive and negative of a training set with a teacher.

    Several processes that score the same set into the same folder share the work.

    Args:
        training: The training set; existing scores are replaced.
        teacher: The teacher.
        folder: Folder for the scores; scores that it contains are not computed again.
        progress: True for a progress bar on stderr after two seconds; None shows it on a terminal only.

    Raises:
        OutputError: If the folder belongs to another teacher or training set, or cannot be written.
        ModelError: If a score is not finite.
    """
    settings = {
        "schema_version": SCHEMA_VERSION,
        "teacher": teacher.metadata,
        "training": training.fingerprint,
        "part_queries": PART_QUERIES,
    }
    sides = {"positives": training.positives, "negatives": training.negatives}
    scores = {name: np.empty(len(side.places), np.float32) for name, side in sides.items()}
    off = None if progress is None else not progress
    path = Path(folder)
    with progress_bar(total=sum(map(len, scores.values())), disable=off, **BAR) as bar:

        def pairs(part: Part) -> list[tuple[str, str]]:
            """All positives of the part's queries, then all their negatives."""
            return [
                (training.queries[query], training.passages[place])
                for side in sides.values()
                for query in range(part.first, part.last)
                for place in side[query].tolist()
            ]

        def count(part: Part, side: Any) -> int:
            return int(side.starts[part.last] - side.starts[part.first])

        def pack(part: Part, scored: np.ndarray) -> dict[str, np.ndarray]:
            return dict(zip(sides, np.split(scored, [count(part, training.positives)]), strict=True))

        def keep(part: Part, content: dict[str, np.ndarray]) -> None:
            for name, side in sides.items():
                scores[name][side.starts[part.first] : side.starts[part.last]] = content[name]

        path.mkdir(parents=True, exist_ok=True)
        open_manifest(path / "manifest.json", settings)
        parts = ArrayParts(path, "{number:06d}.safetensors", len(training.queries), PART_QUERIES)
        with started(teacher) as workers:
            parts.complete(
                workers,
                pairs,
                pack=pack,
                each=keep,
                bar=bar,
                weight=lambda part: sum(count(part, side) for side in sides.values()),
            )
    scored = {name: replace(side, scores=scores[name]) for name, side in sides.items()}
    return replace(training, positives=scored["positives"], negatives=scored["negatives"])
