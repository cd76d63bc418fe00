"""stzoo card."""

from pathlib import Path
from typing import Annotated

import typer

from stzoo.cli.flags import Overwrite, command
from stzoo.cli.shared import print_json
from stzoo.hub.settings import CardSettings


@command(CardSettings)
def card_command(
    settings: CardSettings,
    output: Annotated[Path | None, typer.Option(help="File to write; printed by default.")] = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the metadata, as JSON.")] = False,
) -> None:
    """Show the model card that `stzoo publish` would upload.

    It has usage, method, data, recipe, scores, limits and citation.
    """
    from stzoo.hub.card import card, metadata

    text = card(**settings.arguments(), output=output, overwrite=overwrite)
    if as_json:
        print_json(metadata(text))
    elif output is None:
        typer.echo(text, nl=False)
    else:
        typer.echo(output)
