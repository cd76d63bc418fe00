"""The scores of a model for its card: rows, averages, contamination, and the two formats that the Hub reads.

Sources: the README front matter `model-index` and `.eval_results/*.yaml` as mteb 2.26 writes them
(mteb/results/task_result.py): values from 0 to 1 in the former, times 100 in the latter.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from stzoo.data import registry
from stzoo.errors import DataError
from stzoo.evaluation.bench import kilt_suite
from stzoo.evaluation.contamination import REPORT
from stzoo.evaluation.report.data import Page, Row, gather
from stzoo.evaluation.report.intervals import Interval
from stzoo.hub.redact import base_name, shown
from stzoo.models.loaded import NO_REVISION, folder_revision
from stzoo.retrieval import bm25 as lexical
from stzoo.utils.messages import show_progress

MEASURE = "nDCG@10"
SHOWN = (MEASURE, "MRR@10", "Recall@100", *kilt_suite.MEASURES)
SMALLER = ("precision", "index")  # settings of results other than exact search over full vectors


@dataclass(frozen=True)
class Leak:
    """A report of `stzoo contamination` on a data set.

    Attributes:
        row: The result on that data set.
        report: Content of contamination.json.
        trained: Names of the training data that was searched.
        without: Mean over the queries that are not contaminated; None if there are none.
    """

    row: Row
    report: dict[str, Any]
    trained: list[str]
    without: float | None


@dataclass(frozen=True)
class Scored:
    """The scores of a model.

    Attributes:
        rows: Results of exact search, by data set.
        smaller: Results with smaller vectors or an index.
        averages: Suite, its data sets, mean and interval.
        others: Scores of "Base" (the base model) and "BM25" on the same data, by data set and split.
        leaks: Reports of contamination, by data set.
    """

    rows: list[Row]
    smaller: list[Row]
    averages: list[tuple[str, tuple[str, ...], float, Interval]]
    others: dict[str, dict[tuple[str, str], float]]
    leaks: list[Leak]


def read_scores(results: Path, folder: Path, base_id: str | None = None) -> Scored:
    """Reads the results of the model in `folder`, identified by its fingerprint.

    Args:
        results: An --output of bench, optionally with reports of contamination.
        folder: Path to the model folder.
        base_id: Id of the base model on the Hub, whose scores are also read if they are there.

    Raises:
        DataError: If there are no results of the model, two on the same data set, or means that disagree
            with the scores of their queries.
        OutputError: If a file is not a result of this version.
    """
    page = gather(results, MEASURE, seed=0, progress=show_progress())
    revision = folder_revision(folder)
    model_rows = [row for row in page.rows if row.result.revision == revision]
    if not model_rows:
        others = sorted({f"{row.result.model} ({row.result.revision[:12]})" for row in page.rows})
        raise DataError(
            f"{results} has no results of {folder} in its present form (fingerprint {revision}), only of "
            f"{', '.join(others)}. Score this model with `stzoo bench`, or give the folder of its results."
        )
    rows = _exact(model_rows)
    _check_distinct(rows, results)
    systems = {row.system for row in rows}
    return Scored(
        rows=rows,
        smaller=[row for row in model_rows if row not in rows],
        averages=[
            (suite.name, suite.sets, mean, interval)
            for suite in page.suites
            for system, mean, interval in suite.rows
            if system in systems
        ],
        others=_others(page, rows, base_id),
        leaks=_leaks(results, rows),
    )


def _check_distinct(rows: list[Row], results: Path) -> None:
    models = sorted({row.result.model for row in rows})
    if len(models) > 1:
        raise DataError(
            f"{results} has this model under several names ({', '.join(models)}). Give the folder of one."
        )
    counts = Counter((row.result.dataset, row.result.split) for row in rows)
    if twice := [f"{dataset} ({split})" for (dataset, split), count in counts.items() if count > 1]:
        raise DataError(
            f"{results} has results on different data with the same name: {', '.join(twice)}. Give the "
            "folder of those for the card."
        )


def _others(page: Page, rows: list[Row], base_id: str | None) -> dict[str, dict[tuple[str, str], float]]:
    data = {row.result.data for row in rows}
    same = [row for row in page.rows if row.result.data in data]
    bases = _exact([row for row in same if base_id and _is_hub_model(row, base_id)])
    if len({row.result.revision for row in bases}) > 1:  # which of them the base was is not known
        bases = []
    bm25 = [row for row in same if row.result.model == lexical.NAME]
    scores = {
        name: {(row.result.dataset, row.result.split): row.result.scores.mean[MEASURE] for row in found}
        for name, found in {"Base": bases, "BM25": bm25}.items()
    }
    return {name: found for name, found in scores.items() if found}


def _exact(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if not any(key in row.result.details["settings"] for key in SMALLER)]


def _is_hub_model(row: Row, hub_id: str) -> bool:
    """True for the results of a model from the Hub: by its id, or by its name without the owner."""
    names = (hub_id, hub_id.rpartition("/")[2])
    from_hub = row.result.revision == NO_REVISION or re.fullmatch("[0-9a-f]{40}", row.result.revision)
    return row.result.model in names and bool(from_hub)


def _leaks(results: Path, rows: list[Row]) -> list[Leak]:
    leaks = []
    for path in sorted(results.rglob(REPORT)):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            data = (report["dataset"], report["split"], report["queries"])
            ids = set(report["contaminated"])
            trained = [base_name(path) for path in report["train"]]
            for key in ("passages", "found_queries", "found_passages", "ngram", "jaccard"):
                report[key]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path} is not a report of this version of `stzoo contamination`; run the command again."
            ) from error
        for row in rows:
            scores = row.result.scores.per_query[MEASURE]
            if (row.result.dataset, row.result.split, row.result.queries) == data and ids <= scores.keys():
                clean = [value for query, value in scores.items() if query not in ids]
                leaks.append(Leak(row, report, trained, fmean(clean) if clean else None))
    return leaks


def model_index(scored: Scored) -> list[Any]:
    """The `EvalResult`s for the front matter: every measure of every data set."""
    index = []
    for row in scored.rows:
        result = row.result
        entry = None if _of_other_data(result) else registry.find(result.dataset)
        dataset, split = shown([result.dataset, result.split], {})
        for name, key in result.details["measures"].items():
            index.append(
                EvalResult(
                    task_type="text-retrieval",
                    task_name="Retrieval",
                    dataset_type=entry.mteb if entry and entry.mteb else dataset,
                    dataset_name=f"{entry.task if entry and entry.task else dataset} (default)",
                    dataset_config="default",
                    dataset_split=split,
                    metric_type=key,
                    metric_name=name,
                    metric_value=round(result.scores.mean[name], 5),
                )
            )
    return index


def _of_other_data(result: Any) -> bool:
    """True if a note says that the data is not the official one; notes of the system never do."""
    return bool(set(result.details.get("notes") or ()) - set(result.details.get("system_notes") or ()))


def eval_results(scored: Scored) -> dict[str, bytes]:
    """`.eval_results/TASK.yaml` for each data set of mteb that was scored on its official split and data."""
    files = {}
    for row in scored.rows:
        result = row.result
        entry = registry.find(result.dataset)
        if not (entry and entry.mteb and entry.task) or result.split != entry.split or _of_other_data(result):
            continue
        notes = f"stzoo {row.made['stzoo']}: {MEASURE}, the mean over all judged queries, by exact search"
        entries = [
            EvalResultEntry(
                dataset_id=entry.mteb,
                task_id=task,
                value=round(100 * result.scores.mean[MEASURE], 5),
                date=row.date[:10],
                notes=notes,
            )
            for task in (f"{entry.task}_default_{result.split}", entry.task)
        ]
        text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
        files[f".eval_results/{entry.task}.yaml"] = text.encode()
    return files
