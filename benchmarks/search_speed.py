"""Times exact search over given vectors: stzoo, BEIR's DenseRetrievalExactSearch, and two plain ways.

    python benchmarks/search_speed.py [--cases beir,faiss,faiss-1] [--repeats 3] [--threads 2]
        [--output search_speed.json]

beir       5000 queries, 500,000 documents of dimension 64, k = 1000: stzoo and BEIR
faiss      1000 queries, 100,000 documents of dimension 384, k = 100: stzoo, faiss.knn and torch
faiss-1    the same on one thread, where no thread waits for another in CPU seconds

Vectors are random normal numbers, compared by dot product; encoders are out of it: BEIR's is one that hands
the vectors over. Each side runs in a process of its own, in turn, after a small search. Seconds, of CPU and
by the clock, go from the call to the results: of stzoo and BEIR each query's as a dict; torch (a running
top-k over chunks of 16,384, in float32) and faiss stop at arrays of places. Peak memory is what the process
took at most, less what another took that imported the same and made the same vectors, but did not search.
With --output, cases of the file that were not run are kept.
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from common import arguments, processor, versions, write_report

CHUNK = 16384
CASES = {
    "beir": (dict(queries=5000, documents=500_000, dim=64, k=1000), ("stzoo", "beir")),
    "faiss": (dict(queries=1000, documents=100_000, dim=384, k=100), ("stzoo", "faiss", "torch")),
    "faiss-1": (
        dict(queries=1000, documents=100_000, dim=384, k=100, threads=1),
        ("stzoo", "faiss", "torch"),
    ),
}


def stzoo_side(queries: Any, documents: Any, k: int) -> Callable[[], list[str]]:
    """`stzoo.retrieval.search.exact.top_k`."""
    import pyarrow.compute  # noqa: F401 - the import belongs to the baseline

    from stzoo.retrieval.search.exact import top_k

    names, ids = [f"q{i}" for i in range(len(queries))], [f"d{i}" for i in range(len(documents))]

    def search() -> list[str]:
        run = top_k(queries, documents, names, ids, k, drop_self=False)
        last: dict[str, float] = {}
        for query in run:
            last = dict(run[query])
        return list(last)[:10]

    return search


def beir_side(queries: Any, documents: Any, k: int) -> Callable[[], list[str]]:
    """BEIR's exact search with an encoder that takes no time."""
    import torch
    from beir.retrieval.search.dense import DenseRetrievalExactSearch

    names = {f"q{i}": "" for i in range(len(queries))}
    corpus = {f"d{i}": {"title": "", "text": ""} for i in range(len(documents))}
    given = torch.from_numpy(documents)

    class Encoder:
        done = 0

        def encode_queries(self, *_: Any, **__: Any) -> torch.Tensor:
            return torch.from_numpy(queries)

        def encode_corpus(self, rows: list, **_: Any) -> torch.Tensor:
            self.done += len(rows)  # they come in the order of the corpus: all texts are of one length
            return given[self.done - len(rows) : self.done]

    def search() -> list[str]:
        searcher = DenseRetrievalExactSearch(Encoder(), show_progress_bar=False)
        run = searcher.search(corpus, names, k, "dot")
        last = run[f"q{len(queries) - 1}"]
        return sorted(last, key=last.__getitem__, reverse=True)[:10]

    return search


def torch_side(queries: Any, documents: Any, k: int) -> Callable[[], list[str]]:
    """A running top-k of a float32 product, chunk by chunk."""
    import torch

    asked, given = torch.from_numpy(queries), torch.from_numpy(documents)

    def search() -> list[str]:
        best = torch.empty(len(asked), 0), torch.empty(len(asked), 0, dtype=torch.int64)
        for start in range(0, len(given), CHUNK):
            scores = asked @ given[start : start + CHUNK].T
            values, places = scores.topk(min(k, scores.shape[1]))
            values, places = torch.cat([best[0], values], 1), torch.cat([best[1], places + start], 1)
            values, chosen = values.topk(min(k, values.shape[1]))
            best = values, places.gather(1, chosen)
        return [f"d{i}" for i in best[1][-1, :10].tolist()]

    return search


def faiss_side(queries: Any, documents: Any, k: int) -> Callable[[], list[str]]:
    """faiss.knn over all at once."""
    import faiss

    def search() -> list[str]:
        _, places = faiss.knn(queries, documents, min(k, len(documents)), metric=faiss.METRIC_INNER_PRODUCT)
        return [f"d{i}" for i in places[-1, :10].tolist()]

    return search


SIDES = {"stzoo": stzoo_side, "beir": beir_side, "torch": torch_side, "faiss": faiss_side}


def one_side(given: argparse.Namespace) -> None:
    """Runs one side here, or for a baseline only gets it ready, and prints what it took."""
    import faiss
    import numpy as np
    import torch

    torch.set_num_threads(given.threads)
    faiss.omp_set_num_threads(given.threads)
    random = np.random.default_rng(0)
    queries = random.standard_normal((given.queries, given.dim), np.float32)
    documents = random.standard_normal((given.documents, given.dim), np.float32)
    with contextlib.redirect_stdout(sys.stderr):
        if not given.baseline:
            SIDES[given.side](queries[:99], documents[:5000], given.k)()
        search = SIDES[given.side](queries, documents, given.k)
        begun, used = time.perf_counter(), time.process_time()
        first = [] if given.baseline else search()
        seconds, cpu = time.perf_counter() - begun, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    took = {"seconds": round(seconds, 3), "cpu_seconds": round(cpu, 3)}
    print(json.dumps(took | {"peak_mb": round(peak), "first": first}))


def measure(case: str, repeats: int, threads: int) -> dict[str, Any]:
    """Runs the sides of a case in turn: medians, ratios and all runs."""
    load, sides = CASES[case]
    load = {"threads": threads} | load
    words = [sys.executable, __file__, *(f"--{name}={value}" for name, value in load.items())]
    env = os.environ | {"OMP_NUM_THREADS": str(load["threads"])}

    def run(side: str, *more: str) -> dict[str, Any]:
        done = subprocess.run(
            [*words, "--side", side, *more], check=True, stdout=subprocess.PIPE, text=True, env=env
        )
        return json.loads(done.stdout.splitlines()[-1])

    idle = {side: run(side, "--baseline")["peak_mb"] for side in sides}
    took: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for repeat in range(repeats):
        for side in sides:
            one = run(side)
            one["peak_mb"] -= idle[side]
            took[side].append(one)
            print(f"{case} {repeat + 1}/{repeats} {side}: { {**one, 'first': '…'} }", flush=True)
    firsts = {tuple(one.pop("first")) for runs in took.values() for one in runs}
    medians = {
        name: {side: statistics.median(one[name] for one in runs) for side, runs in took.items()}
        for name in ("seconds", "cpu_seconds", "peak_mb")
    }
    ratios = {
        name: {side: round(value / max(values["stzoo"], 1e-3), 2) for side, value in values.items()}
        for name, values in medians.items()
    }
    return {
        **load,
        **medians,
        "ratios to stzoo": ratios,
        "all find the same": len(firsts) == 1,
        "runs": took,
        "load_average": os.getloadavg()[0],
        "cpus": os.cpu_count(),
        "processor": processor(),
        "versions": versions("stzoo", "torch", "numpy", "beir", "faiss-cpu"),
    }


def main() -> None:
    """Measures the cases."""
    parser = arguments(__doc__)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--baseline", action="store_true", help=argparse.SUPPRESS)
    for name in ("queries", "documents", "dim", "k"):
        parser.add_argument(f"--{name}", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        one_side(given)
        return
    found = {case: measure(case, given.repeats, given.threads) for case in given.cases.split(",")}
    write_report(found, given.output, keep=True)


if __name__ == "__main__":
    main()
