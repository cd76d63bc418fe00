"""Rows, one by one, become a `TrainingSet`."""

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

MANY = 0.2  # the share of queries without a negative from which on it is worth a note


class TrainingSetWriter:
    """Collects rows into a `TrainingSet`: rows of one query are joined, and a passage is kept once.

    Passages are the same if their texts look the same (`words.same_text_key`), and go by the id and
    text that came first; queries if their ids are, or where there is none, their texts. A negative that looks
    like a positive of its query is left out; if it is the very text, the two contradict each other. Where a
    passage comes twice in a list of one query, its first place and score count. What has no id is given its
    number.

    Memory: the texts in UTF-8, some 160 bytes for each query and passage and as many for each id, and 25
    bytes for each entry of a list; `finish` takes as much again for the entries alone.
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
        """Takes a row in, and returns the query's place.

        Args:
            query: its text.
            positives: passages that answer it; without any, another row of the query must have some.
            negatives: passages that do not.
            query_id: None or "" where it has none.
            at: The row's location, for messages; by default the number of the row.

        Raises:
            DataError: if an id has had another text.
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
        """The set; the writer is used up.

        Args:
            name: of the set.
            source: where it was read from.
            leave_out: True leaves out queries without a positive, with a note; False refuses them.
            notes: of the set.
            more: further fields of the set.

        Raises:
            DataError: if there is no query, one has no positive, or a text is both positive and negative of
                one query.
        """
        if not self._of_row:
            raise DataError(f"{source} holds no query to train on.")
        query_ids, queries = self._queries.finish()
        passage_ids, passages = self._passages.finish()
        of_row = np.array(self._of_row)
        positive, negative = (entries.settle(of_row, len(passages)) for entries in self._lists)
        counts = np.bincount(positive.queries(len(passages)), minlength=len(queries))
        lone = int((counts == 0).sum())
        if lone and leave_out and lone < len(queries):
            notes += (f"{lone} of {len(queries)} queries have no positive and are left out",)
        elif lone:
            row = int(np.flatnonzero(counts[of_row] == 0)[0])
            found = f"a row without a positive ({lone} of {len(queries)} queries have none)"
            raise self._error(row, found, "a positive for each query", source)
        both = np.intersect1d(positive.pairs, negative.pairs, assume_unique=True)
        copies = np.concatenate([part.pairs[part.copies] for part in (positive, negative)])
        if len(copied := np.intersect1d(both, copies)):
            negative = negative.without(copied)
            notes += (
                f"{len(copied)} negatives differ from a positive of their query in white space or Unicode "
                "form only, and are left out",
            )
            both = np.setdiff1d(both, copied)
        if len(both):
            rows = [part.rows[part.pairs == both[0]][0] for part in (positive, negative)]
            found = (
                f"a passage that is both positive and negative of one query ({len(both)} such pairs): "
                f"{passages[int(both[0]) % len(passages)][:60]!r}"
            )
            raise self._error(int(max(rows)), found, "negatives that are no positives", source)
        if len(negative.pairs):
            negatives = np.bincount(negative.queries(len(passages)), minlength=len(queries))[counts > 0]
            notes += tuple(note_missing(int((negatives == 0).sum()), len(negatives)))
        for part, kind in ((positive, "positives"), (negative, "negatives")):
            missing = int(np.isnan(part.scores).sum())
            if 0 < missing < len(part.scores):
                notes += (f"{missing} of {len(part.scores)} {kind} have no score, so none is used",)
        whole = TrainingSet(
            name=name,
            source=source,
            query_ids=query_ids,
            queries=queries,
            passage_ids=passage_ids,
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
    """An id that stands for two texts."""


class _Register:
    """Texts, each kept once, with ids that no two of them share."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._ids, self._texts = TextsWriter(), TextsWriter()
        self._by_text: dict[int, int] = {}
        self._by_id: dict[str, int] = {}
        self._keys: dict[str, int] = {}  # of the texts of ids
        self._hashes = array("q")  # of the very texts
        self._count = self._given = 0

    def place(self, text: str, name: str | None = None) -> int:
        """The place of a text, whatever its id."""
        key = text_key(text)
        place = self._by_text.get(key)
        if place is None:
            place = self._by_text[key] = self._new(text, name)
        if name and self._by_id.setdefault(name, place) != place:
            raise _TwoTextsError(f"a second text for {self._kind} id {name!r}")
        return place

    def holds(self, text: str, place: int) -> bool:
        """True if the text at a place is this very one, and not only looks the same."""
        return hash(text) == self._hashes[place]

    def named(self, text: str, name: str) -> int:
        """The place of an id, whose text must be this."""
        place = self._by_id.get(name)
        if place is None:
            place = self._by_id[name] = self._new(text, name)
            self._keys[name] = text_key(text)
        elif self._keys[name] != text_key(text):
            raise _TwoTextsError(f"a second text for {self._kind} id {name!r}")
        return place

    def finish(self) -> tuple[Texts, Texts]:
        """Ids and texts."""
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
    """Passages of rows, as they come."""

    def __init__(self) -> None:
        self.sizes, self.places, self.scores = array("q"), array("q"), array("f")
        self.copies = array("b")  # 1 where the text is not that of the place, but looks the same

    def settle(self, of_row: np.ndarray, passages: int) -> "_Settled":
        """Brings the rows of each query together and leaves out repeats.

        Args:
            of_row: int64 [rows], the query of each.
            passages: their number.
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
    """Entries by query: int64 query * passages + passage, int64 row, float32 score or NaN, bool; each [M].

    The last is True where the text is not that of the passage, but looks the same.
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
    """96 bits that stand for a text in this process: Python's own hash, which is keyed, and a CRC.

    They are equal for texts that look the same (`words.same_text_key`). Of a hundred million other
    texts two would share them once in ten million million runs.
    """
    text = same_text_key(text)
    return hash(text) << 32 ^ zlib.crc32(text.encode())


def note_missing(missing: int, queries: int) -> list[str]:
    """A note if many queries have no negative, or none."""
    if missing <= MANY * queries:
        return []
    return [f"{missing} of {queries} queries ({missing / queries:.0%}) have no negative"]


def free_name(name: str, given: set[str]) -> str:
    """A name that is not among the given ones: this, or with underlines before it."""
    while name in given:
        name = f"_{name}"
    return name
