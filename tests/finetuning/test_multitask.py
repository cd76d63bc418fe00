"""Several tasks in one training: how they are mixed, and that what is trained is what the balancer says."""

import json
import random
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from support import processes
from support.helpers import cli

import stzoo
from stzoo import ModelError
from stzoo.data.beir import write_beir
from stzoo.finetuning.balancers import Gradients
from stzoo.finetuning.data import read_data
from stzoo.finetuning.multitask import MultiTaskTrainer, TaskBatcher, shares
from stzoo.testing import sentences
from stzoo.training.finetune_settings import FinetuneSettings

SHORT = dict(mini_batch_size=64, log_steps=1, learning_rate=1e-3, device="cpu", save_steps=3)
SHORT |= dict(keep_checkpoints=2)  # some tests look at what a finished run would remove


@given(
    st.lists(st.floats(0.01, 1e6), min_size=1, max_size=12),
    st.integers(0, 200),
    st.floats(1, 20),
)
def test_shares_fill_the_batch_and_leave_no_task_out(sizes, more, temperature):
    batch = len(sizes) + more
    found = shares(sizes, batch, temperature)
    assert sum(found) == batch
    assert min(found) >= 1
    order = np.argsort(sizes, kind="stable")
    assert (np.diff(np.array(found)[order]) >= -1).all()  # larger ones have no less, but for rounding


def test_shares_are_flattened_by_temperature():
    assert shares([1, 10_000], 101) == [1, 100]
    assert shares([1, 10_000], 22, temperature=4) == [2, 20]  # 10,000 ^ (1/4) is 10 times as much
    assert shares([1, 10_000], 22, temperature=1e6) == [11, 11]


class Counting:
    """Stands for `stzoo.finetuning.collator.QueryPassageCollator`: notes what it is asked for."""

    negatives = 0

    def __init__(self, size):
        self.pairs, self.epoch, self.asked = np.zeros((size, 2)), 0, []

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __call__(self, rows):
        self.asked += [(self.epoch, row["example"]) for row in rows]
        return [row["example"] for row in rows]


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(2, 30), min_size=1, max_size=4),
    batch=st.integers(4, 12),
    seed=st.integers(0, 99),
)
def test_every_task_is_gone_through_evenly(sizes, batch, seed):
    def mixture():
        examples = {str(number): Counting(size) for number, size in enumerate(sizes)}
        return TaskBatcher(examples, shares(sizes, batch), False, seed), examples

    whole, seen = mixture()
    batches = []
    for epoch in range(3):
        whole.set_epoch(epoch)
        batches += [whole([{"batch": number}])["tasks"] for number in range(whole.batches)]
    for examples in seen.values():
        drawn = Counter(example for _, example in examples.asked)
        assert set(drawn) == set(range(len(examples.pairs)))
        assert max(drawn.values()) - min(drawn.values()) <= 1
    again, _ = mixture()  # from the middle, as a run does that goes on
    again.set_epoch(2)
    assert [again([{"batch": n}])["tasks"] for n in range(again.batches)] == batches[2 * whole.batches :]


def test_turns_have_one_task_each():
    examples = {"a": Counting(6), "b": Counting(3)}
    mixture = TaskBatcher(examples, [3, 3], True, 0)
    names = [list(mixture([{"batch": number}])["tasks"]) for number in range(mixture.batches)]
    assert names == [["a"], ["b"], ["a"], ["b"]]
    assert sorted(example for _, example in examples["a"].asked) == list(range(6))
    assert Counter(example for _, example in examples["b"].asked) == {0: 2, 1: 2, 2: 2}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Two tasks over corpora of their own; five words of a passage ask for it."""
    root = tmp_path_factory.mktemp("tasks")
    found = []
    for number, (name, size) in enumerate((("words", 48), ("last", 24))):
        draw = random.Random(number)
        texts = sentences(size, seed=10 + number)
        rows = [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(texts)]
        queries = {f"q{i}": " ".join(draw.sample(text.split(), 5)) for i, text in enumerate(texts)}
        qrels = {
            split: {f"q{i}": {f"d{i}": 1} for i in places}
            for split, places in {"train": range(size - 8), "dev": range(size - 8, size)}.items()
        }
        write_beir(root / name, rows, queries, qrels)
        found.append({"name": name, "data": str(root / name)})
    found[0]["query_prompt"] = "find: "
    return found


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def still(base, tmp_path_factory):
    """The tiny BERT without dropout, so that gradients can be compared."""
    folder = tmp_path_factory.mktemp("still") / "bert"
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.usefixtures("unverified")
@pytest.mark.parametrize("balancer", ["sum", "taco", "pcgrad", "gradnorm"])
def test_tasks_are_learnt_together(balancer, base, tasks, tmp_path):
    out = stzoo.finetune(
        str(base), tasks=tasks, balancer=balancer, dev_split="dev", eval_steps=8, patience=99,
        batch_size=12, epochs=6, pooling="mean", output=tmp_path / "out", **SHORT,
    )  # fmt: skip
    run = json.loads((out / "run.json").read_text())
    for task in ("words", "last"):
        losses = [line[f"loss_{task}"] for line in run["log"] if "loss_words" in line]
        assert np.mean(losses[-9:]) < np.mean(losses[:3]) - 0.1
        assert any(f"eval_dev_ndcg_at_10_{task}" in line for line in run["log"])
    scores = [line for line in run["log"] if "eval_dev_ndcg_at_10" in line]
    for line in scores:
        of_tasks = [line[f"eval_dev_ndcg_at_10_{task}"] for task in ("words", "last")]
        assert line["eval_dev_ndcg_at_10"] == pytest.approx(sum(of_tasks) / 2)
    assert set(run["data"]) == {"words", "last"}
    assert run["data"]["last"]["queries"] == 16


@pytest.mark.usefixtures("unverified")
def test_prompts_are_kept_under_the_tasks_names(base, tasks, tmp_path):
    out = stzoo.finetune(
        str(base), tasks=tasks, dev_queries=0, max_steps=1, batch_size=4, output=tmp_path / "out", **SHORT
    )
    model = SentenceTransformer(str(out), device="cpu")
    assert (model.prompts["words"], model.prompts["last"]) == ("find: ", "")
    text = sentences(1)[0]
    asked = model.encode(text, prompt_name="words")
    assert np.array_equal(asked, model.encode(f"find: {text}"))
    assert np.array_equal(model.encode(text, prompt_name="last"), model.encode_query(text))
    assert not np.allclose(asked, model.encode_query(text))  # of a task nobody knows: no prompt


@pytest.mark.usefixtures("unverified")
def test_rows_of_their_own_add_up_to_the_sum(still, tasks, tmp_path):
    """Also where gradients are cached and a mini-batch at a time goes through the model."""
    given = dict(tasks=tasks, dev_queries=0, max_steps=1, batch_size=8, **SHORT)
    rows = dict(balancer="taco", balancer_options={"warmup_ratio": 1.0})
    logs, ends = {}, {}
    bf16 = rows | dict(precision="bf16", mini_batch_size=3)
    for name, more in {"plain": {}, "rows": rows, "in parts": dict(mini_batch_size=3), "bf16": bf16}.items():
        out = stzoo.finetune(str(still), output=tmp_path / name, **(given | more))
        logs[name] = json.loads((out / "run.json").read_text())["log"][0]
        ends[name] = weights(out)
    for name in ("rows", "in parts"):
        assert logs["plain"]["grad_norm"] == pytest.approx(logs[name]["grad_norm"], rel=1e-4)
        assert logs["plain"]["loss"] == pytest.approx(logs[name]["loss"], rel=1e-5)
    for key, tensor in ends["plain"].items():
        assert torch.allclose(ends["rows"][key], tensor, atol=1e-6)
    # one figure alone may agree by chance
    assert any(logs["bf16"][figure] != logs["plain"][figure] for figure in ("loss", "grad_norm"))
    for figure in ("loss", "grad_norm"):
        assert logs["bf16"][figure] == pytest.approx(logs["plain"][figure], rel=0.05)
    of_tasks = [logs["plain"][f"loss_{task['name']}"] for task in tasks]
    assert logs["plain"]["loss"] == pytest.approx(sum(of_tasks) / 2, abs=1e-3)


@pytest.mark.usefixtures("unverified")
def test_the_gradient_that_is_logged_and_clipped_is_the_balanced_one(still, tasks, tmp_path, monkeypatch):
    given, give = [], Gradients.set_gradients

    def keep(self, update):
        given.append(float(torch.linalg.vector_norm(update)))
        give(self, update)

    monkeypatch.setattr(Gradients, "set_gradients", keep)
    out = stzoo.finetune(
        str(still), tasks=tasks, balancer="taco", balancer_options={"warmup_ratio": 0.0, "beta": 0.0},
        dev_queries=0, max_steps=3, batch_size=8, output=tmp_path / "out", **SHORT,
    )  # fmt: skip
    log = json.loads((out / "run.json").read_text())["log"]
    assert [line["grad_norm"] for line in log if "loss" in line] == pytest.approx(given, rel=1e-4)
    assert len(given) == 3


def test_a_corpus_of_several_tasks_is_read_and_held_once(tmp_path):
    passages = [{"_id": f"d{number}", "title": "", "text": text} for number, text in enumerate(sentences(9))]
    queries = {f"q{number}": row["text"] for number, row in enumerate(passages)}
    qrels = {f"{task}.{split}": {f"q{place}": {f"d{place}": 1} for place in range(first, 9, 2)}
             for first, task in enumerate(("even", "odd")) for split in ("train", "dev")}  # fmt: skip
    write_beir(tmp_path / "one", passages, queries, qrels)
    rows = [
        {"name": task, "data": str(tmp_path / "one" / task), "dev_split": "dev"} for task in ("even", "odd")
    ]
    mined = read_data(FinetuneSettings(model="x", tasks=rows, episodes=1), mining=True)
    held = [one for data in mined.values() for one in (data.train.origin, data.dev)]
    assert all(one.passages is held[0].passages and one.corpus_ids is held[0].corpus_ids for one in held)
    assert [len(one.queries) for one in held] == [5, 5, 4, 4]
    again = read_data(FinetuneSettings(model="x", tasks=rows, episodes=1), mining=True)
    assert again["odd"].train.origin.passages is not held[0].passages  # kept no longer than needed


@pytest.mark.usefixtures("unverified")
def test_accumulated_batches_are_balanced_once(still, tasks, tmp_path):
    given = dict(tasks=tasks, balancer="taco", dev_queries=0, max_steps=2, batch_size=6, **SHORT)
    out = stzoo.finetune(str(still), accumulation=3, output=tmp_path / "out", **given)
    assert int(load_file(out / "balancer.safetensors")["step"]) == 2


@pytest.mark.usefixtures("unverified")
@pytest.mark.parametrize("balancer", ["taco", "gradnorm", "pcgrad"])
def test_a_run_that_goes_on_ends_bitwise_where_it_would_have(balancer, base, tasks, tmp_path, monkeypatch):
    given = dict(tasks=tasks, balancer=balancer, dev_queries=0, batch_size=6, max_steps=9)
    given |= SHORT | {"log_steps": 2}
    whole = stzoo.finetune(str(base), output=tmp_path / "whole", **given)
    step, calls = MultiTaskTrainer.training_step, []

    def dies(self, *words, **named):
        calls.append(0)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return step(self, *words, **named)

    monkeypatch.setattr(MultiTaskTrainer, "training_step", dies)
    with pytest.raises(KeyboardInterrupt):
        stzoo.finetune(str(base), output=tmp_path / "killed", **given)
    assert (tmp_path / "killed/checkpoints/checkpoint-5/whole.json").is_file()
    monkeypatch.undo()
    monkeypatch.setattr("stzoo.hub.export._verify", lambda *_, **__: None)
    again = stzoo.finetune(str(base), output=tmp_path / "killed", resume=True, **given)
    for name in ("model.safetensors", "balancer.safetensors"):
        one, other = load_file(whole / name), load_file(again / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    logs = [json.loads((out / "run.json").read_text())["log"] for out in (whole, again)]
    for line in (line for log in logs for line in log):
        line.pop("tokens_per_s", None)
        line.pop("data_wait", None)
    assert logs[0] == logs[1]


@pytest.mark.parametrize("balancer", ["taco", "aligned-mtl"])
def test_a_tasks_loss_that_is_not_finite_is_named_before_the_balancer_sees_it(
    balancer, base, tasks, tmp_path
):
    given = dict(tasks=tasks, balancer=balancer, dev_queries=0, batch_size=6, max_steps=9, warmup_ratio=0)
    with pytest.raises(
        stzoo.TrainingError, match=r"step 2 of 9: words: contrastive is nan, last: con.* is nan\. "
    ):
        stzoo.finetune(str(base), output=tmp_path / "out", **given, **SHORT | {"learning_rate": 1e30})


@pytest.mark.usefixtures("unverified")
def test_sensitivities_go_on_in_the_next_episode(base, tasks, tmp_path):
    out = stzoo.finetune(
        str(base), tasks=tasks, balancer="taco", episodes=2, negatives=2, mined=4, depth=10, dev_queries=0,
        max_steps=3, batch_size=6, output=tmp_path / "out", **SHORT,
    )  # fmt: skip
    states = [load_file(out / f"episodes/{number}/balancer.safetensors") for number in (1, 2)]
    assert [int(state["step"]) for state in states] == [3, 6]
    mined = {file.name for file in (out / "episodes/1").glob("*.parquet")}
    assert mined == {"words.negatives.parquet", "last.negatives.parquet"}
    facts = json.loads((out / "run.json").read_text())["episodes"][0]
    assert set(facts["mined"]) == {"words", "last"}


@pytest.mark.usefixtures("unverified")
def test_a_kill_behind_an_episodes_last_step_loses_no_sensitivity(base, tasks, tmp_path, monkeypatch):
    given = dict(
        tasks=tasks, balancer="taco", episodes=2, negatives=2, mined=4, depth=10, dev_queries=0, max_steps=3,
        batch_size=6, **SHORT,
    )  # fmt: skip
    whole = stzoo.finetune(str(base), output=tmp_path / "whole", **given)

    def dies(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(MultiTaskTrainer, "leave_balancer", dies)
        stzoo.finetune(str(base), output=tmp_path / "killed", **given)
    again = stzoo.finetune(str(base), output=tmp_path / "killed", resume=True, **given)
    for name in ("model.safetensors", "episodes/1/balancer.safetensors", "episodes/2/balancer.safetensors"):
        one, other = load_file(whole / name), load_file(again / name)
        assert all(torch.equal(one[key], other[key]) for key in one), name


@pytest.mark.usefixtures("unverified")
def test_adapters_are_balanced_alone(base, tasks, tmp_path):
    pytest.importorskip("peft")
    out = stzoo.finetune(
        str(base), tasks=tasks, balancer="taco", lora_rank=2, lora_targets=["query"], dev_queries=0,
        max_steps=2, batch_size=6, output=tmp_path / "out", **SHORT,
    )  # fmt: skip
    with safe_open(out / "balancer.safetensors", "pt") as opened:
        columns = json.loads(opened.metadata()["columns"])
    assert all("lora" in name for name in columns)
    width = sum(int(np.prod(shape)) for shape in columns.values())
    assert load_file(out / "balancer.safetensors")["sensitivity"].shape == (2, width)


@pytest.mark.usefixtures("unverified")
def test_at_most_so_many_queries_of_a_task_are_drawn(base, tasks, tmp_path):
    rows = [{"ask": f"what is {n}", "text": f"passage {n}", "id": n} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    last = {"name": "last", "data": str(tmp_path / "rows.jsonl"), "columns": "query=ask,positive=text"}
    few = [tasks[0], last | {"max_queries": 5}]
    given = dict(dev_queries=0, max_steps=1, batch_size=6, **SHORT)
    out = stzoo.finetune(str(base), tasks=few, output=tmp_path / "out", **given)
    facts = json.loads((out / "run.json").read_text())["data"]
    assert (facts["words"]["queries"], facts["last"]["queries"]) == (40, 5)
    columns = {"form": "sentence-transformers", "query": ["ask"], "positive": ["text"], "unused": ["id"]}
    assert facts["last"]["columns"] == [columns]


def test_processes_agree_on_the_update(still, tasks, tmp_path):
    """Two processes of half the batch, ten steps: their weights agree, and the loss is that of one."""
    recipe = tmp_path / "tasks.yaml"
    recipe.write_text(json.dumps({"tasks": tasks, "balancer": "taco", "balancer_options": {"beta": 0.5}}))
    script = str(Path(__file__).parents[1] / "support" / "two_tasks.py")
    done = processes.run_ranks(2, [sys.executable, script, still, recipe, tmp_path / "two"])
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_file(tmp_path / f"two.{rank}.safetensors") for rank in range(2))
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) <= 1e-6
    name = next(name for name in one if name.endswith("encoder.layer.0.output.dense.weight"))
    start = next(
        tensor for key, tensor in weights(still).items() if key.endswith(name.partition("encoder")[2])
    )
    assert not torch.allclose(one[name], start, atol=1e-4)


BAD = {
    "two tasks of a name": (dict(names=["a", "a"]), "two tasks are named a"),
    "a dot in a name": (dict(names=["a", "b.c"]), r"'b\.c'; expected a name without dots"),
    "the name of a prompt": (dict(names=["query", "b"]), "prompts of every model"),
    "no such data": (dict(data="nowhere"), "nowhere"),
    "tasks and data": (dict(more=dict(data="x")), "both data and tasks"),
    "a batch smaller than the tasks": (dict(names=list("abcdefgh")), "expected at least 8"),
    "a share too small to compare": (dict(names=list("abc"), batch=4), "a single query per step"),
    "an unknown balancer": (dict(more=dict(balancer="tako")), "tako"),
    "an option of another balancer": (dict(more=dict(balancer="sum", balancer_options={"tau": 1.0})), "tau"),
    "turns and a balancer": (
        dict(more=dict(balancer="taco", mixing="round-robin")),
        "needs all tasks in each step",
    ),
    "a wrong key of a task": (dict(key="dta"), "did you mean 'data'"),
    "fp16": (dict(more=dict(precision="fp16")), "use bf16"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_told(case, base, tasks, tmp_path):
    wrong, told = BAD[case]
    names = wrong.get("names", ["a", "b"])
    rows = [{"name": name, "data": wrong.get("data", tasks[0]["data"])} for name in names]
    if "key" in wrong:
        rows[0][wrong["key"]] = "x"
    given = dict(tasks=rows, batch_size=wrong.get("batch", 4), dev_queries=0, device="cpu")
    with pytest.raises(stzoo.StzooError, match=told):
        stzoo.finetune(str(base), output=tmp_path / "out", **(given | wrong.get("more", {})))
    assert not (tmp_path / "out").exists()


def test_a_recipe_of_tasks_is_read_by_the_command(base, tasks, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"tasks": [tasks[0], tasks[1] | {"name": "a.b"}]}))
    done = cli("finetune", base, "--recipe", recipe, "--output", tmp_path / "out")
    assert done.returncode == 2
    assert "'a.b'; expected a name without dots" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_task_without_data_is_told(base, tasks, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(stzoo.StzooError, match=r"empty\.jsonl"):
        stzoo.finetune(
            str(base), tasks=[tasks[0], {"name": "empty", "data": str(empty)}], output=tmp_path / "out"
        )


@pytest.mark.usefixtures("unverified")
def test_a_state_of_other_tasks_is_refused(base, tasks, tmp_path):
    given = dict(balancer="taco", dev_queries=0, batch_size=6, max_steps=6, **SHORT)
    out = stzoo.finetune(str(base), tasks=tasks, output=tmp_path / "out", **given)
    path = out / "checkpoints/checkpoint-3/balancer.safetensors"
    with safe_open(path, "pt") as opened:
        about = opened.metadata()
    about["tasks"] = json.dumps(["words", "first"])
    save_file(load_file(path), path, about)
    trainer = MultiTaskTrainer.__new__(MultiTaskTrainer)
    trainer.tasks = ["words", "last"]
    with pytest.raises(ModelError, match=r"words, first.*this run has words, last"):
        trainer._load_balancer(path)


@pytest.mark.usefixtures("unverified")
def test_a_loss_that_moves_nothing_is_told(base, tasks, tmp_path, monkeypatch):
    from stzoo.finetuning.ranking_loss import RankingLoss

    forward = RankingLoss.forward

    def flat(self, *given):
        return forward(self, *given) * 0.0

    monkeypatch.setattr(RankingLoss, "forward", flat)
    with pytest.raises(ModelError, match="words, last has no gradient"):
        stzoo.finetune(
            str(base), tasks=tasks, balancer="taco", dev_queries=0, batch_size=6, max_steps=2,
            output=tmp_path / "out", **SHORT,
        )  # fmt: skip
