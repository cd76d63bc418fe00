"""BM25 by bm25s, under the same rules of ties and self-hits as dense search: the row to beat, and a miner.

Terms are words of two or more characters in lower case (`stzoo.data.words.search_terms`, which knows scripts
without spaces), without the stop words of the passages' language, stemmed by Snowball. k1 and b are
Anserini's defaults, as is usual on BEIR. Terms are read as a stream and kept as numbers, never as strings.

Unlike bm25s's own retrieve: ties are settled by id, and passages that share no word with the query are no
results, as in Lucene.
"""

import re
import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import bm25s
import numpy as np
import Stemmer
from bm25s.tokenization import Tokenized, Tokenizer
from tqdm import tqdm

from stzoo.data.beir import RetrievalDataset
from stzoo.data.languages import (
    LANGUAGES,
    NONE,
    check_language,
    detect_language,
    stemmer_name,
    stop_words,
    stop_words_name,
)
from stzoo.data.trec import Run
from stzoo.data.words import search_terms
from stzoo.retrieval.search.ranking import Ranking
from stzoo.utils.messages import notify

NAME = "bm25s"
SETTINGS: dict[str, Any] = {  # of English passages
    "method": "lucene",
    "k1": 0.9,
    "b": 0.4,
    "stopwords": "english",
    "stemmer": "english",
    "language": "en",
}
MANY = 0.2  # the share of queries that find nothing from which on it is worth a note


def settings_of(language: str) -> dict[str, Any]:
    """All that scores depend on, for a language of `stzoo.data.languages`."""
    own = {"stopwords": stop_words_name(language), "stemmer": stemmer_name(language), "language": language}
    return SETTINGS | own


def choose_language(language: str | None, texts: Sequence[str], name: str) -> str:
    """The language given, or else the one that the texts are in, of which the user is told.

    Args:
        language: a code or an English name, or "none"; None detects it.
        texts: the passages.
        name: of the data set.

    Returns:
        a code of `stzoo.data.languages`; "none" if it is not clear.

    Raises:
        RecipeError: if the language is not known.
    """
    if language is not None:
        return check_language(language)
    code = detect_language(texts)
    if code == NONE:
        notify(
            f"The language of {name} is not clear, so BM25 uses no stemmer and no stop words. "
            "Name the language by --language if it has them."
        )
    else:
        notify(f"BM25 reads {name} as {LANGUAGES[code].title()}. Use --language to name another language.")
    return code


def note_empty(run: Run, language: str) -> str | None:
    """What to say of a run where many queries find nothing; None if they are few."""
    empty = sum(1 for found in run.values() if not found)
    if empty <= MANY * len(run):
        return None
    of = f"read as {LANGUAGES[language].title()}" if language in LANGUAGES else "without a language"
    return (
        f"BM25 finds nothing for {empty} of {len(run)} queries ({of}): they share no word with any passage. "
        "Its scores say little here."
    )


class Terms(Sequence[list[int]]):
    """The terms of each text, as numbers, kept as one array.

    Attributes:
        flat: int32 [T].
        ends: int64 [N], where each text's terms end in it.
    """

    def __init__(self, flat: np.ndarray, ends: np.ndarray):
        self.flat, self.ends = flat, ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, place: Any) -> Any:
        start = self.ends[place - 1] if place else 0
        return self.flat[start : self.ends[place]].tolist()


def index_terms(
    texts: Sequence[str], language: str | None = None, *, progress: bool | None = None
) -> tuple[Any, Any, Terms]:
    """Indexes texts by the settings of their language.

    While it is at work it holds 4 bytes for each term and some 25 for each distinct term of a text; the index
    is 8 bytes for each of these, and the vocabulary.

    Args:
        texts: N, one at least; read once, in order, and a sample of them before if there is no language.
        language: a code of `stzoo.data.languages`; None detects it.
        progress: True for progress bars on stderr; None shows them on a terminal only.

    Returns:
        The bm25s.BM25, the bm25s Tokenizer that numbers its terms, and the terms.

    Unlike: `bm25s.tokenize` holds each term of a corpus in a Python list, and numbers them in an order that
        changes from process to process. BM25's own way to a CSC matrix takes twice the memory of scipy's.
    """
    bars = _shown(progress)
    language = detect_language(texts) if language is None else language
    stemmer = stemmer_name(language)
    tokenizer = Tokenizer(
        lower=False,
        splitter=_TERMS.get(language, search_terms),
        stopwords=sorted(stop_words(language)),
        stemmer=stemmer and Stemmer.Stemmer(stemmer),
    )
    flat, lengths = array("i"), array("q")
    stream = tokenizer.streaming_tokenize(texts, allow_empty=False)
    bar = dict(total=len(texts), unit=" texts", delay=2, leave=False, disable=not bars)
    for found in tqdm(stream, desc="Reading terms", **bar):
        flat.extend(found)
        lengths.append(len(found))
    terms = Terms(np.asarray(flat), np.cumsum(lengths))
    index = bm25s.BM25(method=SETTINGS["method"], k1=SETTINGS["k1"], b=SETTINGS["b"], csc_backend="scipy")
    with np.errstate(invalid="ignore"):  # where no text has a term, their mean length is 0
        index.index(
            Tokenized(ids=terms, vocab=tokenizer.get_vocab_dict()),
            create_empty_token=False,
            show_progress=bars,
        )
    return index, tokenizer, terms


class Lexical:
    """Passages in a BM25 index, to be asked as often as one likes.

    It holds 8 bytes for each distinct term of a passage, 8 for each passage, and the vocabulary.

    Args:
        corpus_ids: N unique ids.
        passages: N texts; one at least.
        language: a code of `stzoo.data.languages`; None detects it.
        progress: True for progress bars on stderr; None shows them on a terminal only.
    """

    def __init__(
        self,
        corpus_ids: Sequence[str],
        passages: Sequence[str],
        *,
        language: str | None = None,
        progress: bool | None = None,
    ):
        self._corpus_ids, self._bars = corpus_ids, _shown(progress)
        self._index, self._tokenizer, _ = index_terms(passages, language, progress=progress)
        self._ranking: Ranking | None = None

    def retrieve(self, queries: Mapping[str, str], k: int = 1000, *, drop_self: bool = False) -> Run:
        """Finds the k best passages of each query.

        It takes 8 k bytes a query, so many queries are asked some at a time.

        Args:
            queries: text by id.
            k: passages kept a query.
            drop_self: True to leave out the passage whose id is the query's.

        Returns:
            float32 scores above 0 by document id by query id, best first.

        Raises:
            RecipeError: if k is below 1.
        """
        ranking = self._ranking
        if ranking is None or (ranking.k, ranking.drop_self) != (k, drop_self):
            ranking = self._ranking = Ranking(self._corpus_ids, k, drop_self=drop_self)
        kept = ranking.none(len(queries))
        bar = dict(total=len(queries), unit=" queries", delay=2, leave=False, disable=not self._bars)
        for row, terms in enumerate(tqdm(self._terms(queries.values()), desc="BM25", **bar)):
            if terms:
                scores = self._index.get_scores_from_ids(terms)
                places = np.flatnonzero(scores > 0)
                kept[row : row + 1] = ranking.merge(
                    kept[row : row + 1], np.zeros_like(places), places, scores[places]
                )
        return ranking.run(list(queries), kept)

    def scores(self, query: str, places: np.ndarray) -> np.ndarray:
        """The scores of some passages for a query.

        Args:
            query: its text.
            places: int64 [n], of the passages.

        Returns:
            float32 [n], the very ones that `retrieve` gives; 0 where a passage shares no term with the query.
        """
        (terms,) = self._terms([query])
        held = self._index.scores
        found = np.zeros(len(places), np.float32)
        for term in terms:
            first, last = held["indptr"][term : term + 2]
            column = held["indices"][first:last]  # ascending
            at = np.searchsorted(column, places)
            there = np.flatnonzero(at < len(column))
            there = there[column[at[there]] == places[there]]
            found[there] += held["data"][first:last][at[there]]
        return found

    def _terms(self, texts: Any) -> Any:
        """The known terms of each text, repeated ones as often as they stand there."""
        return self._tokenizer.streaming_tokenize(texts, update_vocab=False, allow_empty=False)


def retrieve_bm25(
    judged: RetrievalDataset, k: int = 1000, *, language: str | None = None, progress: bool | None = None
) -> Run:
    """Finds the k best passages of each judged query by BM25.

    Args:
        judged: what to search.
        k: passages kept a query.
        language: of the passages, a code of `stzoo.data.languages`; None detects it.
        progress: True for progress bars on stderr; None shows them on a terminal only.

    Returns:
        float32 scores above 0 by document id by query id, best first.

    Raises:
        RecipeError: if k is below 1.
    """
    index = Lexical(judged.corpus_ids, judged.passages, language=language, progress=progress)
    return index.retrieve(judged.queries, k, drop_self=judged.shares_ids)


def _english_terms(text: str) -> list[str]:
    """As bm25s splits English by itself, so that published scores stay as they are to the last digit.

    A ligature stays one character and a soft hyphen ends a word, unless the text has combining marks or
    another script.
    """
    return search_terms(text) if _BEYOND_ENGLISH.search(text) else _ENGLISH_TERM.findall(text.lower())


def _turkish_terms(text: str) -> list[str]:
    """Turkish has an I without a dot, whose lower case has none either."""
    return search_terms(text.replace("I", "\u0131"))


_ENGLISH_TERM = re.compile(r"\w\w+")
# Combining marks, and scripts other than Latin, Greek and Cyrillic.
_BEYOND_ENGLISH = re.compile(
    "[\u0300-\u036f\u0483-\u0489\u0530-\u1dff\u20d0-\u20ff\u2c00-\u2dff\u2e80-\ufaff\ufb13-\ufdff\ufe20-\ufefc"
    "\uff01-\uffee\U00010000-\U0001efff\U0001fb00-\U0010ffff]"
)
_TERMS = {"en": _english_terms, "tr": _turkish_terms}


def _shown(progress: bool | None) -> bool:
    return sys.stderr.isatty() if progress is None else progress
