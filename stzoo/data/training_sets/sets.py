"""Training sets: queries, each with passages that answer it and passages that do not."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from stzoo.data.beir import Collection, RetrievalDataset

BLOCK = 1 << 16
MADE = "stzoo"  # key of a mined file's metadata


class Candidate(NamedTuple):
    """A passage of a file, whose id and score may be missing."""

    text: str
    id: str | None = None
    score: float | None = None


class Mined(NamedTuple):
    """A row of a mined file: a query and its passages. All have ids, and either all or none have scores."""

    query_id: str
    query: str
    positives: list[Candidate]
    negatives: list[Candidate]


@dataclass(frozen=True)
class Lists:
    """Indices of passages for each of Q queries; `lists[q]` are those of query q.

    Attributes:
        starts: int64 [Q + 1], ascending from 0 to M.
        places: int64 [M], indices of passages.
        scores: float32 [M], from a teacher or a miner; None if some are missing.
    """

    starts: np.ndarray
    places: np.ndarray
    scores: np.ndarray | None = None

    def __getitem__(self, query: int) -> np.ndarray:
        return self.places[self.starts[query] : self.starts[query + 1]]

    def scored(self, query: int) -> np.ndarray:
        """float32, the scores of `self[query]`; `scores` must not be None."""
        assert self.scores is not None
        return self.scores[self.starts[query] : self.starts[query + 1]]

    def of(self, queries: np.ndarray) -> "Lists":
        """The lists of some queries (int64 [q], indices), in that order."""
        sizes = np.diff(self.starts)[queries]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        taken = np.arange(starts[-1]) - np.repeat(starts[:-1] - self.starts[queries], sizes)
        return Lists(starts, self.places[taken], None if self.scores is None else self.scores[taken])


@dataclass(frozen=True, kw_only=True)
class TrainingSet(Collection):
    """Queries with their known positives and negatives, as lists of indices into unique passages.

    It needs the bytes of its texts and ids, 8 bytes for each of them, and 8 bytes for each entry of a list
    (12 with scores).

    Attributes:
        query_ids: Q unique ids.
        queries: Q texts.
        positives: At least one passage for each query.
        negatives: Passages for each query that are not its positives; may be empty.
        made: Metadata of a mined file: how it was made; None for other data.
        origin: The judgements and the whole corpus that its queries and positives were taken from; None if
            they are not kept.
    """

    query_ids: Sequence[str]
    queries: Sequence[str]
    positives: Lists
    negatives: Lists
    made: dict[str, Any] | None = None
    origin: RetrievalDataset | None = None

    @property
    def scored(self) -> bool:
        """True if every positive and every negative has a score."""
        return self.positives.scores is not None and self.negatives.scores is not None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) over the queries, their lists, and the ids, texts and scores in the lists.

        It does not depend on the order of `passages`, nor on passages that are in no list.
        """
        names = bytearray()
        for name, text in zip(self.corpus_ids, self.passages, strict=True):
            names += hashlib.blake2b(_framed(name) + _framed(text), digest_size=16).digest()
        named = np.frombuffer(names, np.uint8).reshape(-1, 16)
        digest = hashlib.sha256()
        for query, text in zip(self.query_ids, self.queries, strict=True):
            digest.update(_framed(query) + _framed(text))
        for part in (self.positives, self.negatives):
            digest.update(part.starts.astype("<i8").data)
            for start in range(0, len(part.places), BLOCK):
                digest.update(named[part.places[start : start + BLOCK]].data)
            digest.update(b"unscored" if part.scores is None else part.scores.astype("<f4").data)
        return digest.hexdigest()

    def part(self, queries: np.ndarray) -> "TrainingSet":
        """The training set of some queries (int64 [q], indices), in that order, with the same passages."""
        places = queries.tolist()
        query_ids = [self.query_ids[place] for place in places]
        return replace(
            self,
            query_ids=query_ids,
            queries=[self.queries[place] for place in places],
            positives=self.positives.of(queries),
            negatives=self.negatives.of(queries),
            origin=self.origin and self.origin.part(query_ids),
        )

    def rows(self) -> Iterator[Mined]:
        """Yields each query with its passages, for `write_training`."""
        for place, (query_id, query) in enumerate(zip(self.query_ids, self.queries, strict=True)):
            yield Mined(
                query_id,
                query,
                self._candidates(self.positives, place),
                self._candidates(self.negatives, place),
            )

    def _candidates(self, lists: Lists, query: int) -> list[Candidate]:
        places = lists[query].tolist()
        scores = [None] * len(places) if lists.scores is None else lists.scored(query).tolist()
        return [
            Candidate(self.passages[place], self.corpus_ids[place], score)
            for place, score in zip(places, scores, strict=True)
        ]

    def judged(self, split: str = "train") -> RetrievalDataset:
        """The same queries for retrieval: `origin`, or else the passages with the positives as relevant."""
        return self.origin or RetrievalDataset(
            **self.attributes(Collection),
            split=split,
            queries=dict(zip(self.query_ids, self.queries, strict=True)),
            qrels={
                query: {self.corpus_ids[place]: 1 for place in self.positives[number].tolist()}
                for number, query in enumerate(self.query_ids)
            },
        )


def _framed(text: str) -> bytes:
    """The text in UTF-8 with its length in front, so that different lists of texts give different bytes."""
    raw = text.encode()
    return b"%d " % len(raw) + raw
