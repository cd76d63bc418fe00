"""Builds a `TrainingSet` from rows."""

import zlib
from array import array
from collections.abc import Iterable
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stzoo.data.row_location import RowLocation
from stzoo.data.texts import Texts, TextsWriter
from stzoo.data.training_sets.sets import Candidate, Lists, TrainingSet
from stzoo.data.words import same_text_key
from stzoo.errors import DataError
from stzoo.utils.messages import counted

MANY = 0.2  # share of queries without a negative above which a note is added


class TrainingSetWriter:
    """Collects rows into a `TrainingSet`: rows of the same query are joined, and each passage is kept once.

    Passages are the same if their texts look the same (`words.same_text_key`); they keep the first id and
    text. Queries are the same if their ids are, or without ids, their texts. A negative that looks like a
    positive of its query is left out; an identical text is an error. If a list has a passage twice, its first
    position and score count. Queries and passages without an id get their number.

    It needs memory for the texts in UTF-8, about 160 bytes per query, per passage and per id, and 25 bytes
    per entry of a list; `finish` needs another 25 bytes per entry.
    """

    def __init__(self) -> None:
        self._queries, self._passages = _Register("query"), _Register("passage")
        self._of_row, self._lines = array("q"), array("q")
        self._files: list[tuple[int, str | Path | None]] = []
        self._lists = _Entries(), _Entries()

    def add(
        self,
        query: str,
        positives: Iterable[Candidate],
        negatives: Iterable[Candidate] = (),
        query_id: str | None = None,
        *,
        at: RowLocation | None = None,
    ) -> int:
        """Adds a row, and returns the query's index.

        Args:
            query: Text of the query.
            positives: Passages that answer it; if there are none, another row of the query must have some.
            negatives: Passages that do not answer it.
            query_id: Id of the query; None or "" if it has none.
            at: The row's location, for messages; by default the number of the row.

        Raises:
            DataError: If an earlier row has another text for the same id.
        """
        number = len(self._of_row)
        file = at and at.file
        if not self._files or self._files[-1][1] != file:
            self._files.append((number, file))
        self._lines.append(at.line if at else number + 1)
        try:
            place = self._queries.named(query, query_id) if query_id else self._queries.place(query)
            for entries, candidates in zip(self._lists, (positives, negatives), strict=True):
                before = len(entries.places)
                for text, name, score in candidates:
                    place_of_text = self._passages.place(text, name)
                    entries.places.append(place_of_text)
                    entries.copies.append(not self._passages.holds(text, place_of_text))
                    entries.scores.append(nan if score is None else score)
                entries.sizes.append(len(entries.places) - before)
        except _TwoTextsError as error:
            raise self._error(number, str(error), "one text per id", file) from None
        self._of_row.append(place)
        return place

    def finish(
        self, name: str, source: Path, *, leave_out: bool = False, notes: tuple[str, ...] = (), **more: Any
    ) -> TrainingSet:
        """Returns the training set; the writer must not be used again.

        Args:
            name: Name of the training set.
            source: Path that it was read from.
            leave_out: True to leave out queries without a positive and add a note; False to refuse them.
            notes: Notes of the training set.
            more: Further fields of the training set.

        Raises:
            DataError: If there is no query, one has no positive, or a text is both positive and negative for
                one query.
        """
        if not self._of_row:
            raise DataError(f"{source} has no query to train on; expected rows with a query and a positive.")
        query_ids, queries = self._queries.finish()
        corpus_ids, passages = self._passages.finish()
        of_row = np.array(self._of_row)
        positive, negative = (entries.settle(of_row, len(passages)) for entries in self._lists)
        counts = np.bincount(positive.queries(len(passages)), minlength=len(queries))
        lone = int((counts == 0).sum())
        if lone and leave_out and lone < len(queries):
            notes += (f"{lone} of {len(queries)} queries have no positive and are left out",)
        elif lone:
            row = int(np.flatnonzero(counts[of_row] == 0)[0])
            found = f"a row without a positive ({lone:,} of {counted(len(queries), 'query')} without one)"
            raise self._error(row, found, "a positive for each query", source)
        both = np.intersect1d(positive.pairs, negative.pairs, assume_unique=True)
        copies = np.concatenate([part.pairs[part.copies] for part in (positive, negative)])
        if len(copied := np.intersect1d(both, copies)):
            negative = negative.without(copied)
            notes += (
                "left out as copies of a positive but for white space or Unicode form: "
                + counted(len(copied), "negative"),
            )
            both = np.setdiff1d(both, copied)
        if len(both):
            rows = [part.rows[part.pairs == both[0]][0] for part in (positive, negative)]
            found = (
                "a passage that is both positive and negative of one query "
                f"({counted(len(both), 'such pair')}): {passages[int(both[0]) % len(passages)][:60]!r}"
            )
            raise self._error(int(max(rows)), found, "negatives that are not positives", source)
        if len(negative.pairs):
            negatives = np.bincount(negative.queries(len(passages)), minlength=len(queries))[counts > 0]
            notes += tuple(note_missing(int((negatives == 0).sum()), len(negatives)))
        for part, kind in ((positive, "positives"), (negative, "negatives")):
            missing = int(np.isnan(part.scores).sum())
            if 0 < missing < len(part.scores):
                notes += (f"{missing} of {len(part.scores)} {kind} have no score, so none is used",)
        whole = TrainingSet(
            name=name,
            folder=source if source.is_dir() else source.parent,
            query_ids=query_ids,
            queries=queries,
            corpus_ids=corpus_ids,
            passages=passages,
            positives=positive.lists(len(queries), len(passages)),
            negatives=negative.lists(len(queries), len(passages)),
            notes=notes,
            **more,
        )
        return whole.part(np.flatnonzero(counts)) if lone else whole

    def _error(self, row: int, found: str, expected: str, source: str | Path | None) -> DataError:
        file = next(file for first, file in reversed(self._files) if first <= row)
        return DataError.at(file or source or "the rows", self._lines[row], found, expected)


class _TwoTextsError(Exception):
    """An id with two texts."""


class _Register:
    """Texts, each kept once, with unique ids."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._ids, self._texts = TextsWriter(), TextsWriter()
        self._by_text: dict[int, int] = {}
        self._by_id: dict[str, int] = {}
        self._keys: dict[str, int] = {}  # of the text of each id
        self._hashes = array("q")  # of the exact texts
        self._count = self._given = 0

    def place(self, text: str, name: str | None = None) -> int:
        """The index of a text, whatever its id."""
        key = text_key(text)
        place = self._by_text.get(key)
        if place is None:
            place = self._by_text[key] = self._new(text, name)
        if name and self._by_id.setdefault(name, place) != place:
            raise _TwoTextsError(f"a second text for {self._kind} id {name!r}")
        return place

    def holds(self, text: str, place: int) -> bool:
        """True if the text at an index is identical to this one, not only similar in looks."""
        return hash(text) == self._hashes[place]

    def named(self, text: str, name: str) -> int:
        """The index of an id, whose text must be this one."""
        place = self._by_id.get(name)
        if place is None:
            place = self._by_id[name] = self._new(text, name)
            self._keys[name] = text_key(text)
        elif self._keys[name] != text_key(text):
            raise _TwoTextsError(f"a second text for {self._kind} id {name!r}")
        return place

    def finish(self) -> tuple[Texts, Texts]:
        """Returns ids and texts."""
        ids = self._ids.finish()
        if self._given < len(ids):
            given = set(ids) if self._given else set()
            ids = Texts(name or free_name(str(place), given) for place, name in enumerate(ids))
        return ids, self._texts.finish()

    def _new(self, text: str, name: str | None) -> int:
        self._ids.append(name or "")
        self._texts.append(text)
        self._hashes.append(hash(text))
        self._given += bool(name)
        self._count += 1
        return self._count - 1


class _Entries:
    """Passages of rows, in the order of the rows."""

    def __init__(self) -> None:
        self.sizes, self.places, self.scores = array("q"), array("q"), array("f")
        self.copies = array("b")  # 1 if the text only looks like the one that is kept

    def settle(self, of_row: np.ndarray, passages: int) -> "_Settled":
        """Joins the rows of each query and leaves out repeats.

        Args:
            of_row: int64 [rows], the query of each row.
            passages: Number of passages.
        """
        rows = np.repeat(np.arange(len(of_row)), np.array(self.sizes))
        pairs = of_row[rows] * passages + np.array(self.places)
        order = np.argsort(pairs, kind="stable")
        again = pairs[order][1:] == pairs[order][:-1]
        kept = np.ones(len(pairs), bool)
        kept[order[1:][again]] = False
        places = np.flatnonzero(kept)
        places = places[np.argsort(of_row[rows[places]], kind="stable")]
        scores, copies = np.array(self.scores, np.float32), np.array(self.copies, bool)
        return _Settled(pairs[places], rows[places], scores[places], copies[places])


class _Settled(NamedTuple):
    """M entries in the order of their queries.

    Attributes:
        pairs: int64 [M], query * passages + passage.
        rows: int64 [M].
        scores: float32 [M]; NaN if there is none.
        copies: bool [M], True if the text only looks like the one that is kept.
    """

    pairs: np.ndarray
    rows: np.ndarray
    scores: np.ndarray
    copies: np.ndarray

    def without(self, pairs: np.ndarray) -> "_Settled":
        kept = ~np.isin(self.pairs, pairs)
        return _Settled(*(part[kept] for part in self))

    def queries(self, passages: int) -> np.ndarray:
        return self.pairs // max(passages, 1)

    def lists(self, queries: int, passages: int) -> Lists:
        sizes = np.bincount(self.queries(passages), minlength=queries)
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        scores = None if np.isnan(self.scores).any() else self.scores
        return Lists(starts, self.pairs % max(passages, 1), scores)


def text_key(text: str) -> int:
    """A 96-bit key of a text in this process: Python's keyed hash, and a CRC.

    It is equal for texts that look the same (`words.same_text_key`). Among a hundred million different texts,
    two have the same key once in 10^13 runs.
    """
    text = same_text_key(text)
    return hash(text) << 32 ^ zlib.crc32(text.encode())


def note_missing(missing: int, queries: int) -> list[str]:
    """A note if many queries have no negative; otherwise []."""
    if missing <= MANY * queries:
        return []
    return [f"{missing} of {queries} queries ({missing / queries:.0%}) have no negative"]


def free_name(name: str, given: set[str]) -> str:
    """The name, with as many underscores in front as make it differ from the given ones."""
    while name in given:
        name = f"_{name}"
    return name
