"""stzoo report."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stzoo.cli.flags import Overwrite, settings_as_flags
from stzoo.cli.shared import command
from stzoo.evaluation.settings import ReportSettings


@command("report")
@settings_as_flags(ReportSettings)
def report_command(
    recipe: str | None,
    settings: dict[str, Any],
    output: Annotated[
        Path, typer.Option(help="HTML file to write; text and CSV are written next to it.")
    ] = Path("report.html"),
    overwrite: Overwrite = False,
) -> None:
    """Write one page about all results, readable offline.

    It has leaderboards with confidence intervals, scores by query, costs, and the source of each number.
    """
    given = ReportSettings.read(recipe, settings)
    from stzoo.evaluation.report import report

    for path in report(**given.arguments(), output=output, overwrite=overwrite):
        typer.echo(path)
