"""report(): the results under a folder as one HTML page that needs no network, as text, and as CSV.

Every number leads to its file, and to the fingerprints, settings, versions and notes there. The page is
report.html.j2 with report.css, report.js and plotly's script in it; its tables need no script.
"""

import contextlib
import csv
import io
import os
import sys
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table

from stzoo.errors import MissingExtraError, OutputError, RecipeError
from stzoo.evaluation.report.data import COST, Group, Page, gather
from stzoo.evaluation.report.intervals import RESAMPLES, Interval
from stzoo.evaluation.settings import ReportSettings
from stzoo.training.history import History, Line, running_mean, shortened
from stzoo.utils.files import atomic_file
from stzoo.utils.inputs import user_path
from stzoo.utils.outputs import check_output

FORMATS = ("html", "txt", "csv")
CSV_HEAD = "model,revision,dataset,split,measure,mean,low,high,queries,corpus,judged,date,notes,file"


def report(
    results: str | Path,
    *,
    output: str | Path,
    runs: str | Path | Sequence[str | Path] = (),
    measure: str = "nDCG@10",
    formats: str | Sequence[str] = FORMATS,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool | None = None,
) -> list[Path]:
    """Reports the results under a folder: leaderboards with intervals, costs, and where each number is from.

    Args:
        results: an --output of bench, or a folder of several.
        output: the HTML file; text and CSV go beside it, under its name with .txt and .csv.
        runs: folders of pretrain or finetune, whose learning curves are shown as well.
        measure: shown and ranked by; the CSV has every measure.
        formats: of html, txt and csv, a list or with commas between.
        seed: of the resamples that give the intervals; the same seed gives the same files.
        overwrite: True to replace files that are there.
        progress: True for a progress bar on stderr; None shows it on a terminal only.

    Returns:
        the files written, in the order of `formats`.

    Raises:
        DataError: if there are no results, none has the measure, or a run's folder holds no run.
        MissingExtraError: if HTML is asked for and plotly is not installed.
        OutputError: if a file is there already or cannot be written.
        RecipeError: if a format is unknown.
    """
    settings = ReportSettings.check(locals())
    formats = settings.formats
    if not formats or set(formats) - set(FORMATS):
        raise RecipeError(f"formats is {','.join(formats)!r}; expected some of {','.join(FORMATS)}.")
    base = user_path(output, OutputError)
    if base.name in ("", ".."):
        raise OutputError(f"the output is {str(output)!r}; expected a file, e.g. report.html.")
    base = base.with_suffix("") if base.suffix.removeprefix(".") in FORMATS else base
    paths = [base.with_name(f"{base.name}.{form}") for form in formats]
    for path in paths:
        check_output(path, kind="file", is_ours=_is_report, what="a report that stzoo wrote")
        if os.path.lexists(path) and not overwrite:
            raise OutputError(f"{path} is there already. Use --overwrite, or another --output.")
    if "html" in formats:
        _plotly()
    bars = sys.stderr.isatty() if progress is None else progress
    page = gather(user_path(results), measure, seed=seed, progress=bars, runs=settings.runs)
    writers: dict[str, Callable[[Page], str]] = {"html": _html, "txt": _text, "csv": _csv}
    texts = [writers[form](page) for form in formats]
    for path, text in zip(paths, texts, strict=True):
        with atomic_file(path) as draft:
            draft.write_text(text, encoding="utf-8", newline="\n")
    return paths


def _is_report(path: Path) -> bool:
    begins = {".csv": CSV_HEAD, ".txt": "Retrieval results by ", ".html": "<!doctype html>"}[path.suffix]
    with contextlib.suppress(OSError, UnicodeDecodeError), path.open(encoding="utf-8") as file:
        head = file.read(4096)
        return head.lstrip().startswith(begins) and (path.suffix != ".html" or "stzoo" in head)
    return False


def _html(page: Page) -> str:
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"amount": _amount, "pairs": _pairs, "shortened": shortened, "pictures": _pictures}
    own = {name: (here / f"report.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    return environment.get_template("report.html.j2").render(
        page=page,
        settings=_distinct(row.result.facts["settings"] for row in page.rows),
        made=_distinct(row.made for row in page.rows),
        cost=COST,
        resamples=RESAMPLES,
        plotted=_plotted(page),
        queries=[_per_query(page, group) for group in page.groups],
        curves=[_curve(history) for history in page.runs.values()],
        inline={name: Markup(text) for name, text in (own | {"plotly": _plotly()}).items()},  # noqa: S704 - our own
    )


def _pictures(history: History) -> list[tuple[str, str]]:
    """What plugins drew of a run into its `figures/`: the names in words, and the files in base64."""
    drawn = sorted((history.folder / "figures").glob("*.png"))
    return [(file.stem.replace("-", " "), b64encode(file.read_bytes()).decode()) for file in drawn]


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise MissingExtraError("plotly", "report") from None
    return str(get_plotlyjs())


def _plotted(page: Page) -> dict[str, Any]:
    """What the plots show, but for the scores of single queries."""
    systems = page.systems
    groups = [
        {
            "name": group.name,
            "rows": [
                {
                    "system": systems.index(row.system),
                    "mean": row.result.scores.mean[page.measure],
                    "interval": row.intervals[page.measure],
                    "cost": row.cost,
                }
                for row in group.rows
            ],
        }
        for group in page.groups
    ]
    return {"measure": page.measure, "systems": systems, "groups": groups, "runs": list(page.runs)}


def _per_query(page: Page, group: Group) -> dict[str, Any]:
    """Query ids and, in the order of the rows, their scores to four digits."""
    ids = list(group.data.scores.per_query[page.measure])
    rows = [row.result.scores.per_query[page.measure] for row in group.rows]
    return {"ids": ids, "scores": [[round(scores[query], 4) for query in ids] for scores in rows]}


def _curve(history: History) -> dict[str, Any]:
    """What the plot of a run shows: values to five digits, None between episodes."""

    def flat(line: Line) -> dict[str, Any]:
        steps, values, means = [], [], []
        for own_steps, own_values in line.parts:
            steps += [*own_steps, None]
            values += [*(float(f"{value:.5g}") for value in own_values), None]
            means += [*(float(f"{mean:.5g}") for mean in running_mean(own_values) or own_values), None]
        long = any(running_mean(own) for _, own in line.parts)
        return {"name": line.name, "steps": steps, "values": values, "means": means if long else None}

    return {
        "losses": [flat(line) for line in history.losses],
        "scores": [flat(line) for line in history.scores],
        "best": history.best,
        "begins": history.begins,
        "steps": history.steps,
        "logarithmic": history.spread,
    }


def _text(page: Page) -> str:
    file = io.StringIO()
    console = Console(file=file, width=80, color_system=None, markup=False, emoji=False, highlight=False)

    def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        shown.add_column(head[0], overflow="fold")
        for name in head[1:]:
            shown.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            shown.add_row(*row)
        console.print(f"\n{title}\n")
        console.print(shown)

    systems, sets = len(page.systems), len(page.groups)
    console.print(f"Retrieval results by {page.measure}: {systems} systems, {sets} data sets")
    for warning in page.warnings:
        console.print(f"\nWARNING: {warning}", overflow="fold")
    head = ["System", page.measure, "95 % interval"]
    for suite in page.suites:
        title = f"{suite.name}: mean over {len(suite.sets)} data sets ({', '.join(suite.sets)})"
        table(title, head, [(name, f"{mean:.4f}", _span(interval)) for name, mean, interval in suite.rows])
        if suite.missing:
            lacking = ", ".join(f"{system} ({missing} missing)" for system, missing in suite.missing.items())
            console.print(f"\nNo average for {lacking}.", overflow="fold")
    if not page.suites:
        console.print("\nNo system covers a suite in full, so no average is given.")
    for group in page.groups:
        data = group.data
        means = [
            (row.system, f"{row.result.scores.mean[page.measure]:.4f}", _span(row.intervals[page.measure]))
            for row in group.rows
        ]
        counts = f"{data.queries} queries, {data.documents} passages, {data.judgements} judged"
        table(f"{group.name}: {counts}", head, means)
        keys = [key for key in COST if any(key in row.cost for row in group.rows)]
        if keys:
            costs = [
                (
                    row.system,
                    *(_amount(row.cost[key], COST[key][1]) if key in row.cost else "-" for key in keys),
                )
                for row in group.rows
            ]
            table(f"{group.name}: costs", ["System", *(COST[key][0] for key in keys)], costs)
        for row in group.rows:
            if row.recall:
                console.print(f"\n{row.system}: recall against exact search {row.recall}", overflow="fold")
    if page.runs:
        console.print("\nTraining\n")
    for name, history in page.runs.items():
        console.print(f"{name}: {history.title}\n  {history.outcome}", overflow="fold")
    settings = _distinct(row.result.facts["settings"] for row in page.rows)
    made = _distinct(row.made for row in page.rows)
    console.print("\nWhere the numbers are from")
    for group in page.groups:
        data = group.data
        console.print(f"\n{group.name}\n  corpus {data.corpus}\n  judged {data.data[1]}", soft_wrap=True)
        for row in group.rows:
            how = (settings.index(row.result.facts["settings"]) + 1, made.index(row.made) + 1)
            console.print(f"  {row.file}", soft_wrap=True)
            console.print("    {}, settings {}, made with {}".format(row.date, *how))
    for title, several in (("Settings", settings), ("Made with", made)):
        for place, one in enumerate(several, 1):
            console.print(f"\n{title} {place}: {_pairs(one)}", overflow="fold")
    lines = (line.rstrip() for line in file.getvalue().split("\n"))
    return "".join(sign if sign == "\n" or sign.isprintable() else "?" for sign in "\n".join(lines))


def _csv(page: Page) -> str:
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(CSV_HEAD.split(","))
    for row in page.rows:
        result = row.result
        for measure, mean in result.scores.mean.items():
            named = [result.model, result.revision, result.dataset, result.split, measure]
            notes = " ".join(result.facts.get("notes") or ())
            low, high = row.intervals[measure] or ("", "")
            table.writerow([*named, mean, low, high, result.queries, *result.data, row.date, notes, row.file])
    return file.getvalue()


def _distinct(several: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for one in several:
        if one not in found:
            found.append(one)
    return found


def _pairs(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items() if value not in (None, {}, ""))


def _span(interval: Interval) -> str:
    return "{:.4f} to {:.4f}".format(*interval) if interval else "-"


def _amount(value: float, unit: str) -> str:
    """A cost for people: bytes in a decimal unit, one to three digits before the point."""
    if unit != "bytes":
        return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"
    power = 0
    while value >= 999.5 and power < 4:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {('', 'k', 'M', 'G', 'T')[power]}B"
