"""Teachers: cross-encoders that score pairs, for distillation and to find false negatives.

Any CrossEncoder of sentence-transformers with one label, or a bare sequence classifier of transformers. The
scores are its logits: what its activation would make of them (most have a sigmoid) is left out, as the losses
of distillation and margins need differences, which a sigmoid flattens.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import CrossEncoder
from sentence_transformers.util import get_device_name, load_file_path
from tqdm import tqdm
from transformers import AutoConfig

from stzoo.errors import ModelError, is_failure
from stzoo.models import limits
from stzoo.models.check_weights import check_model, loading_reports
from stzoo.models.encode import score_pairs
from stzoo.models.loaded import NO_REVISION, commit_of, folder_revision, limit
from stzoo.models.loading import check_device, reason
from stzoo.models.names import parse_name
from stzoo.utils.logging import silence_hf_logging

BAR: dict[str, Any] = dict(desc="Scoring pairs", unit=" pairs", delay=2, leave=False)


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
        with tqdm(total=len(pairs), disable=not progress, **BAR) as bar:
            return self.score_pairs(pairs, bar)

    def score_pairs(self, pairs: Sequence[tuple[str, str]], bar: Any) -> np.ndarray:
        """Scores pairs of a query and a passage; see `score`.

        Args:
            pairs: N of them, which are put into batches by themselves.
            bar: A tqdm bar that moves by N.
        """
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
