"""The scores of one model for its card: rows, averages, contamination, and the two forms that the Hub reads.

Sources: the README front matter `model-index` and `.eval_results/*.yaml` as mteb 2.26 writes them
(mteb/results/task_result.py): values from 0 to 1 in the former, times 100 in the latter.
"""

import json
import sys
from collections import Counter
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
from stzoo.models.loaded import folder_revision
from stzoo.retrieval import bm25 as lexical

MEASURE = "nDCG@10"
SHOWN = (MEASURE, "MRR@10", "Recall@100", *kilt_suite.MEASURES)
SMALLER = ("precision", "index")  # settings of results that are not of exact search in full vectors


@dataclass(frozen=True)
class Leak:
    """What `stzoo contamination` found in training data of a data set.

    Attributes:
        row: the result on that data set.
        facts: contamination.json.
        trained: names of what was looked into.
        without: mean over the queries that are left; None where none is.
    """

    row: Row
    facts: dict[str, Any]
    trained: list[str]
    without: float | None


@dataclass(frozen=True)
class Scored:
    """What a model scores.

    Attributes:
        rows: by data set, of exact search.
        smaller: those with smaller vectors or an index.
        averages: suite, its sets, mean and its interval.
        bm25: of BM25 on the same data, by data set and split.
        leaks: by data set.
    """

    rows: list[Row]
    smaller: list[Row]
    averages: list[tuple[str, tuple[str, ...], float, Interval]]
    bm25: dict[tuple[str, str], float]
    leaks: list[Leak]


def read_scores(results: Path, folder: Path) -> Scored:
    """Reads the results of the model in `folder`, which it is told by its fingerprint.

    Args:
        results: an --output of bench, in which reports of contamination may lie, too.
        folder: of the model.

    Raises:
        DataError: if there are no results of it, two that a card cannot tell apart, or means that the scores
            of their queries do not give.
        OutputError: if a file there is no result of this version.
    """
    page = gather(results, MEASURE, seed=0, progress=sys.stderr.isatty())
    revision = folder_revision(folder)
    own = [row for row in page.rows if row.result.revision == revision]
    if not own:
        others = sorted({f"{row.result.model} ({row.result.revision[:12]})" for row in page.rows})
        raise DataError(
            f"{results} has no results of {folder} as it is now (fingerprint {revision}); it has results of "
            f"{', '.join(others)}. Score this model by `stzoo bench`, or name its own results."
        )
    rows = [row for row in own if not any(key in row.result.facts["settings"] for key in SMALLER)]
    _check_distinct(rows, results)
    systems = {row.system for row in rows}
    return Scored(
        rows=rows,
        smaller=[row for row in own if row not in rows],
        averages=[
            (suite.name, suite.sets, mean, interval)
            for suite in page.suites
            for system, mean, interval in suite.rows
            if system in systems
        ],
        bm25=_bm25(page, rows),
        leaks=_leaks(results, rows),
    )


def _check_distinct(rows: list[Row], results: Path) -> None:
    models = sorted({row.result.model for row in rows})
    if len(models) > 1:
        raise DataError(
            f"{results} holds this model under several names ({', '.join(models)}). Name the folder of one."
        )
    counts = Counter((row.result.dataset, row.result.split) for row in rows)
    if twice := [f"{dataset} ({split})" for (dataset, split), count in counts.items() if count > 1]:
        raise DataError(
            f"{results} holds results on other data under one name: {', '.join(twice)}. Name the folder of "
            "those that belong on the card."
        )


def _bm25(page: Page, rows: list[Row]) -> dict[tuple[str, str], float]:
    data = {row.result.data for row in rows}
    return {
        (row.result.dataset, row.result.split): row.result.scores.mean[MEASURE]
        for row in page.rows
        if row.result.model == lexical.NAME and row.result.data in data
    }


def _leaks(results: Path, rows: list[Row]) -> list[Leak]:
    found = []
    for path in sorted(results.rglob(REPORT)):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            same = (facts["dataset"], facts["split"], facts["queries"])
            ids = set(facts["contaminated"])
            trained = [base_name(path) for path in facts["train"]]
            for key in ("passages", "found_queries", "found_passages", "ngram", "jaccard"):
                facts[key]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path} is no report of this version of `stzoo contamination`; make it anew."
            ) from error
        for row in rows:
            scores = row.result.scores.per_query[MEASURE]
            if (row.result.dataset, row.result.split, row.result.queries) == same and ids <= scores.keys():
                kept = [value for query, value in scores.items() if query not in ids]
                found.append(Leak(row, facts, trained, fmean(kept) if kept else None))
    return found


def model_index(scored: Scored) -> list[Any]:
    """`EvalResult`s for the front matter: every measure of every data set."""
    found = []
    for row in scored.rows:
        result = row.result
        entry = None if _of_other_data(result) else registry.find(result.dataset)
        dataset, split = shown([result.dataset, result.split], {})
        for name, key in result.facts["measures"].items():
            found.append(
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
    return found


def _of_other_data(result: Any) -> bool:
    """True if a note says that the data are not the official ones; notes of the system do not."""
    return bool(set(result.facts.get("notes") or ()) - set(result.facts.get("system_notes") or ()))


def eval_results(scored: Scored) -> dict[str, bytes]:
    """`.eval_results/TASK.yaml`, of the sets of mteb whose official split and data were scored."""
    files = {}
    for row in scored.rows:
        result = row.result
        entry = registry.find(result.dataset)
        if not (entry and entry.mteb and entry.task) or result.split != entry.split or _of_other_data(result):
            continue
        made = f"stzoo {row.made['stzoo']}: {MEASURE}, the mean over all judged queries, by exact search"
        entries = [
            EvalResultEntry(
                dataset_id=entry.mteb,
                task_id=task,
                value=round(100 * result.scores.mean[MEASURE], 5),
                date=row.date[:10],
                notes=made,
            )
            for task in (f"{entry.task}_default_{result.split}", entry.task)
        ]
        text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
        files[f".eval_results/{entry.task}.yaml"] = text.encode()
    return files
