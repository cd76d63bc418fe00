"""The result of adapt(), and the words for it."""

import shlex
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from stzoo.data.rows import read_jsonl
from stzoo.evaluation import adapt_record
from stzoo.evaluation.adapt_record import ADAPTED, MEASURE, QUESTIONS
from stzoo.evaluation.scoring import PairedTest
from stzoo.models.loaded import open_model
from stzoo.training.trained import Log
from stzoo.utils.inputs import read_json
from stzoo.utils.recorded import Recorded
from stzoo.utils.tables import Tabular


class GeneratedQueries(Recorded):
    """The folder with queries that `ask` generated, which adapt takes as `questions`; a Path."""

    @cached_property
    def record(self) -> dict[str, Any]:
        """How they were made: "settings", "generator", "counts", "rejected", "seconds", "cost" and more."""
        return dict(read_json(self.path / "questions.json"))

    @property
    def queries(self) -> list[dict[str, Any]]:
        """The queries: "_id", "text", and in "metadata" the passage, style and generator."""
        return _queries(self.path)


def _queries(folder: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(folder / "questions.jsonl", progress=False)]


class Scores(dict[str, float], Tabular):
    """Scores by system; printed, a table."""

    __repr__ = Tabular.__repr__

    def rows(self) -> list[dict[str, Any]]:
        """A row for each system."""
        return [{"System": system, MEASURE: score} for system, score in self.items()]


@dataclass(frozen=True, repr=False)
class Adapted(Tabular):
    """The result of `adapt`; printed, what it means. The table has the score of each system.

    Attributes:
        path: The folder of the run.
        record: What adapt.json has.
    """

    path: Path
    record: dict[str, Any]

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
    def history(self) -> Log:
        """For each share of the learned map, scores on the questions for tuning and in the general check."""
        return Log({"share": share, **scores} for share, scores in self.record["curve"].items())

    @property
    def general(self) -> dict[str, float]:
        """nDCG@10 of the base and of the adapted model on docstrings of Python's library."""
        return dict(self.record["general"])

    @property
    def questions(self) -> list[dict[str, Any]]:
        """The generated questions: "_id", "text", and in "metadata" the passage, style and generator."""
        return _queries(self.path / QUESTIONS)

    @property
    def model(self) -> Any:
        """The model to keep, a SentenceTransformer."""
        settings = self.record["settings"]
        kept = self.path / ADAPTED if self.decision == ADAPTED else settings["model"]
        return open_model(str(kept), device=settings["device"]).model

    def rows(self) -> list[dict[str, Any]]:
        """A row for each system."""
        return self.scores.rows()

    def to_json(self) -> dict[str, Any]:
        """What adapt.json has."""
        return self.record

    def __str__(self) -> str:
        return verdict(self)

    def _repr_html_(self) -> str:
        return f"<p>{escape(str(self)).replace(chr(10), '<br>')}</p>{super()._repr_html_()}"


def verdict(made: Adapted) -> str:
    """What to do, in a few sentences."""
    lines = adapt_record.verdict(made.record, str(made.path / ADAPTED))
    report = ["stzoo", "report", str(made.path), "--output", f"{made.path}.html"]
    lines.append(f"The report: {shlex.join(report)}")
    lines.append(f"To judge 40 answers yourself: {shlex.join(['stzoo', 'judge', str(made.path)])}")
    return "\n".join(lines)
