"""TACO's vector of T5 is that of transformers, and its model survives load, save and load again."""

import json
import sys

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from stzoo_taco.inspect import inspect
from support import processes
from transformers import AutoTokenizer, T5Model

import stzoo
from stzoo import ExportError, ModelError
from stzoo.models.loading import load_model
from stzoo.testing import sentences, tiny_masked_lm, tiny_t5

TEXTS = ["", "wing", *sentences(6)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_t5(tmp_path_factory.mktemp("t5") / "base")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [{"anchor": " ".join(text.split()[:4]), "positive": text} for text in sentences(16, seed=1)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_vector_is_the_decoders_state_after_one_token(base):
    model = load_model(str(base), pooling="t5-decoder").eval()
    whole, tokenizer = T5Model.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)
    read = tokenizer(TEXTS, return_tensors="pt", padding=True, truncation=True, max_length=64)
    start = torch.full((len(TEXTS), 1), whole.config.decoder_start_token_id)
    with torch.no_grad():
        expected = whole(
            input_ids=read["input_ids"], attention_mask=read["attention_mask"], decoder_input_ids=start
        ).last_hidden_state[:, 0]
    np.testing.assert_allclose(model.encode(TEXTS), expected.numpy(), atol=1e-6)


def test_a_second_stage_goes_on_from_the_first_ones_model(base, data, tmp_path, monkeypatch):
    monkeypatch.setattr("stzoo.hub.export._verify", lambda *_, **__: None)  # the next test sees to it
    given = dict(pooling="t5-decoder", portable=False, similarity="dot", dev_queries=0, batch_size=8)
    given |= dict(device="cpu", max_steps=2, learning_rate=1e-2)
    first = stzoo.finetune(str(base), data=str(data), output=tmp_path / "first", **given)
    start = load_model(str(first), pooling="t5-decoder")
    trusting = SentenceTransformer(str(first), device="cpu", trust_remote_code=True)
    np.testing.assert_allclose(start.eval().encode(TEXTS), trusting.encode(TEXTS), atol=1e-6)
    tasks = [{"name": name, "data": str(data), "query_prompt": f"{name}: "} for name in ("NQ", "WOW")]
    second = stzoo.finetune(str(first), tasks=tasks, balancer="taco", output=tmp_path / "second", **given)
    moved = load_model(str(second))[1].state_dict()
    assert not torch.equal(
        moved["decoder.embed_tokens.weight"], start[1].state_dict()["decoder.embed_tokens.weight"]
    )
    (found,) = inspect([second], batches=2)
    assert 0 < found["after"]["entropy"] <= 1
    assert not any(isinstance(module, type(start[1])) for module in load_model(str(second), pooling="cls"))


def test_a_trained_model_is_loaded_saved_and_loaded_again(base, data, tmp_path):
    given = dict(data=str(data), pooling="t5-decoder", similarity="dot", dev_queries=0, batch_size=8)
    out = stzoo.finetune(
        str(base),
        portable=False,
        epochs=2,
        learning_rate=1e-2,
        device="cpu",
        output=tmp_path / "out",
        **given,
    )
    code = (
        "import sys; sys.modules['stzoo'] = None\n"  # as where it is not installed
        "from sentence_transformers import SentenceTransformer\n"
        f"model = SentenceTransformer({str(out)!r}, device='cpu', trust_remote_code=True)\n"
        f"model.save({str(tmp_path / 'again')!r})\n"
        f"print(model.similarity_fn_name, model.encode('wing').tolist())"
    )
    done = processes.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    similarity, _, vector = done.stdout.strip().splitlines()[-1].partition(" ")
    assert similarity == "dot"
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu", trust_remote_code=True)
    np.testing.assert_allclose(again.encode("wing"), json.loads(vector), atol=1e-6)
    start = load_model(str(base), pooling="t5-decoder").eval()
    assert not np.allclose(again.encode("wing"), start.encode("wing"), atol=1e-3)
    assert "trust_remote_code=True" in (out / "README.md").read_text()
    moved = {
        name
        for name, part in again[1].state_dict().items()
        if not torch.equal(part, start[1].state_dict()[name])
    }
    assert "decoder.embed_tokens.weight" in moved


def test_without_leave_it_is_refused_before_it_is_trained(base, data, tmp_path):
    with pytest.raises(ExportError, match="cannot be expressed by its modules"):
        stzoo.finetune(
            str(base),
            data=str(data),
            pooling="t5-decoder",
            dev_queries=0,
            output=tmp_path / "out",
            device="cpu",
        )
    assert not (tmp_path / "out").exists()


def test_other_models_are_refused(tmp_path):
    bert = tiny_masked_lm("bert", tmp_path / "bert")
    with pytest.raises(ModelError, match="its type is bert; expected t5"):
        load_model(str(bert), pooling="t5-decoder")
