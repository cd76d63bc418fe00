import contextlib
import json
import math
import tracemalloc
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.helpers import Pool, in_trec_order

from stzoo.data.beir import RetrievalDataset, read_beir, write_beir
from stzoo.data.ranking import Ranking
from stzoo.data.texts import Texts
from stzoo.errors import ModelError, RecipeError, ShapeError
from stzoo.evaluation.scoring import score
from stzoo.retrieval.search import exact, exact_kernels
from stzoo.retrieval.search.exact import retrieve, top_k
from stzoo.retrieval.search.exact_kernels import SIMILARITIES
from stzoo.retrieval.store import fill
from stzoo.testing import TEXTS, tiny_masked_lm
from stzoo.utils.workers import ThisProcess, on_device, using

# Few small whole numbers: every product is exact and most scores tie. -0.0 must tie with 0.0.
FEW = st.sampled_from([-1.0, -0.0, 0.0, 1.0, 2.0])
# All that float32 can hold, so that products overflow float32, or vanish in it.
ANY = st.floats(width=32, allow_nan=False, allow_infinity=False)


def tiles(queries, passages):
    """Other sizes of what is compared at once."""
    sizes = dict(QUERIES=queries, PASSAGES=passages, MIN_PASSAGES=1, TILE=max(1, passages // 3))
    return patch.multiple(exact, **sizes)


class Threads:
    """Torch's number of threads, inside a `with`."""

    def __init__(self, number):
        self.number = number

    def __enter__(self):
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.number)

    def __exit__(self, *_):
        torch.set_num_threads(self.before)


class OnDisk:
    """Vectors that can be read by slices only; remembers which."""

    def __init__(self, vectors):
        self.vectors, self.shape, self.read = vectors, vectors.shape, []

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        self.read += range(*rows.indices(len(self.vectors)))
        return self.vectors[rows].copy()


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
def searches(draw, numbers=FEW):
    Q, N, D = draw(st.integers(1, 4)), draw(st.integers(1, 30)), draw(st.integers(1, 3))
    ids = st.text("aAbé9ﬁ", min_size=1, max_size=3)
    corpus_ids = draw(st.lists(ids, min_size=N, max_size=N, unique=True))
    query_ids = draw(
        st.lists(st.one_of(ids, st.sampled_from(corpus_ids)), min_size=Q, max_size=Q, unique=True)
    )
    queries, corpus = (
        draw(arrays(np.float32, (Q, D), elements=numbers)),
        draw(arrays(np.float32, (N, D), elements=numbers)),
    )
    return queries, corpus, query_ids, corpus_ids


some_tiles = st.tuples(st.integers(1, 4), st.sampled_from([1, 2, 3, 7, 16, 100]))


@given(searches(), st.integers(1, 40), st.booleans(), some_tiles)
@settings(max_examples=300)
def test_the_kept_are_those_of_a_full_sort_whatever_the_chunk(search, k, drop_self, tile):
    queries, corpus, query_ids, corpus_ids = search
    expected = sorted_out(queries @ corpus.T, query_ids, corpus_ids, k, drop_self)
    with tiles(*tile):
        run = top_k(queries, corpus, query_ids, corpus_ids, k, drop_self=drop_self)
    assert run == expected
    assert [list(found) for found in run.values()] == [list(found) for found in expected.values()]
    assert all(list(found) == in_trec_order(found) for found in run.values())


TINY = np.array([[6.11e-43], [6.11e-43]], np.float32)


@given(searches(st.one_of(ANY, FEW)), st.integers(1, 9), some_tiles, st.sampled_from(SIMILARITIES))
@example((np.array([[-1]], np.float32), TINY, ["9"], ["9", "A"]), 1, (1, 1), "cosine")
@settings(max_examples=400)
def test_the_first_pass_loses_nothing_whatever_the_numbers(search, k, tile, similarity):
    queries, corpus, query_ids, corpus_ids = search
    Q, N = len(queries), len(corpus)
    side = exact_kernels.checked(corpus, "passage")
    pairs = np.divmod(np.arange(Q * N), N)
    scores = exact_kernels.scores_of(
        exact_kernels.checked(queries, "query"), side, *pairs, similarity
    ).reshape(Q, N)
    assume(np.isfinite(scores).all())  # among scores that overflow, the first pass may settle a tie otherwise
    expected = sorted_out(scores, query_ids, corpus_ids, k, False)
    for device in ("cpu", "cpu:0"):  # the second goes the way of a GPU
        with tiles(*tile):
            run = top_k(
                queries,
                corpus,
                query_ids,
                corpus_ids,
                k,
                drop_self=False,
                similarity=similarity,
                device=device,
            )
        assert [list(found.items()) for found in run.values()] == [
            list(found.items()) for found in expected.values()
        ]


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize("scale", [1.0, 2.0**-148])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_the_first_pass_may_be_wrong_by_what_the_order_of_a_sum_can_make_of_it(similarity, scale, device):
    random = np.random.default_rng(5)
    queries, corpus = random.standard_normal((30, 40)), random.standard_normal((4000, 40))
    corpus[2000:] = corpus[:2000] + random.uniform(-1e-6, 1e-6, (2000, 40))
    queries, corpus = (queries * scale).astype(np.float32), (corpus * scale).astype(np.float32)
    names, ids = [f"{i}" for i in range(30)], [f"{i}" for i in range(4000)]

    def find():
        return top_k(queries, corpus, names, ids, 71, drop_self=False, similarity=similarity, device=device)

    def worse(select):
        def selected(scores, *rest):
            size = 2.0**-24 * {"manhattan": 2 * 40**0.5, "euclidean": 60}.get(similarity, 40)
            noise = random.uniform(-size, size, tuple(scores.shape)).astype(np.float32)
            scores += noise if isinstance(scores, np.ndarray) else torch.from_numpy(noise)
            return select(scores, *rest)

        return selected

    expected = find()
    for tile in ((30, 4000), (30, 500)):
        with (
            tiles(*tile),
            patch.object(exact_kernels, "_select", worse(exact_kernels._select)),
            patch.object(exact_kernels, "_select_on_device", worse(exact_kernels._select_on_device)),
        ):
            assert find() == expected


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_scores_that_float32_cannot_hold_tie(similarity):
    def best(query, corpus):
        vectors = np.array([[query]], np.float32), np.array(corpus, np.float32)[:, None]
        with tiles(1, 1):
            return list(top_k(*vectors, ["q"], list("abc"), 1, drop_self=False, similarity=similarity)["q"])

    # a would be the best, were it not for the rounding to 0 or to infinity
    assert best(1e-23, [-1e-23, -2e-23, -3e-23]) == (["c"] if similarity == "dot" else ["a"])
    assert best(3e38, [3e38, 2e38, 1e38]) == (["a"] if similarity in exact_kernels.DISTANCES else ["c"])
    assert best(3e38, [-2e38, -2.5e38, -3e38]) == ["c"]


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_results_do_not_depend_on_tiles_threads_memory_device_or_order_and_equal_vectors_tie(similarity):
    random = np.random.default_rng(0)
    N = 3000
    corpus = random.standard_normal((N, 48)).astype(np.float32)
    corpus[N // 2 :] = corpus[: N // 2]
    queries = random.standard_normal((300, 48)).astype(np.float32)
    query_ids, corpus_ids = [f"q{i}" for i in range(300)], [f"d{i:04}" for i in random.permutation(N)]

    def find(order=slice(None), **options):
        ids = np.array(corpus_ids)[order].tolist()
        return top_k(
            queries, corpus[order], query_ids, ids, 101, drop_self=False, similarity=similarity, **options
        )

    run = find()
    assert find(random.permutation(N)) == run
    assert find(memory_gib=0.01) == run
    assert find(device="cpu:0") == run
    for tile in ((128, 16384), (64, 1000), (300, 333)):
        for threads in (1, 3):
            with tiles(*tile), Threads(threads):
                assert find() == run
    twin = {corpus_ids[i]: corpus_ids[(i + N // 2) % N] for i in range(N)}
    for found in run.values():
        # 101 is odd: of the last pair only the one with the larger id is kept.
        *pairs, last = found
        assert all(found[document] == found[twin[document]] for document in pairs)
        assert last > twin[last]
        assert twin[last] not in found


def test_scores_are_the_true_sums_rounded_to_float32():
    random = np.random.default_rng(2)
    queries, corpus = random.standard_normal((2, 40, 77)).astype(np.float32)
    names = [f"{i:02}" for i in range(40)]
    run = top_k(queries, corpus, names, names, 40, drop_self=False)
    for i, row in enumerate(queries.tolist()):
        for j, other in enumerate(corpus.tolist()):
            true = math.fsum(a * b for a, b in zip(row, other, strict=True))
            assert run[names[i]][names[j]] == np.float32(true)


def test_a_pairs_score_does_not_depend_on_where_its_vectors_lie():
    random = np.random.default_rng(3)
    for D in (1, 2, 3, 8, 31, 64, 129):
        left, right = random.standard_normal((2, 50, D)).astype(np.float32)
        rows, columns = np.divmod(np.arange(2500), 50)
        for similarity in SIMILARITIES:
            together = exact_kernels._sums(left, right, rows, columns, similarity)
            for some in (slice(7, 8), slice(3, 2000, 7), slice(None, None, -1)):
                assert np.array_equal(
                    exact_kernels._sums(left, right, rows[some], columns[some], similarity), together[some]
                )
            with patch.object(exact_kernels, "PIECE", 5 * D):
                assert np.array_equal(exact_kernels._sums(left, right, rows, columns, similarity), together)


def test_a_store_is_read_once_chunk_by_chunk():
    random = np.random.default_rng(4)
    corpus, queries = random.standard_normal((500, 8), np.float32), random.standard_normal((9, 8), np.float32)
    ids, names = [f"d{i}" for i in range(500)], list("abcdefghi")
    stored = OnDisk(corpus)
    with tiles(4, 64):
        run = top_k(queries, stored, names, Texts(ids), 5, drop_self=False)
    assert stored.read == list(range(500))
    assert run == top_k(queries, corpus, names, ids, 5, drop_self=False)

    corpus[300] = np.nan
    with (
        tiles(4, 64),
        pytest.raises(ModelError, match="1 of 64 passage vectors after the first 256") as caught,
    ):
        top_k(queries, OnDisk(corpus), names, ids, 5, drop_self=False)
    assert "the first: number 301" in str(caught.value)


@pytest.mark.parametrize("workers", [ThisProcess, Pool])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_blocks_that_workers_search_give_the_results_of_one_search(
    similarity, workers, tmp_path, monkeypatch
):
    """Small integers, so that many scores tie across the blocks."""
    drawn = np.random.default_rng(0).integers(-2, 3, (700, 4)).astype(np.float32)
    store = fill(tmp_path, drawn, {}, np.array, shard_rows=100)
    ids = [f"d{7 * row % 700}" for row in range(700)]
    queries, names = drawn[:9] + np.float32(0.5), [f"d{row}" for row in range(9)]
    given = dict(drop_self=True, similarity=similarity)
    alone = top_k(queries, store, names, ids, 40, **given)
    monkeypatch.setattr(exact, "PASSAGES", 64)
    monkeypatch.setattr(exact, "PAIRS", 0)
    with using(lambda compute: contextlib.nullcontext(workers(on_device(compute, None)))):
        spread = top_k(queries, store, names, ids, 40, **given)
    assert [list(spread[query].items()) for query in spread] == [
        list(alone[query].items()) for query in alone
    ]


def test_a_block_is_not_searched_where_one_of_its_shards_is_missing_or_damaged(tmp_path):
    store = fill(tmp_path, np.eye(30, 8, dtype=np.float32), {}, np.array, shard_rows=10)
    assert store.has(0, 30)
    damaged, _, missing = sorted(tmp_path.glob("shard-*"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    missing.unlink()
    assert [store.has(start, start + 5) for start in (0, 10, 15, 25)] == [False, True, True, False]
    assert not store.has(5, 15)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_memory_stays_below_its_setting_even_if_every_score_ties(similarity):
    Q, N, D, k, gib = 200, 6000, 32, 300, 0.03
    queries, corpus = np.ones((Q, D), np.float32), np.ones((N, D), np.float32)
    ids, names = Texts(f"{i}" for i in range(N)), [f"{i}" for i in range(Q)]
    Ranking(ids, k, drop_self=False)
    tracemalloc.start()
    with Threads(2):
        run = top_k(queries, corpus, names, ids, k, drop_self=False, similarity=similarity, memory_gib=gib)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert gib / 4 < (peak - 8 * Q * k - 16 * N) / 2**30 < gib
    assert list(run["0"]) == sorted(ids, reverse=True)[:k]


def test_too_small_a_memory_is_an_error_that_names_the_least():
    vectors, names = np.ones((3000, 256), np.float32), [f"{i}" for i in range(3000)]
    with pytest.raises(RecipeError, match=r"memory_gib is 0\.001; expected at least") as caught:
        top_k(vectors, vectors, names, names, 10, drop_self=False, memory_gib=0.001)
    least = float(str(caught.value).split("at least ")[1].split()[0])
    assert 0.001 < least < 0.01
    run = top_k(vectors[:5], vectors, names[:5], names, 10, drop_self=False, memory_gib=least)
    assert list(run["4"]) == sorted(names, reverse=True)[:10]


def test_results_are_unpacked_when_asked_for_and_compare_as_dicts():
    vectors = np.eye(3, dtype=np.float32)
    run = top_k(vectors, vectors, list("xyz"), list("abc"), 2, drop_self=False)
    assert run == {"x": {"a": 1.0, "c": 0.0}, "y": {"b": 1.0, "c": 0.0}, "z": {"c": 1.0, "b": 0.0}}
    assert (len(run), list(run), run.get("d", {})) == (3, ["x", "y", "z"], {})
    run["x"]["a"] = 5.0
    assert run["x"]["a"] == 1.0
    assert score({"x": {"a": 1}, "y": {"c": 1}, "missing": {"a": 1}}, run).mean["MRR@10"] == pytest.approx(
        0.5
    )


def test_a_gpu_may_not_round_the_factors_whatever_the_training_has_set():
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for allowed in (True, False):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            with exact_kernels.full_precision():
                assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_zero_vectors_score_zero_under_cosine_and_queries_of_one_are_enough():
    corpus = np.array([[0, 0], [1, 1], [-1, 0], [0, 0]], np.float32)
    one = dict(drop_self=False, similarity="cosine")
    run = top_k(np.array([[2, 2]], np.float32), corpus, ["q"], list("abcd"), 9, **one)
    assert run["q"] == pytest.approx({"b": 1.0, "d": 0.0, "a": 0.0, "c": -math.sqrt(0.5)})
    assert top_k(np.zeros((1, 2), np.float32), corpus, ["q"], list("abcd"), 2, **one) == {
        "q": {"d": 0.0, "c": 0.0}
    }
    assert top_k(corpus[1:2], corpus[1:2], ["q"], ["d"], 1, **one) == {"q": {"d": 1.0}}


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
        with pytest.raises(ModelError, match=r"1 of 3 query vectors \(the first: number 2\)"):
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
    with pytest.raises(ModelError, match="'maxsim' is not supported; expected one of cosine"):
        top_k(two, two, list("ab"), list("ab"), 1, drop_self=False, similarity="maxsim")


def test_infinite_and_negative_scores_are_ranked():
    scores = np.array([-2.0, float("-inf"), 3e38, 0.0, 1e-45, float("inf"), -0.0], np.float32)
    ranking = Ranking(list("abcdefg"), 9, drop_self=False)
    each = np.arange(7)
    kept = ranking.merge(ranking.none(1), np.zeros_like(each), each, scores)
    assert "".join(ranking.run(["q"], kept)["q"]) == "fcegdab"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    from sentence_transformers import SentenceTransformer

    folder = tmp_path_factory.mktemp("model")
    SentenceTransformer(str(tiny_masked_lm("bert", folder / "mlm")), device="cpu").save(str(folder / "st"))
    return folder / "st"


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> RetrievalDataset:
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
            model.encode_query(list(judged.queries.values())), model.encode_document(list(judged.passages))
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
        model.encode(list(judged.passages), task="document"),
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
