"""Writes the tables of the documentation from the files in benchmarks/results; nobody edits them by hand.

    python benchmarks/tables.py [--check]

A table stands between `<!-- table NAME -->` and `<!-- end -->`. With --check nothing is written, and the exit
code is 1 if a table is not what its files say.
"""

import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
RESULTS = HERE / "results"


def scores(folder: Path) -> dict[tuple[str, str], dict]:
    """The test scores of each result file by (data set, model)."""
    found = {}
    for path in sorted(folder.glob("*/*/*.json")):
        if path.name != "model_meta.json":
            meta = json.loads(path.with_name("model_meta.json").read_text())
            found[path.stem, meta["name"]] = json.loads(path.read_text())["scores"]["test"][0]
    return found


def beir() -> str:
    """BM25 and all-MiniLM-L6-v2 on three collections."""
    found = scores(RESULTS)
    minilm = "sentence-transformers/all-MiniLM-L6-v2"
    lines = [
        "| data set | BM25 nDCG@10 | Recall@100 | all-MiniLM-L6-v2 nDCG@10 | Recall@100 |",
        "|---|---|---|---|---|",
    ]
    for dataset in ("scifact", "vaswani", "cranfield"):
        cells = [
            f"{found[dataset, model][measure]:.4f}"
            for model in ("bm25s", minilm)
            for measure in ("ndcg_at_10", "recall_at_100")
        ]
        lines.append(f"| {dataset} | {' | '.join(cells)} |")
    return "\n".join(lines)


def fusion() -> str:
    """BM25 and all-MiniLM-L6-v2 fused by each method and weight."""
    made = json.loads((RESULTS / "fusion.json").read_text())
    weights = ("0.3", "0.5", "0.7")
    sets = made["sets"]
    heads = [f"{name} ({found['queries']})" for name, found in sets.items()]
    lines = [f"| nDCG@10 | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    rows = {"BM25": ["bm25s"], "all-MiniLM-L6-v2": ["all-MiniLM-L6-v2"]}
    for rule, about in (("lowest", ""), ("exact", ", exact scores of all candidates")):
        for method in ("min-max", "z-score", "rrf")[: 3 if rule == "lowest" else 2]:
            rows[f"{method}, BM25's weight {' / '.join(weights)}{about}"] = [
                f"{rule} {method} {weight}" for weight in weights
            ]
    for name, systems in rows.items():
        cells = [
            " / ".join(f"{found['scores'][system]:.4f}" for system in systems) for found in sets.values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    others = {"bm25s": "BM25", "all-MiniLM-L6-v2": "the model"}
    others |= {f"lowest {method} {made['weight']}": f"`{method}`" for method in ("z-score", "rrf")}
    others |= {f"exact {made['method']} {made['weight']}": "exact scores"}
    tested = [
        f"- {name}: "
        + ", ".join(
            f"{about} {found['default_against'][other]['difference']:+.4f} "
            f"(p {found['default_against'][other]['p_value']:.4f})"
            for other, about in others.items()
        )
        for name, found in sets.items()
    ]
    title = (
        f"The default, `{made['method']}` with the weight {made['weight']}, against the others (paired test):"
    )
    return "\n".join([*lines, "", title, "", *tested])


def compare() -> str:
    """What paired tests say of BM25 and all-MiniLM-L6-v2."""
    import stzoo
    from stzoo.evaluation.compare.result import verdict

    found = stzoo.compare(
        ["bm25s", "sentence-transformers/all-MiniLM-L6-v2"], results=RESULTS, examples=0, progress=False
    )
    return "\n".join(f"- {verdict(found, pair)}" for pair in found.pairs)


def smaller() -> str:
    """Smaller vectors and indexes against full exact search, on SciFact."""
    lines = [
        "| scifact | nDCG@10 | against full | vectors, MB | index, MB | recall@10 against exact |",
        "|---|---|---|---|---|---|",
    ]
    minilm = "sentence-transformers/all-MiniLM-L6-v2"
    whole = scores(RESULTS)["scifact", minilm]["ndcg_at_10"]
    for path in sorted(RESULTS.glob("sentence-transformers__all-MiniLM-L6-v2*/*/scifact.json")):
        meta = json.loads(path.with_name("model_meta.json").read_text())
        stored = json.loads(path.read_text())
        score, facts = stored["scores"]["test"][0]["ndcg_at_10"], stored["splits"]["test"]
        way = meta["name"].removeprefix(minilm).strip(" ()") or "full"
        cells = [
            f"{score:.4f}",
            "" if way == "full" else f"{score - whole:+.4f}",
            f"{facts['cost']['vector_bytes'] / 1e6:.2f}",
            f"{facts['cost']['index_bytes'] / 1e6:.2f}" if "index_bytes" in facts["cost"] else "",
            f"{facts['recall_against_exact']['@10']:.3f}" if "recall_against_exact" in facts else "",
        ]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def speed() -> str:
    """Times against peers, each line from one run of a script."""
    lines = ["| on two cores of an AMD EPYC | stzoo | peer | ratio |", "|---|---|---|---|"]
    encoding = json.loads((RESULTS / "encode_speed.json").read_text())["sets"]
    for name, about in (("mixed", "mixed lengths"), ("uniform", "one length")):
        found = encoding[name]
        rates = found["tokens_a_second"]
        peer = max(("beir", "mteb"), key=rates.__getitem__)
        for side, how in (("stzoo", ""), ("stzoo-mkl", ", by MKL as on other CPUs")):
            mine, other = f"{rates[side]:,} tokens/s", f"{peer} {rates[peer]:,} tokens/s"
            ratio = found["times_the_faster_peer"][side]
            lines.append(f"| encoding texts of {about}{how} | {mine} | {other} | {ratio:.2f} |")
    searches = json.loads((RESULTS / "search_speed.json").read_text())
    search = searches["beir"]
    load = "{queries:,} queries in {documents:,} vectors of {dim}, k = {k:,}".format(**search)
    for what, unit, ratio_of in (("seconds", "s", load), ("peak_mb", "MB", "memory of the same, peak")):
        ratio = search["ratios to stzoo"][what]["beir"]
        mine, peer = search[what]["stzoo"], search[what]["beir"]
        lines.append(f"| {ratio_of} | {mine:.1f} {unit} | beir {peer:.1f} {unit} | {ratio:.1f} |")
    if search := searches.get("faiss-1"):
        load = "{queries:,} queries in {documents:,} vectors of {dim}, k = {k:,}, one thread".format(**search)
        mine, peer = (search["cpu_seconds"][side] for side in ("stzoo", "faiss"))
        ratio = search["ratios to stzoo"]["cpu_seconds"]["faiss"]
        lines.append(f"| {load} | {mine:.2f} CPU s | faiss {peer:.2f} CPU s | {ratio:.2f} |")
    whole = json.loads((RESULTS / "run_speed.json").read_text())
    seconds, ratios = whole["seconds"], whole["ratios"]
    lines += [
        f"| {whole['dataset']}, from files to scores | {seconds['cold']:.1f} s "
        f"| {peer} {seconds[peer]:.1f} s | {ratios[f'{peer} / cold']:.2f} |"
        for peer in ("beir", "mteb")
    ]
    lines.append(
        f"| the same again, embeddings kept | {seconds['warm']:.2f} s "
        f"| the first run {seconds['cold']:.1f} s | {ratios['cold / warm']:.0f} |"
    )
    return "\n".join(lines)


def pretrain_speed() -> str:
    """Seconds of a training step against pretense and plain torch."""
    found = json.loads((RESULTS / "pretrain_speed.json").read_text())
    lines = [
        "| one step, CPU seconds on one thread | stzoo bf16 | stzoo fp32 | pretense fp32 | plain torch fp32 "
        "| against pretense | against plain |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, case in found.items():
        if name.startswith("step "):
            _, objective, shape, batch = name.split()
            seconds = case["seconds"]
            cells = [
                f"{seconds[side]:.2f}" if side in seconds else ""
                for side in ("stzoo bf16", "stzoo", "pretense", "plain")
            ]
            ratios = [
                f"{seconds[side] / seconds['stzoo bf16']:.1f}; fp32 {seconds[side] / seconds['stzoo']:.1f}"
                if side in seconds
                else ""
                for side in ("pretense", "plain")
            ]
            layers, width = shape.split("x")
            rows, tokens = batch.split("x")
            about = f"{objective}, {layers} layers of {width}, {rows} passages of {tokens} tokens"
            lines.append(f"| {about} | {' | '.join(cells + ratios)} |")
    return "\n".join(lines)


def trainers() -> str:
    """Seconds of a step of whole trainers with their defaults, stzoo and pretense."""
    found = json.loads((RESULTS / "pretrain_speed.json").read_text())
    lines = [
        "| one step of RetroMAE, CPU seconds on one thread | stzoo | pretense | ratio |",
        "|---|---|---|---|",
    ]
    for name, case in found.items():
        if name.startswith("trainer "):
            _, shape, batch = name.split()
            (layers, width), (rows, tokens) = shape.split("x"), batch.split("x")
            about = f"{layers} layers of {width}, {rows} passages of {tokens} tokens"
            seconds = case["seconds"]
            ratio = seconds["pretense"] / seconds["stzoo"]
            lines.append(f"| {about} | {seconds['stzoo']:.2f} | {seconds['pretense']:.2f} | {ratio:.1f} |")
    return "\n".join(lines)


def precision() -> str:
    """Losses and scores after the same training in fp32 and in bf16."""
    found = json.loads((RESULTS / "precision.json").read_text())
    names = {
        "encoder": "encoder loss",
        "decoder": "decoder loss",
        "nDCG@10 cranfield": "nDCG@10 cranfield",
        "nDCG@10 vaswani": "nDCG@10 vaswani",
    }
    lines = [f"| | {' | '.join(names.values())} |", "|---|" + "---|" * len(names)]
    for kind, mean in found["mean"].items():
        cells = [f"{mean[name]:.4f} ± {found['deviation'][kind][name]:.4f}" for name in names]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def adapt() -> str:
    """Scores of base and adapted model by the labels, which adapt did not see."""
    found = json.loads((RESULTS / "adapt.json").read_text())["summary"]
    systems = ("bm25s", "base", "adapted", "BM25 + base", "BM25 + adapted")
    lines = [
        "| nDCG@10, mean of three seeds | BM25 | base | adapted | BM25 + base | BM25 + adapted "
        "| gain over the base | p |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, one in found["sets"].items():
        cells = [f"{one['scores'][system]:.4f}" for system in systems]
        seeds = " ".join(f"{gain:+.4f}" for gain in one["gains_of_seeds"])
        gain = f"{one['gain']:+.4f} ({seeds}) | {one['p_holm']:.4f}"
        lines.append(f"| {name} ({one['queries']} queries) | {' | '.join(cells)} | {gain} |")
    mean = found["mean"]
    lines.append(f"| mean | | | | | | {mean['gain']:+.4f} | {mean['p']:.4f} |")
    return "\n".join(lines)


def demo() -> str:
    """The systems of `make demo`, and what the paired tests say."""
    made = json.loads((RESULTS / "demo.json").read_text())
    lines = ["| system | nDCG@10 | MRR@10 | Recall@100 |", "|---|---|---|---|"]
    for row in made["results"]:
        cells = [f"{row[measure]:.4f}" for measure in ("ndcg_at_10", "mrr_at_10", "recall_at_100")]
        lines.append(f"| {row['model']} | {' | '.join(cells)} |")
    lines += ["", *(f"- {line}" for line in made["summary"])]
    count = len(made["questions"])
    answered = ", ".join(f"{system} {number}" for system, number in made["answered"].items())
    lines.append(
        f"- Of {count} plain questions, with a right answer among the first three passages: {answered}."
    )
    return "\n".join(lines)


def master() -> str:
    """MASTER beside RetroMAE: what a thousand passages take, the losses, and Cranfield."""
    made = json.loads((RESULTS / "master_openstax.json").read_text())
    lines = [
        "| all-MiniLM-L6-v2, then | s a 1000 passages | last losses, nats | Cranfield nDCG@10 | Recall@100 |",
        "|---|---|---|---|---|",
    ]
    about = {
        "base": "nothing",
        "retromae": "RetroMAE",
        "master": "MASTER with queries and neighbours",
        "master-text": "MASTER on plain passages",
    }
    for name, what in about.items():
        trained, scored = made["pretrain"].get(name), made["cranfield"][name]
        seconds = f"{trained['seconds_per_1000_passages']:.0f}" if trained else ""
        losses = (
            ", ".join(f"{key} {loss:.2f}" for key, loss in trained["losses_last"].items()) if trained else ""
        )
        lines.append(
            f"| {what} | {seconds} | {losses} | {scored['ndcg_at_10']:.4f} | {scored['recall_at_100']:.4f} |"
        )
    data, machine = made["prepare"], made["machine"]
    return "\n".join(
        [
            *lines,
            "",
            f"{made['steps']} steps of {made['batch_size']} passages on {machine['threads']} thread of an "
            f"AMD EPYC, seed 42. The data of MASTER, from all {data['passages']:,} passages by "
            f"`--queries lexical --neighbours document --neighbours bm25`, took {data['seconds']:.0f} s "
            f"({data['passages_per_s']} passages/s) and {data['peak_memory_mib']} MiB; "
            "after three kills and `--resume` its files were "
            f"{'the same to the last byte' if data['equal_after_kills'] else 'NOT the same'}.",
        ]
    )


def finetune() -> str:
    """What fine-tuning makes of all-MiniLM-L6-v2 on SciFact."""
    made = json.loads((RESULTS / "scifact_finetune.json").read_text())
    queries = made["test_queries"]
    lines = [
        "| all-MiniLM-L6-v2 on SciFact test | nDCG@10 | by seed | against the base (95 %) | p | Recall@100 | "
        f"nDCG@10, answer seen ({queries['seen']}) | answer new ({queries['new']}), against the base |",
        "|---|---|---|---|---|---|---|---|",
    ]
    about = {
        "base": "as published",
        "inbatch": "in-batch negatives",
        "mined": "mined negatives",
        "distilled": "mined negatives and a teacher",
        "inbatch-new": "in-batch negatives, tuned on new answers",
        "mined-new": "mined negatives, tuned on new answers",
        "distilled-new": "mined negatives and a teacher, tuned on new answers",
    }
    for name, what in about.items():
        row = made["rows"][name]
        score = row["nDCG@10"]
        test, on_new = score.get("against_base"), score.get("new_against_base")
        cells = [
            f"{score['mean']:.4f}",
            ", ".join(f"{seed:.4f}" for seed in score["seeds"]) if test else "",
            f"{test['difference']:+.4f} ({test['low']:+.4f} to {test['high']:+.4f})" if test else "",
            f"{test['p_value']:.4f}" if test else "",
            f"{row['Recall@100']['mean']:.4f}",
            f"{score['seen']:.4f}",
            f"{score['new']:.4f}"
            + (f" ({on_new['difference']:+.4f}, p {on_new['p_value']:.4f})" if on_new else ""),
        ]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    teacher = made["rows"]["teacher"]
    chosen = [
        f"{what} {' and '.join(f'{max(one[part] for one in tried):.4f}' for part in ('nDCG@10', 'new'))}"
        for name, what in about.items()
        if (tried := made["grid"].get(name))
    ]
    ranked = [
        f"{scores['teacher']:.4f} on {split} (the base has {scores['base']:.4f})"
        for split, scores in teacher["nDCG@10"].items()
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"The teacher re-ranks the base's best {teacher['reranked']} to nDCG@10 {' and '.join(ranked)}. "
            "On the held-out training queries, and on those of them with new answers, the best setting had: "
            f"{'; '.join(chosen)}.",
        ]
    )


def finetune_speed() -> str:
    """Fine-tuning and mining against sentence-transformers."""
    lines = ["| | stzoo | sentence-transformers | ratio |", "|---|---|---|---|"]
    made = json.loads((RESULTS / "finetune_speed.json").read_text())
    for loss, measured in made["losses"].items():
        if mining := measured["stzoo_times_as_fast"].get("mining"):
            seconds = [f"{one['mining']:.0f} s" for one in measured["median_seconds"].values()]
            spread = f"{mining['median']:.2f} ({mining['least']:.2f} to {mining['most']:.2f})"
            about = f"mining {made['queries']} queries, {made['passages']} passages"
            lines.append(f"| {about} | {' | '.join(seconds)} | {spread} |")
        for part, what in (("training", "training"), ("end_to_end", "mining, training, saving")):
            if loss == "kl" and part == "end_to_end":
                continue
            mine, peer = (
                measured["queries_a_second"][side][part] for side in ("stzoo", "sentence-transformers")
            )
            ratio = measured["stzoo_times_as_fast"][part]
            spread = f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})"
            lines.append(f"| {loss}: {what} | {mine:.2f} queries/s | {peer:.2f} queries/s | {spread} |")
    memory = json.loads((RESULTS / "mining_memory.json").read_text())
    sides, peer = memory["sides"], memory["better_peer"]
    about = f"mining over {memory['passages']:,} passages"
    for name, what in (("above_baseline_mib", "memory beyond imports and model"), ("peak_mib", "all memory")):
        ratio = 1 / memory["stzoo_to_better_peer"][name]
        lines.append(
            f"| {about}: {what} | {sides['stzoo'][name]} MiB | {sides[peer][name]} MiB | {ratio:.1f} |"
        )
    return "\n".join(lines)


def minikilt() -> str:
    """One retriever for five tasks: methods by tasks."""
    return _minikilt("minikilt_tasks.json")


def minikilt_control() -> str:
    """Task-specific models with as many examples of their task as the mixture has, and TACO's own scale."""
    return _minikilt("minikilt_control.json")


def _minikilt(file: str) -> str:
    from stzoo.evaluation.compare import holm

    made = json.loads((RESULTS / file).read_text())
    rows, queries = made["rows"], made["queries"]
    tests = {
        (name, task): found["against"]["p_value"]
        for name, row in rows.items()
        for task, found in row["tasks"].items()
        if "against" in found
    }
    means = {(name, "mean"): row["against"]["p_value"] for name, row in rows.items() if "against" in row}
    sure = {
        test
        for family in (tests, means)
        for test, p in zip(family, holm(list(family.values())), strict=True)
        if p < 0.05
    }
    about = {
        "base": "no training",
        "specific": "a model for each task, five times as many examples of it",
        "specific-equal": "a model for each task, as many examples of it",
        "naive": "all tasks, `sum`",
        "prompted": "`sum` and prompts",
        "taco": "`taco` and prompts",
        "taco-released": "`taco` (scale released) and prompts",
        "pcgrad": "`pcgrad` and prompts",
        "cgd": "`cgd` and prompts",
        "taco-all": "`taco` (scale released, median over all) and prompts",
        "taco-quick": "`taco` (scale released, beta 0.9) and prompts",
        "prompted-on": "`sum` and prompts, 100 steps more",
        "taco-on": "`taco` (scale released, beta 0.9) and prompts, 100 steps more",
    }
    heads = [f"{task} ({count:,})" for task, count in queries.items()]
    lines = [
        f"| | {' | '.join(heads)} | mean | recall@20 | recall@100 | s a step | MiB |",
        "|---|" + "---|" * (len(heads) + 5),
    ]
    for name, what in about.items():
        if not (row := rows.get(name)):
            continue
        cells = []
        for task in queries:
            mark = "*" if (name, task) in sure else ""
            cells.append(f"{row['tasks'][task]['KILT Rprec']['mean']:.4f}{mark}")
        for measure in ("KILT Rprec", "KILT recall@20", "KILT recall@100"):
            spread = row[measure].get("deviation")
            mark = "*" if measure == "KILT Rprec" and (name, "mean") in sure else ""
            off = f" ± {spread:.4f}" if spread is not None else ""
            cells.append(f"{row[measure]['mean']:.4f}{mark}{off}")
        of = len(row["KILT Rprec"]["seeds"])
        fewer = f" (seeds: {of})" if name != "base" and of < len(made["seeds"]) else ""
        cost = row.get("cost") if name not in ("taco-all", "taco-quick", "prompted-on", "taco-on") else None
        cells += [f"{cost['step_s']:.2f}", f"{cost['peak_mib']:,.0f}"] if cost else ["", ""]
        lines.append(f"| {what}{fewer} | {' | '.join(cells)} |")
    seen = ", ".join(f"{task} {made['seen'][task]:,} of {count:,}" for task, count in queries.items())
    if file == "minikilt_control.json":
        return "\n".join(
            [
                *lines,
                "",
                f"As above, seeds {', '.join(map(str, made['seeds']))}, by the present code. *: differs from "
                "`sum` (a model for each task, prompts) or from prompts (`taco`) by the same test, p < 0.05.",
            ]
        )
    return "\n".join(
        [
            *lines,
            "",
            f"Dev queries with a relevant passage that answers some training query of their task: {seen}.",
            "",
            "R-precision by page on the dev queries (their number in brackets), the mean of "
            f"{len(made['seeds'])} seeds; ± is the deviation over seeds. {made['steps']} steps of "
            f"{made['settings']['batch_size']} queries. *: differs from the row it builds on (`sum` for "
            "models for single tasks and for prompts, the row above for the last, `sum` and prompts for the "
            f"others) by a paired randomisation test with Holm's correction over all {len(tests)} tests, and "
            f"over all {len(means)} of means, p < 0.05. Seconds are those of a row's fastest run, as other "
            "programs ran at the same time; the last four rows have no undisturbed run.",
        ]
    )


def taco_speed() -> str:
    """What TACO costs."""
    made = json.loads((RESULTS / "taco_speed.json").read_text())
    lines = ["| | s a step | s of it for gradients | MiB |", "|---|---|---|---|"]
    about = {"sum": "`sum`", "taco": "`taco`", "released": "TACO as in its authors' code"}
    for side, what in about.items():
        row = made["sides"][side]
        lines.append(
            f"| {what} | {row['step_s']:.2f} | {row['gradients_s']:.2f} | {row['memory_mib']:,.0f} |"
        )

    def spread(name: str) -> str:
        return f"{made[name]['median']:.2f} ({made[name]['least']:.2f} to {made[name]['most']:.2f})"

    return "\n".join(
        [
            *lines,
            "",
            f"{made['tasks']} tasks of {made['queries_a_task']} queries, "
            f"{made['parameters'] / 1e6:.1f} M parameters, one thread. A step with `taco` takes "
            f"{spread('taco_to_sum')} times as long as with `sum`, and {made['taco_over_sum_mib']:,.0f} MiB "
            f"more (gradients and sensitivities of all tasks are {made['two_rows_a_task_mib']:,.0f}). The "
            f"authors' procedure takes {spread('released_to_taco')} times as long as `taco`, and its part "
            f"that handles gradients {spread('released_to_taco_gradients')} times.",
        ]
    )


def gain() -> str:
    """Four gains over all-MiniLM-L6-v2 that paired tests confirm."""
    adapted = json.loads((RESULTS / "adapt.json").read_text())["summary"]
    sets = adapted["sets"]
    base, after = (
        sum(one["scores"][system] for one in sets.values()) / len(sets) for system in ("base", "adapted")
    )
    vaswani = sets["vaswani"]
    made = json.loads((RESULTS / "fusion.json").read_text())
    fused = made["sets"]["scifact test"]
    tuned = json.loads((RESULTS / "scifact_finetune.json").read_text())["rows"]
    of_tuned = tuned["mined-new"]["nDCG@10"]
    scifact = tuned["base"]["nDCG@10"]["mean"]
    collections = f"mean of {len(sets)} collections"
    rows = [
        ("adapted without labels", "Vaswani", *map(vaswani["scores"].get, ("base", "adapted")), vaswani),
        ("adapted without labels", collections, base, after, adapted["mean"]),
        (
            "fused with BM25",
            "SciFact",
            scifact,
            fused["scores"][f"lowest {made['method']} {made['weight']}"],
            fused["default_against"]["all-MiniLM-L6-v2"],
        ),
        ("fine-tuned, mined negatives", "SciFact", scifact, of_tuned["mean"], of_tuned["against_base"]),
    ]
    lines = [
        "| all-MiniLM-L6-v2, then | nDCG@10 on | before | after | gain | p |",
        "|---|---|---|---|---|---|",
    ]
    for what, data, before, after, test in rows:
        difference = test.get("gain", test.get("difference"))
        p = next(test[key] for key in ("p_holm", "p_value", "p") if key in test)
        lines.append(f"| {what} | {data} | {before:.4f} | {after:.4f} | {difference:+.4f} | {p:.4f} |")
    return "\n".join(lines)


def kills() -> str:
    """How often each command was stopped, and what went wrong."""
    lines = ["| | kills | of them by SIGKILL | of which command | faults found |", "|---|---|---|---|---|"]
    for name, what in (("kills", "one process"), ("kills_several", "several processes, Ray")):
        made = json.loads((RESULTS / f"{name}.json").read_text())
        each = ", ".join(f"`{command}` {count}" for command, count in made["commands"].items())
        faults = len(made["faults"])
        lines.append(f"| {what} | {made['kills']} | {made['signals']['SIGKILL']} | {each} | {faults} |")
    return "\n".join(lines)


def scale() -> str:
    """Seconds of encoding by several processes and by Ray, and memory."""
    made = json.loads((RESULTS / "scale.json").read_text())
    alone = made["seconds"]["processes 1"]
    lines = [f"| {made['texts']:,} passages | seconds | of one process |", "|---|---|---|"]
    names = {
        "processes 1": "1 process",
        "processes 2": "2 processes",
        "processes 4": "4 processes",
        "threads 2": "1 process of 2 threads",
        "ray 1": "1 worker of Ray, of 2 threads",
        "ray 2": "2 workers of Ray",
    }
    for name, what in names.items():
        seconds = made["seconds"][name]
        lines.append(f"| {what} | {seconds:.1f} | {seconds / alone:.2f} |")
    rows = made["memory"]
    shown = ", ".join(f"{found['MB_peak']} MB for {int(count):,}" for count, found in rows.items())
    lines += ["", f"Memory of a process that fills a store does not grow with its vectors: {shown}."]
    lines += ["", "| passages read | ids and texts | memory before | at most |", "|---|---|---|---|"]
    for count, found in made["corpus_memory"].items():
        sizes = (f"{found[f'MB_{when}']} MB" for when in ("texts", "before", "peak"))
        lines.append(f"| {int(count):,} | {' | '.join(sizes)} |")
    return "\n".join(lines)


def scale_simulation() -> str:
    """Efficiency by size of a part and number of workers."""
    made = json.loads((RESULTS / "scale_simulation.json").read_text())
    counts = ("1", "8", "32", "64", "256")
    heads = " | ".join(f"{count} workers" if count != "1" else "1 worker" for count in counts)
    lines = [f"| efficiency for {made['passages']:,} passages | {heads} |", "|---|" + "---|" * len(counts)]
    for way, by_size in made["efficiency"].items():
        for size, by_count in by_size.items():
            cells = " | ".join(f"{by_count[count]:.2f}" for count in counts)
            lines.append(f"| {way}, {int(size):,} a part | {cells} |")
    return "\n".join(lines)


def filled(text: str) -> str:
    """The text with each table made anew."""

    def table(found: re.Match[str]) -> str:
        return f"{found[1]}\n{globals()[found[2]]()}\n<!-- end -->"

    return re.sub(r"(<!-- table (\w+) -->)\n.*?<!-- end -->", table, text, flags=re.DOTALL)


if __name__ == "__main__":
    before = {page: page.read_text(encoding="utf-8") for page in PAGES}
    after = {page: filled(text) for page, text in before.items()}
    if "--check" in sys.argv:
        sys.exit(before != after)
    for page, text in after.items():
        page.write_text(text, encoding="utf-8")
