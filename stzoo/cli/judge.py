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
    """Judge passages yourself, blind, to compare systems.

    A page on this machine shows one question with one passage at a time, without the system that found it.
    Every answer is saved at once, and the same command continues.
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
