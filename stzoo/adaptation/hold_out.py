"""Holds out documents: their questions choose and test, and training sees neither.

Documents are held out, not single questions, as passages of a document say similar things.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stzoo.data.corpus import load_corpus
from stzoo.data.rows import read_jsonl
from stzoo.data.texts import indices_of
from stzoo.errors import DataError

TRAIN, DEV, TEST = "train", "dev", "test"
MOST_HELD_OUT = 0.3  # share of the questions


@dataclass(frozen=True)
class Question:
    """A generated question.

    Attributes:
        id: Its id.
        text: Its text.
        passage: Id of the passage that it was made from.
    """

    id: str
    text: str
    passage: str


@dataclass(frozen=True)
class Split:
    """The questions and their parts.

    Attributes:
        questions: P questions.
        sources: int64 [P], positions in the corpus of the passages that they were made from.
        part: str [P], TRAIN, DEV or TEST.
        held_out_passages: bool [N], passages of held-out documents.
        held_out_documents: Number of these documents.
    """

    questions: Sequence[Question]
    sources: np.ndarray
    part: np.ndarray
    held_out_passages: np.ndarray
    held_out_documents: int


def read_questions(path: Path) -> list[Question]:
    """Reads the questions.jsonl of `stzoo ask`."""
    return [
        Question(str(row["_id"]), str(row["text"]), str(row["metadata"]["passage"]))
        for _, row in read_jsonl(path, progress=False)
    ]


def documents_of(passages_file: Path, corpus_ids: Sequence[str]) -> list[str]:
    """The document of each passage ("metadata.document"), or the passage itself where that is missing."""
    corpus = load_corpus(passages_file, min_words=1, columns={"metadata.document": str})
    if "metadata.document" not in corpus.rows.column_names:
        return list(corpus_ids)
    names = dict(zip(corpus.rows["id"], corpus.rows["metadata.document"], strict=True))
    return [names.get(passage) or passage for passage in corpus_ids]


def split_questions(
    questions: Sequence[Question],
    corpus_ids: Sequence[str],
    documents: Sequence[str],
    *,
    held_out: int,
    seed: int,
) -> Split:
    """Holds out random documents until they have enough questions: half for tuning, half for the test.

    Args:
        questions: P questions.
        corpus_ids: N ids of passages.
        documents: The document of each passage, N names.
        held_out: Questions to hold out; at most `MOST_HELD_OUT` of all.
        seed: Random seed.

    Raises:
        DataError: If a question is about a passage that is not in the corpus.
    """
    places = indices_of({one.passage for one in questions}, corpus_ids)
    if lost := next((one for one in questions if one.passage not in places), None):
        raise DataError(
            f"the question {lost.id} is about the passage {lost.passage}, which is not in the corpus. "
            "If the corpus has changed, choose another --output."
        )
    sources = np.array([places[one.passage] for one in questions], np.int64)
    names, document_of = np.unique(np.asarray(documents), return_inverse=True)
    asked = document_of[sources]
    sizes = np.bincount(asked, minlength=len(names))
    order = np.random.default_rng(seed).permutation(np.flatnonzero(sizes))
    target = min(held_out, int(MOST_HELD_OUT * len(questions)))
    taken = order[: int(np.searchsorted(np.cumsum(sizes[order]), target, side="right"))]
    part = np.full(len(questions), TRAIN, dtype="<U5")
    part[np.isin(asked, taken[::2])] = DEV
    part[np.isin(asked, taken[1::2])] = TEST
    return Split(questions, sources, part, np.isin(document_of, taken), len(taken))
