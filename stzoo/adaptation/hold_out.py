"""Holds out documents, whose questions tune and test the model.

Documents are held out, not single questions, as passages of a document say similar things. Their passages are
no candidates in training; only the frequencies of BM25's words are counted over all passages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stzoo.data.corpus import load_corpus
from stzoo.data.rows import read_jsonl
from stzoo.data.texts import indices_of
from stzoo.errors import DataError, quoted
from stzoo.utils.messages import counted, notify

TRAIN, DEV, TEST = "train", "dev", "test"
MOST_HELD_OUT = 0.3  # share of the questions
FEW, STRETCH = 50, 20


@dataclass(frozen=True)
class Question:
    """A generated question.

    Attributes:
        id: Its id.
        text: Its text.
        passage: Id of the passage that it was made from.
        by: Name of what generated it.
    """

    id: str
    text: str
    passage: str
    by: str = ""


@dataclass(frozen=True)
class Split:
    """The questions and their parts.

    Attributes:
        sources: int64 [P], positions in the corpus of the passages that the questions were made from.
        documents: int64 [P], numbers of their documents.
        part: str [P], TRAIN, DEV or TEST.
        held_out_passages: bool [N], passages of held-out documents.
        held_out_documents: Number of these documents.
    """

    sources: np.ndarray
    documents: np.ndarray
    part: np.ndarray
    held_out_passages: np.ndarray
    held_out_documents: int


def read_questions(path: Path) -> list[Question]:
    """Reads the questions.jsonl of `stzoo ask`.

    Raises:
        DataError: If a line has no id, text or passage, or an id is repeated.
    """
    found: dict[str, Question] = {}
    for at, row in read_jsonl(path, progress=False):
        about = row["metadata"] if isinstance(row.get("metadata"), dict) else {}
        values = (row.get("_id"), row.get("text"), about.get("passage"), about.get("by"))
        one = Question(*(str(value or "") for value in values))
        if not (one.id and one.text.strip() and one.passage):
            raise at.error(
                "no id, text or passage",
                'a line like {"_id": "q1", "text": "how long is leave?", '
                '"metadata": {"passage": "leave.md#2"}}',
            )
        if one.id in found:
            raise at.error(f"the id {quoted(one.id)} again", "a different id for each query")
        found[one.id] = one
    return list(found.values())


def documents_of(passages_file: Path, corpus_ids: Sequence[str]) -> np.ndarray:
    """The document of each passage, as int64 [N] numbers.

    It is named by "metadata.document" or else by the title. Passages with neither are documents of their own.
    If there are fewer than `FEW` documents, large ones are cut into stretches of `STRETCH` passages, as a few
    held-out documents could not tell two systems apart.
    """
    corpus = load_corpus(passages_file, min_words=1, columns={"title": str, "metadata.document": str})
    columns = [
        corpus.rows[name] for name in ("metadata.document", "title") if name in corpus.rows.column_names
    ]
    named = {
        passage: next(filter(None, names), "")
        for passage, *names in zip(corpus.rows["id"], *columns, strict=True)
    }
    numbers: dict[tuple[str, str], int] = {}
    keys = ((name, "") if (name := named.get(passage)) else ("", passage) for passage in corpus_ids)
    found = np.fromiter((numbers.setdefault(key, len(numbers)) for key in keys), np.int64, len(corpus_ids))
    if len(numbers) < FEW and len(numbers) < len(corpus_ids):
        notify(
            f"the corpus has only {counted(len(numbers), 'document')}, so stretches of {STRETCH} passages "
            "are held out, not whole documents, and training sees others of their documents."
        )
        return _stretches(found)
    if len(numbers) == len(corpus_ids):
        notify(
            "no two passages name the same document (metadata.document or title), so single passages are "
            "held out, and training may see others of their documents."
        )
    return found


def _stretches(documents: np.ndarray) -> np.ndarray:
    """Numbers stretches of at most `STRETCH` passages of a document, int64 [N]."""
    order = np.argsort(documents, kind="stable")
    starts = np.flatnonzero(np.diff(documents[order], prepend=-1))
    place = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    stretch = np.empty(len(order), np.int64)
    stretch[order] = np.cumsum(place % STRETCH == 0) - 1
    return stretch


def split_questions(
    questions: Sequence[Question],
    corpus_ids: Sequence[str],
    documents: np.ndarray,
    *,
    held_out: int,
    seed: int,
) -> Split:
    """Holds out random documents until they have enough questions: half for tuning, half for the test.

    A document with more than half of these questions is not held out.

    Args:
        questions: P questions.
        corpus_ids: N ids of passages.
        documents: int64 [N], the document of each passage.
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
    asked = documents[sources]
    sizes = np.bincount(asked)
    target = min(held_out, int(MOST_HELD_OUT * len(questions)))
    counts = {DEV: 0, TEST: 0}
    taken: dict[str, list[int]] = {DEV: [], TEST: []}
    for one in np.random.default_rng(seed).permutation(np.flatnonzero(sizes)).tolist():
        # two fit at least, one for each half
        if 2 * sizes[one] <= target and sum(counts.values()) + sizes[one] <= target:
            smaller = min(counts, key=counts.__getitem__)
            counts[smaller] += sizes[one]
            taken[smaller].append(one)
    part = np.full(len(questions), TRAIN, dtype="<U5")
    for name, chosen in taken.items():
        part[np.isin(asked, chosen)] = name
    both = taken[DEV] + taken[TEST]
    return Split(sources, asked, part, np.isin(documents, both), len(both))
