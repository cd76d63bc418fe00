"""stzoo adapt."""

from pathlib import Path
from typing import Annotated

import typer

from stzoo.adaptation.settings import AdaptSettings
from stzoo.cli.flags import Json, command
from stzoo.cli.shared import print_json


@command(AdaptSettings)
def adapt_command(
    settings: AdaptSettings,
    output: Annotated[Path, typer.Option(help="Folder for the run; a second call continues it.")],
    as_json: Json = False,
) -> None:
    """Adapt a model to documents without labels."""
    from stzoo.adaptation.adapt import adapt
    from stzoo.adaptation.result import verdict

    made = adapt(**settings.arguments(), output=output, on_stage=lambda line: typer.echo(line, err=True))
    print_json(made.record) if as_json else typer.echo(verdict(made))
