import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stzoo.errors import ModelError, RecipeError, ShapeError
from stzoo.judged import JudgedSet, read_beir, write_beir
from stzoo.search import SIMILARITIES, Ranking, in_order, retrieve, top_k
from stzoo.testing import TEXTS, tiny_masked_lm

# Few small whole numbers: every product is exact and most scores tie. -0.0 must tie with 0.0.
FEW = st.sampled_from([-1.0, -0.0, 0.0, 1.0, 2.0])


def sorted_out(scores, query_ids, corpus_ids, k, drop_self):
    """All documents sorted in plain Python."""
    run = {}
    for query, row in zip(query_ids, scores, strict=True):
        found = [(score, document) for score, document in zip(row.tolist(), corpus_ids, strict=True)]
        found = [pair for pair in found if not (drop_self and pair[1] == query)]
        found.sort(key=lambda pair: (np.float32(pair[0]), pair[1]), reverse=True)
        run[query] = {document: score for score, document in found[:k]}
    return run


@st.composite
def searches(draw):
    Q, N, D = draw(st.integers(1, 4)), draw(st.integers(1, 30)), draw(st.integers(1, 3))
    ids = st.text("aAbé9ﬁ", min_size=1, max_size=3)
    corpus_ids = draw(st.lists(ids, min_size=N, max_size=N, unique=True))
    query_ids = draw(
        st.lists(st.one_of(ids, st.sampled_from(corpus_ids)), min_size=Q, max_size=Q, unique=True)
    )
    queries, corpus = (
        draw(arrays(np.float32, (Q, D), elements=FEW)),
        draw(arrays(np.float32, (N, D), elements=FEW)),
    )
    return queries, corpus, query_ids, corpus_ids


@given(searches(), st.integers(1, 40), st.booleans(), st.sampled_from([1, 2, 3, 7, 16, 100]))
@settings(deadline=None, max_examples=300)
def test_the_kept_are_those_of_a_full_sort_whatever_the_chunk(search, k, drop_self, chunk):
    queries, corpus, query_ids, corpus_ids = search
    expected = sorted_out(queries @ corpus.T, query_ids, corpus_ids, k, drop_self)
    run = top_k(queries, corpus, query_ids, corpus_ids, k, drop_self=drop_self, chunk=chunk)
    assert run == expected
    assert [list(found) for found in run.values()] == [list(found) for found in expected.values()]
    assert all(list(found) == in_order(found) for found in run.values())


def test_real_valued_results_do_not_depend_on_the_chunk_and_equal_vectors_tie():
    random = np.random.default_rng(0)
    corpus = random.standard_normal((3000, 48)).astype(np.float32)
    corpus[1500:] = corpus[:1500]
    queries = random.standard_normal((600, 48)).astype(np.float32)
    query_ids, corpus_ids = [f"q{i}" for i in range(600)], [f"d{i:04}" for i in random.permutation(3000)]
    for similarity in ("dot", "cosine"):
        runs = [
            top_k(
                queries,
                corpus,
                query_ids,
                corpus_ids,
                101,
                drop_self=False,
                similarity=similarity,
                chunk=chunk,
            )
            for chunk in (16384, 1000, 333)
        ]
        assert runs[0] == runs[1] == runs[2]
        twin = {corpus_ids[i]: corpus_ids[(i + 1500) % 3000] for i in range(3000)}
        for found in runs[0].values():
            # 101 is odd: of the last pair only the one with the larger id is kept.
            *pairs, last = found
            assert all(found[document] == found[twin[document]] for document in pairs)
            assert last > twin[last]
            assert twin[last] not in found


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_scores_are_those_of_sentence_transformers(similarity):
    from sentence_transformers import SimilarityFunction

    random = np.random.default_rng(1)
    queries, corpus = random.standard_normal((2, 5, 16)).astype(np.float32)
    corpus[4] = 0
    expected = SimilarityFunction.to_similarity_fn(similarity)(queries, corpus)
    run = top_k(queries, corpus, list("abcde"), list("vwxyz"), 9, drop_self=False, similarity=similarity)
    found = [[run[query][document] for document in "vwxyz"] for query in "abcde"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_query_finds_the_nearest_rather_than_itself_only_where_that_is_asked():
    vectors = np.eye(3, dtype=np.float32)
    ids = ["a", "b", "c"]
    assert list(top_k(vectors, vectors, ids, ids, 1, drop_self=False)["b"]) == ["b"]
    assert list(top_k(vectors, vectors, ids, ids, 1, drop_self=True)["b"]) == ["c"]


def test_vectors_that_are_not_finite_are_an_error():
    good = np.ones((3, 2), np.float32)
    for value in (np.nan, np.inf):
        bad = good.copy()
        bad[1, 1] = value
        with pytest.raises(ModelError, match=r"1 of 3 query vectors are not finite \(the first: number 2\)"):
            top_k(bad, good, list("abc"), list("abc"), 1, drop_self=False)
        with pytest.raises(ModelError, match="1 of 3 passage vectors"):
            top_k(good, bad, list("abc"), list("abc"), 1, drop_self=False)


def test_what_does_not_fit_together_is_an_error():
    two, three = np.ones((2, 4), np.float32), np.ones((3, 5), np.float32)
    with pytest.raises(ShapeError, match="expected"):
        top_k(two, three, list("ab"), list("abc"), 1, drop_self=False)
    with pytest.raises(ShapeError, match="expected"):
        top_k(two, two, list("ab"), list("abc"), 1, drop_self=False)
    with pytest.raises(RecipeError, match="k is 0"):
        top_k(two, two, list("ab"), list("ab"), 0, drop_self=False)
    with pytest.raises(ModelError, match="'maxsim' cannot be searched; known: cosine"):
        top_k(two, two, list("ab"), list("ab"), 1, drop_self=False, similarity="maxsim")


def test_infinite_and_negative_scores_are_ranked():
    import torch

    scores = torch.tensor([[-2.0, float("-inf"), 3e38, -0.0, 1e-45, float("inf")]])
    ranking = Ranking(list("abcdef"), 9, drop_self=False)
    assert "".join(ranking.run(["q"], ranking.merge(None, scores, 0))["q"]) == "fcedab"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    from sentence_transformers import SentenceTransformer

    folder = tmp_path_factory.mktemp("model")
    SentenceTransformer(str(tiny_masked_lm("bert", folder / "mlm")), device="cpu").save(str(folder / "st"))
    return folder / "st"


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> JudgedSet:
    corpus = [{"_id": f"d{i}", "title": text.split()[0], "text": text} for i, text in enumerate(TEXTS)]
    queries = {f"q{i}": " ".join(text.split()[-3:]) for i, text in enumerate(TEXTS)}
    qrels = {"test": {f"q{i}": {f"d{i}": 1} for i in range(len(TEXTS))}}
    return read_beir(write_beir(tmp_path_factory.mktemp("sets") / "tiny", corpus, queries, qrels))


def with_config(model_folder: Path, target: Path, **config) -> Path:
    """A copy of the model whose config_sentence_transformers.json is changed."""
    import shutil

    shutil.copytree(model_folder, target)
    file = target / "config_sentence_transformers.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return target


def test_the_prompts_kept_in_the_model_change_the_vectors_used(model_folder, judged, tmp_path):
    from sentence_transformers import SentenceTransformer

    prompts = {"query": "Unemployment question: ", "document": "Recursive passage: "}
    prompted = SentenceTransformer(
        str(with_config(model_folder, tmp_path / "prompted", prompts=prompts)), device="cpu"
    )
    plain = SentenceTransformer(str(model_folder), device="cpu")
    with_prompts, without = retrieve(prompted, judged), retrieve(plain, judged)
    assert with_prompts != without
    by_hand = replace(
        judged,
        passages=[prompts["document"] + passage for passage in judged.passages],
        queries={query: prompts["query"] + text for query, text in judged.queries.items()},
    )
    expected = retrieve(plain, by_hand)
    for query, found in with_prompts.items():
        assert found == pytest.approx(expected[query], abs=1e-5)


def test_the_models_own_similarity_is_used(model_folder, judged, tmp_path):
    from sentence_transformers import SentenceTransformer

    for similarity in SIMILARITIES:
        path = with_config(model_folder, tmp_path / similarity, similarity_fn_name=similarity)
        model = SentenceTransformer(str(path), device="cpu")
        assert model.similarity_fn_name == similarity
        expected = model.similarity(
            model.encode_query(list(judged.queries.values())), model.encode_document(judged.passages)
        ).numpy()
        run = retrieve(model, judged)
        found = [[run[query][document] for document in judged.corpus_ids] for query in judged.queries]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_router_sends_queries_and_passages_their_own_ways(model_folder, judged, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Router, Transformer

    base = SentenceTransformer(str(model_folder), device="cpu")
    width = base.get_embedding_dimension()
    encoder = Transformer(str(model_folder))
    ways = {
        "query": [encoder, Pooling(width), Dense(width, 8)],
        "document": [encoder, Pooling(width), Dense(width, 8)],
    }
    SentenceTransformer(modules=[Router(ways)], device="cpu").save(str(tmp_path / "router"))
    model = SentenceTransformer(str(tmp_path / "router"), device="cpu")
    expected = model.similarity(
        model.encode(list(judged.queries.values()), task="query"),
        model.encode(judged.passages, task="document"),
    ).numpy()
    run = retrieve(model, judged)
    found = [[run[query][document] for document in judged.corpus_ids] for query in judged.queries]
    np.testing.assert_allclose(found, expected, atol=1e-5)

    ways["query"][-1] = Dense(width, 4)
    with pytest.raises(ModelError, match=r"queries as \[8, 4\] and passages as \[8, 8\]"):
        retrieve(SentenceTransformer(modules=[Router(ways)], device="cpu"), judged)


def test_self_hits_are_dropped_where_ids_are_shared_and_never_elsewhere(model_folder, judged):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(model_folder), device="cpu")
    own = replace(
        judged,
        queries=dict(zip(judged.corpus_ids, judged.passages, strict=True)),
        qrels={document: {document: 1} for document in judged.corpus_ids},
    )
    assert all(next(iter(found)) == query for query, found in retrieve(model, own).items())
    assert all(query not in found for query, found in retrieve(model, replace(own, name="ArguAna")).items())
    assert all(len(found) == 3 for found in retrieve(model, replace(own, name="quora"), k=3).values())
