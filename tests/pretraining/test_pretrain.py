"""Pre-training from end to end: what it writes, what it goes on from, what it says of bad input."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from support import processes
from support.helpers import UNVERIFIED, cli, wait_for
from transformers import AutoModelForMaskedLM, AutoTokenizer
from transformers.models.bert.modeling_bert import BertLayer

import stzoo
from stzoo.data.beir import write_beir
from stzoo.plugins import manager
from stzoo.pretraining.pretrain import load_base, load_parts, make_objective
from stzoo.testing import FAMILIES, sentences, tiny_masked_lm
from stzoo.training import run_files, runs
from stzoo.training.pretrain_settings import PretrainSettings
from stzoo.training.trainer import ObjectiveTrainer
from stzoo.utils.files import write_json

SHORT = {"batch_size": 8, "max_steps": 2, "log_steps": 1}


def test_the_export_loads_everywhere_and_goes_on(base, corpus, tmp_path):
    short = SHORT | {"keep_checkpoints": 2}
    first = stzoo.pretrain(base=base, corpus=corpus, output=tmp_path / "first", **short)

    plain = SentenceTransformer(str(first), device="cpu")
    assert [type(module).__name__ for module in plain] == ["Transformer", "Pooling"]
    assert plain[1].pooling_mode == "cls"
    _, report = AutoModelForMaskedLM.from_pretrained(first, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    facts = json.loads((first / "run.json").read_text())
    assert facts["status"] == "finished"
    assert facts["recipe"]["objective"] == "retromae"
    assert facts["corpus"]["passages"] == 48
    assert {"encoder", "decoder", "decoder_accuracy", "tokens_per_s"} <= facts["log"][0].keys()

    used = {
        (part["kind"], part["name"]): (part["distribution"], part["version"]) for part in facts["components"]
    }
    installed = version("stzoo-retromae")
    assert used["objective", "retromae"] == ("stzoo-retromae", installed)
    assert used["decoder", "enhanced"] == ("stzoo", stzoo.__version__)
    assert f"stzoo-retromae {installed}" in (first / "README.md").read_text()
    # a name with its plugin, as a clash of names asks for it, is the same objective
    given = dict(base=str(base), corpus=[str(corpus)], output=first, resume=True, **short)
    assert stzoo.pretrain(objective="retromae:retromae", **given) == first
    with pytest.raises(stzoo.OutputError, match="objective: 'retromae:retromae' then, 'retromae:dupmae' now"):
        stzoo.pretrain(objective="dupmae", **given)

    given = {"base": str(first), "corpus": ["none"], "objective": "retromae:retromae"}
    settings = PretrainSettings.read(None, given)
    base = load_base(str(first))
    again = make_objective(base, settings)
    assert not load_parts(again, base, settings)
    trained = load_file(first / "checkpoints/checkpoint-2/state.safetensors")
    kept = dict(again.named_parameters())
    assert all(torch.equal(kept[name], tensor) for name, tensor in trained.items() if name in kept)
    assert {name for name in trained if name.startswith("head.")} <= kept.keys()


@pytest.mark.usefixtures("unverified")
@pytest.mark.parametrize("objective", sorted(manager.all("objective")))
def test_every_objective_trains_and_its_losses_are_logged(objective, base, corpus, tmp_path):
    out = stzoo.pretrain(
        base=str(base),
        corpus=[str(corpus)],
        objective=objective,
        output=tmp_path / "out",
        batch_size=8,
        epochs=12,
        log_steps=36,
        learning_rate=3e-3,
    )
    first, last = (json.loads((out / "run.json").read_text())["log"][i] for i in (0, -1))
    weights = manager.build("objective", objective, load_base(str(base)).backbone).weights
    trained = [name for name in weights if name in last]  # not what needs columns that are not there
    assert {"encoder"} < set(trained)
    for name in trained:
        assert last[name] < first[name], name


@pytest.mark.usefixtures("unverified")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains(family, corpus, tmp_path):
    tiny_masked_lm(family, tmp_path / "base")
    stzoo.pretrain(base=str(tmp_path / "base"), corpus=[str(corpus)], output=tmp_path / "out", **SHORT)
    before, after = (AutoModelForMaskedLM.from_pretrained(tmp_path / name) for name in ("base", "out"))
    moved = [
        name
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(old, new)
    ]
    assert any("embedding" in name for name in moved)
    assert len(moved) > 0.8 * len(list(before.parameters()))


@pytest.mark.usefixtures("unverified")
def test_an_embedding_model_keeps_its_pooling_and_gets_a_new_head(tmp_path, corpus):
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    tiny_masked_lm("bert", tmp_path / "bert")
    transformer = Transformer(str(tmp_path / "bert"))
    made = SentenceTransformer(
        modules=[transformer, Pooling(32, "mean"), Normalize()], prompts={"query": "ask: ", "document": ""}
    )
    made.save_pretrained(str(tmp_path / "minilm"))
    base = load_base(str(tmp_path / "minilm"))
    settings = PretrainSettings.read(None, {"base": "x", "corpus": ["x"]})
    new = load_parts(make_objective(base, settings), base, settings)
    assert any("cls.predictions.transform" in name for name in new)
    assert any(name.startswith("head.") for name in new)
    assert not any("encoder.layer" in name or "embeddings" in name for name in new)

    out = stzoo.pretrain(
        base=str(tmp_path / "minilm"),
        corpus=[str(corpus)],
        output=tmp_path / "out",
        head_warmup_steps=1,
        **SHORT,
    )
    plain = SentenceTransformer(str(out), device="cpu")
    assert [type(module).__name__ for module in plain] == ["Transformer", "Pooling", "Normalize"]
    assert plain[1].pooling_mode == "mean"
    assert plain.prompts["query"] == "ask: "


RUN = f"""{UNVERIFIED}
import sys, stzoo
stzoo.pretrain(base=sys.argv[1], corpus=[sys.argv[2]], output=sys.argv[3], epochs=3,
               save_steps=1, log_steps=1, head_warmup_steps=2, threads=1, resume=True, **eval(sys.argv[4]))
"""


def test_a_run_killed_at_any_moment_ends_with_the_same_weights_to_the_bit(base, corpus, tmp_path):
    batches = {"batch_tokens": 150, "accumulation": 2}

    def start(base, corpus, output):
        words = [str(base), str(corpus), str(output), repr(batches)]
        return processes.Popen([sys.executable, "-c", RUN, *words])

    assert start(base, corpus, tmp_path / "straight").wait() == 0

    output = tmp_path / "killed"
    steps = [
        # while a checkpoint is being written: its folder is there and its last file is not
        lambda: (output / "checkpoints/checkpoint-3").is_dir(),
        # between checkpoints
        lambda: (output / "checkpoints/checkpoint-9/whole.json").is_file(),
    ]
    for condition in steps:
        process = start(base, corpus, output)
        wait_for(condition, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (output / "modules.json").exists()
    assert start(base, corpus, output).wait() == 0

    for name in ("model.safetensors", "pretraining/objective.safetensors"):
        one, other = load_file(tmp_path / "straight" / name), load_file(output / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name


@pytest.mark.usefixtures("unverified")
def test_batches_of_tokens_take_each_epoch_the_steps_that_were_planned(base, corpus, tmp_path, capsys):
    out = stzoo.pretrain(
        base=str(base), corpus=[str(corpus)], output=tmp_path / "out", batch_tokens=200, epochs=2, log_steps=1
    )
    record = json.loads((out / "run.json").read_text())
    assert (record["recipe"]["batch_size"], record["recipe"]["batch_tokens"]) == (None, 200)
    counts = record["batches"]["views"]["passage"]
    assert f"The 48 passages have {counts['tokens']:,} tokens." in capsys.readouterr().err
    lines = [line for line in record["log"] if "loss" in line]
    assert [line["epoch"] for line in lines] == pytest.approx(
        [2 * step / len(lines) for step in range(1, len(lines) + 1)], abs=1e-3
    )
    assert 2 * counts["tokens"] / 200 < len(lines) < 2 * counts["tokens"] / 100


def test_batch_size_and_batch_tokens_exclude_each_other(tmp_path):
    given = {"base": "x", "corpus": ["x"]}
    read = PretrainSettings.read
    assert read(None, given).batch_size == 32
    assert read(None, {**given, "batch_tokens": 9}).batch_size is None
    with pytest.raises(stzoo.RecipeError, match="batch_size is 8 and batch_tokens 9; give one of the two"):
        read(None, {**given, "batch_size": 8, "batch_tokens": 9})
    recipe = tmp_path / "recipe.yaml"
    for line, changes, expected in (
        ("batch_size: 8", {"batch_tokens": 9}, (None, 9)),
        ("batch_tokens: 9", {"batch_size": 8}, (8, None)),
        ("batch_tokens: 9", {}, (None, 9)),
    ):
        recipe.write_text(line)
        settings = read(recipe, {**given, **changes})
        assert (settings.batch_size, settings.batch_tokens) == expected


@pytest.mark.usefixtures("unverified")
def test_a_run_of_an_older_version_is_resumed_with_a_note(base, corpus, tmp_path, capsys):
    out = tmp_path / "out"
    given = dict(base=str(base), corpus=[str(corpus)], output=out, **SHORT)
    stzoo.pretrain(**given)
    record = json.loads((out / "run.json").read_text())
    for name in ("batches", "files"):
        del record[name]
    del record["recipe"]["batch_tokens"]
    write_json(out / "run.json", {**record, "status": "running"})
    for path in out.iterdir():
        if path.is_file() and path.name != "run.json":
            path.unlink()
    for name in ("1_Pooling", "pretraining"):
        shutil.rmtree(out / name)
    stzoo.pretrain(resume=True, **given)
    assert "started by an older version of stzoo, which made other batches" in capsys.readouterr().err
    assert json.loads((out / "run.json").read_text())["status"] == "finished"


@pytest.mark.usefixtures("unverified")
def test_a_probe_scores_as_training_goes_and_changes_nothing(base, corpus, tmp_path):
    texts = sentences(20, seed=3)
    rows = [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(texts)]
    queries = {f"q{i}": text.split(".")[0] for i, text in enumerate(texts[:5])}
    qrels = {"test": {f"q{i}": {f"d{i}": 1} for i in range(5)}}
    write_beir(tmp_path / "probe", rows, queries, qrels)
    common = dict(base=str(base), corpus=[str(corpus)], batch_size=8, max_steps=4, log_steps=1)
    probed = stzoo.pretrain(
        output=tmp_path / "probed",
        probe=str(tmp_path / "probe"),
        probe_steps=2,
        report_to=["tensorboard"],
        **common,
    )
    plain = stzoo.pretrain(output=tmp_path / "plain", **common)
    log = json.loads((probed / "run.json").read_text())["log"]
    scores = [line["probe_ndcg_at_10"] for line in log if "probe_ndcg_at_10" in line]
    assert len(scores) == 3  # the base's is the first
    assert all(0 <= score <= 1 for score in scores)
    assert [line["step"] for line in log if "loss" in line] == [1, 2, 3, 4]
    assert (probed / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    assert list(probed.rglob("events.out.tfevents.*"))


def good(base, corpus, output):
    return {"base": str(base), "corpus": [str(corpus)], "output": output, **SHORT}


BAD = {
    "seed": (dict(seed=2**32), "seed"),
    "report_to": (dict(report_to=["tensorbord"]), "tensorbord"),
    "device": (dict(device="banana"), "device"),
    "precision": (dict(precision="fp16", device="cpu"), "fp16, which needs a GPU"),
    "max_tokens": (dict(max_tokens=65), "expected at most 64, the number of positions"),
    "objective": (dict(objective="retromea"), "did you mean 'retromae'"),
    "option": (dict(options={"decoder_rat": 0.5}), "decoder_rate"),
    "rate": (dict(options={"decoder_rate": 1.5}), "1.5"),
    "finite": (dict(options={"decoder_rate": float("nan")}), "must be finite"),
    "loss": (dict(weights={"decodr": 1}), "did you mean 'decoder'"),
    "setting": (dict(lerning_rate=1), "did you mean 'learning_rate'"),
    "type": (dict(batch_size="many"), "batch_size is 'many'"),
    "max_grad_norm": (dict(max_grad_norm=0), "max_grad_norm"),
    "pooling": (dict(pooling="men"), "did you mean 'mean'"),
    "corpus": (dict(corpus=["no-such-file.jsonl"]), "no-such-file.jsonl"),
    "base": (dict(base="no/such-model"), "no/such-model"),
    "probe": (dict(probe="no-such-folder"), "no-such-folder"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_explained_and_leaves_nothing(what, base, corpus, tmp_path):
    change, expected = BAD[what]
    with pytest.raises(stzoo.StzooError, match=expected):
        stzoo.pretrain(**good(base, corpus, tmp_path / "out") | change)
    assert not list(tmp_path.iterdir())


def test_an_output_folder_with_something_else_is_left_alone(base, corpus, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(stzoo.OutputError, match="not empty"):
            stzoo.pretrain(**good(base, corpus, tmp_path), overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.usefixtures("unverified")
def test_another_runs_results_are_not_overwritten_unasked(base, corpus, tmp_path):
    given = good(base, corpus, tmp_path / "out")
    out = stzoo.pretrain(**given)
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(stzoo.OutputError, match="finished run"):
        stzoo.pretrain(**given)
    with pytest.raises(stzoo.OutputError, match="seed: 42 then, 1 now"):
        stzoo.pretrain(**given, seed=1, resume=True)
    assert (out / "model.safetensors").read_bytes() == before
    assert stzoo.pretrain(**given, resume=True) == out  # finished already
    stzoo.pretrain(**given, seed=1, overwrite=True)
    assert (out / "model.safetensors").read_bytes() != before


def test_two_processes_share_a_run_and_its_folder(base, corpus, tmp_path):
    words = ["pretrain", "--base", base, "--corpus", corpus, "--output", tmp_path / "out", "--device", "cpu"]
    words += ["--max-steps", "3", "--batch-size", "4", "--probe-steps", "2"]
    words = ["-m", "stzoo", *map(str, words)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    given = dict(capture_output=True, text=True, timeout=300, check=False)
    first = processes.run([sys.executable, *torchrun, *words], **given)  # which starts two fresh processes
    second = processes.run_ranks(2, [sys.executable, *words, "--resume"])  # it is finished already
    for done in (first, second):
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stderr.count("the model is in") == 1
    assert json.loads((tmp_path / "out/run.json").read_text())["status"] == "finished"
    assert SentenceTransformer(str(tmp_path / "out"), device="cpu").encode("a wing").shape == (32,)


@pytest.mark.usefixtures("unverified")
def test_a_run_killed_while_its_model_was_being_put_in_place_is_finished(base, corpus, tmp_path):
    given = good(base, corpus, tmp_path / "out")
    out = stzoo.pretrain(**given)
    weights = (out / "model.safetensors").read_bytes()
    facts = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(facts | {"status": "running"}))
    for name in ("modules.json", "model.safetensors"):
        (out / name).unlink()
    (out / ".model.part").mkdir()
    assert stzoo.pretrain(**given, resume=True) == out
    assert (out / "model.safetensors").read_bytes() == weights
    assert (out / "modules.json").is_file()
    assert json.loads((out / "run.json").read_text())["status"] == "finished"
    assert not (out / ".model.part").exists()


@pytest.mark.usefixtures("unverified")
@pytest.mark.parametrize("change", [dict(resume=True), dict(overwrite=True)])
def test_a_failed_second_call_leaves_the_first_runs_results(change, base, corpus, tmp_path):
    given = good(base, corpus, tmp_path / "out")
    out = stzoo.pretrain(**given)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(stzoo.StzooError):
        stzoo.pretrain(**given | {"corpus": ["no-such-file.jsonl"]}, **change)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("unverified")
def test_a_resume_with_another_corpus_under_the_same_name_is_refused(base, corpus, tmp_path):
    mine = tmp_path / "mine.jsonl"
    mine.write_bytes(corpus.read_bytes())
    out = stzoo.pretrain(**good(base, mine, tmp_path / "out"))
    facts = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(facts | {"status": "running"}))
    mine.write_text(mine.read_text() + '{"text": "one more passage at the end"}\n')
    with pytest.raises(stzoo.OutputError, match=r"with other inputs \(.*corpus\.passages: \d+ then, "):
        stzoo.pretrain(**good(base, mine, tmp_path / "out"), resume=True)


@pytest.mark.parametrize("moved", range(4))
def test_an_overwrite_killed_while_it_sets_the_old_run_aside_is_undone(moved, tmp_path, monkeypatch):
    settings, out = PretrainSettings(base="x", corpus=["pydocs"]), tmp_path / "out"
    with runs.start(out, settings, resume=False, overwrite=False) as run:
        for name in ("model.safetensors", "modules.json"):
            (out / name).write_text(name)
        run.record(status="finished")
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    left, rename = [moved], Path.rename

    def killed_after(path, target):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed_after)
    with contextlib.suppress(KeyboardInterrupt):
        run_files.set_aside(out, json.loads((out / "run.json").read_text()))
    monkeypatch.undo()
    assert not (out / "run.json").exists() or not moved
    with pytest.raises(stzoo.OutputError, match=r"contains a finished run\. Replace it"):
        stzoo.pretrain(output=out, base="x", corpus=["pydocs"])
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_a_number_that_is_none_in_the_log_does_not_cost_the_model(tmp_path):
    with runs.start(
        tmp_path / "out", PretrainSettings(base="x", corpus=["pydocs"]), resume=False, overwrite=False
    ) as run:
        run.record(log=[{"grad_norm": float("inf")}, {"loss": float("nan")}])
        write_json(tmp_path / "out/copy.json", run.metadata)
    assert json.loads((tmp_path / "out/run.json").read_text())["log"] == [{"grad_norm": None}, {"loss": None}]


@pytest.mark.usefixtures("unverified")
def test_a_base_in_half_precision_is_trained_in_full(base, corpus, tmp_path):
    half = AutoModelForMaskedLM.from_pretrained(base, dtype=torch.float16)
    half.save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "half")
    out = stzoo.pretrain(**good(tmp_path / "half", corpus, tmp_path / "out"))
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.float32}


@pytest.mark.usefixtures("unverified")
def test_a_bf16_run_loses_like_a_full_one_and_exports(base, corpus, tmp_path):
    given = good(base, corpus, tmp_path / "out") | {"precision": "bf16", "device": "cpu", "max_steps": 6}
    out = stzoo.pretrain(**given)
    log = json.loads((out / "run.json").read_text())["log"]
    full = stzoo.pretrain(**given | {"precision": "fp32", "output": tmp_path / "full"})
    other = json.loads((full / "run.json").read_text())["log"]
    assert log[0]["decoder"] == pytest.approx(other[0]["decoder"], rel=0.02)
    assert all(line["loss"] is not None for line in log if "loss" in line)


@pytest.mark.usefixtures("unverified")
def test_gradient_checkpointing_gives_the_same_weights(base, corpus, tmp_path):
    given = good(base, corpus, tmp_path / "out") | {"max_steps": 3, "precision": "fp32"}
    one = stzoo.pretrain(**given)
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        own = BertLayer.forward
        patch.setattr(BertLayer, "forward", lambda *a, **k: calls.append(1) or own(*a, **k))
        other = stzoo.pretrain(**given | {"gradient_checkpointing": True, "output": tmp_path / "other"})
    assert len(calls) >= 2 * 3 * 2  # twice per step and layer
    for name, tensor in load_file(one / "model.safetensors").items():
        assert torch.equal(tensor, load_file(other / "model.safetensors")[name])


@pytest.mark.usefixtures("unverified")
def test_precision_is_chosen_by_the_cpu_recorded_and_kept_by_a_resume(base, corpus, tmp_path, monkeypatch):
    given = good(base, corpus, tmp_path / "out") | {"max_steps": 4, "save_steps": 2, "device": "cpu"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ObjectiveTrainer, "_saved", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stzoo.pretrain(**given)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    out = stzoo.pretrain(**given, resume=True)
    record = json.loads((out / "run.json").read_text())
    assert record["precision"] == {"used": "bf16", "reason": "this CPU computes with it"}
    assert record["recipe"]["precision"] == "auto"
    other = stzoo.pretrain(**given | {"output": tmp_path / "other"})
    assert json.loads((other / "run.json").read_text())["precision"]["used"] == "fp32"


def test_a_folder_in_use_is_refused_and_ctrl_c_exits_130(base, corpus, tmp_path):
    words = [
        "pretrain",
        "--base",
        base,
        "--corpus",
        corpus,
        "--output",
        tmp_path / "out",
        "--max-steps",
        "100000",
    ]
    process = processes.Popen(
        [sys.executable, "-m", "stzoo", *map(str, words)], stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: (tmp_path / "out/run.json").is_file(), process)
    second = cli(*words, "--overwrite")
    assert second.returncode == 2
    assert "in use" in second.stderr
    assert "Traceback" not in second.stderr
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_said_and_leaves_no_half_model(base, corpus, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not let a test mount a small disk")
    try:
        words = ["--base", base, "--corpus", corpus, "--output", small / "out", "--max-steps", "2"]
        done = cli("pretrain", *words, env=os.environ)  # a process whose end closes all files on the disk
        assert done.returncode == 2, done.stderr
        assert "space" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (small / "out/modules.json").exists()
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.usefixtures("unverified")
def test_a_recipe_file_is_read_and_flags_win(base, corpus, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"command: pretrain\nbase: {base}\ncorpus: [{corpus}]\nbatch_size: 8\n"
        "max_steps: 9\nlearning_rate: 1e-4\noptions: {decoder_rate: 0.7}\n"
    )
    done = cli(
        "pretrain",
        "--recipe",
        recipe,
        "--max-steps",
        1,
        "--set",
        "options.layers=2",
        "--output",
        tmp_path / "o",
    )
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "o/run.json").read_text())["recipe"]
    assert made["max_steps"] == 1
    assert made["learning_rate"] == 1e-4
    assert made["options"] == {"decoder_rate": 0.7, "layers": 2}
