"""The result of adapt(), and the words for it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stzoo.data.rows import read_jsonl
from stzoo.evaluation.scoring import PairedTest
from stzoo.models.loaded import open_model
from stzoo.utils.messages import counted
from stzoo.utils.tables import Tabular

MEASURE = "nDCG@10"
BASE, ADAPTED = "base", "adapted"
GENERAL_LOSS = 0.02  # in the general check, which is mentioned


class Scores(dict[str, float], Tabular):
    """Scores by system; printed, a table."""

    def rows(self) -> list[dict[str, Any]]:
        """A row for each system."""
        return [{"System": system, MEASURE: score} for system, score in self.items()]


@dataclass(frozen=True)
class Adapted:
    """The result of `adapt`; printed, what it means.

    Attributes:
        path: The folder of the run.
        record: What adapt.json has.
    """

    path: Path
    record: dict[str, Any] = field(repr=False)

    @property
    def decision(self) -> str:
        """The model to keep: "adapted" or "base"."""
        return str(self.record["decision"])

    @property
    def scores(self) -> Scores:
        """nDCG@10 of each system, as the mean over the held-out questions."""
        return Scores(self.record["scores"])

    @property
    def gain(self) -> PairedTest:
        """The paired test of the adapted model against the base.

        Its "queries" are the means of held-out documents, as questions about a document are not independent.
        """
        return PairedTest(**self.record["gain"])

    @property
    def general(self) -> dict[str, float]:
        """nDCG@10 of the base and of the adapted model on docstrings of Python's library."""
        return dict(self.record["general"])

    @property
    def questions(self) -> list[dict[str, Any]]:
        """The generated questions: "_id", "text", and in "metadata" the passage, style and generator."""
        return [row for _, row in read_jsonl(self.path / "questions" / "questions.jsonl", progress=False)]

    @property
    def model(self) -> Any:
        """The model to keep, a SentenceTransformer."""
        settings = self.record["settings"]
        kept = self.path / ADAPTED if self.decision == ADAPTED else settings["model"]
        return open_model(str(kept), device=settings["device"]).model

    def __str__(self) -> str:
        return verdict(self)


def verdict(made: Adapted) -> str:
    """What to do, in a few sentences."""
    gain, before, after = made.gain, made.general[BASE], made.general[ADAPTED]
    lines = [
        f"The adapted model: {gain.difference:+.3f} {MEASURE} against the base on the questions of "
        f"{counted(gain.queries, 'held-out document')} (95 % interval {gain.low:+.3f} to {gain.high:+.3f}, "
        f"p {gain.p_value:.4f})."
    ]
    if made.record["copied_questions"]:
        lines.append(
            "The questions are words of the passages. This favours BM25, and the adapted model, which learns "
            "from it: the scores show that the model has learned, not how well it answers real questions."
        )
    else:
        lines.append("The questions are generated, so real ones may rank the systems differently.")
    if before - after > GENERAL_LOSS:
        lines.append(f"On other texts its queries find less: {before:.3f} before, {after:.3f} now.")
    if made.decision == ADAPTED:
        folder = str(made.path / ADAPTED)
        lines.append(f"KEEP adapted: SentenceTransformer({folder!r}), with encode_query for queries.")
        lines.append("Passages have the same vectors as before, so an index of them stays valid.")
    elif gain.high < 0:
        lines.append("KEEP base: the adapted model is worse.")
    else:
        lines.append("KEEP base: the gain is not beyond chance.")
    fused = f"BM25 + {made.decision}"
    if made.scores[fused] > made.scores[made.decision]:
        lines.append(f"{fused} ranks better still ({made.scores[fused]:.3f}): stzoo search --hybrid.")
    lines.append(f"To judge 40 answers yourself: stzoo judge {made.path}")
    return "\n".join(lines)
