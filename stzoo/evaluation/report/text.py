"""The report as text of 80 columns, and as CSV."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.padding import Padding

from stzoo.evaluation.report.adaptation import Adaptation, Asked
from stzoo.evaluation.report.content import Content, cost_of, distinct, pairs, span
from stzoo.evaluation.report.data import COST
from stzoo.utils.messages import counted
from stzoo.utils.paths import shorten_paths
from stzoo.utils.tables import new_table, text_console

CSV_HEAD = "model,revision,dataset,split,measure,mean,low,high,queries,corpus,judged,date,notes,file"
LETTERS = (
    "Systems that share a letter do not differ: paired randomisation tests of all pairs, p < 0.05 by Holm."
)


def as_text(content: Content) -> str:
    """The text."""
    page = content.page
    file = io.StringIO()
    console = text_console(file, 80, color_system=None, markup=False, emoji=False, highlight=False)

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
    if content.adaptation:
        _adaptation(console, content.adaptation, table)
    head = ["System", page.measure, "95 % interval", "Letters"]
    for suite, letters in zip(page.suites, content.suite_letters, strict=True):
        title = f"{suite.name}: mean over {len(suite.sets)} data sets ({', '.join(suite.sets)})"
        rows_letters = zip(suite.rows, letters, strict=True)
        table(
            title, head, [(name, f"{mean:.4f}", span(ends), own) for (name, mean, ends), own in rows_letters]
        )
        if suite.missing:
            systems = ", ".join(f"{system} ({missing} missing)" for system, missing in suite.missing.items())
            console.print(f"\nNo average for {systems}.", overflow="fold")
    if not page.suites and not content.adaptation:
        console.print("\nNo system has results on all data sets of a suite, so there are no averages.")
    board = content.leaderboard
    if board.shared and len(board.sets) > 1:
        title = f"Mean of {len(board.sets)} data sets that all systems share ({', '.join(board.sets)})"
        rows = [(system, f"{board.means[system]:.4f}", board.letters[system]) for system in board.systems]
        table(title, ["System", page.measure, "Letters"], rows)
    console.print(f"\n{LETTERS}", overflow="fold")
    for group, letters in zip(page.groups, content.letters, strict=True):
        data = group.data
        means = [
            (
                row.system,
                f"{row.result.scores.mean[page.measure]:.4f}",
                span(row.intervals[page.measure]),
                own,
            )
            for row, own in zip(group.rows, letters, strict=True)
        ]
        counts = f"{counted(data.queries, 'query')}, {counted(data.documents, 'passage')}"
        table(f"{group.name}: {counts}, {data.judgements} judged", head, means)
        keys = [key for key in COST if any(key in row.cost for row in group.rows)]
        if keys:
            costs = [
                (
                    row.system,
                    *(cost_of(row.cost[key], key) if key in row.cost else "-" for key in keys),
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
    settings = distinct(row.result.details["settings"] for row in page.rows)
    made = distinct(row.made for row in page.rows)
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
            console.print(f"\n{title} {number}: {pairs(record)}", overflow="fold")
    lines = (line.rstrip() for line in file.getvalue().split("\n"))
    return "".join(sign if sign == "\n" or sign.isprintable() else "?" for sign in "\n".join(lines))


def _adaptation(console: Console, made: Adaptation, table: Callable[..., None]) -> None:
    console.print("\nAdaptation\n")
    for sentence in made.verdict:
        console.print(sentence, overflow="fold")
    curve = [
        (label + (" (chosen)" if label == made.share else ""), f"{dev:.4f}", f"{general:.4f}")
        for label, dev, general in made.curve
    ]
    table("By the share of the learned map", ["Share", "Tuning questions", "General check"], curve)
    counts = ", ".join(f"{number:,} {name}" for name, number in made.questions.items())
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in made.seconds.items())
    console.print(f"\nQuestions: {counts}\nTime: {times}", overflow="fold")
    for title, asked in (("Gained most", made.gains), ("Lost most", made.losses)):
        console.print(f"\n{title}\n")
        for one in asked:
            before, after = one.scores
            console.print(f"{before:.3f} to {after:.3f}  {one.text}", overflow="fold")
            console.print(_source(one))
    console.print("\nSome of the generated questions\n")
    for one in made.examples:
        console.print(one.text, overflow="fold")
        console.print(_source(one))


def _source(one: Asked) -> Padding:
    return Padding(f"{one.note}; passage {one.id}: {one.title}", (0, 0, 0, 2))


def as_csv(content: Content) -> str:
    """All measures of all results."""
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(CSV_HEAD.split(","))
    for row in content.page.rows:
        result = row.result
        for measure, mean in result.scores.mean.items():
            key = [result.model, result.revision, result.dataset, result.split, measure]
            notes = shorten_paths(" ".join(result.details.get("notes") or ()))
            low, high = row.intervals[measure] or ("", "")
            table.writerow([*key, mean, low, high, result.queries, *result.data, row.date, notes, row.file])
    return file.getvalue()
