"""stzoo score."""

from pathlib import Path
from typing import Annotated

import typer

from stzoo.cli.bench import printed
from stzoo.cli.flags import Json, Overwrite, command
from stzoo.evaluation.settings import ScoreSettings


@command(ScoreSettings)
def score_command(
    settings: ScoreSettings,
    output: Annotated[Path | None, typer.Option(help="Folder for the results; not saved by default.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Score run files of any system by the same rules."""
    from stzoo.evaluation.bench.score import score

    with printed(settings.measures, as_json) as on_result:
        score(**settings.arguments(), output=output, overwrite=overwrite, on_result=on_result)
