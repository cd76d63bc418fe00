"""stzoo score."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stzoo.cli.bench import printed
from stzoo.cli.flags import Json, Overwrite, settings_as_flags
from stzoo.cli.shared import command
from stzoo.evaluation.settings import ScoreSettings


@command("score")
@settings_as_flags(ScoreSettings)
def score_command(
    recipe: str | None,
    settings: dict[str, Any],
    output: Annotated[Path | None, typer.Option(help="Folder for the results; not saved by default.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Score run files of any system by the same rules."""
    given = ScoreSettings.read(recipe, settings)
    from stzoo.evaluation.bench.score import score

    with printed(given.measures, as_json) as on_result:
        score(**given.arguments(), output=output, overwrite=overwrite, on_result=on_result)
