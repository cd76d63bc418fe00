"""Scores a training set with a teacher, for distillation.

FOLDER/manifest.json         the teacher and the training set
FOLDER/000000.safetensors    scores of the positives and negatives of PART_QUERIES queries

Batches never mix the pairs of several parts, so that a resumed run computes exactly the same scores.
"""

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from stzoo.data.training_sets.sets import TrainingSet
from stzoo.models.cross_encoder import BAR, Teacher
from stzoo.utils.distributed import is_main_process
from stzoo.utils.files import lock_folder
from stzoo.utils.parts import ArrayParts, Part, open_manifest
from stzoo.utils.progress import progress_bar

SCHEMA_VERSION = 1
PART_QUERIES = 128  # with 30 passages each, about a minute for MiniLM on two CPU cores


def rescore(
    training: TrainingSet, teacher: Teacher, folder: str | Path, *, progress: bool | None = None
) -> TrainingSet:
    """Scores every positive and negative of a training set with a teacher.

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
    # With several processes, the main process scores and the others read its results.
    place = lock_folder(folder) if is_main_process() else contextlib.nullcontext(Path(folder))
    with place as path, progress_bar(total=sum(map(len, scores.values())), disable=off, **BAR) as bar:

        def make(part: Part) -> dict[str, np.ndarray]:
            """Scores the queries of a part with all their positives, then with all their negatives."""
            queries = range(part.first, part.last)
            pairs = [
                (training.queries[query], training.passages[place])
                for side in sides.values()
                for query in queries
                for place in side[query].tolist()
            ]
            values = teacher.score_pairs(pairs, bar)
            start, stop = training.positives.starts[[part.first, part.last]]
            return dict(zip(sides, np.split(values, [stop - start]), strict=True))

        open_manifest(path / "manifest.json", settings)
        parts = ArrayParts(path, "{number:06d}.safetensors", len(training.queries), PART_QUERIES)
        done = 0
        for part in parts:
            arrays = parts.get(part, make)
            for name, side in sides.items():
                scores[name][side.starts[part.first] : side.starts[part.last]] = arrays[name]
                done += len(arrays[name])
            bar.update(done - bar.n)
    scored = {name: replace(side, scores=scores[name]) for name, side in sides.items()}
    return replace(training, positives=scored["positives"], negatives=scored["negatives"])
