"""Queries and continuations by tiny random models: whose text is whose, and what changes nothing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from stzoo_master.generate import Continuations, Queries
from tokenizers import processors
from transformers import CONFIG_MAPPING, GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from stzoo.errors import ModelError, RecipeError
from stzoo.testing import sentences, tiny_tokenizer
from stzoo.utils.files import fingerprint

KINDS = (Queries, Continuations)
TEXTS = sentences(7, seed=1)
SMALL = dict(max_tokens=12, batch_size=3, device="cpu")


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    """A tiny random model of the kind, whose texts end early or late."""
    made = tmp_path_factory.mktemp("model") / "tiny"
    with torch.random.fork_rng():
        torch.manual_seed(2)  # with which some T5 texts are empty
        write = t5 if kind is Queries else gpt2
        write(made)
    return made


@pytest.fixture(scope="module")
def sampler(kind, folder):
    return kind(str(folder), **SMALL)


@pytest.fixture(scope="module")
def likeliest(kind, folder):
    """The sampler that always takes the likeliest token, a text at a time."""
    return kind(str(folder), **SMALL | dict(top_k=1, batch_size=1))


def t5(folder):
    """T5, with a Unigram tokenizer as the real one has."""
    tokenizer = tiny_tokenizer("xlm-roberta")
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        initializer_factor=3.0, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.sep_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def gpt2(folder):
    """GPT-2 of 64 positions, with a byte-level tokenizer that has no padding, as the real one has."""
    tokenizer = tiny_tokenizer("roberta")
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    tokenizer.pad_token = tokenizer.cls_token = tokenizer.sep_token = None
    tokenizer.eos_token = "</s>"
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.5,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def copied(folder, to, **configs):
    """A copy of a model's folder, with changes to its JSON files."""
    shutil.copytree(folder, to)
    for name, changes in configs.items():
        file = to / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return to


def test_texts_seed_and_settings_alone_decide(kind, folder, sampler):
    sampler(TEXTS[3:], seed=5)  # another shard before
    drawn = sampler(TEXTS, seed=1)
    assert kind(str(folder), **SMALL)(TEXTS, seed=1) == drawn
    assert sampler(TEXTS, seed=2) != drawn


@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(len(TEXTS))), size=st.integers(1, len(TEXTS)))
def test_a_batch_gives_each_passage_what_it_gets_alone(kind, folder, likeliest, order, size):
    """So padding is never seen, and nobody gets a neighbour's text."""
    alone = likeliest(TEXTS, seed=0)
    together = kind(str(folder), **SMALL | dict(top_k=1, batch_size=size))([TEXTS[i] for i in order], seed=0)
    assert together == [alone[i] for i in order]
    assert len({str(text) for text in alone}) > len(TEXTS) // 2  # else the above says little


def test_the_likeliest_text_is_what_the_model_says_token_by_token(kind, likeliest):
    model, tokenizer = likeliest.model, likeliest.tokenizer
    texts = [" ".join(text.split()[:5]) for text in TEXTS]
    for text, drawn in zip(texts, likeliest(texts, seed=0), strict=True):
        prompt = torch.tensor([tokenizer(text)["input_ids"]])
        new = torch.tensor([[model.config.decoder_start_token_id]]) if kind is Queries else prompt
        start = new.shape[1]
        while new.shape[1] < start + 12:
            with torch.no_grad():
                out = model(prompt, decoder_input_ids=new) if kind is Queries else model(new)
            new = torch.cat([new, out.logits[:, -1:].argmax(2)], 1)
            if new[0, -1] == model.config.eos_token_id:
                break
        expected = tokenizer.decode(new[0, start:], skip_special_tokens=True).strip()
        assert drawn == (([expected] if expected else []) if kind is Queries else expected)


def test_the_callers_generator_is_left_alone(sampler):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    sampler(TEXTS, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    drawn = sampler(TEXTS, seed=1)
    torch.manual_seed(5)
    assert sampler(TEXTS, seed=1) == drawn


def test_a_long_passage_is_cut(kind, likeliest):
    """For queries at its end, as the sources do; for a continuation at its beginning, as its end goes on."""
    long, more = " ".join(sentences(8, seed=2)), "Remove the velocity of the propeller. "
    kept = f"{more}{long}" if kind is Continuations else f"{long} {more}"
    assert likeliest([kept], seed=0) == likeliest([long], seed=0)
    lost = f"{long} {more}" if kind is Continuations else f"{more}{long}"
    assert likeliest([lost], seed=0) != likeliest([long], seed=0)


def test_a_tokenizer_without_a_limit_gets_one(kind, folder, tmp_path):
    made = copied(folder, tmp_path / "m", tokenizer_config={"model_max_length": 10**30})
    assert kind(str(made), **SMALL).max_length == (512 if kind is Queries else 64 - 12)


def test_what_a_model_stores_of_beams_and_lengths_changes_nothing(kind, folder, sampler, tmp_path):
    stored = dict(num_beams=4, max_length=5, min_length=3, do_sample=False, repetition_penalty=9.0)
    made = copied(folder, tmp_path / "m", generation_config=stored | dict(suppress_tokens=list(range(5, 90))))
    assert kind(str(made), **SMALL)(TEXTS, seed=1) == sampler(TEXTS, seed=1)
    made = copied(folder, tmp_path / "old", config=stored)  # as models before transformers 4.26 have it
    (made / "generation_config.json").unlink()
    assert kind(str(made), **SMALL)(TEXTS, seed=1) == sampler(TEXTS, seed=1)


def test_blank_passages_get_nothing(kind, sampler):
    nothing = [] if kind is Queries else ""
    drawn = sampler(["", TEXTS[0], " \n", TEXTS[1]], seed=1)
    assert drawn[0] == drawn[2] == nothing
    assert drawn[1] != nothing
    assert sampler([], seed=1) == []
    assert sampler([""], seed=1) == [nothing]


@pytest.mark.parametrize("kind", [Queries], ids=["Queries"], indirect=True)
def test_a_query_is_given_once(kind, folder, likeliest):
    assert all(len(queries) <= 1 for queries in likeliest(TEXTS, seed=0))
    few = kind(str(folder), **SMALL | dict(top_k=2, per_passage=20))
    drawn, queries = few.draw(TEXTS, seed=0), few(TEXTS, seed=0)
    assert any(len(set(texts)) < len(texts) == 20 for texts in drawn)
    assert any("" in texts for texts in drawn)
    for texts, left in zip(drawn, queries, strict=True):
        assert set(left) == set(texts) - {""}
        assert [texts.index(query) for query in left] == sorted(texts.index(query) for query in left)


def test_metadata_names_the_model_and_every_setting(kind, folder, sampler):
    named = {"model": "tiny", "fingerprint": fingerprint(folder), "top_p": 1.0, "temperature": 1.0}
    more = dict(per_passage=10, top_k=10) if kind is Queries else dict(top_k=50)
    assert sampler.metadata == named | more | dict(max_tokens=12, batch_size=3)


def test_a_hub_id_is_named_with_its_commit(kind, folder, tmp_path, monkeypatch):
    commit = "0123456789abcdef" * 2 + "01234567"
    repo = tmp_path / "models--owner--name"
    copied(folder, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    metadata = kind("owner/name", **SMALL).metadata
    assert (metadata["model"], metadata["revision"]) == ("owner/name", commit)


def test_weights_without_safetensors_are_read_as_tensors_only(kind, folder, sampler, tmp_path):
    made = copied(folder, tmp_path / "m")
    tensors = load_file(made / "model.safetensors")
    (made / "model.safetensors").unlink()
    torch.save(tensors, made / "pytorch_model.bin")
    assert kind(str(made), **SMALL)(TEXTS, seed=1) == sampler(TEXTS, seed=1)
    torch.save(tensors | {"more": Path("an object")}, made / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        kind(str(made), **SMALL)


@pytest.mark.parametrize(
    ("name", "fits"),
    [(name, Queries) for name in ("t5", "mt5", "bart", "pegasus")]
    + [(name, Continuations) for name in ("gpt2", "llama", "gpt_neox", "opt", "bloom", "qwen2")]
    + [(name, None) for name in ("bert", "roberta", "electra", "distilbert", "modernbert", "whisper", "vit")],
)
def test_only_models_of_the_kind_are_taken(name, fits):
    config = CONFIG_MAPPING[name]()
    assert [kind for kind in KINDS if kind.is_kind(config)] == [fits] * (fits is not None)


def test_a_model_of_another_kind_is_refused_before_its_weights_are_read(kind, tmp_path):
    CONFIG_MAPPING["bert"]().save_pretrained(tmp_path)
    advice = "sequence-to-sequence model. .*--queries lexical" if kind is Queries else "causal .*gpt2"
    with pytest.raises(ModelError, match=f"of type bert; expected a {advice}"):
        kind(str(tmp_path), **SMALL)


def test_a_model_that_is_not_whole_is_refused(kind, folder, tmp_path):
    made = copied(folder, tmp_path / "m")
    tensors = load_file(made / "model.safetensors")
    save_file(
        {n: t for n, t in tensors.items() if "block.1" not in n and "h.1" not in n},
        made / "model.safetensors",
    )
    with pytest.raises(ModelError, match=r"it lacks \d+ tensors?"):
        kind(str(made), **SMALL)
    made = copied(folder, tmp_path / "n")
    for file in made.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="has no tokenizer"):
        kind(str(made), **SMALL)


@pytest.mark.parametrize("name", ["nobody/nothing", "no/such/folder"])
def test_a_model_that_is_not_there_is_an_error_that_says_what_to_do(kind, name):
    with pytest.raises(ModelError, match="lexical" if kind is Queries else "leave out the continuations"):
        kind(name, **SMALL)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(max_tokens=0), dict(top_k=-1), dict(top_p=0.0), dict(top_p=1.5), dict(temperature=0.0),
        dict(temperature=float("nan")), dict(batch_size=0), dict(device="tpu"),
    ],
    ids=str,
)  # fmt: skip
def test_a_setting_out_of_range_is_refused(kind, folder, wrong):
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        kind(str(folder), **SMALL | wrong)


def test_settings_that_do_not_fit_are_refused(kind, folder):
    with pytest.raises(RecipeError, match="per_passage is 0" if kind is Queries else "max_tokens is 64"):
        kind(str(folder), **SMALL | (dict(per_passage=0) if kind is Queries else dict(max_tokens=64)))
