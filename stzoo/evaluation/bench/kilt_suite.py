"""KILT's tasks over one corpus: which files they are, and the table of the tasks' scores.

Two layouts of a folder: KILT's own files, TASK-SPLIT-kilt.jsonl, with corpus.jsonl beside them or named by
--corpus; or a BEIR folder of several tasks, qrels/TASK.SPLIT.tsv, which judges passages. Of the latter, each
relevant passage's page is evidence by itself; a page is what the passage names as "wikipedia_id", else its
title.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from stzoo.data.beir import read_beir
from stzoo.data.beir_layout import find_jsonl, find_split, is_beir, qrels_names
from stzoo.data.kilt import KiltSet, page_qrels, read_kilt
from stzoo.data.rows import read_jsonl
from stzoo.data.texts import Texts
from stzoo.errors import DataError, RecipeError
from stzoo.evaluation.bench.results import Result

MEASURES = ("KILT Rprec", "KILT recall@20", "KILT recall@100")
NO_MISSING = (
    "--missing-judged is for BEIR folders; in KILT files, evidence pages without a passage always count as "
    "not found."
)
# what TACO's recipes and its paper call a task, where KILT's file has another name
TASKS = {"structured_zeroshot": "zsre", "aidayago2": "aida", "hotpotqa": "hotpot"}


def find_tasks(
    folder: Path,
    split: str | None,
    corpus: str | Path | None,
    pages: str | Path | None,
    missing_judged: str,
    progress: bool | None,
) -> list[Callable[[], KiltSet]]:
    """The tasks in a folder, each read when it is called; queries get a model's prompt of the task's name.

    Args:
        folder: see the head of this module.
        split: "dev" if None.
        corpus: the passages for KILT's files; those in the folder if None.
        pages: passage-id<TAB>page-id lines for KILT's files.
        missing_judged: as in `read_beir`, for a BEIR folder.
        progress: True for progress bars on stderr; None shows them on a terminal only.

    Raises:
        DataError: if the folder or its tasks are not there.
        RecipeError: if an option does not go with the layout of the folder.
    """
    split = split or "dev"
    files = sorted(folder.glob(f"*-{split}*-kilt.jsonl*"))
    if files:
        if missing_judged != "error":
            raise RecipeError(NO_MISSING)
        return [partial(_of_file, file, corpus or folder, pages, progress) for file in files]
    end = f".{split}"
    tasks = [name.removesuffix(end) for name in qrels_names(folder) if name.endswith(end)]
    if not tasks or not is_beir(folder):
        raise DataError(
            f"{folder} holds no task of KILT: expected TASK-{split}-kilt.jsonl, or corpus.jsonl, "
            f"queries.jsonl and qrels/TASK.{split}.tsv."
        )
    if corpus is not None or pages is not None:
        raise RecipeError(f"--corpus and --pages are for KILT files; {folder} is a BEIR folder.")
    for task in tasks:
        find_split(folder / task, split)
    return [partial(_of_passages, folder, task, split, missing_judged, progress) for task in tasks]


def _of_file(file: Path, corpus: str | Path, pages: str | Path | None, progress: bool | None) -> KiltSet:
    judged = read_kilt(file, corpus, pages, progress=progress)
    stem = judged.name.removesuffix("-kilt")
    return replace(judged, task=TASKS.get(stem, stem))


def _of_passages(folder: Path, task: str, split: str, missing_judged: str, progress: bool | None) -> KiltSet:
    judged = read_beir(folder / task, split, missing_judged=missing_judged, progress=progress)
    rows = read_jsonl(find_jsonl(folder, "corpus"), progress)
    pages = Texts(str(row.get("wikipedia_id") or row.get("title") or row["_id"]) for _, row in rows)
    wanted = {document for grades in judged.qrels.values() for document in grades}
    page_of = {
        passage: page for passage, page in zip(judged.corpus_ids, pages, strict=True) if passage in wanted
    }
    evidence = {
        query: tuple(
            dict.fromkeys(
                frozenset([page_of.get(one, f"the page of {one}, which is not in the corpus")])
                for one, grade in grades.items()
                if grade > 0
            )
        )
        for query, grades in judged.qrels.items()
    }
    return KiltSet(
        name=f"{task}-kilt",
        split=split,
        corpus_ids=judged.corpus_ids,
        passages=judged.passages,
        queries=judged.queries,
        qrels=page_qrels(evidence),
        folder=judged.folder,
        notes=judged.notes,
        task=task,
        pages=pages,
        evidence=evidence,
    )


def by_task(results: Sequence[Result]) -> dict[str, dict[str, dict[str, float]]]:
    """Scores by measure by task by model, and the mean over the tasks as "mean"."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for result in results:
        scores = {name: result.scores.mean[name] for name in MEASURES}
        found.setdefault(result.model, {})[result.dataset.removesuffix("-kilt")] = scores
    for tasks in found.values():
        every = list(tasks.values())
        tasks["mean"] = {name: sum(one[name] for one in every) / len(every) for name in MEASURES}
    return found


def table(results: Sequence[Result]) -> "Table":
    """The scores of each model, task by task, and their mean; the best of each task in bold."""
    found = by_task(results)
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("Task\n  Model", overflow="fold")
    for name in MEASURES:
        shown.add_column(name.removeprefix("KILT ").replace("@", "\n@"), justify="right", no_wrap=True)
    for task in next(iter(found.values()), {}):
        shown.add_row(escape(task))
        best = {name: max(tasks[task][name] for tasks in found.values()) for name in MEASURES}
        for number, (model, tasks) in enumerate(found.items(), 1):
            cells = [
                f"[bold]{tasks[task][name]:.4f}[/]"
                if tasks[task][name] == best[name]
                else f"{tasks[task][name]:.4f}"
                for name in MEASURES
            ]
            shown.add_row(escape(f"  {model}"), *cells, end_section=number == len(found))
    return shown


def as_json(results: Sequence[Result]) -> dict[str, Any]:
    """What `by_task` gives, under "kilt"."""
    return {"kilt": by_task(results)}
