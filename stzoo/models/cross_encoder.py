"""Teachers: cross-encoders that score pairs, for distillation and to find negatives that are none.

Any CrossEncoder of sentence-transformers with one label, or a bare sequence classifier of transformers. The
scores are its logits: what its activation would make of them (most have a sigmoid) is left out, as the losses
of distillation and margins need differences, which a sigmoid flattens.

`rescore` keeps what it has scored in a folder, in parts of PART_QUERIES queries, each written whole or not at
all. A part's pairs are put into batches by themselves, so a run that was stopped, at whatever moment, goes on
to the very same scores.
"""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import CrossEncoder
from sentence_transformers.util import get_device_name, load_file_path
from tqdm import tqdm
from transformers import AutoConfig

from stzoo.data.training_sets.sets import TrainingSet
from stzoo.errors import ModelError, OutputError, is_failure
from stzoo.models import limits
from stzoo.models.check_weights import check_model, loading_reports
from stzoo.models.encode import score_pairs
from stzoo.models.loaded import NO_REVISION, commit_of, folder_revision, limit
from stzoo.models.loading import check_device, reason
from stzoo.models.names import parse_name
from stzoo.utils.distributed import is_main_process
from stzoo.utils.files import lock_folder, read_arrays, write_arrays, write_json
from stzoo.utils.logging import silence_hf_logging

SCHEMA_VERSION = 1
PART_QUERIES = 128  # with 30 passages each a minute of MiniLM on two CPU cores


@dataclass(frozen=True)
class Teacher:
    """A loaded cross-encoder.

    Attributes:
        name: the folder's name, or the Hub id.
        given: the folder, made absolute, or Hub id that it was loaded from.
        revision: first 12 hex digits of a folder's fingerprint, or a Hub model's commit.
        model: the CrossEncoder.
    """

    name: str
    given: str
    revision: str
    model: Any

    @property
    def facts(self) -> dict[str, Any]:
        """What the scores depend on, beside the texts."""
        found = {"revision": self.revision, "max_tokens": self.model.max_seq_length}
        dtype = str(self.model.dtype).removeprefix("torch.")
        if dtype != "float32":
            found["dtype"] = dtype
        if self.revision == NO_REVISION:
            found["model"] = self.given
        return found

    def score(self, queries: Sequence[str], passages: Sequence[str], *, progress: bool = False) -> np.ndarray:
        """Scores each query with the passage at its side.

        Args:
            queries: N texts.
            passages: N texts.
            progress: True for a progress bar on stderr after two seconds.

        Returns:
            float32 [N], the logits; the higher, the more relevant.

        Raises:
            ModelError: if a score is not finite.
        """
        pairs = list(zip(queries, passages, strict=True))
        with tqdm(total=len(pairs), disable=not progress, **_BAR) as bar:
            return self._score(pairs, bar)

    def _score(self, pairs: Sequence[tuple[str, str]], bar: Any) -> np.ndarray:
        scores = np.empty(len(pairs), np.float32)
        for rows, found in score_pairs(self.model, pairs):
            scores[rows] = found
            bar.update(len(rows))
        if len(wrong := np.flatnonzero(~np.isfinite(scores))):
            query, passage = pairs[wrong[0]]
            raise ModelError(
                f"the teacher {self.given} scores {len(wrong)} of {len(pairs)} pairs as no finite number: "
                f"{scores[wrong[0]]} for {query[:60]!r} with {passage[:60]!r}. Choose another teacher."
            )
        return scores


_BAR: dict[str, Any] = dict(desc="Scoring pairs", unit=" pairs", delay=2, leave=False)


def open_teacher(name: str, *, max_tokens: int | None = None, device: str | None = None) -> Teacher:
    """Loads a cross-encoder; code from its folder or repository is never run.

    Args:
        name: FOLDER, HUB_ID or NAME=FOLDER_OR_HUB_ID.
        max_tokens: query and passage are cut there together, the longer first; None keeps the model's limit.
        device: of torch; None takes the best there is.

    Raises:
        ModelError: if it is no cross-encoder with one label and all its weights, or cannot read max_tokens.
        RecipeError: if there is no such device, or no name in `name`.

    Unlike: sentence-transformers makes a cross-encoder of anything, with a head of random weights where there
        is none, whose scores mean nothing.
    """
    check_device(device)
    name, given = parse_name(name)
    folder = Path(given)
    local = folder.is_dir()
    if local and not any((folder / file).is_file() for file in ("modules.json", "config.json")):
        raise ModelError(f"{given} is no model; expected a cross-encoder's folder, with a config.json.")
    try:
        with silence_hf_logging(), loading_reports() as reports:
            _check_kind(given)
            model = CrossEncoder(given, device="cpu", trust_remote_code=False)
    except ModelError:
        raise
    except BaseException as error:  # whatever a broken folder makes the loaders raise
        if not is_failure(error):
            raise
        what = "cannot be loaded" if local else "is no folder, and no Hub id that can be loaded"
        raise ModelError(f"the teacher {given} {what}: {reason(error)}") from error
    if model.num_labels != 1:
        raise ModelError(f"{given} gives {model.num_labels} labels; expected one, how relevant a passage is.")
    check_model(given, model, reports)
    limits.prepare(model, given)
    if max_tokens is not None:
        limit(model, max_tokens, given)
    revision = folder_revision(folder) if local else commit_of(model, given)
    model.to(device or get_device_name())
    return Teacher(name, str(folder.resolve()) if local else given, revision, model)


def _check_kind(given: str) -> None:
    """Sees that a model was saved to score pairs."""
    if load_file_path(given, "modules.json"):
        about = load_file_path(given, "config_sentence_transformers.json")
        kind = json.loads(Path(about).read_text(encoding="utf-8")).get("model_type") if about else None
        kind = kind or "SentenceTransformer"
        fits = kind == "CrossEncoder"
    else:
        config = AutoConfig.from_pretrained(given, trust_remote_code=False)
        kind = ", ".join(config.architectures or ["model without a head"])
        fits = kind.endswith("ForSequenceClassification")
    if not fits:
        raise ModelError(
            f"{given} is a {kind}, without a trained head that scores pairs; one of random weights would be "
            "put on it. Expected a CrossEncoder of sentence-transformers, or a ForSequenceClassification."
        )


def rescore(
    training: TrainingSet, teacher: Teacher, folder: str | Path, *, progress: bool | None = None
) -> TrainingSet:
    """Gives every positive and negative of a training set the teacher's score.

    Args:
        training: whose scores, if it has any, are replaced.
        teacher: that scores.
        folder: where the scores are kept; those that are there are not made again.
        progress: True for a progress bar on stderr after two seconds; None shows it on a terminal only.

    Raises:
        OutputError: if the folder is of another teacher or training set, or cannot be written.
        ModelError: if a score is not finite.
    """
    facts = {"schema_version": SCHEMA_VERSION, "teacher": teacher.facts, "training": training.fingerprint}
    facts["part_queries"] = PART_QUERIES
    sides = training.positives, training.negatives
    scores = [np.empty(len(side.places), np.float32) for side in sides]
    off = None if progress is None else not progress
    # of several processes the first one scores, and the others read what it has left
    place = lock_folder(folder) if is_main_process() else contextlib.nullcontext(Path(folder))
    with place as path, tqdm(total=sum(map(len, scores)), disable=off, **_BAR) as bar:
        _claim(path, facts)
        for number, first in enumerate(range(0, len(training.queries), PART_QUERIES)):
            last = min(first + PART_QUERIES, len(training.queries))
            slices = [slice(int(side.starts[first]), int(side.starts[last])) for side in sides]
            sizes = [part.stop - part.start for part in slices]
            file = path / f"{number:06d}.safetensors"
            found = _read_part(file, sizes)
            if found is None:
                found = np.split(teacher._score(_pairs(training, first, last), bar), sizes[:1])
                _write_part(file, found)
            else:
                bar.update(sum(sizes))
            for whole, part, values in zip(scores, slices, found, strict=True):
                whole[part] = values
    positives, negatives = (replace(side, scores=found) for side, found in zip(sides, scores, strict=True))
    return replace(training, positives=positives, negatives=negatives)


def _pairs(training: TrainingSet, first: int, last: int) -> list[tuple[str, str]]:
    """Some queries with each of their positives, then with each of their negatives."""
    return [
        (training.queries[query], training.passages[place])
        for side in (training.positives, training.negatives)
        for query in range(first, last)
        for place in side[query].tolist()
    ]


def _claim(folder: Path, facts: dict[str, Any]) -> None:
    """Sees that a folder is empty or of the same facts, and notes them in it."""
    manifest = folder / "manifest.json"
    if not manifest.exists():
        if any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise OutputError(f"{folder} holds something other than a teacher's scores; choose a new folder.")
        write_json(manifest, facts)
        return
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
        other = [name for name in facts if found.get(name) != facts[name]]
    except (OSError, ValueError, AttributeError) as error:
        raise OutputError(f"{manifest} cannot be read ({error}). Delete {folder} to score anew.") from error
    if other:
        raise OutputError(
            f"{folder} holds scores of another {' and '.join(other).replace('_', ' ')}. Choose a new folder, "
            "or delete it to score anew."
        )


def _write_part(file: Path, scores: Sequence[np.ndarray]) -> None:
    positives, negatives = scores
    write_arrays(file, {"positives": positives, "negatives": negatives})


def _read_part(file: Path, sizes: list[int]) -> list[np.ndarray] | None:
    """The scores of a part, or None if it is missing or damaged."""
    part = read_arrays(file)
    if part is None:
        return None
    found = [part["positives"], part["negatives"]]
    return found if [len(scores) for scores in found] == sizes else None
