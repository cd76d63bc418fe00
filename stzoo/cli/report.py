"""stzoo report."""

from pathlib import Path
from typing import Annotated

import typer

from stzoo.cli.flags import Overwrite, command
from stzoo.evaluation.settings import ReportSettings


@command(ReportSettings)
def report_command(
    settings: ReportSettings,
    output: Annotated[
        Path, typer.Option(help="HTML file to write; text and CSV are written next to it.")
    ] = Path("report.html"),
    overwrite: Overwrite = False,
) -> None:
    """Write one page about all results, readable offline.

    It has leaderboards with confidence intervals, scores by query, costs, and the source of each number.
    """
    from stzoo.evaluation.report import report

    for path in report(**settings.arguments(), output=output, overwrite=overwrite):
        typer.echo(path)
