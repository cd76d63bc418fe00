"""Results as tables for the terminal and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Table

from stzoo.evaluation.averages import averages
from stzoo.evaluation.bench.results import Result
from stzoo.evaluation.measures import MEASURES
from stzoo.utils.messages import counted
from stzoo.utils.tables import Tabular, new_table

MEGABYTE = 1e6


class Results(list[Result], Tabular):
    """Results of `bench` or `score`; printed, a table. `save` writes the means as JSON."""

    __repr__ = Tabular.__repr__

    def rows(self) -> list[dict[str, Any]]:
        """A row for each result, with its mean scores by measure."""
        measures = dict.fromkeys(name for result in self for name in result.scores.mean)
        return [
            {"model": result.model, "dataset": result.dataset, "split": result.split}
            | {name: result.scores.mean.get(name) for name in measures}
            for result in self
        ]

    def to_json(self) -> dict[str, Any]:
        """The results, without per-query scores, and the averages over suites."""
        return as_json(self)

    def __rich__(self) -> Table:
        return table(self)


def table(results: Sequence[Result], measures: Sequence[str] = ()) -> Table:
    """Results as a table by data set and then by suite, with the best score of each in bold.

    Args:
        results: Results of one or several models and data sets.
        measures: Names of measures to show besides the default ones, which fit into 80 columns.
    """
    scored = {name for result in results for name in result.scores.mean}
    names = dict.fromkeys([*(m.name for m in MEASURES), *measures, "KILT Rprec", "KILT recall@5"])
    shown_measures = [name for name in names if name in scored]
    shown = new_table("Data set\n  Model", numbers=[name.replace("@", "\n@") for name in shown_measures])
    for dataset, split in dict.fromkeys((result.dataset, result.split) for result in results):
        rows = [result for result in results if (result.dataset, result.split) == (dataset, split)]
        counts = f"{counted(rows[0].queries, 'query')}, {rows[0].judgements} judged"
        scores = [(row.model, row.scores.mean) for row in rows]
        add_section(shown, f"{dataset} ({split})\n{counts}", scores, shown_measures)
    means: dict[tuple[str, int], dict[tuple[str, str], dict[str, float]]] = {}
    for name in shown_measures:
        for average in averages(results, name):
            systems = means.setdefault((average.suite, len(average.sets)), {})
            systems.setdefault((average.model, average.revision), {})[name] = average.value
    for (suite, sets), systems in means.items():
        scores = [(model, mean) for (model, _), mean in systems.items()]
        add_section(shown, f"{suite}\nmean of {sets} sets", scores, shown_measures)
    return shown


def add_section(
    shown: Table, title: str, rows: Sequence[tuple[str, dict[str, float]]], measures: Sequence[str]
) -> None:
    """Adds models with their scores by measure below a title, with the best scores in bold."""
    shown.add_row(escape(title))
    best = {name: max(scores.get(name, -1.0) for _, scores in rows) for name in measures}
    for number, (model, scores) in enumerate(rows, 1):
        cells = [f"{scores[name]:.4f}" if name in scores else "" for name in measures]
        bold = [
            f"[bold]{cell}[/]" if cell and scores[name] == best[name] else cell
            for name, cell in zip(measures, cells, strict=True)
        ]
        shown.add_row(escape(f"  {model}"), *bold, end_section=number == len(rows))


def costs(results: Sequence[Result]) -> Table | None:
    """A table of smaller vectors and indexes against exact search over full vectors; None without any."""
    full = {
        (result.revision, result.dataset, result.split): result for result in results if not _variant(result)
    }
    heads = ("nDCG\n@10", "against\nfull", "vectors\nMB", "index\nMB", "ms a\nquery", "recall\n@10")
    shown = new_table("Data set\n  Model", numbers=heads)
    measure = MEASURES[0].name
    rows = [result for result in results if result.details.get("cost") and measure in result.scores.mean]
    if not any(map(_variant, rows)):
        return None
    for dataset, split in dict.fromkeys((result.dataset, result.split) for result in rows):
        shown.add_row(escape(f"{dataset} ({split})"))
        for row in (row for row in rows if (row.dataset, row.split) == (dataset, split)):
            cost, score = row.details["cost"], row.scores.mean[measure]
            base = full.get((row.revision, dataset, split))
            shown.add_row(
                escape(f"  {row.model}"),
                f"{score:.4f}",
                f"{score - base.scores.mean[measure]:+.4f}" if base and _variant(row) else "",
                f"{cost['vector_bytes'] / MEGABYTE:.1f}" if "vector_bytes" in cost else "",
                f"{cost['index_bytes'] / MEGABYTE:.1f}" if "index_bytes" in cost else "",
                f"{cost['ms_per_query']:.2f}" if "ms_per_query" in cost else "",
                f"{recall:.4f}"
                if (recall := row.details.get("recall_against_exact", {}).get("@10")) is not None
                else "",
            )
    return shown


def _variant(result: Result) -> bool:
    return bool({"precision", "index"} & result.details["settings"].keys())


def as_json(results: Sequence[Result]) -> dict[str, list[dict[str, Any]]]:
    """Results (without per-query scores) and the averages over suites, as JSON."""
    rows = [
        {
            "model": result.model,
            "revision": result.revision,
            "dataset": result.dataset,
            "split": result.split,
            "documents": result.documents,
            "queries": result.queries,
            "judgements": result.judgements,
            **{result.details["measures"][name]: value for name, value in result.scores.mean.items()},
            "seconds": result.seconds,
            **{
                name: result.details[name]
                for name in ("cost", "recall_against_exact")
                if name in result.details
            },
            "notes": result.details.get("notes", []),
            "reused": result.reused,
            "path": str(result.path),
        }
        for result in results
    ]
    names = dict.fromkeys(name for result in results for name in result.scores.mean)
    means = [asdict(average) for name in names for average in averages(results, name)]
    return {"results": rows, "averages": means}
