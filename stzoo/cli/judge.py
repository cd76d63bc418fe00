"""stzoo judge."""

from pathlib import Path
from typing import Annotated

import typer

from stzoo.cli.flags import command
from stzoo.cli.shared import show
from stzoo.evaluation.settings import JudgeSettings


@command(JudgeSettings)
def judge_command(
    settings: JudgeSettings,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the judgements; judged, next to the results, by default."),
    ] = None,
) -> None:
    """Judge question-passage pairs yourself, without seeing which system found them.

    The page is on this machine only. Every answer is saved at once; the same command continues.
    """
    from stzoo.evaluation.compare.result import table
    from stzoo.evaluation.judge import judge

    judged = judge(**settings.arguments(), output=output)
    if judged.comparison:
        show(table(judged.comparison))
        for note in judged.comparison.notes:
            typer.echo(note, err=True)
    for line in judged.summary():
        typer.echo(line)
