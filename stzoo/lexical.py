"""BM25 by bm25s over the same passages, under the same rules of ties and self-hits: the row to beat.

Tokens are runs of two or more word characters in lower case, without English stop words, stemmed by Snowball.
k1 and b are Anserini's defaults, as is usual on BEIR.

Unlike bm25s's own retrieve: ties are settled by id, and passages that share no word with the query are no
results, as in Lucene.
"""

import sys
from typing import Any

from ..judged import JudgedSet
from ..search import Ranking, Run

NAME = "bm25s"
SETTINGS: dict[str, Any] = {
    "method": "lucene",
    "k1": 0.9,
    "b": 0.4,
    "stopwords": "english",
    "stemmer": "english",
}


def retrieve_bm25(judged: JudgedSet, k: int = 1000, *, progress: bool | None = None) -> Run:
    """Finds the k best passages of each judged query by BM25.

    Args:
        judged: what to search.
        k: passages kept a query.
        progress: True for progress bars on stderr; None shows them on a terminal only.

    Returns:
        float32 scores above 0 by document id by query id, best first.
    """
    import bm25s
    import numpy as np
    import Stemmer
    from tqdm import tqdm

    bars = sys.stderr.isatty() if progress is None else progress

    def words(texts: list[str]) -> list[list[str]]:
        tokens: list[list[str]] = bm25s.tokenize(
            texts,
            stopwords=SETTINGS["stopwords"],
            stemmer=Stemmer.Stemmer(SETTINGS["stemmer"]),
            return_ids=False,
            show_progress=bars,
        )
        return tokens

    passages = words(list(judged.passages))
    if not any(passages):
        return {query: {} for query in judged.queries}
    index = bm25s.BM25(method=SETTINGS["method"], k1=SETTINGS["k1"], b=SETTINGS["b"])
    index.index(passages, show_progress=bars)
    ranking = Ranking(judged.corpus_ids, k, drop_self=judged.shares_ids)
    run: dict[str, dict[str, float]] = {}
    questions = dict(zip(judged.queries, words(list(judged.queries.values())), strict=True))
    for query, terms in tqdm(questions.items(), desc="BM25", leave=False, disable=not bars):
        scores = index.get_scores_from_ids(index.get_tokens_ids(terms))
        places = np.flatnonzero(scores > 0)
        kept = ranking.merge(ranking.none(1), np.zeros_like(places), places, scores[places])
        run[query] = ranking.run([query], kept)[query]
    return run
