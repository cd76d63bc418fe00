"""What is known of each query's answers, as places in the corpus."""

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from tqdm import tqdm

from stzoo.data.beir import RetrievalDataset
from stzoo.data.training_sets.sets import Lists
from stzoo.data.words import same_text_key
from stzoo.errors import DataError


@dataclass(frozen=True)
class KnownPositives:
    """The answers of a judged set's queries.

    Attributes:
        query_ids: Q ids, in the order of the set's queries.
        positives: places of the relevant passages of each query; those that the corpus lacks are left out,
            and so is what is blank, passages and all those of a blank query.
        answers: places of all relevant passages and, where queries and passages share ids, of the one under
            the query's own id: no negatives.
        kinds: int64 [N], equal where passages' texts look the same (`stzoo.data.words.same_text_key`).
        spread: int64 [Q], how many passages of the corpus are of the kinds of a query's answers, at most.
    """

    query_ids: list[str]
    positives: Lists
    answers: Lists
    kinds: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, judged: RetrievalDataset, *, progress: bool = False) -> "KnownPositives":
        """Looks the judged passages up; 8 bytes a passage stay, and 40 are needed meanwhile.

        Raises:
            DataError: if no query has a positive in the corpus.
        """
        relevant = {
            query: [document for document, grade in judged.qrels[query].items() if grade > 0]
            for query in judged.queries
        }
        wanted = {document for documents in relevant.values() for document in documents}
        if judged.shares_ids:
            wanted.update(relevant)
        places = {document: place for place, document in enumerate(judged.corpus_ids) if document in wanted}
        answers = [[places[one] for one in found if one in places] for found in relevant.values()]
        positives = [
            [place for place in found if judged.queries[query].strip() and judged.passages[place].strip()]
            for query, found in zip(relevant, answers, strict=True)
        ]
        if not any(positives):
            raise DataError(
                f"{judged.folder}, split {judged.split}: no judgement above 0 names a passage of the corpus, "
                "so no query has a positive, and none is mined for."
            )
        if judged.shares_ids:
            answers = [
                found + [places[query]] * (query in places)
                for query, found in zip(relevant, answers, strict=True)
            ]
        kinds = _kinds(judged, progress)
        listed = _lists(answers)
        sizes = np.bincount(kinds)[kinds[listed.places]]
        rows = np.repeat(np.arange(len(answers)), np.diff(listed.starts))
        spread = np.bincount(rows, sizes, len(answers)).astype(np.int64)
        return cls(list(relevant), _lists(positives), listed, kinds, spread)


def _kinds(judged: RetrievalDataset, progress: bool) -> np.ndarray:
    bar = dict(desc="Comparing texts", unit=" texts", delay=2, leave=False, disable=not progress)
    hashes = np.fromiter(
        (
            int.from_bytes(blake2b(same_text_key(text).encode(), digest_size=8).digest())
            for text in tqdm(judged.passages, **bar)
        ),
        np.uint64,
        len(judged.passages),
    )
    return np.unique(hashes, return_inverse=True)[1].astype(np.int64, copy=False)


def _lists(values: list[list[int]]) -> Lists:
    starts = np.concatenate([[0], np.cumsum([len(one) for one in values])]).astype(np.int64)
    return Lists(starts, np.fromiter((place for one in values for place in one), np.int64, starts[-1]))
