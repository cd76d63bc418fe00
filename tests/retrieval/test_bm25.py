# ruff: noqa: RUF001 - scripts have letters that look like those of others
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stzoo.data.beir import read_beir
from stzoo.data.languages import detect_language
from stzoo.data.ranking import rank
from stzoo.errors import RecipeError
from stzoo.retrieval.bm25 import SETTINGS, Lexical, index_terms, note_empty, retrieve_bm25

WORDS = [
    "the",
    "a",
    "run",
    "running",
    "runs",
    "wing",
    "Wings",
    "Überfluß",
    "naïve",
    "42",
    "x",
    "don't",
]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)


def plain(passages, queries):
    """float32 [Q, N]: what bm25s makes of English text by itself."""
    import bm25s
    import Stemmer

    def words(texts):
        stemmer = Stemmer.Stemmer(SETTINGS["stemmer"])
        return bm25s.tokenize(
            texts, stopwords=SETTINGS["stopwords"], stemmer=stemmer, return_ids=False, show_progress=False
        )

    terms = words(passages)
    if not any(terms):
        return np.zeros((len(queries), len(passages)), np.float32)
    index = bm25s.BM25(method=SETTINGS["method"], k1=SETTINGS["k1"], b=SETTINGS["b"])
    index.index(terms, show_progress=False)
    return np.stack([index.get_scores_from_ids(index.get_tokens_ids(query)) for query in words(queries)])


def ranked(ids, scores, k):
    """The k best above 0 of each row, as trec_eval orders them."""
    pairs = [sorted(zip(row.tolist(), ids, strict=True), reverse=True) for row in scores]
    return [[(name, score) for score, name in row[:k] if score > 0] for row in pairs]


@settings(max_examples=60)
@given(st.lists(TEXTS, min_size=1, max_size=12), st.lists(TEXTS, min_size=1, max_size=4), st.integers(1, 12))
def test_scores_of_english_are_those_of_bm25s_over_strings_to_the_last_bit(passages, queries, k):
    ids = [f"d{number}" for number in range(len(passages))]
    asked = {f"q{number}": query for number, query in enumerate(queries)}
    expected = plain(passages, queries)
    lexical = Lexical(ids, passages, language="en")
    run = lexical.retrieve(asked, k)
    assert [list(run[query].items()) for query in asked] == ranked(ids, expected, k)
    places = np.arange(len(ids))
    for row, query in zip(expected, queries, strict=True):
        found = lexical.scores(query, places[::-1])
        assert found.dtype == np.float32
        assert (found[::-1] == row).all()


def test_scores_on_scifact_are_those_of_bm25s_over_strings_to_the_last_bit(data):
    judged = read_beir(data / "beir" / "scifact")
    run = retrieve_bm25(judged, 100)
    expected = plain(list(judged.passages), list(judged.queries.values()))
    assert [list(run[query].items()) for query in judged.queries] == ranked(judged.corpus_ids, expected, 100)


def test_queries_asked_in_blocks_find_what_they_find_together():
    ids, passages = ["b", "a", "d", "c"], ["same words", "same words", "same words", "other words"]
    lexical = Lexical(ids, passages)
    queries = {"d": "same", "x": "other words", "y": "words words", "z": "unknown"}
    together = lexical.retrieve(queries, 2)
    assert {name: dict(lexical.retrieve({name: text}, 2)[name]) for name, text in queries.items()} == together
    assert list(together["d"]) == ["d", "b"]
    assert list(lexical.retrieve(queries, 2, drop_self=True)["d"]) == ["b", "a"]
    assert list(lexical.retrieve(queries, 3)["d"]) == ["d", "b", "a"]
    assert together["z"] == {}
    with pytest.raises(RecipeError, match="k is 0"):
        lexical.retrieve(queries, 0)


def test_a_corpus_without_terms_answers_nothing():
    lexical = Lexical(["a", "b"], ["the", ""])
    assert lexical.retrieve({"q": "the wing"}) == {"q": {}}
    assert lexical.scores("the wing", np.array([1, 0])).tolist() == [0, 0]


def test_terms_are_held_as_numbers():
    draw = np.random.default_rng(0)
    texts = [" ".join(f"word{number}" for number in draw.integers(0, 40, 400)) for _ in range(300)]
    index_terms(texts[:2])  # imports
    tracemalloc.start()
    *_, terms = index_terms(texts)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(terms.flat) == 400 * 300
    assert peak / len(terms.flat) < 10  # strings in lists take 8 bytes twice over


# Other languages than English, of which the texts of each are a passage and a query that is answered by it

ASKED = {
    "zh": ("大熊猫主要生活在四川的竹林里，以竹子为食。", "大熊猫吃什么", "长江是亚洲最长的河流。"),
    "ja": ("富士山は日本で一番高い山です。", "ﾌｼﾞではなく富士山", "京都は古い都でした。"),
    "ko": ("서울은 대한민국의 수도이다.", "대한민국 수도는 어디인가", "한라산은 제주도에 있다."),
    "th": ("กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย", "เมืองหลวงของไทย", "ช้างเป็นสัตว์บกที่ใหญ่ที่สุดในโลก"),
    "de": (
        "Die Häuser der Städte waren alle rot.",
        "das Haus in der Stadt",
        "Ein Baum ist das und nicht mehr.",
    ),
    "ru": ("В этом городе было много больших домов, и мы там жили.", "город", "Она любит своих кошек."),
    "none": ("שָׁלוֹם עֲלֵיכֶם", "שלום", "תּוֹדָה רַבָּה"),
}


@pytest.mark.parametrize("language", ASKED)
def test_passages_of_another_language_are_found(language):
    passage, query, other = ASKED[language]
    found = Lexical(["a", "b"], [passage, other], language=language).retrieve({"q": query})["q"]
    assert next(iter(found)) == "a"
    assert detect_language([passage, other]) == language


def test_stemmer_and_stop_words_are_of_the_language():
    passages = ["les maisons rouges", "une maison et des maisons", "l'école"]
    french = Lexical(["a", "b", "c"], passages, language="fr")
    assert list(french.retrieve({"q": "maison des"})["q"]) == ["b", "a"]
    assert french.retrieve({"q": "les et une l"}) == {"q": {}}
    assert list(Lexical(["a", "b", "c"], passages, language="none").retrieve({"q": "maison"})["q"]) == ["b"]
    turkish = Lexical(["a"], ["ISPARTA'DA KITAPLAR"], language="tr")
    assert turkish.retrieve({"q": "ısparta"})["q"]


@pytest.mark.parametrize(("found", "noted"), [(3, True), (4, False)])
def test_a_run_in_which_many_queries_find_nothing_has_a_note(found, noted):
    run = {f"q{n}": {"d": 1.0} if n < found else {} for n in range(5)}
    note = note_empty(rank(run), "de")
    assert bool(note) == noted
    if note:
        assert "nothing for 2 of 5 queries (read as German)" in note
