"""Training a cross-encoder: by sentence-transformers' trainer, from mined negatives, resumable."""

import json
import shutil
import signal

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder
from support.helpers import cli

import stzoo
from stzoo import DataError, OutputError
from stzoo.finetuning import rerank as module
from stzoo.models.cross_encoder import open_teacher
from stzoo.models.loading import load_model
from stzoo.testing import sentences, tiny_cross_encoder

SCORES = ("dev_ndcg_at_10", "best_step", "steps")
PAIRS = [("wing lift", "the lift of a wing"), ("cell", "interest rates rose")]


@pytest.fixture(scope="module")
def mined(judged, tmp_path_factory):
    path = tmp_path_factory.mktemp("mined") / "mined.jsonl"
    stzoo.mine("bm25s", data=str(judged), output=path, mined=6, depth=20)
    return path


def options(judged, **changes):
    given = dict(dev_data=str(judged), dev_split="dev", dev_depth=10, batch_size=16, negatives=3)
    return given | dict(learning_rate=1e-3, max_tokens=48, device="cpu", eval_steps=4, max_steps=8) | changes


def record(folder):
    return json.loads((folder / "run.json").read_text())


def test_an_encoder_becomes_a_cross_encoder_that_plain_sentence_transformers_loads(
    base, judged, mined, tmp_path
):
    out = stzoo.rerank(mined, base, output=tmp_path / "out", **options(judged))
    assert {path.name for path in out.iterdir()} == {
        *("README.md", "config.json", "model.safetensors", "run.json"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    model = CrossEncoder(str(out), device="cpu")
    assert model.max_seq_length == 48
    logits = open_teacher(str(out), device="cpu").score(*zip(*PAIRS, strict=True))
    np.testing.assert_allclose(model.predict(PAIRS), 1 / (1 + np.exp(-logits)), atol=1e-6)
    made = record(out)
    assert (made["status"], made["data"]["pairs"]) == ("finished", 40 * 4)
    assert made["dev_before"].keys() == {"first_stage"}, "a new head has no score that says anything"
    assert 0 <= made["dev_ndcg_at_10"] <= 1
    card = (out / "README.md").read_text()
    assert f"| ranked by this model (step {made['best_step']}) | {made['dev_ndcg_at_10']:.4f} |" in card
    assert str(tmp_path) not in card
    # the score is that of bench's second stage
    results = stzoo.bench(
        [],
        data=judged,
        split="dev",
        rerank=f"again={out}",
        rerank_depth=10,
        k=10,
        output=tmp_path / "results",
    )
    assert results[1].scores.mean["nDCG@10"] == pytest.approx(made["dev_ndcg_at_10"])


def assert_same(one, other):
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, theirs[name], atol=1e-6, err_msg=name)
    first, second = record(one), record(other)
    assert [first[name] for name in SCORES] == [second[name] for name in SCORES]


def test_a_stopped_run_is_resumed_to_the_same_weights(base, judged, mined, tmp_path, monkeypatch):
    whole = stzoo.rerank(mined, base, output=tmp_path / "whole", **options(judged))
    calls = []
    score = module.DevRanking.__call__

    def stopped(self, *given, **named):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(module.DevRanking, "__call__", stopped)
        with pytest.raises(KeyboardInterrupt):
            stzoo.rerank(mined, base, output=tmp_path / "part", **options(judged))
    assert record(tmp_path / "part")["status"] == "interrupted"
    (tmp_path / "part" / "checkpoints" / "checkpoint-6").mkdir()  # as a kill leaves it
    part = stzoo.rerank(mined, base, output=tmp_path / "part", resume=True, **options(judged))
    assert_same(whole, part)
    assert stzoo.rerank(mined, base, output=part, resume=True, **options(judged)) == part


def test_sigterm_saves_a_checkpoint_from_which_the_run_continues(
    base, judged, mined, tmp_path, monkeypatch, capsys
):
    given = options(judged, eval_steps=100)
    whole = stzoo.rerank(mined, base, output=tmp_path / "whole", **given)
    step = module.RerankTrainer.training_step

    def signalled(self, *args, **named):
        if self.state.global_step == 5:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(module.RerankTrainer, "training_step", signalled)
        with pytest.raises(SystemExit, match="143"):
            stzoo.rerank(mined, base, output=tmp_path / "part", **given)
    assert "saved a checkpoint after step 6 of 8." in capsys.readouterr().err
    assert record(tmp_path / "part")["error"] == "SIGTERM"
    part = stzoo.rerank(mined, base, output=tmp_path / "part", resume=True, **given)
    assert "resuming from step 6 of 8." in capsys.readouterr().err
    assert_same(whole, part)


def test_a_loss_that_is_not_finite_ends_the_run(base, judged, mined, tmp_path):
    with pytest.raises(
        stzoo.TrainingError, match=r"training stopped at step \d of 8: .* (nan|inf|not finite)"
    ):
        stzoo.rerank(mined, base, output=tmp_path / "out", **options(judged, learning_rate=1e30))
    assert record(tmp_path / "out")["status"] == "failed"
    assert not (tmp_path / "out" / "model.safetensors").exists()


def stop(*_):
    raise KeyboardInterrupt


def test_a_run_that_stopped_early_does_not_train_on_when_it_is_resumed(
    base, judged, mined, tmp_path, monkeypatch
):
    given = options(judged, eval_steps=1, patience=1, max_steps=40)
    whole = stzoo.rerank(mined, base, output=tmp_path / "whole", **given)
    assert record(whole)["steps"] < 40
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(module, "_install", stop)
        stzoo.rerank(mined, base, output=tmp_path / "part", **given)
    part = stzoo.rerank(mined, base, output=tmp_path / "part", resume=True, **given)
    assert_same(whole, part)


def test_a_damaged_checkpoint_is_replaced_by_the_one_before_it(
    base, judged, mined, tmp_path, monkeypatch, capsys
):
    given = options(judged, eval_steps=1, max_steps=2, keep_checkpoints=3)
    whole = stzoo.rerank(mined, base, output=tmp_path / "whole", **given)
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(module, "_install", stop)
        stzoo.rerank(mined, base, output=tmp_path / "part", **given)
    names = {path.name for path in (tmp_path / "part/checkpoints/checkpoint-2").iterdir()}
    assert names == {
        *("state.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"),
        *("log_sums.safetensors", "whole.json"),
    }
    for name in sorted(names):
        part = shutil.copytree(tmp_path / "part", tmp_path / name)
        file = part / "checkpoints/checkpoint-2" / name
        file.write_bytes(file.read_bytes()[:-3])
        capsys.readouterr()
        stzoo.rerank(mined, base, output=part, resume=True, **given)
        assert "checkpoint-2 is damaged" in capsys.readouterr().err
        assert_same(whole, part)
    for file in (tmp_path / "part/checkpoints").glob("*/optimizer.pt"):
        file.write_bytes(b"")
    with pytest.raises(OutputError, match=r"no checkpoint in .* is usable"):
        stzoo.rerank(mined, base, output=tmp_path / "part", resume=True, **given)


def test_data_and_models_may_be_python_objects(base, tmp_path):
    texts = sentences(20, seed=3)
    rows = [
        {"query": " ".join(text.split()[:4]), "positive": text, "negative": texts[i - 1]}
        for i, text in enumerate(texts)
    ]
    corpus = {f"d{i}": {"title": "", "text": text} for i, text in enumerate(texts)}
    queries = {f"q{i}": rows[i]["query"] for i in range(20)}
    dev = (corpus, queries, {f"q{i}": {f"d{i}": 1} for i in range(20)})
    model = load_model(str(base))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    few = dict(max_steps=1, eval_steps=1, batch_size=4, negatives=1, max_tokens=48, device="cpu")
    out = stzoo.rerank(
        pd.DataFrame(rows), model, dev_data=dev, retriever=model, dev_depth=5, output=tmp_path / "one", **few
    )
    recipe = record(out)["recipe"]
    assert "DataFrame-of-20-rows-" in recipe["data"]
    assert recipe["base"] == recipe["retriever"] != str(base)
    assert record(out)["dev"]["queries"] == 20
    assert all((tensor == before[name]).all() for name, tensor in model.state_dict().items())
    again = stzoo.rerank(
        rows, CrossEncoder(str(out), device="cpu"), dev_queries=0, output=tmp_path / "two", **few
    )
    assert CrossEncoder(str(again), device="cpu").max_seq_length == 48
    with pytest.raises(DataError, match="an object of type int"):
        stzoo.rerank(3, model, output=tmp_path / "none")


def test_a_base_that_no_step_improves_is_kept(judged, mined, tmp_path, monkeypatch):
    teacher = tiny_cross_encoder(tmp_path / "teacher")
    few = options(judged, learning_rate=1e-12, max_steps=4, max_tokens=64)
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(module, "_install", stop)
        stzoo.rerank(mined, teacher, output=tmp_path / "out", **few)
    (tmp_path / "out/checkpoints/notes.txt").write_text("mine")
    out = stzoo.rerank(mined, teacher, output=tmp_path / "out", resume=True, **few)
    left = [path for path in (out / "checkpoints").rglob("*") if path.is_file()]
    assert left == [out / "checkpoints/notes.txt"]  # the user's, not the run's
    made = record(out)
    assert made["kept"] == "base"
    assert made["dev_ndcg_at_10"] == made["dev_before"]["base"]
    scores = [open_teacher(str(one), device="cpu").score(*zip(*PAIRS, strict=True)) for one in (teacher, out)]
    np.testing.assert_array_equal(*scores)
    assert "No step was better than the base, whose weights these are." in (out / "README.md").read_text()
    results = stzoo.bench(
        [], data=judged, split="dev", rerank=teacher, rerank_depth=10, k=10, output=tmp_path / "results"
    )
    assert results[1].scores.mean["nDCG@10"] == pytest.approx(made["dev_before"]["base"])
    assert results[0].scores.mean["nDCG@10"] == pytest.approx(made["dev_before"]["first_stage"])


def test_training_queries_are_held_out_and_data_without_negatives_is_refused(base, judged, mined, tmp_path):
    held = options(judged, dev_data=None, dev_split=None, dev_queries=6)
    done = cli(
        *("rerank", mined, "--base", base, "--output", tmp_path / "out", "--dev-queries", "6"),
        *(
            "--max-steps",
            "2",
            "--eval-steps",
            "2",
            "--batch-size",
            "8",
            "--device",
            "cpu",
            "--max-tokens",
            "48",
        ),
    )
    assert done.returncode == 0, done.stderr
    assert f"stzoo bench MODEL --data BEIR_FOLDER --rerank {tmp_path / 'out'}" in done.stderr
    made = record(tmp_path / "out")
    assert made["dev"]["queries"] == 6
    before, after = made["dev_before"]["first_stage"], made["dev_ndcg_at_10"]
    assert f"{before:.4f} by bm25s alone, {after:.4f} after reranking" in done.stderr
    assert ("ranks no better than bm25s alone" in done.stderr) == (after <= before)
    with pytest.raises(DataError, match=r"has no negatives.*stzoo mine bm25s --data"):
        stzoo.rerank(judged, base, output=tmp_path / "none", **held)
    assert not (tmp_path / "none").exists()
