"""The known answers of each query, as indices into the corpus."""

from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain

import numpy as np

from stzoo.data.beir import RetrievalDataset
from stzoo.data.texts import indices_of
from stzoo.data.training_sets.sets import Lists
from stzoo.data.words import same_text_key
from stzoo.errors import DataError
from stzoo.utils.progress import progress_bar


@dataclass(frozen=True)
class KnownPositives:
    """The known answers of the queries of a data set.

    Attributes:
        query_ids: Ids of the Q queries, in the order of the data set.
        positives: Indices of the relevant passages of each query, without passages that are blank or missing
            from the corpus; none for blank queries.
        answers: Indices of the passages that must not be negatives of each query: all relevant ones and, if
            queries and passages share ids, the passage with the query's id.
        kinds: Keys that are equal for passages with the same text (`stzoo.data.words.same_text_key`), int64
            [N].
        spread: Upper bound of the number of passages with the same text as an answer of each query, int64
            [Q].
    """

    query_ids: list[str]
    positives: Lists
    answers: Lists
    kinds: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, judged: RetrievalDataset, *, progress: bool = False) -> "KnownPositives":
        """Finds the judged passages in the corpus; takes 8 bytes per passage, and temporarily 40.

        Raises:
            DataError: If no query has a positive in the corpus.
        """
        relevant = judged.relevant
        queries = relevant if judged.shares_ids else ()
        index = indices_of(chain(queries, *relevant.values()), judged.corpus_ids)
        answers = [[index[one] for one in documents if one in index] for documents in relevant.values()]
        positives = [
            [i for i in indices if judged.queries[query].strip() and judged.passages[i].strip()]
            for query, indices in zip(relevant, answers, strict=True)
        ]
        if not any(positives):
            raise DataError(
                f"{judged.folder}, split {judged.split}: no query has a positive (a passage of the corpus "
                "judged above 0), so there is nothing to mine for."
            )
        if judged.shares_ids:
            answers = [
                indices + [index[query]] * (query in index)
                for query, indices in zip(relevant, answers, strict=True)
            ]
        kinds = _kinds(judged, progress)
        listed = _lists(answers)
        sizes = np.bincount(kinds)[kinds[listed.places]]
        rows = np.repeat(np.arange(len(answers)), np.diff(listed.starts))
        spread = np.bincount(rows, sizes, len(answers)).astype(np.int64)
        return cls(list(relevant), _lists(positives), listed, kinds, spread)


def _kinds(judged: RetrievalDataset, progress: bool) -> np.ndarray:
    bar = dict(desc="Comparing texts", unit=" texts", delay=2, disable=not progress)
    hashes = np.fromiter(
        (
            int.from_bytes(blake2b(same_text_key(text).encode(), digest_size=8).digest())
            for text in progress_bar(judged.passages, **bar)
        ),
        np.uint64,
        len(judged.passages),
    )
    return np.unique(hashes, return_inverse=True)[1].astype(np.int64, copy=False)


def _lists(values: list[list[int]]) -> Lists:
    starts = np.concatenate([[0], np.cumsum([len(one) for one in values])]).astype(np.int64)
    return Lists(starts, np.fromiter((place for one in values for place in one), np.int64, starts[-1]))
