"""Stage 3: questions about the passages."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stzoo.adaptation.ask import MOST, PAGE, PER_PASSAGE, QUESTIONS, RECORD, ask
from stzoo.adaptation.hold_out import Question, read_questions
from stzoo.adaptation.settings import QuestionSettings
from stzoo.adaptation.stages.read import Passages
from stzoo.adaptation.stages.run import FEWEST, SETTINGS, Run
from stzoo.errors import DataError
from stzoo.evaluation.adapt_record import QUESTIONS as FOLDER
from stzoo.utils.files import atomic_file, write_json
from stzoo.utils.inputs import read_json
from stzoo.utils.messages import counted, notify

TRIAL = 64  # questions that are timed to see how many fit into the budget
ASK_SHARE = 0.7  # of the budget that is left, for asking


@dataclass(frozen=True)
class Asked:
    """The generated questions.

    Attributes:
        questions: Those that `stzoo ask` kept.
        rejected: Numbers of the others by reason.
        page: The page with examples, if there is one.
        notes: Notes that were shown.
    """

    questions: list[Question]
    rejected: dict[str, int]
    page: Path | None
    notes: list[str]

    @property
    def summary(self) -> str:
        """What was generated and what was rejected."""
        shown = f", 20 of them in {self.page}" if self.page else ""
        if self.rejected:
            reasons = ", ".join(f"{number:,} {reason}" for reason, number in self.rejected.items())
            shown += f"; {sum(self.rejected.values()):,} rejected: {reasons}"
        return counted(len(self.questions), "question") + shown


def ask_questions(run: Run, passages: Passages, manifest: dict[str, Any], spent: float) -> Asked:
    """Generates questions, as many as fit into the budget, of which `spent` seconds are used.

    Raises:
        DataError: If they are too few, or given ones are not as `stzoo ask` writes them.
        ModelError: If the generator cannot be used.
    """
    config, folder = run.config, run.folder / FOLDER
    if config.questions:
        _copy(config.questions, folder)
        return _read(folder)
    given = {name: getattr(config, name) for name in QuestionSettings.model_fields}
    if config.budget and config.queries == "none":
        notify("--budget has no effect without a language model to ask.")
    elif config.budget:
        count: int = config.count or min(PER_PASSAGE * len(passages), MOST)
        given["per_passage"] = config.per_passage or min(PER_PASSAGE, -(-count // len(passages)))
        given["count"] = min(count, _affordable(run, passages, given, manifest, spent))
    ask(passages.file, output=folder, progress=run.progress, **given)
    return _read(folder)


def _read(folder: Path) -> Asked:
    record, page = read_json(folder / RECORD), folder / PAGE
    rejected = {reason: about["number"] for reason, about in record.get("rejected", {}).items()}
    return Asked(
        read_questions(folder / QUESTIONS),
        rejected,
        page if page.is_file() else None,
        record.get("notes", []),
    )


def questions_file(given: Path) -> Path:
    """The file of queries that a setting names."""
    return given / QUESTIONS if given.is_dir() else given


def _copy(given: Path, folder: Path) -> None:
    """Copies queries, and what is known of them, into the folder of the run."""
    source = questions_file(given)
    folder.mkdir(exist_ok=True)
    for name in (QUESTIONS, RECORD, PAGE):
        found = source if name == QUESTIONS else source.with_name(name)
        if found.is_file():
            with atomic_file(folder / name) as draft:
                shutil.copyfile(found, draft)


def _affordable(
    run: Run, passages: Passages, given: dict[str, Any], manifest: dict[str, Any], spent: float
) -> int:
    """The number of questions that fit into the budget, by the time for the first ones.

    Raises:
        DataError: If they are too few to learn from.
    """
    budget, known = run.config.budget or 0.0, manifest.get("fits", {})
    if known.get("budget") == budget:
        return int(known["count"])
    if spent >= budget:
        raise DataError(
            f"reading and encoding took {spent:.0f} s, so a budget of {budget:g} s has no time for "
            "questions. Raise --budget."
        )
    trial = given | {"count": TRIAL}
    made = ask(passages.file, output=run.folder / FOLDER, progress=run.progress, **trial)
    each = max(made["seconds"], 0.1) / made["counts"]["asked"]  # which is stored with the questions
    fits = int(ASK_SHARE * (budget - spent) / each)
    if fits < 2 * FEWEST:
        raise DataError(
            f"a question takes {each:.2g} s, so a budget of {budget:.0f} s, of which reading and "
            f"encoding took {spent:.0f} s, has time for {max(0, fits)} questions; expected at least "
            f"{2 * FEWEST}. Raise --budget, or use a faster model."
        )
    # a later call is to ask for as many
    write_json(run.folder / SETTINGS, manifest | {"fits": {"budget": budget, "count": fits}})
    return fits
