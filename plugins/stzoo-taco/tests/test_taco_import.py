"""TACO's folders, made here as its code writes them with tiny random weights, give its code's vectors."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from stzoo_taco.importer import t5
from transformers import AutoTokenizer, T5ForConditionalGeneration, T5Model

import stzoo
from stzoo import ModelError, RecipeError
from stzoo.hub.published import Published
from stzoo.plugins import manager
from stzoo.testing import sentences, tiny_masked_lm, tiny_t5

TEXTS = ["wing lift", "", *sentences(4), " ".join(sentences(40))]
LIKE = "taco-base.kilt"
UNREAD = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def start_with_zero(folder):
    """A tiny T5's folder with T5's own first token, id 0; that of the tiny tokenizer's padding is another."""
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decoder_start_token_id": 0}))
    return Path(folder)


def model_folder(folder, seed=0):
    """`AutoModel.save_pretrained` of a T5 in the time of TACO: pickled, tied weights thrice."""
    made = start_with_zero(tiny_t5(Path(folder), seed=seed))
    model = T5Model.from_pretrained(made).eval()
    (made / "model.safetensors").unlink()
    torch.save(model.state_dict(), made / "pytorch_model.bin")
    return model


def linear(folder, seed=0):
    """`LinearHead.save`."""
    Path(folder).mkdir(exist_ok=True)
    torch.manual_seed(seed)
    head = torch.nn.Linear(32, 8, bias=False)
    torch.save({"linear.weight": head.weight.detach()}, Path(folder) / "linear.pt")
    (Path(folder) / "head_config.json").write_text(json.dumps({"input_dim": 32, "output_dim": 8}))
    return head


def original(model, tokenizer, texts, most, head=None):
    """`DenseModel.dense_encode`: the decoder's state after a token 0."""
    read = tokenizer(texts, padding=True, truncation=True, max_length=most, return_tensors="pt")
    with torch.no_grad():
        given = dict(input_ids=read["input_ids"], attention_mask=read["attention_mask"])
        start = torch.zeros(len(texts), 1, dtype=torch.int64)
        vectors = model(**given, decoder_input_ids=start).last_hidden_state[:, 0]
        return (vectors if head is None else head(vectors)).numpy()


@pytest.fixture
def unverified(monkeypatch):
    """Exports are not checked by a process of their own, which takes seconds; other tests see to it."""
    monkeypatch.setattr("stzoo.hub.export._verify", lambda *_, **__: None)


def imported(source, out, like=LIKE, **options):
    folder = stzoo.import_checkpoint(source, output=out, like=like, options=options)
    return SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.usefixtures("unverified")
def test_a_tied_folder_is_one_tower(projected, tmp_path):
    source = tmp_path / "source"
    whole = model_folder(source)
    head = linear(source) if projected else None
    model, tokenizer = imported(source, tmp_path / "out"), AutoTokenizer.from_pretrained(source)
    expected = original(whole, tokenizer, TEXTS, 160, head)
    np.testing.assert_allclose(model.encode_document(TEXTS), expected, atol=1e-6, rtol=0)
    prompted = original(whole, tokenizer, [f"FEVER <extra_id_1> {text}" for text in TEXTS], 160, head)
    np.testing.assert_allclose(model.encode(TEXTS, prompt_name="fever"), prompted, atol=1e-6, rtol=0)
    assert model.similarity_fn_name == "dot"
    assert expected.shape[1] == (8 if projected else 32)


def test_an_untied_folder_is_two_towers(tmp_path):
    source = tmp_path / "source"
    towers = [model_folder(source / name, seed) for seed, name in enumerate(("query_model", "passage_model"))]
    heads = [linear(source / f"{name}_head", seed) for seed, name in enumerate(("query", "passage"))]
    tokenizer = AutoTokenizer.from_pretrained(source / "query_model")
    for file in source.glob("*_model/tokenizer*"):
        file.unlink()
    tokenizer.save_pretrained(source)  # where its training leaves it
    model = imported(source, tmp_path / "out")  # exported with its check
    queries = original(towers[0], tokenizer, TEXTS, 260, heads[0])
    passages = original(towers[1], tokenizer, TEXTS, 160, heads[1])
    np.testing.assert_allclose(model.encode_query(TEXTS), queries, atol=1e-6, rtol=0)
    np.testing.assert_allclose(model.encode_document(TEXTS), passages, atol=1e-6, rtol=0)
    prompted = original(towers[0], tokenizer, [f"WOW <extra_id_1> {text}" for text in TEXTS], 260, heads[0])
    np.testing.assert_allclose(model.encode_query(TEXTS, prompt_name="wow"), prompted, atol=1e-6, rtol=0)


@pytest.mark.usefixtures("unverified")
def test_queries_are_read_by_the_folder_itself_where_only_passages_have_their_own(tmp_path):
    source = tmp_path / "source"
    towers = [model_folder(source, 0), model_folder(source / "passage_model", 1)]
    model, tokenizer = imported(source, tmp_path / "out"), AutoTokenizer.from_pretrained(source)
    np.testing.assert_allclose(
        model.encode_query(TEXTS), original(towers[0], tokenizer, TEXTS, 260), atol=1e-6, rtol=0
    )
    ours = model.encode_document(TEXTS)
    np.testing.assert_allclose(ours, original(towers[1], tokenizer, TEXTS, 160), atol=1e-6, rtol=0)


def test_the_bases_tokenizer_stands_in_for_a_slow_one(tmp_path):
    base, source = tiny_t5(tmp_path / "base"), tmp_path / "source"
    whole = model_folder(source)
    for file in source.glob("tokenizer*"):
        file.unlink()
    (source / "spiece.model").write_bytes(b"what a slow tokenizer saves")
    row = replace(manager.find("checkpoint", LIKE), base=str(base))
    model, tokenizer = t5(Published(source, row)).model, AutoTokenizer.from_pretrained(base)
    np.testing.assert_allclose(model.encode(TEXTS), original(whole, tokenizer, TEXTS, 160), atol=1e-6, rtol=0)


def overflowing(folder):
    """A T5 v1.0 as published, whose feed-forward layers leave float16's range (65,504)."""
    made = start_with_zero(tiny_t5(Path(folder)))
    whole = T5ForConditionalGeneration.from_pretrained(made).eval()
    with torch.no_grad():
        whole.shared.weight *= 10
        for name, weight in whole.named_parameters():
            if name.endswith("DenseReluDense.wo.weight"):
                weight *= 2e5
    tensors = {name: tensor.clone() for name, tensor in whole.state_dict().items()} | {
        UNREAD: torch.ones(32, 4)
    }
    (made / "model.safetensors").unlink()
    torch.save(tensors, made / "pytorch_model.bin")
    inner = T5Model(whole.config).eval()
    inner.load_state_dict(
        {name: tensor for name, tensor in whole.state_dict().items() if "lm_head" not in name}
    )
    return made, inner


@pytest.mark.usefixtures("unverified")
def test_a_rescaled_t5_gives_the_same_vectors_and_does_not_overflow_float16(tmp_path):
    source, whole = overflowing(tmp_path / "source")
    plain, rescaled = (
        imported(source, tmp_path / str(asked), like="t5-base.c4", rescale_t5=asked)
        for asked in (False, True)
    )
    expected = original(whole, AutoTokenizer.from_pretrained(source), TEXTS, 512)
    np.testing.assert_allclose(plain.encode(TEXTS), expected, atol=1e-6, rtol=0)
    np.testing.assert_allclose(rescaled.encode(TEXTS), expected, atol=2e-5, rtol=0)
    assert np.abs(expected).max() > 0.1
    assert not np.isfinite(plain.half().encode(TEXTS)).all()
    halved = rescaled.half().encode(TEXTS)
    np.testing.assert_allclose(
        halved.astype(np.float32), expected, atol=0.02 * np.abs(expected).max(), rtol=0
    )
    facts = json.loads((tmp_path / "True/import.json").read_text())["imported"]
    assert facts["options"] == {"rescale_t5": True}


def test_a_t5_with_gates_cannot_be_rescaled(tmp_path):
    source = tmp_path / "source"
    model = model_folder(source)
    config = model.config
    config.feed_forward_proj, config.is_gated_act, config.dense_act_fn = "gated-gelu", True, "gelu_new"
    config.save_pretrained(source)
    torch.save(T5Model(config).state_dict(), source / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"with T5 v1\.0 only.*gated-gelu"):
        imported(source, tmp_path / "out", rescale_t5=True)
    with pytest.raises(RecipeError, match="rescale_t5 is 'perhaps'"):
        imported(source, tmp_path / "out", rescale_t5="perhaps")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def broken(source):
    yield "other model", lambda: tiny_masked_lm("bert", source), "of type bert; expected t5"
    bad = {"linear.weight": torch.ones(3, 32)}
    yield (
        "other head",
        lambda: (linear(source), torch.save(bad, source / "linear.pt")),
        r"\[3, 32\].*expected .*\[8, 32\]",
    )
    yield (
        "no sizes",
        lambda: (linear(source), (source / "head_config.json").unlink()),
        "head_config.json is missing",
    )
    yield "towers of tasks", lambda: (source / "query_model_NQ").mkdir(), "query_model_NQ; query towers"
    yield (
        "no decoder",
        lambda: torch.save(encoder_only(source), source / "pytorch_model.bin"),
        "Missing: decoder.block",
    )


def encoder_only(source):
    tensors = torch.load(source / "pytorch_model.bin", weights_only=True)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("decoder.")}


@pytest.mark.parametrize("fault", ["other model", "other head", "no sizes", "towers of tasks", "no decoder"])
def test_folders_of_another_form_are_refused(fault, tmp_path):
    source = tmp_path / "source"
    model_folder(source)
    damage, told = {name: (damage, told) for name, damage, told in broken(source)}[fault]
    damage()
    with pytest.raises(ModelError, match=told):
        imported(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
