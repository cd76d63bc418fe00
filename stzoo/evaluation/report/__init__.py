"""report(): the results under a folder as one HTML page that works offline, as text, and as CSV.

Every number links to its file and shows the fingerprints, settings, versions and notes there. The page is
report.html.j2 with report.css, report.js and plotly's script inlined; its tables work without scripts.
"""

import contextlib
import csv
import io
import os
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from rich.console import Console

from stzoo.errors import MissingExtraError, OutputError, RecipeError
from stzoo.evaluation.report.data import COST, Group, Page, gather
from stzoo.evaluation.report.intervals import RESAMPLES, Interval
from stzoo.evaluation.settings import ReportSettings
from stzoo.training.history import History, Line, running_mean, shortened
from stzoo.utils.files import atomic_file
from stzoo.utils.inputs import user_path
from stzoo.utils.messages import counted, show_progress
from stzoo.utils.outputs import check_output
from stzoo.utils.tables import new_table

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
    """Reports the results under a folder: leaderboards with intervals, costs, and the source of each number.

    Args:
        results: An --output of bench, or a folder of several.
        output: Path to the HTML file; text and CSV are written next to it as .txt and .csv.
        runs: Folders of pretrain or finetune runs whose learning curves to show.
        measure: Measure to show and rank by; the CSV has all measures.
        formats: Formats to write: html, txt, csv, as a list or separated by commas.
        seed: Random seed for the intervals; the same seed gives the same files.
        overwrite: True to replace existing files.
        progress: True shows a progress bar on stderr; None shows it on a terminal only.

    Returns:
        The files written, in the order of `formats`.

    Raises:
        DataError: If there are no results, none has the measure, or a folder in `runs` is not a training run.
        MissingExtraError: If html is requested and plotly is not installed.
        OutputError: If a file exists already or cannot be written.
        RecipeError: If a format is unknown.
    """
    settings = ReportSettings.check(locals())
    formats = settings.formats
    if not formats or set(formats) - set(FORMATS):
        raise RecipeError(f"formats is {','.join(formats)!r}; expected one or more of {','.join(FORMATS)}.")
    base = user_path(output, OutputError)
    if base.name in ("", ".."):
        raise OutputError(f"the output is {str(output)!r}; expected a file, e.g. report.html.")
    base = base.with_suffix("") if base.suffix.removeprefix(".") in FORMATS else base
    paths = [base.with_name(f"{base.name}.{form}") for form in formats]
    for path in paths:
        check_output(path, kind="file", is_ours=_is_report, what="a report that stzoo wrote")
        if os.path.lexists(path) and not overwrite:
            raise OutputError(f"{path} exists already. Use --overwrite, or another --output.")
    if "html" in formats:
        _plotly()  # raises before anything is read
    show_bars = show_progress(progress)
    page = gather(user_path(results), measure, seed=seed, progress=show_bars, runs=settings.runs)
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
    inline = {name: (here / f"report.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    inline["plotly"] = _plotly()
    return environment.get_template("report.html.j2").render(
        page=page,
        settings=_distinct(row.result.details["settings"] for row in page.rows),
        made=_distinct(row.made for row in page.rows),
        cost=COST,
        resamples=RESAMPLES,
        plotted=_plotted(page),
        queries=[_per_query(page, group) for group in page.groups],
        curves=[_curve(history) for history in page.runs.values()],
        inline={name: Markup(text) for name, text in inline.items()},  # noqa: S704 - no user's text
    )


def _pictures(history: History) -> list[tuple[str, str]]:
    """The names and base64 contents of the images that plugins saved in a run's `figures/`."""
    files = sorted((history.folder / "figures").glob("*.png"))
    return [(file.stem.replace("-", " "), b64encode(file.read_bytes()).decode()) for file in files]


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise MissingExtraError("plotly", "report") from None
    return str(get_plotlyjs())


def _plotted(page: Page) -> dict[str, Any]:
    """The data of the plots, without the scores of single queries."""
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
    """Query ids and their scores, rounded to four digits, in the order of the rows."""
    ids = list(group.data.scores.per_query[page.measure])
    rows = [row.result.scores.per_query[page.measure] for row in group.rows]
    return {"ids": ids, "scores": [[round(scores[query], 4) for query in ids] for scores in rows]}


def _curve(history: History) -> dict[str, Any]:
    """The data of a run's plot: values rounded to five digits, with None between episodes."""

    def flat(line: Line) -> dict[str, Any]:
        steps, values, means = [], [], []
        for part_steps, part_values in line.parts:
            steps += [*part_steps, None]
            values += [*(float(f"{value:.5g}") for value in part_values), None]
            means += [*(float(f"{mean:.5g}") for mean in running_mean(part_values) or part_values), None]
        long = any(running_mean(part_values) for _, part_values in line.parts)
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
        shown = new_table(head[0], numbers=head[1:])
        shown.show_edge = False
        for row in rows:
            shown.add_row(*row)
        console.print(f"\n{title}\n")
        console.print(shown)

    counts = f"{counted(len(page.systems), 'system')}, {counted(len(page.groups), 'data set')}"
    console.print(f"Retrieval results by {page.measure}: {counts}")
    for warning in page.warnings:
        console.print(f"\nWARNING: {warning}", overflow="fold")
    head = ["System", page.measure, "95 % interval"]
    for suite in page.suites:
        title = f"{suite.name}: mean over {len(suite.sets)} data sets ({', '.join(suite.sets)})"
        table(title, head, [(name, f"{mean:.4f}", _span(interval)) for name, mean, interval in suite.rows])
        if suite.missing:
            systems = ", ".join(f"{system} ({missing} missing)" for system, missing in suite.missing.items())
            console.print(f"\nNo average for {systems}.", overflow="fold")
    if not page.suites:
        console.print("\nNo system has results on all data sets of a suite, so there are no averages.")
    for group in page.groups:
        data = group.data
        means = [
            (row.system, f"{row.result.scores.mean[page.measure]:.4f}", _span(row.intervals[page.measure]))
            for row in group.rows
        ]
        counts = f"{counted(data.queries, 'query')}, {counted(data.documents, 'passage')}"
        table(f"{group.name}: {counts}, {data.judgements} judged", head, means)
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
    settings = _distinct(row.result.details["settings"] for row in page.rows)
    made = _distinct(row.made for row in page.rows)
    console.print("\nWhere the numbers are from")
    for group in page.groups:
        data = group.data
        console.print(f"\n{group.name}\n  corpus {data.corpus}\n  judged {data.data[1]}", soft_wrap=True)
        for row in group.rows:
            numbers = (settings.index(row.result.details["settings"]) + 1, made.index(row.made) + 1)
            console.print(f"  {row.file}", soft_wrap=True)
            console.print("    {}, settings {}, made with {}".format(row.date, *numbers))
    for title, records in (("Settings", settings), ("Made with", made)):
        for number, record in enumerate(records, 1):
            console.print(f"\n{title} {number}: {_pairs(record)}", overflow="fold")
    lines = (line.rstrip() for line in file.getvalue().split("\n"))
    return "".join(sign if sign == "\n" or sign.isprintable() else "?" for sign in "\n".join(lines))


def _csv(page: Page) -> str:
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(CSV_HEAD.split(","))
    for row in page.rows:
        result = row.result
        for measure, mean in result.scores.mean.items():
            key = [result.model, result.revision, result.dataset, result.split, measure]
            notes = " ".join(result.details.get("notes") or ())
            low, high = row.intervals[measure] or ("", "")
            table.writerow([*key, mean, low, high, result.queries, *result.data, row.date, notes, row.file])
    return file.getvalue()


def _distinct(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    distinct: list[dict[str, Any]] = []
    for record in records:
        if record not in distinct:
            distinct.append(record)
    return distinct


def _pairs(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items() if value not in (None, {}, ""))


def _span(interval: Interval) -> str:
    return "{:.4f} to {:.4f}".format(*interval) if interval else "-"


def _amount(value: float, unit: str) -> str:
    """A cost in readable form, with bytes in a decimal unit (kB, MB, ...)."""
    if unit != "bytes":
        return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"
    power = 0
    while value >= 999.5 and power < 4:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {('', 'k', 'M', 'G', 'T')[power]}B"
