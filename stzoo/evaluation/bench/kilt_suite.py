"""The tasks of KILT over one corpus, and the table of their scores.

A folder has one of two layouts:
- KILT's own files, TASK-SPLIT-kilt.jsonl, with corpus.jsonl in the same folder or given by --corpus;
- a BEIR folder of several tasks, qrels/TASK.SPLIT.tsv, with judgements of passages. Each relevant passage's
  page is then an evidence set of its own; the page is the passage's "wikipedia_id", or else its title.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from stzoo.data.beir import RetrievalDataset, read_beir
from stzoo.data.beir_layout import find_jsonl, find_split, is_beir, qrels_names
from stzoo.data.kilt import KiltSet, page_qrels, read_kilt
from stzoo.data.rows import read_jsonl
from stzoo.data.texts import Texts
from stzoo.errors import DataError, RecipeError
from stzoo.evaluation.bench.results import Result
from stzoo.evaluation.bench.tables import add_section
from stzoo.utils.tables import new_table

MEASURES = ("KILT Rprec", "KILT recall@20", "KILT recall@100")
NO_MISSING = (
    "--missing-judged is for BEIR folders; with KILT files, evidence pages without a passage always count as "
    "not found. Drop the option."
)
# names of tasks in TACO's recipes and paper, where those of KILT's files differ
TASKS = {"structured_zeroshot": "zsre", "aidayago2": "aida", "hotpotqa": "hotpot"}


def find_tasks(
    folder: Path,
    split: str | None,
    corpus: str | Path | None,
    pages: str | Path | None,
    missing_judged: str,
    progress: bool | None,
) -> list[Callable[[], KiltSet]]:
    """Finds the tasks in a folder. Their queries get the model's prompt with the task's name.

    Args:
        folder: Folder with the tasks, in one of the two layouts above.
        split: Split to score; None means "dev".
        corpus: Passages for KILT's files; None uses the corpus in the folder.
        pages: File with passage-id<TAB>page-id lines, for KILT's files.
        missing_judged: As in `read_beir`, for a BEIR folder.
        progress: True shows progress bars on stderr; None shows them on a terminal only.

    Returns:
        A function per task which reads it.

    Raises:
        DataError: If the folder has no task with this split.
        RecipeError: If an option does not apply to the folder's layout.
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
            f"{folder} has no task of KILT; expected TASK-{split}-kilt.jsonl, or corpus.jsonl, "
            f"queries.jsonl and qrels/TASK.{split}.tsv."
        )
    if corpus is not None or pages is not None:
        raise RecipeError(f"--corpus and --pages are for KILT files; {folder} is a BEIR folder. Drop them.")
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
    judged_ids = {document for grades in judged.qrels.values() for document in grades}
    page_of = {
        passage: page for passage, page in zip(judged.corpus_ids, pages, strict=True) if passage in judged_ids
    }
    evidence = {
        query: tuple(
            dict.fromkeys(
                frozenset([page_of.get(document, f"the page of {document}, which is not in the corpus")])
                for document in documents
            )
        )
        for query, documents in judged.relevant.items()
    }
    judged = replace(judged, name=f"{task}-kilt", qrels=page_qrels(evidence), task=task)
    return KiltSet(**judged.attributes(RetrievalDataset), pages=pages, evidence=evidence)


def by_task(results: Sequence[Result]) -> dict[str, dict[str, dict[str, float]]]:
    """Scores by model, task and measure; the task "mean" is the mean over all tasks."""
    models: dict[str, dict[str, dict[str, float]]] = {}
    for result in results:
        scores = {name: result.scores.mean[name] for name in MEASURES}
        models.setdefault(result.model, {})[result.dataset.removesuffix("-kilt")] = scores
    for tasks in models.values():
        rows = list(tasks.values())
        tasks["mean"] = {name: sum(scores[name] for scores in rows) / len(rows) for name in MEASURES}
    return models


def table(results: Sequence[Result]) -> Table:
    """The scores of each model on each task, and their means, with each task's best in bold."""
    models = by_task(results)
    heads = [name.removeprefix("KILT ").replace("@", "\n@") for name in MEASURES]
    shown = new_table("Task\n  Model", numbers=heads)
    for task in next(iter(models.values()), {}):
        add_section(shown, task, [(model, tasks[task]) for model, tasks in models.items()], MEASURES)
    return shown


def as_json(results: Sequence[Result]) -> dict[str, Any]:
    """The scores of `by_task` as JSON, under "kilt"."""
    return {"kilt": by_task(results)}
