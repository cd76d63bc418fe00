"""The result of adapt(), and the words for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stzoo.evaluation.scoring import PairedTest
from stzoo.models.loaded import open_model

MEASURE = "nDCG@10"
BASE, ADAPTED = "base", "adapted"
GENERAL_LOSS = 0.02  # in the general check, which is mentioned


@dataclass(frozen=True)
class Adapted:
    """The result of `adapt`.

    Attributes:
        path: The folder of the run.
        decision: "adapted" or "base": the model to keep.
        scores: nDCG@10 of each system on the held-out questions, and the mean over them.
        gain: The paired test of the adapted model against the base.
        general: nDCG@10 of the base and of the adapted model on docstrings of Python's library.
        questions: Path of the generated questions.
        record: What adapt.json has.
    """

    path: Path
    decision: str
    scores: dict[str, float]
    gain: PairedTest
    general: dict[str, float]
    questions: Path
    record: dict[str, Any]

    @property
    def model(self) -> Any:
        """The model to keep, a SentenceTransformer."""
        settings = self.record["settings"]
        kept = self.path / ADAPTED if self.decision == ADAPTED else settings["model"]
        return open_model(str(kept), device=settings["device"]).model


def verdict(made: Adapted) -> str:
    """What to do, in a few sentences."""
    gain, before, after = made.gain, made.general[BASE], made.general[ADAPTED]
    difference = (
        f"{gain.difference:+.3f} {MEASURE} against the base on {gain.queries} held-out questions (95 % "
        f"interval {gain.low:+.3f} to {gain.high:+.3f}, p {gain.p_value:.4f})"
    )
    best = max(made.scores, key=made.scores.__getitem__)
    lines = [f"The adapted model: {difference}."]
    if made.record["settings"]["queries"] == "none":
        lines.append(
            "The questions are words of the passages, which favours BM25 and what resembles it: "
            "trust the order of the systems more than the scores."
        )
    else:
        lines.append("The questions are generated: trust the order of the systems more than the scores.")
    if before - after > GENERAL_LOSS:
        lines.append(f"On texts of another kind its queries find less: {before:.3f} before, {after:.3f} now.")
    if made.decision == ADAPTED:
        folder = str(made.path / ADAPTED)
        lines.append(f"KEEP adapted: SentenceTransformer({folder!r}), with encode_query for queries.")
        lines.append("Passages have the same vectors as before: an index of them stays valid.")
    else:
        lines.append("KEEP base: the gain is not beyond chance.")
    if best not in (made.decision, ADAPTED):
        lines.append(f"{best} ranks best ({made.scores[best]:.3f}) on these: see stzoo search --hybrid.")
    lines.append(f"Judge 40 answers in ten minutes to be sure: stzoo judge {made.path}")
    return "\n".join(lines)
