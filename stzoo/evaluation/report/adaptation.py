"""The section on a run of `stzoo adapt`: the decision, the curve, examples, and what changed most."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from stzoo.data.beir_layout import find_split
from stzoo.data.qrels import read_judgements
from stzoo.data.rows import read_jsonl, read_lines
from stzoo.errors import DataError
from stzoo.evaluation import adapt_record
from stzoo.evaluation.adapt_record import ADAPTED, BASE, HELD_OUT, QUESTIONS, RECORD
from stzoo.evaluation.compare import changed_queries
from stzoo.evaluation.judge.pool import Passage, read_passages, read_questions
from stzoo.evaluation.report.charts import Axis, axis
from stzoo.evaluation.report.data import Group
from stzoo.utils.inputs import parse_json

EXAMPLES, CHANGES = 10, 7
LONGEST = 300  # characters of a passage


@dataclass(frozen=True)
class Asked:
    """A question with its passage.

    Attributes:
        text: The question.
        note: Its style.
        id: Id of the passage.
        passage: Title and text of the passage.
        scores: Scores of the base and of the adapted model.
    """

    text: str
    note: str
    id: str
    passage: Passage
    scores: tuple[float, float] = (0.0, 0.0)

    @property
    def title(self) -> str:
        """The title of the passage, or the beginning of its text."""
        title = self.passage.title or self.passage.text
        return title if len(title) <= 80 else f"{title[:79]}…"

    @property
    def beginning(self) -> str:
        """The beginning of the passage's text."""
        text = self.passage.text
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


@dataclass(frozen=True)
class Adaptation:
    """A run of `stzoo adapt`.

    Attributes:
        verdict: Sentences on the outcome.
        decision: "adapted" or "base".
        curve: Label, nDCG@10 on questions for tuning and in the general check; of the base, then by share of
            the map.
        share: Label of the share that was chosen.
        dev: Axis of the former.
        general: Axis of the latter.
        questions: Counts by name.
        seconds: Time by stage.
        gains: Queries that gained most.
        losses: Queries that lost most.
        examples: Some of the generated questions.
    """

    verdict: list[str]
    decision: str
    curve: list[tuple[str, float, float]]
    share: str
    dev: Axis
    general: Axis
    questions: dict[str, int]
    seconds: dict[str, float]
    gains: list[Asked]
    losses: list[Asked]
    examples: list[Asked]


def read_adaptation(folder: Path) -> dict[str, Any] | None:
    """The record of a run; None if the folder is not a run.

    Raises:
        DataError: If it is damaged or unfinished.
    """
    path = folder / RECORD
    if adapt_record.is_unfinished(folder):
        raise DataError(
            f"{folder} is a run of `stzoo adapt` that was interrupted or has failed, so it has no {RECORD} "
            "and no scores to report. Run the same `stzoo adapt` again: it continues, or says what is wrong."
        )
    if not path.is_file() or not (folder / HELD_OUT).is_dir():
        return None
    try:
        record = parse_json(path.read_text(encoding="utf-8"))
        adapt_record.verdict(record, ADAPTED)
        _curve(record)
        {**record["questions"], **record["left_out"], **record["seconds"]}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is not the record of a finished run of `stzoo adapt` ({type(error).__name__}: {error}). "
            f"Run it again, or report the results alone: {folder / adapt_record.RESULTS}."
        ) from None
    return dict(record)


def _from_here(folder: Path) -> Path:
    """The path of a folder as its reader may type it: from the current folder, or else its name alone."""
    folder = folder.resolve()
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else Path(folder.name)


def _curve(record: dict[str, Any]) -> list[tuple[str, float, float]]:
    points = {name: (float(one["dev"]), float(one["general"])) for name, one in record["curve"].items()}
    return [
        (name if name == BASE else f"{float(name):.0%}", *points[name])
        for name in sorted(points, key=lambda name: -1.0 if name == BASE else float(name))
    ]


def describe(record: dict[str, Any], folder: Path, groups: Sequence[Group], progress: bool) -> Adaptation:
    """Collects what the page shows of a run.

    Args:
        record: What adapt.json has.
        folder: The run.
        groups: The results in it.
        progress: True shows progress bars on stderr.

    Raises:
        DataError: If a file of the run is missing or damaged.
    """
    files = find_split(folder / HELD_OUT, "test")
    scores = next(
        (
            {row.system: row.result.scores.per_query[adapt_record.MEASURE] for row in group.rows}
            for group in groups
            if group.data.dataset == HELD_OUT
        ),
        {},
    )
    changed: tuple[list[str], ...] = ([], [])
    if {BASE, ADAPTED} <= scores.keys():
        changed = tuple(ids[:CHANGES] for ids in changed_queries(scores[BASE], scores[ADAPTED]))
    ids = [query for part in changed for query in part]
    texts = read_questions(files.queries, ids, progress)
    sources: dict[str, str] = {}
    if ids:
        judged = read_judgements(files.qrels, read_lines(files.qrels, progress))
        sources = {query: next(iter(judged[query])) for query in ids}
    asked = _examples(folder / QUESTIONS / "questions.jsonl", record["questions"]["generated"])
    shown = {*sources.values(), *(row["metadata"]["passage"] for row in asked)}
    passages = read_passages(files.corpus, shown, progress)

    def of(query: str) -> Asked:
        source = sources[query]
        values = scores[BASE][query], scores[ADAPTED][query]
        return Asked(texts[query], query, source, passages[source], values)

    curve = _curve(record)
    return Adaptation(
        verdict=adapt_record.verdict(record, str(_from_here(folder) / ADAPTED)),
        decision=record["decision"],
        curve=curve,
        share=f"{record['share']:.0%}",
        dev=axis([one[1] for one in curve], steps=3),
        general=axis([one[2] for one in curve], steps=3),
        questions=record["questions"] | record["left_out"],
        seconds=record["seconds"],
        gains=[of(query) for query in changed[0]],
        losses=[of(query) for query in changed[1]],
        examples=[
            Asked(row["text"], row["metadata"].get("style", ""), one, passages[one])
            for row in asked
            for one in [str(row["metadata"]["passage"])]
        ],
    )


def _examples(path: Path, count: int) -> list[dict[str, Any]]:
    """Questions from all over the file; none if it is missing."""
    if not path.is_file():
        return []
    rows = (row for _, row in read_jsonl(path, progress=False))
    return list(islice(rows, 0, None, max(1, count // EXAMPLES)))[:EXAMPLES]
