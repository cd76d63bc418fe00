"""DupMAE's retrieval vector: what it is made of, that it can be trained, exported and searched exactly."""

import json
import re
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Normalize
from sentence_transformers.util import dot_score
from stzoo_retromae import dupmae_pooling, dupmae_search
from stzoo_retromae.dupmae_search import compact, retrieve, sparse
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

from stzoo.data.beir import read_beir, write_beir
from stzoo.errors import ModelError, OutputError, RecipeError
from stzoo.evaluation.scoring import score
from stzoo.hub.export import export
from stzoo.models.loading import like, load_model
from stzoo.retrieval.search.exact import retrieve as retrieve_exact
from stzoo.retrieval.search.exact import top_k
from stzoo.testing import FAMILIES, TEXTS, sentences, tiny_masked_lm

OPTIONS = {"projection": 8, "top_k": 5}
MIXED = [*TEXTS[:3], "wing", "wing lift " * 40, "lift 東京 wing"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {family: str(tiny_masked_lm(family, folder / family)) for family in FAMILIES}


@pytest.fixture
def model(bases):
    return made(bases["bert"])


def made(base, **options):
    torch.manual_seed(0)
    return load_model(base, pooling="dupmae", pooling_options=OPTIONS | options)


def both(model, texts):
    """What the model says of texts as queries and as documents."""
    return model.encode_query(texts), model.encode_document(texts)


@pytest.fixture(scope="module")
def exported(bases, tmp_path_factory):
    """A model, and the folder of its dense variant with the exact one inside, as `stzoo finetune` does."""
    model = made(bases["bert"])
    folder = export(dense(model), tmp_path_factory.mktemp("runs") / "dupmae", verify=False)
    export(model, folder / "exact", portable=False, verify=False)
    return model, folder


def dense(model):
    return like(model, [model[0], *model[1].to_builtin_modules()])


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "small"
    texts = [*sentences(70, seed=3), *sentences(5, seed=3), ""]  # five documents twice
    rows = [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(texts)]
    queries = {f"q{i}": " ".join(texts[i].split()[:4]) for i in range(12)}
    write_beir(folder, rows, queries, {"test": {query: {f"d{query[1:]}": 1} for query in queries}})
    return read_beir(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_vector_is_the_projected_cls_and_the_largest_logit_of_each_word(bases, family):
    model = made(bases[family])
    queries, documents = both(model, MIXED)
    masked_lm = AutoModelForMaskedLM.from_pretrained(bases[family]).eval()
    tokenizer = AutoTokenizer.from_pretrained(bases[family])
    special = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id}
    for text, query, document in zip(MIXED, queries, documents, strict=True):
        read = tokenizer(text, return_tensors="pt", truncation=True, max_length=model.max_seq_length)
        read.pop("token_type_ids", None)
        with torch.no_grad():
            out = masked_lm(**read, output_hidden_states=True)
            h = model[1].project(out.hidden_states[-1][0, 0])
        if family != "modernbert":  # whose last hidden state is normed once more
            assert np.allclose(query[:8], h.numpy(), atol=1e-5)
        ordinary = [token not in special for token in read["input_ids"][0].tolist()]
        mu = out.logits[0][torch.tensor(ordinary)].max(0).values
        assert np.allclose(query[8:], mu.numpy(), atol=1e-5)
        top = mu.topk(5)
        assert set(np.flatnonzero(document[8:])) == set(top.indices.tolist())
        assert np.allclose(document[8:][top.indices], top.values, atol=1e-5)
        assert np.array_equal(document[:8], query[:8])


def test_a_text_without_a_task_is_a_document_and_features_may_name_the_task(model):
    queries, documents = both(model, MIXED)
    assert np.array_equal(model.encode(MIXED), documents)
    features = model.preprocess(MIXED)
    with torch.no_grad():
        named = model(dict(features) | {"task": "query"})["sentence_embedding"]
        unnamed = model(dict(features))["sentence_embedding"]
    assert np.allclose(named, queries, atol=1e-5)
    assert np.allclose(unnamed, documents, atol=1e-5)
    assert not np.allclose(queries, documents, atol=1e-2)


def test_the_words_of_a_text_without_ordinary_tokens_are_0(model):
    queries, documents = both(model, ["", "[MASK] [SEP]"])
    assert not queries[:, 8:].any()
    assert not documents[:, 8:].any()
    assert queries[:, :8].any(1).all()


def test_an_unknown_word_is_an_ordinary_token(model):
    assert model.encode_query("東京")[8:].any()


def test_saturation_takes_the_logarithm_of_the_positive_scores(bases, model):
    plain, saturated = model.encode_query(MIXED), made(bases["bert"], saturate=True).encode_query(MIXED)
    assert np.allclose(saturated[:, 8:], np.log1p(np.maximum(plain[:, 8:], 0)), atol=1e-6)
    assert (plain[:, 8:] < 0).any()


def test_positions_taken_a_few_at_a_time_change_neither_vector_nor_gradient(model):
    def run(logits):
        model.zero_grad()
        with patch.object(dupmae_pooling, "LOGITS", logits):
            vectors = model(model.preprocess(MIXED) | {"task": "query"})["sentence_embedding"]
        (vectors * torch.arange(vectors.numel()).view_as(vectors).cos()).sum().backward()
        return [vectors.detach(), *(part.grad for part in model.parameters() if part.grad is not None)]

    model.eval()
    with torch.no_grad():  # as the row of [PAD] is 0, its logits tie at all positions
        model[0].model.get_input_embeddings().weight[0].normal_()
    whole, pieces = run(2**26), run(1)
    assert len(whole) == len(pieces) > 20
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(whole, pieces, strict=True))


def test_texts_joined_for_flash_attention_give_the_vectors_of_padded_ones(model):
    features = model.preprocess(MIXED)
    padded = model(dict(features))
    there = features["attention_mask"].bool()
    lengths = there.sum(1)
    joined = {
        "input_ids": features["input_ids"][there][None],
        "token_embeddings": padded["token_embeddings"][there][None],
        "cu_seq_lens_q": torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]),
    }
    again = model[1](joined)["sentence_embedding"]
    assert torch.allclose(again, padded["sentence_embedding"], atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_is_tied_to_the_word_embeddings_as_it_was_in_the_base(bases, tmp_path, tied):
    config = AutoConfig.from_pretrained(bases["bert"], tie_word_embeddings=tied)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bases["bert"]).save_pretrained(tmp_path)
    model = made(str(tmp_path))
    words = model[0].model.get_input_embeddings().weight
    decoder = model[1].head.get_output_embeddings().weight
    assert (decoder is words) == tied
    assert len({id(part) for part in model.parameters()}) == len(list(model.parameters()))
    before, optimiser = decoder.detach().clone(), torch.optim.SGD(model.parameters(), 0.1)
    model(model.preprocess(MIXED))["sentence_embedding"].square().sum().backward()
    optimiser.step()
    assert not torch.equal(decoder, before)
    assert torch.equal(decoder, words) == tied


def test_training_through_cached_gradients_reaches_projection_head_and_encoder_and_lowers_the_loss(model):
    asked = [" ".join(text.split()[:3]) for text in TEXTS]
    batch = [
        model.preprocess(asked, task="query") | {"task": "query"},
        model.preprocess(TEXTS, task="document") | {"task": "document"},
    ]
    loss = CachedMultipleNegativesRankingLoss(model, scale=1, similarity_fct=dot_score, mini_batch_size=3)
    optimiser, values = torch.optim.Adam(model.parameters(), 2e-3), []
    for _ in range(5):
        optimiser.zero_grad()
        value = loss([dict(one) for one in batch], None)
        value.backward()
        values.append(float(value.detach()))
        optimiser.step()
    assert values[-1] < values[0] - 0.1
    grads = {name: part.grad for name, part in model.named_parameters() if "pooler" not in name}
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads.values())
    assert {name.split(".")[1] for name in grads if name.startswith("1.")} == {"project", "head"}


def test_both_parts_of_the_score_count(model):
    queries, documents = map(torch.from_numpy, both(model, TEXTS))
    whole = queries @ documents.T
    parts = [queries[:, here] @ documents[:, here].T for here in (slice(8), slice(8, None))]
    assert torch.allclose(sum(parts), whole, atol=1e-4)
    for part in parts:
        assert (part - part.mean(1, keepdim=True)).abs().max() > 1e-3


def test_the_dense_variant_loads_plain_and_is_the_first_part_of_the_vector(exported):
    model, folder = exported
    plain = SentenceTransformer(str(folder), device="cpu")
    assert np.allclose(plain.encode(MIXED), model.encode(MIXED)[:, :8], atol=1e-6)


ALONE = """
import sys
for name in ("stzoo", "stzoo_retromae"):
    sys.modules[name] = None
import numpy
from sentence_transformers import SentenceTransformer
folder, again, texts, answers = sys.argv[1:]
texts = open(texts, encoding="utf-8").read().split("|")
wanted = numpy.load(answers)
model = SentenceTransformer(folder, trust_remote_code=True, device="cpu", local_files_only=True)
model.save_pretrained(again, create_model_card=False)
for one in (model, SentenceTransformer(again, trust_remote_code=True, device="cpu", local_files_only=True)):
    assert numpy.allclose(one.encode_query(texts), wanted[0], atol=1e-6)
    assert numpy.allclose(one.encode_document(texts), wanted[1], atol=1e-6)
print("the same")
"""


def test_the_exact_export_answers_the_same_without_stzoo_and_survives_being_saved_again(exported, tmp_path):
    model, folder = exported[0], exported[1] / "exact"
    (tmp_path / "texts").write_text("|".join(MIXED), encoding="utf-8")
    np.save(tmp_path / "answers.npy", np.stack(both(model, MIXED)))
    places = [folder, tmp_path / "again", tmp_path / "texts", tmp_path / "answers.npy"]
    command = [sys.executable, "-P", "-c", ALONE, *map(str, places)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout.strip() == "the same", done.stderr[-2000:]
    stored = (folder / "1_DupMAEPooling" / "config.json").read_text(encoding="utf-8")
    assert str(tmp_path.parents[1]) not in stored
    assert "_name_or_path" not in json.loads(stored)["masked_lm"]


def test_a_base_without_a_trained_head_is_refused(exported, tmp_path):
    model, folder = exported
    with pytest.raises(ModelError, match=r"no trained MLM head.*missing: cls.*stzoo pretrain"):
        made(str(folder))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ValueError, match="it has no MLM head"):
        model[1].init_from_base(str(tmp_path), model[0])


def test_options_that_do_not_hold_are_refused(bases):
    with pytest.raises(ModelError, match="top_k is 0; expected at least 1"):
        made(bases["bert"], top_k=0)
    with pytest.raises(RecipeError, match="topk"):
        made(bases["bert"], topk=3)
    with pytest.raises(RecipeError, match=r"pooling_options \(top_k\) have no effect without a pooling"):
        load_model(bases["bert"], pooling_options={"top_k": 3})
    with pytest.raises(ValueError, match="no MLM head yet"):
        dupmae_pooling.dupmae(32)({})


def test_a_pooling_that_is_wider_than_what_stands_behind_it_is_refused(model, bases, tmp_path):
    masked_lm = AutoModelForMaskedLM.from_pretrained(bases["bert"])
    model[0].model = masked_lm.base_model
    export(dense(model), tmp_path / "dense", masked_lm=masked_lm, verify=False)
    with pytest.raises(ModelError, match=r"the dimension 308; the next module of .*, a Dense"):
        made(str(tmp_path / "dense"))


@settings(deadline=None)
@given(arrays(np.float32, (4, 9), elements=st.sampled_from([-2.0, 0.0, 0.0, 1.0, 3.0])))
def test_a_stored_row_is_the_whole_vector(rows):
    stored = compact(rows, 3, 6)
    assert stored.shape == (4, 15)
    assert np.array_equal(sparse(stored, 3, 9).toarray(), rows)


@pytest.mark.parametrize("similarity", ["dot", "cosine", "normalised"])
@pytest.mark.parametrize("sizes", [(512, 128, 4096), (5, 2, 7)])
def test_search_finds_what_comparing_all_whole_vectors_finds(model, judged, similarity, sizes):
    model = like(model, [*model, *[Normalize()] * (similarity == "normalised")])
    model.similarity_fn_name = "cosine" if similarity == "cosine" else "dot"
    names = dict(zip(("ENCODED", "QUERIES", "PASSAGES"), sizes, strict=True))
    with patch.multiple(dupmae_search, **names):
        found = retrieve(model, judged, k=9)
    queries = model.encode_query(list(judged.queries.values()))
    documents = model.encode_document(list(judged.passages))
    wanted = top_k(
        queries,
        documents,
        list(judged.queries),
        judged.corpus_ids,
        9,
        drop_self=False,
        similarity=model.similarity_fn_name,
    )
    for query in judged.queries:
        assert list(found[query]) == list(wanted[query])
        assert np.allclose(list(found[query].values()), list(wanted[query].values()), rtol=1e-5, atol=1e-5)
    mine, theirs = score(judged.qrels, found).mean, score(judged.qrels, wanted).mean
    assert mine == pytest.approx(theirs)


def test_equal_documents_tie_and_the_later_id_stands_first(model, judged):
    with patch.multiple(dupmae_search, PASSAGES=7, ENCODED=9):
        found = retrieve(model, judged, k=100)
    for query in judged.queries:
        for number in range(5):
            assert found[query][f"d{number}"] == found[query][f"d{number + 70}"]
            order = list(found[query])
            assert order.index(f"d{number + 70}") == order.index(f"d{number}") + (-1 if number < 7 else 1)


def test_documents_that_are_kept_are_not_encoded_again_and_not_mixed_up(model, judged, tmp_path):
    first = retrieve(model, judged, k=3, folder=tmp_path / "store")
    with patch.object(dupmae_search, "compact", side_effect=AssertionError("encoded again")):
        again = retrieve(model, judged, k=3, folder=tmp_path / "store")
    assert dict(again) == dict(first)
    with torch.no_grad():
        model[1].project.weight.add_(0.1)
    with pytest.raises(OutputError, match=r"other settings \(facts\.model: "):
        retrieve(model, judged, k=3, folder=tmp_path / "store")


def test_memory_does_not_grow_by_whole_vectors(model, judged):
    def peak(documents):
        texts = [f"wing {text}" for text in ("lift", "sugar", "treaty", "rates")] * (documents // 4)
        two = dict(list(judged.queries.items())[:2])
        ids = [f"d{i}" for i in range(documents)]
        many = replace(judged, corpus_ids=ids, passages=texts, queries=two)
        tracemalloc.start()
        with patch.multiple(dupmae_search, PASSAGES=64, ENCODED=64):
            retrieve(model, many, k=5)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(200)  # imports
    whole = 308 * 4
    assert peak(1400) - peak(400) < 1000 * whole / 3


def test_models_that_cannot_be_searched_so_are_refused(model, judged):
    with pytest.raises(ModelError, match="expected a DupMAEPooling"):
        retrieve(dense(model), judged)
    model.similarity_fn_name = "euclidean"
    with pytest.raises(ModelError, match="similarity of the model is euclidean"):
        retrieve(model, judged)


def test_the_documentation_shows_how_to_score_both_forms(exported, judged, tmp_path, monkeypatch, capsys):
    model, folder = exported
    (tmp_path / "runs").symlink_to(folder.parent)
    (tmp_path / "scifact").symlink_to(judged.folder)
    page = Path(__file__).parents[3] / "docs/methods/dupmae.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(page), "exec"), {})
    lines = capsys.readouterr().out.strip().splitlines()
    runs = {
        "dense": retrieve_exact(dense(model), judged),
        "hybrid": retrieve(model, judged),
    }
    wanted = {name: score(judged.qrels, run).mean["nDCG@10"] for name, run in runs.items()}
    assert [line.split() for line in lines] == [[name, f"{value:.4f}"] for name, value in wanted.items()]
    assert wanted["dense"] != wanted["hybrid"]
