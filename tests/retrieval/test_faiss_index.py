import json
import re

import faiss
import numpy as np
import pytest
from support.helpers import in_trec_order

from stzoo.errors import ModelError, OutputError, RecipeError, ShapeError
from stzoo.retrieval.search import faiss_build
from stzoo.retrieval.search.exact import top_k
from stzoo.retrieval.search.faiss_index import open_index, recall

N, D, Q = 600, 16, 20
RANDOM = np.random.default_rng(0)
CORPUS = RANDOM.standard_normal((N, D)).astype(np.float32)
QUERIES = (CORPUS[:Q] + 0.3 * RANDOM.standard_normal((Q, D))).astype(np.float32)
IDS, NAMES = [f"d{i}" for i in range(N)], [f"q{i}" for i in range(Q)]

# The least of the ten nearest that each kind should find here; what is not compressed finds all.
FACTORIES = {
    "Flat": 1.0,
    "IDMap,Flat": None,  # does not number its vectors by itself
    "HNSW32": 1.0,
    "HNSW32,SQ8": 0.9,
    "NSG16": 0.9,
    "IVF4,Flat": 0.5,
    "IVF4_HNSW8,SQ8": 0.5,
    "SQ8": 0.9,
    "SQfp16": 0.95,
    "PQ8np": 0.5,
    "PQ8x4fs": 0.2,
    "IVF4,PQ8np,RFlat": 0.5,
    "OPQ8,IVF4,PQ8np": 0.4,
    "OPQ8_8,PQ8x4": 0.1,
    "PCA8,Flat": 0.3,
    "PCAR12,HNSW16": 0.4,
    "L2norm,Flat": None,  # cosine already is
    "RQ4x4": 0.1,
    "IVF4,RaBitQ": 0.1,
}


class OnDisk:
    """Vectors that can be read by slices only; remembers the slices."""

    def __init__(self, vectors):
        self.vectors, self.shape, self.read = vectors, vectors.shape, []

    def __getitem__(self, rows):
        self.read.append(rows.indices(len(self.vectors))[:2])
        return self.vectors[rows].copy()


def exact(k=10, similarity="cosine", queries=QUERIES, corpus=CORPUS, ids=IDS, **options):
    about = dict(drop_self=False, similarity=similarity) | options
    return top_k(queries, corpus, NAMES[: len(queries)], ids, k, **about)


def find(index, k=10, queries=QUERIES, ids=IDS, **options):
    return index.search(queries, NAMES[: len(queries)], ids, k, **dict(drop_self=False) | options)


@pytest.mark.parametrize("factory", [name for name, least in FACTORIES.items() if least])
def test_any_factory_string_finds_most_of_the_nearest_and_the_saved_index_finds_the_same(tmp_path, factory):
    made = open_index(tmp_path, CORPUS, factory, similarity="cosine")
    run = find(made)
    assert recall(exact(), run, 10) >= FACTORIES[factory]
    assert all(len(found) == 10 and list(found) == in_trec_order(found) for found in run.values())
    again = open_index(tmp_path, CORPUS, factory, similarity="cosine")
    assert (made.reused, again.reused) == (False, True)
    assert find(again) == run
    assert again.nbytes == again.path.stat().st_size > 0


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_a_flat_index_finds_and_scores_as_exact_search_does(tmp_path, similarity):
    corpus = CORPUS * np.linspace(0.5, 2, N, dtype=np.float32)[:, None]
    index = open_index(tmp_path, corpus, "Flat", similarity=similarity)
    expected, run = exact(30, similarity, corpus=corpus), find(index, 30)
    for query, found in expected.items():
        assert list(run[query]) == list(found)
        assert run[query] == pytest.approx(found, abs=1e-5)


@pytest.mark.parametrize("factory", ["Flat", "HNSW32", "IVF8,Flat", "SQ8", "PQ8x4fs"])
def test_more_than_there_is_can_be_asked_for(tmp_path, factory):
    index = open_index(tmp_path, CORPUS, factory, similarity="cosine")
    for k in (N, N + 1, 5000):
        run = find(index, k)
        assert all(0 < len(found) <= N and set(found) <= set(IDS) for found in run.values())
        assert all(min(found.values()) >= -1.1 for found in run.values())  # FAISS pads with -3.4e38
        if factory in ("Flat", "SQ8", "PQ8x4fs"):
            assert all(len(found) == N for found in run.values())


def test_one_query_and_one_document_are_enough(tmp_path):
    one = CORPUS[:1]
    for factory in ("Flat", "HNSW32", "SQ8", "IVF1,Flat"):
        index = open_index(tmp_path, one, factory, similarity="cosine")
        assert find(index, 1000, one, ["d"]) == {"q0": {"d": pytest.approx(1.0, abs=0.02)}}


def test_a_query_that_finds_itself_loses_no_place_for_it(tmp_path):
    index = open_index(tmp_path, CORPUS, "Flat", similarity="cosine")
    run = index.search(CORPUS[:5], IDS[:5], IDS, 3, drop_self=True)
    assert all(len(found) == 3 and query not in found for query, found in run.items())
    kept = index.search(CORPUS[:5], IDS[:5], IDS, 1, drop_self=False)
    assert [list(found) for found in kept.values()] == [[query] for query in IDS[:5]]


def test_ties_are_ordered_by_id(tmp_path):
    corpus = np.repeat(CORPUS[:3], 4, axis=0)
    ids = list("cahbfgedlkij")
    index = open_index(tmp_path, corpus, "Flat", similarity="cosine")
    assert list(find(index, 4, CORPUS[:1], ids)["q0"]) == ["h", "c", "b", "a"]


def test_search_parameters_change_what_is_found_and_are_gone_in_the_next_search(tmp_path):
    index = open_index(tmp_path, CORPUS, "IVF32,Flat", similarity="cosine")
    few, all_lists = find(index), find(index, search_params="nprobe=32")
    assert recall(exact(), few, 10) < 0.9
    assert recall(exact(), all_lists, 10) == 1
    assert find(index, search_params="nprobe=32") == all_lists
    assert find(index, search_params="nprobe=1,max_codes=100000") == few
    assert find(index) == few
    graph = open_index(tmp_path, CORPUS, "OPQ8,IVF4_HNSW8,PQ8x4", similarity="cosine")
    assert find(graph, search_params="nprobe=4,quantizer_efSearch=40") != find(graph)


@pytest.mark.parametrize(
    "params",
    [
        "efSearch=64",
        "nprobe",
        "nprobe=0",
        "nprobe=-1",
        "nprobe=x",
        "nprobe=1e9",
        "nprobe=2;max_codes=1",
        "nonsense=3",
        "",
    ],
)
def test_search_parameters_that_the_index_does_not_have_are_errors(tmp_path, params):
    index = open_index(tmp_path, CORPUS, "IVF4,Flat", similarity="cosine")
    with pytest.raises(RecipeError, match=re.escape(repr(params))):
        find(index, search_params=params)
    assert len(find(index)) == Q


@pytest.mark.parametrize(
    ("factory", "similarity", "reason"),
    [
        ("nonsense", "cosine", "could not parse"),
        ("", "cosine", "could not parse"),
        ("BHNSW32", "cosine", "could not parse"),
        ("PQ7", "cosine", "multiple of the number of subquantizers"),
        ("OPQ5,IVF4,PQ4", "cosine", "multiple of the number of subquantizers"),
        ("PCA32,Flat", "cosine", "cannot output 32 dimensions from 16"),
        ("IVF700,Flat", "cosine", r"training points \(600\) should be at least as large"),
        ("PQ4x12", "cosine", r"training points \(600\) should be at least as large"),
        ("IMI2x4,Flat", "cosine", "not implemented for inner prod"),
        ("HNSW32_PQ4", "cosine", "does not support cosine"),
        ("LSH", "dot", "METRIC_L2"),
        ("IDMap,Flat", "cosine", "add_with_ids"),
        ("IVF99999999999999999999,Flat", "cosine", "stoi"),
        ("IVF1000000000,Flat", "cosine", "bad_alloc"),
        # these would end the process, or not come back
        ("HNSW0", "cosine", "too small"),
        ("HNSW1,SQ8", "cosine", "too small"),
        ("IVF4_HNSW1,Flat", "cosine", "too small"),
        ("NSG2", "cosine", "too small"),
        ("PQ4x0", "cosine", "too small"),
        ("OPQ4_0,PQ4x4", "cosine", "too small"),
        ("RQ4x0", "cosine", "too small"),
        ("Flat", "manhattan", "got 'manhattan'"),
    ],
)
def test_an_index_that_faiss_cannot_make_is_an_error_with_its_reason(tmp_path, factory, similarity, reason):
    with pytest.raises(RecipeError, match=reason):
        open_index(tmp_path, CORPUS, factory, similarity=similarity)
    assert list(tmp_path.iterdir()) == []


def test_an_index_of_other_vectors_seed_or_similarity_is_never_used(tmp_path):
    first = open_index(tmp_path, CORPUS, "IVF4,Flat", similarity="cosine", metadata={"texts": "a"})
    same = dict(factory="IVF4,Flat", similarity="cosine", metadata={"texts": "a"})
    assert open_index(tmp_path, CORPUS, **same).reused
    for change in (
        dict(metadata={"texts": "b"}),
        dict(metadata=None),
        dict(seed=1),
        dict(similarity="dot"),
        dict(factory="IVF8,Flat"),
    ):
        assert not open_index(tmp_path, CORPUS, **same | change).reused
        assert open_index(tmp_path, CORPUS, **same | change).reused
    assert open_index(tmp_path, CORPUS, **same | dict(metadata=None)).reused  # they lie side by side
    other = CORPUS[::-1].copy()
    by_digest = open_index(tmp_path, other, "IVF4,Flat", similarity="cosine")
    assert not by_digest.reused
    assert list(find(by_digest, 1, CORPUS[:1])["q0"]) == [IDS[-1]]
    assert recall(exact(), find(first, search_params="nprobe=4"), 10) == 1


@pytest.mark.parametrize("harm", ["cut", "flipped", "gone", "note cut", "note gone", "note of another"])
def test_a_damaged_index_is_built_again(tmp_path, harm):
    made = open_index(tmp_path, CORPUS, "SQ8", similarity="cosine")
    note = made.path.with_suffix(".json")
    raw = made.path.read_bytes()
    if harm == "cut":
        made.path.write_bytes(raw[:-1])
    elif harm == "flipped":
        made.path.write_bytes(raw[:500] + bytes([raw[500] ^ 1]) + raw[501:])
    elif harm == "gone":
        made.path.unlink()
    elif harm == "note cut":
        note.write_text(note.read_text()[:-20])
    elif harm == "note gone":  # as if killed between the two
        note.unlink()
    else:
        note.write_text(json.dumps(json.loads(note.read_text()) | {"documents": N - 1}))
    again = open_index(tmp_path, CORPUS, "SQ8", similarity="cosine")
    assert not again.reused
    assert again.path.read_bytes() == raw
    assert {file.suffix for file in tmp_path.iterdir()} == {".faiss", ".json"}


def test_the_note_beside_an_index_says_what_it_was_made_from(tmp_path):
    made = open_index(tmp_path, CORPUS, "IVF4,PQ4x4", similarity="dot", seed=3, metadata={"model": "m"})
    facts = json.loads(made.path.with_suffix(".json").read_text())
    assert facts == made.metadata
    assert facts.pop("seconds") >= 0
    assert len(facts.pop("sha256")) == 64
    assert facts == {
        "schema_version": 1,
        "factory": "IVF4,PQ4x4",
        "similarity": "dot",
        "seed": 3,
        "documents": N,
        "width": D,
        "precision": "float32",
        "vectors": {"model": "m"},
        "faiss": faiss.__version__,
    }


def test_a_store_is_read_in_chunks_that_the_memory_bounds(tmp_path):
    corpus = np.tile(CORPUS, (20, 1))
    stored = OnDisk(corpus)
    gib = 16 * D * 1000 / 2**30
    index = open_index(tmp_path, stored, "IVF4,Flat", similarity="cosine", metadata={}, memory_gib=gib)
    chunks = [(start, start + 1000) for start in range(0, 20 * N, 1000)]
    assert stored.read == chunks * 2  # once for the sample to train on, once for all
    ids = [f"{i:05}" for i in range(20 * N)]
    run = find(index, 20, ids=ids, search_params="nprobe=4")
    assert recall(exact(20, corpus=corpus, ids=ids), run, 20) == 1

    stored = OnDisk(corpus)
    open_index(tmp_path, stored, "HNSW8", similarity="cosine", metadata={}, memory_gib=gib)
    assert stored.read == chunks  # nothing to train


def test_the_sample_is_drawn_by_its_seed_and_large_enough_for_what_is_trained():
    stored = OnDisk(np.arange(500, dtype=np.float32)[:, None] + np.zeros((1, 4), np.float32))
    first, again, other = (
        faiss_build._sample(stored, 50, seed, 2**12).vectors[:, 0].tolist() for seed in (0, 0, 1)
    )
    assert first == again != other
    assert len(set(first)) == 50
    assert first == sorted(first)
    assert faiss_build._sample(stored, 50, 0, 640).vectors.shape == (10, 4)
    assert faiss_build._sample(stored, 900, 0, 2**20).vectors[:, 0].tolist() == list(range(500))
    for factory, wanted in {
        "PQ4": 2**16,
        "IVF1000,Flat": 256_000,
        "OPQ4,IVF300,PQ4": 76_800,
        "PQ4x10": 2**18,
        "Flat": 2**16,
    }.items():
        assert faiss_build._sample_size(faiss.index_factory(16, factory), factory) == wanted


def test_what_does_not_fit_together_is_an_error(tmp_path):
    broken = CORPUS.copy()
    broken[400, 3] = np.nan
    with pytest.raises(ModelError, match="number 401"):
        open_index(tmp_path, broken, "Flat", similarity="cosine")
    index = open_index(tmp_path, CORPUS, "Flat", similarity="cosine")
    with pytest.raises(ModelError, match="1 of 1 query vectors"):
        find(index, queries=broken[400:401])
    with pytest.raises(ShapeError, match=r"599 corpus ids; expected .* and 600 ids for this index"):
        find(index, ids=IDS[1:])
    with pytest.raises(ShapeError, match="for this index"):
        find(index, queries=QUERIES[:, 1:])
    with pytest.raises(RecipeError, match="k is 0"):
        find(index, 0)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="could not be written"):
        open_index(tmp_path / "link", CORPUS, "Flat", similarity="cosine")


def test_faiss_works_on_the_threads_of_torch_and_is_left_as_it_was():
    import torch

    before, threads = faiss.omp_get_max_threads(), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with faiss_build.faiss_errors("it failed"):
            assert faiss.omp_get_max_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert faiss.omp_get_max_threads() == before


def test_recall_is_the_mean_share_of_the_first_k():
    truth = {"a": {"1": 3.0, "2": 2.0, "3": 1.0}, "b": {"1": 1.0}, "c": {"9": 1.0}, "d": {}}
    other = {"a": {"3": 9.0, "1": 8.0, "2": 7.0}, "b": {"1": 1.0, "2": 0.5}, "d": {"1": 1.0}}
    assert recall(truth, other, 2) == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert recall(truth, other, 3) == pytest.approx(2 / 3)
    assert recall(truth, truth, 5) == 1
