"""Fine-tuning from end to end on a small judged set with something to learn."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from helpers import cli, wait_for
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

import stzoo
from stzoo.finetune import cut_corpus, hold_out, pairs
from stzoo.judged import read_beir
from stzoo.metrics import score
from stzoo.models import load_model
from stzoo.search import retrieve

SHORT = {"batch_size": 8, "learning_rate": 1e-3, "log_steps": 1, "mini_batch_size": 4}


def quality(model, folder, split):
    found = read_beir(folder, split)
    return score(found.qrels, retrieve(model, found, k=10, progress=False)).mean["nDCG@10"]


def test_fine_tuning_learns_and_exports_plainly(base, judged, tmp_path):
    given = dict(data=str(judged), dev_queries=0, pooling="mean", epochs=10, **SHORT)
    out = stzoo.finetune(str(base), output=tmp_path / "out", **given)
    model = SentenceTransformer(str(out), device="cpu")
    assert model[1].pooling_mode == "mean"
    log = json.loads((out / "run.json").read_text())["log"]
    assert log[-1]["loss"] < 0.1 < log[0]["loss"]
    before = quality(load_model(str(base), pooling="mean"), judged, "train")
    assert before < 0.5
    assert quality(model, judged, "train") > 0.9


def test_the_best_step_on_the_dev_queries_is_kept_and_scored_as_the_benchmark_scores(base, judged, tmp_path):
    out = stzoo.finetune(
        str(base),
        data=str(judged),
        dev_split="dev",
        dev_passages=0,
        epochs=20,
        eval_steps=2,
        patience=2,
        output=tmp_path / "out",
        **SHORT,
    )
    facts = json.loads((out / "run.json").read_text())
    scores = {
        line["step"]: line["eval_dev_ndcg_at_10"] for line in facts["log"] if "eval_dev_ndcg_at_10" in line
    }
    assert facts["best_step"] == max(scores, key=lambda step: (scores[step], -step))
    assert facts["dev_ndcg_at_10"] == max(scores.values())
    assert facts["steps"] < 20 * 5  # it stopped early
    model = SentenceTransformer(str(out), device="cpu")
    assert quality(model, judged, "dev") == pytest.approx(facts["dev_ndcg_at_10"], abs=1e-6)


def test_prompts_are_trained_with_and_kept_in_the_model(base, judged, tmp_path):
    common = dict(data=str(judged), dev_queries=0, max_steps=2, **SHORT)
    plain = stzoo.finetune(str(base), output=tmp_path / "plain", **common)
    prompted = stzoo.finetune(
        str(base), output=tmp_path / "prompted", query_prompt="ask: ", passage_prompt="text: ", **common
    )
    model = SentenceTransformer(str(prompted), device="cpu")
    assert {name: model.prompts[name] for name in ("query", "document")} == {
        "query": "ask: ",
        "document": "text: ",
    }
    one, other = (load_file(folder / "model.safetensors") for folder in (plain, prompted))
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_mini_batches_change_no_gradient(base, judged, tmp_path):
    found = []
    for size in (2, 8):
        given = SHORT | {"mini_batch_size": size}
        out = stzoo.finetune(
            str(base), data=str(judged), dev_queries=0, max_steps=1, output=tmp_path / str(size), **given
        )
        found.append(json.loads((out / "run.json").read_text())["log"][0])
    # dropout differs, as it is drawn per mini-batch; the loss is over the same candidates all the same
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=0.2)


RUN = """
import sys, stzoo
stzoo.finetune(sys.argv[1], data=sys.argv[2], output=sys.argv[3], dev_split="dev", eval_steps=2, epochs=4,
               batch_size=8, mini_batch_size=4, learning_rate=1e-3, patience=9, threads=1, resume=True)
"""


def test_a_killed_run_ends_with_the_same_weights_to_the_bit(base, judged, tmp_path):
    def start(output):
        return subprocess.Popen([sys.executable, "-c", RUN, str(base), str(judged), str(output)])

    assert start(tmp_path / "straight").wait() == 0
    process = start(tmp_path / "killed")
    wait_for(lambda: (tmp_path / "killed/checkpoints/checkpoint-8/whole.json").is_file(), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert start(tmp_path / "killed").wait() == 0
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    facts = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("straight", "killed")]
    assert facts[0]["best_step"] == facts[1]["best_step"]


def test_a_run_killed_after_it_stopped_early_keeps_its_best_step(base, judged, tmp_path):
    given = dict(data=str(judged), dev_split="dev", eval_steps=2, patience=1, epochs=20, **SHORT)
    out = stzoo.finetune(str(base), output=tmp_path / "out", **given)
    facts = json.loads((out / "run.json").read_text())
    weights = (out / "model.safetensors").read_bytes()
    (out / "run.json").write_text(json.dumps(facts | {"status": "running"}))
    (out / "modules.json").unlink()
    stzoo.finetune(str(base), output=tmp_path / "out", resume=True, **given)
    again = json.loads((out / "run.json").read_text())
    assert (again["steps"], again["best_step"]) == (facts["steps"], facts["best_step"])
    assert (out / "model.safetensors").read_bytes() == weights


def test_bf16_on_a_cpu_trains_and_exports(base, judged, tmp_path):
    given = dict(data=str(judged), dev_queries=0, max_steps=2, precision="bf16", device="cpu", **SHORT)
    out = stzoo.finetune(str(base), output=tmp_path / "out", **given)
    assert torch.isfinite(torch.tensor(SentenceTransformer(str(out), device="cpu").encode("a wing"))).all()


def test_lengths_beyond_the_models_own_are_cut_to_it(base, judged, tmp_path):
    given = dict(data=str(judged), dev_queries=0, max_steps=1, max_passage_tokens=4096, **SHORT)
    long = {"passage_prompt": "wing " * 200}
    assert stzoo.finetune(str(base), output=tmp_path / "out", **given, **long).is_dir()


def test_held_out_queries_leave_training(judged):
    train = read_beir(judged, "train")
    rest, dev = hold_out(train, 5, seed=1)
    assert len(dev.qrels) == 5
    assert rest.qrels.keys() | dev.qrels.keys() == train.qrels.keys()
    assert not rest.qrels.keys() & dev.qrels.keys()
    assert hold_out(train, 5, seed=1)[1].qrels == dev.qrels
    assert len(hold_out(train, 10**6, seed=1)[1].qrels) == 8  # a fifth
    assert len(pairs(rest)) == 35
    small = cut_corpus(dev, 20, seed=1)
    assert len(small.corpus_ids) == 20
    assert {d for grades in dev.qrels.values() for d in grades} <= set(small.corpus_ids)


BAD = {
    "split": (dict(split="trian"), "trian"),
    "data": (dict(data="no-such-folder"), "no-such-folder"),
    "model": (dict(model="no-such/model"), "no-such/model"),
    "setting": (dict(temprature=1), "did you mean 'temperature'"),
    "recipe of another command": (dict(recipe="retromae-pretrain"), "is for `stzoo pretrain`"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_explained_and_leaves_nothing(what, base, judged, tmp_path):
    change, expected = BAD[what]
    given = {"model": str(base), "data": str(judged), "output": tmp_path / "out", "max_steps": 1}
    with pytest.raises(stzoo.StzooError, match=expected):
        stzoo.finetune(**given | change)
    assert not list(tmp_path.iterdir())


def test_the_command_line_says_it_in_one_line_with_exit_code_2(base, tmp_path):
    (tmp_path / "empty").mkdir()
    done = cli("finetune", base, "--data", tmp_path / "empty", "--output", tmp_path / "out")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("stzoo: ")
    assert not (tmp_path / "out").exists()
