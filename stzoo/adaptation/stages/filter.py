"""Stage 4: which questions are held out, which are learnt from, and what the teacher says about them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stzoo.adaptation.hold_out import DEV, TEST, TRAIN, Question, Split, split_questions
from stzoo.adaptation.lessons import Lessons, make_lessons, rate_by_teacher
from stzoo.adaptation.query_map import adapted_model, rarity, weighs_tokens
from stzoo.adaptation.questions.from_text import FromText
from stzoo.adaptation.stages.ask import Asked
from stzoo.adaptation.stages.read import Passages
from stzoo.adaptation.stages.run import FEWEST, TEACHER, Run
from stzoo.adaptation.vectors import read_rows, unit
from stzoo.data.beir import write_beir
from stzoo.errors import DataError
from stzoo.evaluation.adapt_record import HELD_OUT
from stzoo.models.encode import encode
from stzoo.retrieval.bm25 import Lexical, choose_language
from stzoo.retrieval.store import Store
from stzoo.utils.files import check_replaceable
from stzoo.utils.messages import counted, notify

HELD_OUT_FILES = (r"(?:corpus|queries)\.jsonl(?:\.gz)?", r"qrels/(?:dev|test)\.tsv")
MOST_PASSAGES = 100_000  # to learn from, as their vectors are in memory
LOST = "the teacher does not find its passage"


@dataclass(frozen=True)
class Filtered:
    """Questions of three parts, with lessons of the teacher.

    Attributes:
        questions: P questions.
        split: Their parts.
        kept: bool [P], questions that are used.
        lessons: Candidates and scores of each question.
        vectors: float32 [n, D], unit vectors of the passages that the lessons are about.
        weights: float32 [V], weights of the tokens of a query, or None for equal ones.
        weighted: The base with these weights.
        language: Language of BM25.
    """

    questions: list[Question]
    split: Split
    kept: np.ndarray
    lessons: Lessons
    vectors: np.ndarray
    weights: np.ndarray | None
    weighted: Any
    language: str

    def of(self, part: str) -> np.ndarray:
        """True for the questions of a part that are used, bool [P]."""
        return self.kept & (self.split.part == part)

    def chosen(self, part: str) -> list[Question]:
        """The questions of a part that are used."""
        return [self.questions[i] for i in np.flatnonzero(self.of(part)).tolist()]

    @property
    def copied(self) -> bool:
        """True if the questions are words of the passages."""
        return all(one.by == FromText.name for one in self.questions)

    @property
    def lost(self) -> int:
        """The number of questions that do not lead back to their passage."""
        return int((~self.kept).sum())

    @cached_property
    def counts(self) -> dict[str, int]:
        """Their numbers by part."""
        return {part: int(self.of(part).sum()) for part in (TRAIN, DEV, TEST)}


def filter_questions(run: Run, passages: Passages, store: Store, asked: Asked) -> Filtered:
    """Holds out documents, rates candidates, and leaves out what does not lead to its passage.

    Raises:
        DataError: If too few questions are left.
        ModelError: If the teacher cannot be used.
    """
    config, questions = run.config, asked.questions
    texts = passages.data.passages
    split = split_questions(
        questions, passages.data.corpus_ids, passages.documents, held_out=config.held_out, seed=config.seed
    )
    if split.held_out_documents < 2 and len(questions) > FEWEST:
        raise DataError(
            f"no two documents are small enough to be held out: at most 30 % of the "
            f"{counted(len(questions), 'question')} are, and at most --held-out. Add documents, or "
            "cut large ones into several files."
        )
    subset = _subset(len(texts), split, config.seed)
    vectors = read_rows(store, subset)
    if run.base.similarity == "cosine":
        vectors = unit(vectors)
    language = choose_language(config.language, texts, "the corpus")
    texts = texts if len(subset) == len(texts) else [texts[i] for i in subset]
    bm25 = Lexical(list(map(str, range(len(subset)))), texts, language=language, progress=run.progress)
    hidden = split.held_out_passages[subset]
    weights = None
    if weighs_tokens(run.base.model):
        seen = [texts[i] for i in np.flatnonzero(~hidden).tolist()]
        weights = rarity(run.base.model.tokenizer, seen, len(seen))
    weighted = adapted_model(run.base.model, weights=weights)
    queries = [one.text for one in questions]
    lessons = make_lessons(
        queries,
        unit(encode(weighted, queries, role="query", desc="Questions", **run.encoding)),
        np.searchsorted(subset, split.sources),
        vectors,
        bm25,
        bm25_weight=config.bm25_weight,
        candidates=config.candidates,
        hidden=hidden,
        seed=config.seed,
        progress=run.progress,
    )
    trained_on = split.part == TRAIN
    if run.teacher:
        lessons = rate_by_teacher(
            lessons, trained_on, queries, texts, run.teacher, run.folder / TEACHER, progress=run.progress
        )
    # the model under test does not choose the questions of its test
    kept = (lessons.source_ranks <= config.found_in) | ~trained_on
    made = Filtered(questions, split, kept, lessons, vectors, weights, weighted, language)
    if min(made.counts[TRAIN], 4 * made.counts[DEV], 4 * made.counts[TEST]) < FEWEST:
        raise DataError(
            f"only {made.counts[TRAIN]} questions are left to learn from, {made.counts[DEV]} to tune and "
            f"{made.counts[TEST]} to test; expected at least {FEWEST}, {FEWEST // 4} and {FEWEST // 4}. "
            f"{sum(asked.rejected.values())} were rejected, and {made.lost} did not find their passage. "
            "Raise --count or --held-out, or add documents."
        )
    check_replaceable(run.folder / HELD_OUT, HELD_OUT_FILES)
    write_beir(
        run.folder / HELD_OUT,
        passages.file,
        {one.id: one.text for part in (DEV, TEST) for one in made.chosen(part)},
        {part: {one.id: {one.passage: 1} for one in made.chosen(part)} for part in (DEV, TEST)},
    )
    return made


def _subset(passages: int, split: Split, seed: int) -> np.ndarray:
    """Ascending int64 numbers of the passages to learn from: all, or the sources and a random rest."""
    if passages <= MOST_PASSAGES:
        return np.arange(passages)
    notify(f"the ranking is learnt from {MOST_PASSAGES:,} of the {passages:,} passages.")
    order = np.random.default_rng(seed).permutation(passages)
    return np.union1d(split.sources, order[:MOST_PASSAGES])
