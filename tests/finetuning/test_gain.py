"""What fine-tuning prints and records of the gain over its base, and what it leaves in its folder."""

import json
import re

import pytest
import torch
from sentence_transformers import SentenceTransformer
from support.helpers import cli

import stzoo
from stzoo.data.beir import read_beir
from stzoo.evaluation.scoring import score
from stzoo.finetuning.gain import describe, read_scores
from stzoo.models.loading import load_model
from stzoo.retrieval.search.exact import retrieve

pytestmark = pytest.mark.usefixtures("unverified")
SHORT = {"batch_size": 8, "log_steps": 2, "mini_batch_size": 64, "pooling": "mean", "eval_steps": 4}


def record_of(folder):
    return json.loads((folder / "run.json").read_text())


@pytest.fixture
def data(judged):
    return dict(data=str(judged), dev_split="dev", dev_passages=0)


def test_a_run_says_what_it_will_do_what_it_gained_and_what_to_do_next(base, data, tmp_path, capsys):
    output = tmp_path / "out"
    out = stzoo.finetune(str(base), output=output, epochs=4, learning_rate=1e-3, **data, **SHORT)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "stzoo: fine-tuning with contrastive on 40 pairs of 40 queries without hard negatives, 8 "
        "queries per step: 20 steps (4 epochs), evaluated every 4 steps."
    )
    judged = read_beir(data["data"], "dev")
    run = retrieve(load_model(str(base), pooling="mean"), judged, k=10, progress=False)
    before = score(judged.qrels, run).mean["nDCG@10"]
    assert lines[1] == f"stzoo: the base scores dev nDCG@10 {before:.4f}."
    record = record_of(out)
    gain, best = record["gain"], record["dev_ndcg_at_10"]
    assert (gain["base"], gain["best"], gain["kept_base"]) == (pytest.approx(before), best, False)
    assert record["log"][0]["eval_dev_ndcg_at_10"] == pytest.approx(before)
    of_dev = gain["tasks"][""]
    assert of_dev["difference"] == pytest.approx(best - before)
    assert of_dev["low"] < of_dev["difference"] < of_dev["high"]
    assert any(re.fullmatch(r"step 4/20: dev nDCG@10 \S+ \([+-]\S+ against the base\)", one) for one in lines)
    assert any(one.startswith("stzoo: estimated time left: ") for one in lines)
    at = next(n for n, one in enumerate(lines) if one.startswith("stzoo: finished "))
    assert re.fullmatch(r"stzoo: finished \d+ steps in .+; loss \S+ → \S+\.", lines[at])
    assert lines[at + 1].startswith(f"stzoo: dev nDCG@10 {before:.4f} → {best:.4f} (+")
    assert f"SentenceTransformer({str(output)!r}). Next:" in lines[at + 3]
    assert [one.split()[:2] for one in lines[at + 4 :]] == [
        ["stzoo", word] for word in ("bench", "export", "publish")
    ]
    card = (out / "README.md").read_text()
    assert f"best dev nDCG@10 {best:.4f} at step {gain['step']} (base: {before:.4f})" in card
    assert f"nDCG@10 {before:.4f} of the base, {best:.4f} after step {gain['step']}" in card
    for name in ("balancer", "lora_dropout", "mined", "save_steps", "dev_queries"):  # without effect here
        assert f"\n{name}:" not in card
    assert "\npatience: 3" in card


def test_the_base_is_kept_if_no_step_scores_higher(base, data, tmp_path, capsys):
    given = dict(learning_rate=1e-9, max_steps=4, **data, **SHORT)
    out = stzoo.finetune(str(base), output=tmp_path / "kept", **given)
    record = record_of(out)
    assert record["gain"]["kept_base"]
    assert record["best_step"] == 0
    assert record["dev_ndcg_at_10"] == record["gain"]["base"]
    plain = load_model(str(base), pooling="mean").state_dict()
    kept = SentenceTransformer(str(out), device="cpu").state_dict()
    assert kept.keys() == plain.keys()
    differing = {name for name in plain if not torch.equal(kept[name], plain[name])}
    assert differing <= {"0.model.pooler.dense.weight"}  # which a masked LM does not have
    said = "no step scored higher than the base"
    assert said in capsys.readouterr().err
    assert "No step scored higher than the base on the dev queries" in (out / "README.md").read_text()
    out = stzoo.finetune(str(base), output=tmp_path / "moved", keep_base=False, **given)
    moved = SentenceTransformer(str(out), device="cpu").state_dict()
    assert any(not torch.equal(kept[name], moved[name]) for name in kept if "pooler" not in name)
    assert record_of(out)["best_step"] == 4
    assert said not in capsys.readouterr().err


def test_a_finished_run_has_no_checkpoints_unless_asked_for(base, data, tmp_path):
    given = dict(learning_rate=1e-3, max_steps=6, save_steps=2, **data, **SHORT | {"eval_steps": 2})
    out = stzoo.finetune(str(base), output=tmp_path / "none", **given)
    assert not (out / "checkpoints").exists()
    with pytest.raises(
        stzoo.ModelError, match=r"single finished run without checkpoints.*--keep-checkpoints 5"
    ):
        stzoo.merge([out], output=tmp_path / "soup")
    out = stzoo.finetune(str(base), output=tmp_path / "two", keep_checkpoints=2, **given)
    assert len(list(out.glob("checkpoints/checkpoint-*"))) == 2
    stzoo.finetune(str(base), output=out, resume=True, **given)  # what the run was to keep stays
    assert len(list(out.glob("checkpoints/checkpoint-*"))) == 2


def test_the_gain_of_episodes_is_over_the_base_of_the_first(base, data, tmp_path, capsys):
    given = dict(learning_rate=1e-3, epochs=1, episodes=2, negatives=2, mined=4, depth=10, **data)
    out = stzoo.finetune(str(base), output=tmp_path / "out", **given, **SHORT)
    record = record_of(out)
    first, second = (episode["log"] for episode in record["episodes"])
    assert [line["step"] for line in (first[0], second[0])] == [0, 2]
    assert record["gain"]["base"] == first[0]["eval_dev_ndcg_at_10"]
    assert capsys.readouterr().err.count("against the base") == 4
    assert not list(out.rglob("*.safetensors"))[1:]  # the model's own alone


def test_a_kept_base_has_no_best_episode(base, data, tmp_path):
    given = dict(learning_rate=1e-12, epochs=1, episodes=1, negatives=2, mined=4, depth=10, **data)
    record = record_of(stzoo.finetune(str(base), output=tmp_path / "out", **given, **SHORT))
    assert (record["gain"]["kept_base"], record["best_step"]) == (True, 0)
    assert "best_episode" not in record


@pytest.mark.parametrize(
    "text", ["", '{"": {"q1": 0.', "[]", "{}", '{"": {}}', '{"": {"q1": null}}', "[" * 9999]
)
def test_damaged_scores_are_refused(text, tmp_path):
    file = tmp_path / "checkpoints/eval/step-4.json"
    file.parent.mkdir(parents=True)
    assert read_scores(tmp_path, None, 4) is None
    file.write_text('{"": {"q1": 0.5, "q2": 1}}')
    assert read_scores(tmp_path, None, 4) == {"": {"q1": 0.5, "q2": 1.0}}
    file.write_text(text)
    with pytest.raises(stzoo.OutputError, match=r"step-4.json, the scores of the dev queries, is damaged"):
        read_scores(tmp_path, None, 4)


def test_the_gain_is_said_with_its_interval_and_its_doubt():
    task = dict(base=0.5, best=0.51, queries=100, difference=0.01, low=-0.02, high=0.04)
    lines = describe({"base": 0.5, "best": 0.51, "kept_base": False, "step": 30, "tasks": {"": task}})
    assert lines[0] == (
        "dev nDCG@10 0.5000 → 0.5100 (+0.0100, 95 % interval -0.0200 to +0.0400, 100 queries) at step 30, "
        "the best of the training, which may be chance."
    )
    lower = task | dict(best=0.49, difference=-0.01, low=-0.04, high=0.02)
    lines = describe({"base": 0.5, "best": 0.49, "kept_base": True, "step": 30, "tasks": {"": lower}})
    assert lines[0].endswith("at step 30, the best of the training, but no better than the base.")
    assert lines[1].startswith("no step scored higher than the base (0.5000)")


def test_data_without_negatives_are_refused_before_the_base_is_loaded(judged, tmp_path):
    model = tmp_path / "empty"
    model.mkdir()
    done = cli("finetune", model, "--data", judged, "--negatives", 3, "--output", tmp_path / "out")
    assert done.returncode == 2
    assert f"has no hard negatives. Run `stzoo mine {model} --data" in done.stderr
