"""Teachers: cross-encoders that score pairs, for distillation and for finding false negatives.

A teacher is a CrossEncoder of sentence-transformers with one label, or a bare sequence classifier of
transformers. Its scores are logits: its activation, usually a sigmoid, is not applied, since distillation
losses and margins need the differences that a sigmoid flattens.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import CrossEncoder
from sentence_transformers.util import get_device_name, load_file_path
from transformers import AutoConfig

from stzoo.errors import ModelError
from stzoo.models import limits
from stzoo.models.check_weights import check_model, loading_reports
from stzoo.models.encode import moved, score_pairs
from stzoo.models.loaded import NO_REVISION, commit_of, folder_revision, limit
from stzoo.models.loading import align_weights, check_device, is_self_contained, loading_errors
from stzoo.models.names import check_source, parse_name
from stzoo.utils.progress import advance, advancing, progress_bar

BAR: dict[str, Any] = dict(desc="Scoring pairs", unit=" pairs", delay=2, leave=False)


@dataclass(frozen=True)
class Teacher:
    """A loaded cross-encoder.

    Attributes:
        name: Name of the folder, or the Hub id.
        given: Absolute path to the folder, or the Hub id, that it was loaded from.
        revision: First 12 hex digits of the folder's fingerprint, or the commit of a Hub model.
        model: The CrossEncoder.
    """

    name: str
    given: str
    revision: str
    model: Any

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata that the scores depend on, apart from the texts."""
        found = {"revision": self.revision, "max_tokens": self.model.max_seq_length}
        dtype = str(self.model.dtype).removeprefix("torch.")
        if dtype != "float32":
            found["dtype"] = dtype
        if self.revision == NO_REVISION:
            found["model"] = self.given
        return found

    def score(self, queries: Sequence[str], passages: Sequence[str], *, progress: bool = False) -> np.ndarray:
        """Scores each query with the passage at the same position.

        Args:
            queries: Texts of N queries.
            passages: Texts of N passages.
            progress: True for a progress bar on stderr after two seconds.

        Returns:
            The logits, float32 [N]; higher means more relevant.

        Raises:
            ModelError: If a score is not finite.
        """
        pairs = list(zip(queries, passages, strict=True))
        with progress_bar(total=len(pairs), disable=not progress, **BAR) as bar, advancing(bar):
            return self(pairs)

    def on(self, device: str | None) -> "Teacher":
        """See `stzoo.utils.workers.on_device`."""
        return replace(self, model=moved(self.model, device))

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Scores N pairs of a query and a passage; see `score`. Batches contain no others.

        The bar of `advancing` moves by N.
        """
        scores = np.empty(len(pairs), np.float32)
        for rows, found in score_pairs(self.model, pairs):
            scores[rows] = found
            advance(len(rows))
        if len(wrong := np.flatnonzero(~np.isfinite(scores))):
            query, passage = pairs[wrong[0]]
            raise ModelError(
                f"the teacher {self.given} scores {len(wrong)} of {len(pairs)} pairs as no finite number: "
                f"{scores[wrong[0]]} for {query[:60]!r} with {passage[:60]!r}. Choose another teacher."
            )
        return scores


def open_teacher(name: str, *, max_tokens: int | None = None, device: str | None = None) -> Teacher:
    """Loads a cross-encoder. Code from the folder or repository is never run.

    Args:
        name: FOLDER, HUB_ID or NAME=FOLDER_OR_HUB_ID.
        max_tokens: Maximum length of a pair; the longer text is truncated first. None keeps the
            limit of the model.
        device: Device of torch; None for the best available.

    Raises:
        ModelError: If it is not a cross-encoder with one label and all its weights, or does not support
            `max_tokens`.
        RecipeError: If the device does not exist, or `name` is invalid.

    Unlike sentence-transformers, which makes a cross-encoder of any model and adds a head of random weights
        if it has none, so that the scores are meaningless.
    """
    check_device(device)
    name, given = parse_name(name)
    check_source(given)
    folder = Path(given)
    local = folder.is_dir()
    if local and not any((folder / file).is_file() for file in ("modules.json", "config.json")):
        raise ModelError(f"{given} is no model; expected a cross-encoder's folder, with a config.json.")
    with loading_errors("teacher", given), loading_reports() as reports:
        _check_kind(given)
        model = CrossEncoder(
            given, device="cpu", trust_remote_code=False, local_files_only=is_self_contained(folder)
        )
    if model.num_labels != 1:
        raise ModelError(f"{given} gives {model.num_labels} labels; expected one, how relevant a passage is.")
    check_model(given, model, reports)
    limits.prepare(model, given)
    if max_tokens is not None:
        limit(model, max_tokens, given)
    revision = folder_revision(folder) if local else commit_of(model, given)
    model.to(device or get_device_name())
    align_weights(model)
    return Teacher(name, str(folder.resolve()) if local else given, revision, model)


def _check_kind(given: str) -> None:
    """Checks that a model was saved as one that scores pairs."""
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
