"""BM25 by bm25s, the baseline of bench and a source of hard negatives.

Terms are lower-cased words of two or more characters (`stzoo.data.words.search_terms`, which also splits
scripts without spaces), without the stop words of the passages' language, stemmed by Snowball. k1 and b are
Anserini's defaults, as is usual on BEIR. Terms are streamed and stored as numbers, never as strings.

Ties and self-hits are handled as in dense search. Unlike bm25s's own retrieve: ties are broken by id, and
passages that share no word with the query are not results, as in Lucene.
"""

import re
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import bm25s
import numpy as np
import Stemmer
from bm25s.tokenization import Tokenized, Tokenizer

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
from stzoo.data.ranking import Ranked, Ranking
from stzoo.data.words import search_terms
from stzoo.utils.messages import notify, show_progress
from stzoo.utils.progress import progress_bar

NAME = "bm25s"
SETTINGS: dict[str, Any] = {  # for English passages
    "method": "lucene",
    "k1": 0.9,
    "b": 0.4,
    "stopwords": "english",
    "stemmer": "english",
    "language": "en",
}
MANY = 0.2  # share of queries without results above which a note is given


def settings_of(language: str) -> dict[str, Any]:
    """The settings of BM25 for a language of `stzoo.data.languages`."""
    return SETTINGS | {
        "stopwords": stop_words_name(language),
        "stemmer": stemmer_name(language),
        "language": language,
    }


def choose_language(language: str | None, texts: Sequence[str], name: str) -> str:
    """Checks the given language, or detects that of the texts and shows it to the user.

    Args:
        language: A code or an English name, or "none"; None detects the language.
        texts: The passages.
        name: Name of the data set, for the message.

    Returns:
        A code of `stzoo.data.languages`; "none" if the language is unclear.

    Raises:
        RecipeError: If the language is unknown.
    """
    if language is not None:
        return check_language(language)
    code = detect_language(texts)
    if code == NONE:
        notify(
            f"The language of {name} is unclear, so BM25 uses neither a stemmer nor stop words. "
            "Set --language to use those of a language."
        )
    else:
        notify(f"BM25 reads {name} as {LANGUAGES[code].title()}. Use --language for another language.")
    return code


def note_empty(run: Ranked, language: str) -> str | None:
    """A note on a run in which many queries have no results; None if few have none."""
    empty = sum(not len(run.results(query)[0]) for query in run)
    if empty <= MANY * len(run):
        return None
    how = f"read as {LANGUAGES[language].title()}" if language in LANGUAGES else "without a language"
    return (
        f"BM25 finds nothing for {empty} of {len(run)} queries ({how}): they share no word with any passage. "
        "Its scores are not meaningful here."
    )


class Terms(Sequence[list[int]]):
    """The terms of each text as numbers, in one array.

    Attributes:
        flat: int32 [T], the terms of all texts.
        ends: int64 [N], the end of each text's terms in `flat`.
    """

    def __init__(self, flat: np.ndarray, ends: np.ndarray):
        self.flat, self.ends = flat, ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: Any) -> Any:
        start = self.ends[i - 1] if i else 0
        return self.flat[start : self.ends[i]].tolist()


def index_terms(
    texts: Sequence[str], language: str | None = None, *, progress: bool | None = None
) -> tuple[Any, Any, Terms]:
    """Indexes texts with the settings of their language.

    Indexing takes 4 bytes per term and about 25 per distinct term of a text; the index takes 8 bytes per
    distinct term of a text, plus the vocabulary.

    Args:
        texts: N texts, at least one; read once, in order, after a sample if the language is detected.
        language: A code of `stzoo.data.languages`; None detects it.
        progress: True shows progress bars on stderr; None shows them on a terminal only.

    Returns:
        The bm25s.BM25, the bm25s Tokenizer that numbers its terms, and the terms.

    Unlike `bm25s.tokenize`, which stores each term of a corpus in a Python list, and numbers them in an order
    that changes between processes. bm25s's own conversion to a CSC matrix takes twice the memory of scipy's.
    """
    show_bars = show_progress(progress)
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
    bar = dict(total=len(texts), unit=" texts", delay=2, disable=not show_bars)
    for numbers in progress_bar(stream, desc="Reading terms", **bar):
        flat.extend(numbers)
        lengths.append(len(numbers))
    terms = Terms(np.asarray(flat), np.cumsum(lengths))
    index = bm25s.BM25(method=SETTINGS["method"], k1=SETTINGS["k1"], b=SETTINGS["b"], csc_backend="scipy")
    with np.errstate(invalid="ignore"):  # if no text has a term, the mean length is 0
        index.index(
            Tokenized(ids=terms, vocab=tokenizer.get_vocab_dict()),
            create_empty_token=False,
            show_progress=show_bars,
        )
    return index, tokenizer, terms


class Lexical:
    """A BM25 index of passages.

    It takes 8 bytes per distinct term of a passage, 8 per passage, and the vocabulary.

    Args:
        corpus_ids: N unique ids.
        passages: N texts, at least one.
        language: A code of `stzoo.data.languages`; None detects it.
        progress: True shows progress bars on stderr; None shows them on a terminal only.
    """

    def __init__(
        self,
        corpus_ids: Sequence[str],
        passages: Sequence[str],
        *,
        language: str | None = None,
        progress: bool | None = None,
    ):
        self._corpus_ids, self._bars = corpus_ids, show_progress(progress)
        self._index, self._tokenizer, _ = index_terms(passages, language, progress=progress)
        self._ranking: Ranking | None = None

    def retrieve(self, queries: Mapping[str, str], k: int = 1000, *, drop_self: bool = False) -> Ranked:
        """Finds the k best passages of each query.

        Results take 8 k bytes per query, so search for many queries in several calls.

        Args:
            queries: Texts by query id.
            k: Number of results per query.
            drop_self: True drops the passage whose id is the query's.

        Returns:
            float32 scores above 0 by query id and document id, best first.

        Raises:
            RecipeError: If k is below 1.
        """
        ranking = self._ranking
        if ranking is None or (ranking.k, ranking.drop_self) != (k, drop_self):
            ranking = self._ranking = Ranking(self._corpus_ids, k, drop_self=drop_self)
        kept = ranking.none(len(queries))
        bar = dict(total=len(queries), unit=" queries", delay=2, disable=not self._bars)
        for row, terms in enumerate(progress_bar(self._terms(queries.values()), desc="BM25", **bar)):
            if terms:
                scores = self._index.get_scores_from_ids(terms)
                indices = np.flatnonzero(scores > 0)
                kept[row : row + 1] = ranking.merge(
                    kept[row : row + 1], np.zeros_like(indices), indices, scores[indices]
                )
        return ranking.run(list(queries), kept)

    def scores(self, query: str, indices: np.ndarray) -> np.ndarray:
        """The scores of some passages for a query.

        Args:
            query: Text of the query.
            indices: int64 [n], positions of the passages in the corpus.

        Returns:
            float32 [n], the same scores as those of `retrieve`; 0 for passages that share no term.
        """
        (terms,) = self._terms([query])
        matrix = self._index.scores
        scores = np.zeros(len(indices), np.float32)
        for term in terms:
            first, last = matrix["indptr"][term : term + 2]
            column = matrix["indices"][first:last]  # ascending
            at = np.searchsorted(column, indices)
            hits = np.flatnonzero(at < len(column))
            hits = hits[column[at[hits]] == indices[hits]]
            scores[hits] += matrix["data"][first:last][at[hits]]
        return scores

    def _terms(self, texts: Any) -> Any:
        """The known terms of each text, with repetitions."""
        return self._tokenizer.streaming_tokenize(texts, update_vocab=False, allow_empty=False)


def retrieve_bm25(
    judged: RetrievalDataset, k: int = 1000, *, language: str | None = None, progress: bool | None = None
) -> Ranked:
    """Finds the k best passages of each judged query by BM25.

    Args:
        judged: The data set to search.
        k: Number of results per query.
        language: Language of the passages, a code of `stzoo.data.languages`; None detects it.
        progress: True shows progress bars on stderr; None shows them on a terminal only.

    Returns:
        float32 scores above 0 by query id and document id, best first.

    Raises:
        RecipeError: If k is below 1.
    """
    index = Lexical(judged.corpus_ids, judged.passages, language=language, progress=progress)
    return index.retrieve(judged.queries, k, drop_self=judged.shares_ids)


def _english_terms(text: str) -> list[str]:
    """The terms of bm25s's own English splitter, so that published scores stay the same to the last digit.

    A ligature is one character and a soft hyphen ends a word, unless the text has combining marks or
    characters of another script.
    """
    return search_terms(text) if _BEYOND_ENGLISH.search(text) else _ENGLISH_TERM.findall(text.lower())


def _turkish_terms(text: str) -> list[str]:
    """The terms of Turkish, in which the lower case of I has no dot."""
    return search_terms(text.replace("I", "\u0131"))


_ENGLISH_TERM = re.compile(r"\w\w+")
# combining marks, and scripts other than Latin, Greek and Cyrillic
_BEYOND_ENGLISH = re.compile(
    "[\u0300-\u036f\u0483-\u0489\u0530-\u1dff\u20d0-\u20ff\u2c00-\u2dff\u2e80-\ufaff\ufb13-\ufdff\ufe20-\ufefc"
    "\uff01-\uffee\U00010000-\U0001efff\U0001fb00-\U0010ffff]"
)
_TERMS = {"en": _english_terms, "tr": _turkish_terms}
