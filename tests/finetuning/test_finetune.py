"""Fine-tuning from end to end on a small judged set with something to learn."""

import json
import math
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from support import processes
from support.helpers import UNVERIFIED, cli, wait_for

import stzoo
from stzoo.data.beir import read_beir
from stzoo.data.training_sets.builder import TrainingSetWriter
from stzoo.data.training_sets.read import from_judged, read_training
from stzoo.data.training_sets.sets import Candidate
from stzoo.evaluation.scoring import score
from stzoo.finetuning.data import cut_corpus, hold_out
from stzoo.finetuning.gist import open_guide
from stzoo.finetuning.ranking_loss import RankingLoss
from stzoo.models.loading import load_model
from stzoo.plugins import manager
from stzoo.retrieval.search.exact import retrieve
from stzoo.testing import tiny_cross_encoder
from stzoo.training.finetune_settings import FinetuneSettings
from stzoo.utils.files import fingerprint

SHORT = {"batch_size": 8, "learning_rate": 1e-3, "log_steps": 1, "mini_batch_size": 64}


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


@pytest.mark.usefixtures("unverified")
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


@pytest.mark.usefixtures("unverified")
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


@pytest.mark.usefixtures("unverified")
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


RUN = f"""{UNVERIFIED}
import sys, stzoo
stzoo.finetune(sys.argv[1], data=sys.argv[2], output=sys.argv[3], dev_split="dev", eval_steps=2, epochs=4,
               batch_size=8, mini_batch_size=4, learning_rate=1e-3, patience=9, threads=1, resume=True)
"""


def test_a_killed_run_ends_with_the_same_weights_to_the_bit(base, judged, tmp_path):
    def start(output):
        return processes.Popen([sys.executable, "-c", RUN, str(base), str(judged), str(output)])

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


@pytest.mark.usefixtures("unverified")
def test_a_run_killed_after_it_stopped_early_keeps_its_best_step(base, judged, tmp_path):
    given = dict(
        data=str(judged), dev_split="dev", eval_steps=2, patience=1, epochs=20, keep_checkpoints=2, **SHORT
    )
    out = stzoo.finetune(str(base), output=tmp_path / "out", **given)
    facts = json.loads((out / "run.json").read_text())
    weights = (out / "model.safetensors").read_bytes()
    (out / "run.json").write_text(json.dumps(facts | {"status": "running"}))
    (out / "modules.json").unlink()
    out = out.rename(tmp_path / "moved")
    stzoo.finetune(str(base), output=out, resume=True, **given)
    again = json.loads((out / "run.json").read_text())
    assert (again["steps"], again["best_step"]) == (facts["steps"], facts["best_step"])
    assert (out / "model.safetensors").read_bytes() == weights


@pytest.mark.usefixtures("unverified")
def test_a_run_that_failed_says_why_in_its_record_and_continues_when_the_fault_is_gone(
    base, judged, tmp_path, monkeypatch
):
    given = dict(data=str(judged), dev_queries=0, epochs=2, save_steps=2, **SHORT)
    straight = stzoo.finetune(str(base), output=tmp_path / "straight", **given)
    calculate, calls = RankingLoss.calculate_loss, []

    def fails(self, reps, labels, **named):
        calls.append(0)
        factor = float("nan") if len(calls) == 6 else 1.0
        return calculate(self, [[part * factor for part in side] for side in reps], labels, **named)

    with monkeypatch.context() as patched:
        patched.setattr(RankingLoss, "calculate_loss", fails)
        with pytest.raises(stzoo.TrainingError, match="step 6 of 10: contrastive is nan") as failed:
            stzoo.finetune(str(base), output=tmp_path / "out", **given)
    facts = json.loads((tmp_path / "out/run.json").read_text())
    assert (facts["status"], facts["error"]) == ("failed", str(failed.value))
    assert [line["step"] for line in facts["log"]] == [1, 2, 3, 4, 5]
    out = stzoo.finetune(str(base), output=tmp_path / "out", resume=True, **given)
    facts = json.loads((out / "run.json").read_text())
    assert facts["status"] == "finished"
    assert "error" not in facts
    assert (out / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("unverified")
def test_a_best_checkpoint_that_is_damaged_is_not_exported(base, judged, tmp_path):
    given = dict(data=str(judged), dev_split="dev", eval_steps=2, patience=1, epochs=20, keep_checkpoints=2)
    given |= SHORT | {"mini_batch_size": 4}
    out = stzoo.finetune(str(base), output=tmp_path / "out", **given)
    facts = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(facts | {"status": "running"}))
    file = out / f"checkpoints/checkpoint-{facts['best_step']}/state.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(stzoo.OutputError, match="the best checkpoint on the dev queries so far, is damaged"):
        stzoo.finetune(str(base), output=out, resume=True, **given)


@pytest.mark.usefixtures("unverified")
@pytest.mark.parametrize("episodes", [0, 1])
def test_a_resume_with_another_teacher_or_number_of_processes_is_refused(episodes, base, mined, tmp_path):
    given = dict(data=str(mined), negatives=2, dev_queries=0, losses={"kl": 1.0}, max_steps=1, **SHORT)
    given |= dict(episodes=1, depth=10, mined=4) if episodes else {}
    given |= dict(teacher=str(tiny_cross_encoder(tmp_path / "teacher")))
    out = stzoo.finetune(str(base), output=tmp_path / "out", **given)
    facts = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(facts | {"status": "running"}))
    tiny_cross_encoder(tmp_path / "teacher", seed=1)
    with pytest.raises(stzoo.OutputError, match=r"contains a run with other inputs \(teacher"):
        stzoo.finetune(str(base), output=out, resume=True, **given)
    tiny_cross_encoder(tmp_path / "teacher")
    (out / "run.json").write_text(json.dumps(facts | {"status": "running", "processes": 2}))
    with pytest.raises(stzoo.OutputError, match=r"a run on 2 processes; 1 would train on other batches"):
        stzoo.finetune(str(base), output=out, resume=True, **given)


@pytest.mark.usefixtures("unverified")
def test_a_resume_with_another_guide_is_refused(base, judged, tmp_path):
    guide = tmp_path / "guide"
    load_model(str(base)).save_pretrained(str(guide))
    named = {"model": str(base), "data": str(judged)}
    settings = FinetuneSettings.read(None, named | {"loss_options.gist.guide": load_model(str(guide))})
    assert "/objects/guide-" in settings.loss_options["gist"]["guide"]
    with pytest.raises(stzoo.ModelError, match="an object of type set was given as model"):
        FinetuneSettings.read(None, named | {"loss_options.gist.guide": set()})
    given = dict(data=str(judged), dev_queries=0, max_steps=1, losses={"gist": 1.0}, **SHORT)
    given |= dict(loss_options={"gist": {"guide": str(guide)}})
    out = stzoo.finetune(str(base), output=tmp_path / "out", **given)
    record = json.loads((out / "run.json").read_text())
    assert record["guide"] == {"fingerprint": fingerprint(guide)}
    (out / "run.json").write_text(json.dumps(record | {"status": "running"}))
    first = open_guide(str(guide))
    assert open_guide(str(guide)) is first
    model = load_model(str(base))
    model.max_seq_length = 32
    model.save_pretrained(str(guide))
    assert open_guide(str(guide)).max_seq_length == 32
    with pytest.raises(stzoo.OutputError, match=r"contains a run with other inputs \(guide"):
        stzoo.finetune(str(base), output=out, resume=True, **given)


@pytest.mark.usefixtures("unverified")
def test_bf16_on_a_cpu_trains_and_exports(base, judged, tmp_path):
    given = dict(data=str(judged), dev_queries=0, max_steps=2, precision="bf16", device="cpu", **SHORT)
    out = stzoo.finetune(str(base), output=tmp_path / "out", **given)
    assert torch.isfinite(torch.tensor(SentenceTransformer(str(out), device="cpu").encode("a wing"))).all()


@pytest.mark.usefixtures("unverified")
def test_lengths_beyond_the_models_own_are_cut_to_it(base, judged, tmp_path):
    given = dict(data=str(judged), dev_queries=0, max_steps=1, max_passage_tokens=4096, **SHORT)
    long = {"passage_prompt": "wing " * 200}
    assert stzoo.finetune(str(base), output=tmp_path / "out", **given, **long).is_dir()


def test_held_out_queries_leave_training(judged):
    found = read_beir(judged, "train")
    train = from_judged(found)
    rest, dev, shared = hold_out(train, 5, seed=1)
    assert (len(dev.query_ids), shared) == (5, 0)
    assert {*rest.query_ids, *dev.query_ids} == {*train.query_ids}
    assert not {*rest.query_ids} & {*dev.query_ids}
    assert list(hold_out(train, 5, seed=1)[1].query_ids) == list(dev.query_ids)
    assert len(hold_out(train, 10**6, seed=1)[1].query_ids) == 8  # a fifth
    assert len(rest.positives.places) == 35
    small = cut_corpus(found, 50, seed=1)
    assert len(small.corpus_ids) == 50
    assert {d for grades in found.qrels.values() for d in grades} <= set(small.corpus_ids)


@given(
    answers=st.lists(st.sets(st.integers(0, 30), min_size=1, max_size=3), min_size=5, max_size=40),
    queries=st.integers(1, 10),
    seed=st.integers(0, 3),
)
def test_queries_with_a_common_answer_stay_together_while_they_can(answers, queries, seed):
    writer = TrainingSetWriter()
    for number, places in enumerate(answers):
        writer.add(f"query {number}", [Candidate(f"passage {place}") for place in sorted(places)])
    train = writer.finish("made", Path("here"))
    rest, dev, shared = hold_out(train, queries, seed)
    wanted = min(queries, len(answers) // 5)
    assert wanted / 2 <= len(dev.query_ids) <= wanted
    assert sorted([*rest.queries, *dev.queries]) == sorted(train.queries)
    known = {place for one in range(len(rest.queries)) for place in rest.positives[one].tolist()}
    sharing = sum(not known.isdisjoint(dev.positives[one].tolist()) for one in range(len(dev.queries)))
    assert shared == sharing
    if all(len(places) == 1 for places in answers) and max(map(answers.count, answers)) == 1:
        assert not shared


@pytest.mark.usefixtures("unverified")
def test_queries_that_hang_together_are_split_and_counted(base, tmp_path, capsys):
    rows = [{"anchor": f"lift of the wing {n}", "positive": "slipstream"} for n in range(20)]
    (tmp_path / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = str(tmp_path / "one.jsonl")
    out = stzoo.finetune(str(base), data=data, dev_queries=6, max_steps=1, output=tmp_path / "out", **SHORT)
    assert json.loads((out / "run.json").read_text())["dev"]["sharing_answers"] == 4
    notes = capsys.readouterr().err
    assert "share an answer with a training query: 4." in notes
    assert "dev_queries is 6, but at most a fifth of the queries are held out, here 4." in notes


@pytest.fixture(scope="module")
def mined(judged, tmp_path_factory):
    path = tmp_path_factory.mktemp("mined") / "mined.parquet"
    stzoo.mine("bm25s", data=str(judged), output=path, mined=6, depth=20)
    return path


@pytest.mark.usefixtures("unverified")
def test_mined_negatives_are_trained_on(base, judged, mined, tmp_path):
    given = dict(dev_data=str(judged), dev_split="dev", dev_passages=0, eval_steps=4, epochs=4)
    given |= SHORT | {"mini_batch_size": 4}
    out = stzoo.finetune(
        str(base), data=str(mined), negatives=3, pooling="mean", output=tmp_path / "out", **given
    )
    facts = json.loads((out / "run.json").read_text())
    assert facts["data"]["mined"]["model"]["name"] == "bm25s"
    assert facts["data"]["columns"][0]["negative_score"] == ["neg_scores"]
    assert facts["data"]["negatives"] == len(read_training(mined).negatives.places) > 100
    log = [line["loss"] for line in facts["log"] if "loss" in line]
    assert log[-1] < log[0]
    assert quality(SentenceTransformer(str(out), device="cpu"), judged, "train") > 0.5


@pytest.mark.usefixtures("unverified")
def test_a_queries_first_loss_is_over_the_candidates_asked_for(base, mined, tmp_path):
    """An untrained model's loss is near the logarithm of the number of passages in the batch."""
    for negatives in (0, 5):
        given = dict(dev_queries=0, max_steps=1, temperature=1.0, **(SHORT | {"batch_size": 16}))
        out = stzoo.finetune(
            str(base), data=str(mined), negatives=negatives, output=tmp_path / str(negatives), **given
        )
        first = json.loads((out / "run.json").read_text())["log"][0]["loss"]
        assert first == pytest.approx(math.log(16 * (1 + negatives)), abs=0.3)


@pytest.fixture(scope="module")
def scored(judged, tmp_path_factory):
    """Teacher's scores that speak for the wrong passage: for the first negative, against the positive."""
    path = tmp_path_factory.mktemp("scored") / "scored.jsonl"
    found = read_beir(judged, "train")
    lines = []
    for number, (query, grades) in enumerate(found.qrels.items()):
        (positive,) = grades
        texts = dict(zip(found.corpus_ids, found.passages, strict=True))
        others = [texts[f"d{(number + k) % 60}"] for k in (7, 19, 33)]
        row = {"query": found.queries[query], "pos": [texts[positive]], "neg": others}
        lines.append(json.dumps(row | {"pos_scores": [-2.0], "neg_scores": [2.0, -2.0, -2.0]}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.usefixtures("unverified")
@pytest.mark.parametrize("losses", [{"kl": 1.0}, {"margin-mse": 1.0}, {"kl": 1.0, "contrastive": 0.001}])
def test_distillation_follows_the_teacher_wherever_it_leads(losses, base, scored, tmp_path):
    out = stzoo.finetune(
        str(base),
        data=str(scored),
        losses=losses,
        dev_queries=0,
        epochs=10,
        pooling="mean",
        output=tmp_path / "out",
        **SHORT,
    )
    log = json.loads((out / "run.json").read_text())["log"]
    assert set(losses) <= set(log[0]) or len(losses) == 1
    model = SentenceTransformer(str(out), device="cpu")
    data = read_training(scored)
    follows = 0
    for query in range(len(data.query_ids)):
        texts = [data.passages[place] for place in [*data.positives[query], *data.negatives[query]]]
        scores = model.similarity(model.encode([data.queries[query]]), model.encode(texts))[0]
        follows += int(scores.argmax()) == 1
    assert follows > 15  # of 40; of an untrained model, none or one


@pytest.mark.usefixtures("unverified")
def test_a_teacher_scores_what_has_no_scores(base, mined, judged, tmp_path, capsys):
    teacher = tiny_cross_encoder(tmp_path / "teacher")
    given = dict(data=str(mined), negatives=2, dev_queries=0, losses={"kl": 1.0}, max_steps=2, **SHORT)
    out = stzoo.finetune(str(base), teacher=str(teacher), output=tmp_path / "out", **given)
    facts = json.loads((out / "run.json").read_text())
    assert facts["status"] == "finished"
    assert abs(facts["teacher_margin"]) < 1  # its weights are random
    assert "higher for positives than for negatives" in capsys.readouterr().err
    given["data"] = str(judged)  # nothing mined yet
    with pytest.raises(stzoo.RecipeError, match="negatives"):
        stzoo.finetune(
            str(base), teacher=str(teacher), output=tmp_path / "none", **given | {"negatives": None}
        )


@pytest.mark.usefixtures("unverified")
def test_adapters_alone_learn_and_are_folded_into_the_export(base, judged, tmp_path):
    pytest.importorskip("peft")
    given = dict(data=str(judged), dev_queries=0, epochs=4, pooling="mean", **SHORT | {"learning_rate": 1e-2})
    out = stzoo.finetune(str(base), lora_rank=4, output=tmp_path / "out", **given)
    names = set(load_file(out / "model.safetensors"))
    plain = stzoo.finetune(str(base), output=tmp_path / "plain", **given | {"epochs": 1})
    assert names == set(load_file(plain / "model.safetensors"))
    before = quality(load_model(str(base), pooling="mean"), judged, "train")
    assert quality(SentenceTransformer(str(out), device="cpu"), judged, "train") > before
    base_weights, tuned = (
        load_model(str(base), pooling="mean").state_dict(),
        SentenceTransformer(str(out), device="cpu").state_dict(),
    )
    moved = {name for name in base_weights if not torch.allclose(base_weights[name], tuned[name], atol=1e-7)}
    assert moved
    assert not any("embeddings" in name or "bias" in name or "LayerNorm" in name for name in moved)


@pytest.mark.usefixtures("unverified")
def test_vectors_are_compared_as_asked_for_in_training_and_after(base, judged, tmp_path):
    given = dict(data=str(judged), dev_queries=0, max_steps=1, log_steps=1, temperature=1.0, device="cpu")
    losses = {}
    for similarity in (None, "cosine", "dot"):
        out = stzoo.finetune(str(base), similarity=similarity, output=tmp_path / str(similarity), **given)
        model = SentenceTransformer(str(out), device="cpu")
        assert model.similarity_fn_name == (similarity or "cosine")
        losses[similarity] = json.loads((out / "run.json").read_text())["log"][0]["loss"]
    assert losses[None] == losses["cosine"] != losses["dot"]


@pytest.mark.parametrize("name", manager.all("recipe"))
def test_recipes_without_scaling_compare_by_dot_product(name):
    """Cosines, which differ by 2 at most, teach hardly anything at a temperature of 1."""
    recipe = yaml.safe_load(manager.recipe_text(name))
    if recipe["command"] == "finetune" and recipe.get("temperature") == 1.0:
        assert recipe["similarity"] == "dot"


@pytest.mark.usefixtures("unverified")
def test_vectors_cut_short_are_trained_by_matryoshka(base, judged, tmp_path):
    given = dict(data=str(judged), dev_queries=0, epochs=8, pooling="mean", **SHORT)
    scores = {}
    for name, dims in (("whole", []), ("cut", [4])):
        out = stzoo.finetune(str(base), matryoshka=dims, output=tmp_path / name, **given)
        scores[name] = quality(SentenceTransformer(str(out), device="cpu", truncate_dim=4), judged, "train")
    assert scores["cut"] > scores["whole"]


@pytest.mark.usefixtures("unverified")
def test_accumulated_batches_make_one_step(base, judged, tmp_path):
    given = dict(data=str(judged), dev_queries=0, epochs=1, **SHORT)
    out = stzoo.finetune(str(base), accumulation=5, output=tmp_path / "out", **given)
    assert json.loads((out / "run.json").read_text())["steps"] == 1


def test_passages_on_other_devices_are_negatives_too(base, mined, tmp_path):
    still = tmp_path / "still"  # without dropout, which each process draws for itself
    shutil.copytree(base, still)
    config = json.loads((still / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (still / "config.json").write_text(json.dumps(config))
    code = f"{UNVERIFIED}\nfrom stzoo.cli import main; main()"
    found = {}
    for name, ranks, more in (
        ("one", 1, ["--batch-size", "16"]),
        ("two", 2, ["--batch-size", "8", "--cross-device", "--mini-batch-size", "4"]),
        ("two apart", 2, ["--batch-size", "8"]),
    ):
        words = ["finetune", still, "--data", mined, "--negatives", 2, "--dev-queries", 0, "--device", "cpu"]
        words += ["--temperature", 0.1, "--max-steps", 1, "--log-steps", 1]
        words += ["--output", tmp_path / name, *more]
        command = [sys.executable, "-c", code, *map(str, words)]
        if ranks == 1:
            done = processes.run(command, capture_output=True, text=True)
        else:
            done = processes.run_ranks(ranks, command)
        assert done.returncode == 0, done.stderr[-3000:]
        found[name] = json.loads((tmp_path / name / "run.json").read_text())["log"][0]
    for figure in ("loss", "grad_norm"):
        assert found["two"][figure] == pytest.approx(found["one"][figure], rel=1e-4)
    assert found["two apart"]["loss"] < found["one"]["loss"] - 0.3


MINED = "a file of training data"
BAD = {
    "split": (dict(split="trian"), "trian"),
    "data": (dict(data="no-such-folder"), "no-such-folder"),
    "model": (dict(model="no-such/model"), "no-such/model"),
    "setting": (dict(temprature=1), "did you mean 'temperature'"),
    "loss": (dict(losses={"kll": 1.0}), "did you mean 'kl'|kl"),
    "a loss that needs candidates": (dict(losses={"kl": 1.0}), "negatives"),
    "dev split of a file": (dict(data=MINED, dev_split="dev"), "--dev-data"),
    "the training split as dev": (
        dict(dev_split="train"),
        "early stopping needs queries that are not trained on",
    ),
    "mining that nobody asks for": (dict(depth=50), "depth has no effect while episodes"),
    "adapters that nobody asks for": (dict(lora_alpha=4.0), "lora_alpha has no effect while lora_rank"),
    "distilled episodes without a teacher": (dict(losses={"kl": 1.0}, episodes=1), "--teacher"),
    "lora targets": (dict(lora_rank=2, lora_targets=["nothing"]), "nothing"),
    "matryoshka": (dict(matryoshka=[999]), "matryoshka"),
    "recipe of another command": (dict(recipe="retromae-pretrain"), "is for `stzoo pretrain`"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_explained_and_leaves_nothing(what, base, judged, tmp_path):
    change, expected = BAD[what]
    if change.get("data") == MINED:
        (tmp_path.parent / "pairs.jsonl").write_text('{"query": "a", "pos": ["b"]}\n' * 3)
        change = change | {"data": str(tmp_path.parent / "pairs.jsonl")}
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


@pytest.mark.usefixtures("unverified")
def test_a_mined_file_inside_the_judged_folder_keeps_its_negatives(base, judged, mined, tmp_path):
    folder = shutil.copytree(judged, tmp_path / "judged")
    file = shutil.copy(mined, folder / "mined.parquet")
    out = stzoo.finetune(
        str(base), data=str(file), dev_queries=0, max_steps=1, output=tmp_path / "out", **SHORT
    )
    assert json.loads((out / "run.json").read_text())["data"]["negatives"] > 100


@pytest.mark.usefixtures("unverified")
@pytest.mark.parametrize(
    "mistake",
    [
        dict(losses={"kll": 1.0}),
        dict(losses={"kl": 1.0}),
        dict(matryoshka=[999]),
        dict(precision="fp16", device="cpu"),
        dict(teacher="no-such-teacher"),
        dict(episodes=1, depth=5),
    ],
    ids=str,
)
def test_a_mistake_leaves_the_run_that_was_to_be_overwritten(mistake, base, judged, tmp_path):
    given = dict(data=str(judged), dev_queries=0, max_steps=1, output=tmp_path / "out", **SHORT)
    out = stzoo.finetune(str(base), **given)
    before = {path.name for path in out.iterdir()}, (out / "run.json").read_bytes()
    with pytest.raises(stzoo.StzooError):
        stzoo.finetune(str(base), overwrite=True, **given | mistake)
    assert ({path.name for path in out.iterdir()}, (out / "run.json").read_bytes()) == before


def test_a_teacher_that_nothing_learns_from_is_refused(base, mined, tmp_path):
    teacher = tiny_cross_encoder(tmp_path / "teacher")
    given = dict(data=str(mined), dev_queries=0, max_steps=1, output=tmp_path / "out", **SHORT)
    with pytest.raises(stzoo.RecipeError, match=r"the teacher .* has no effect"):
        stzoo.finetune(str(base), teacher=str(teacher), **given)


def test_too_few_pairs_for_a_batch_of_all_processes_are_an_error(base, judged, tmp_path, monkeypatch):
    torchrun = dict(WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", MASTER_ADDR="localhost", MASTER_PORT="29500")
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(stzoo.DataError, match=r"40 pairs .* expected at least 128"):
        stzoo.finetune(str(base), data=str(judged), dev_queries=0, output=tmp_path / "out")


@pytest.mark.usefixtures("unverified")
def test_scores_of_a_foreign_files_making_are_learnt_from(base, scored, tmp_path, capsys):
    first, *rest = scored.read_text().replace('"pos_scores": [-2.0]', '"pos_scores": [3.0]').splitlines()
    for made in ({"note": "by hand"}, {"teacher": "mine", "model": {}}):
        file = tmp_path / "foreign.jsonl"
        file.write_text("\n".join([json.dumps(json.loads(first) | {"stzoo": made}), *rest]))
        given = dict(data=str(file), losses={"kl": 1.0}, dev_queries=0, max_steps=1, **SHORT)
        stzoo.finetune(str(base), output=tmp_path / "out", overwrite=True, **given)
    assert "higher for positives than for negatives" not in capsys.readouterr().err
    assert json.loads((tmp_path / "out/run.json").read_text())["teacher_margin"] == pytest.approx(3 + 2 / 3)
