"""stzoo card."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stzoo.cli.flags import Overwrite, settings_as_flags
from stzoo.cli.shared import command, print_json
from stzoo.hub.settings import CardSettings


@command("card")
@settings_as_flags(CardSettings)
def card_command(
    recipe: str | None,
    settings: dict[str, Any],
    output: Annotated[Path | None, typer.Option(help="File to write; printed by default.")] = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the metadata, as JSON.")] = False,
) -> None:
    """Show the model card that `stzoo publish` would upload.

    It has usage, method, data, recipe, scores, limits and citation.
    """
    given = CardSettings.read(recipe, settings)
    from stzoo.hub.card import card, metadata

    text = card(**given.arguments(), output=output, overwrite=overwrite)
    if as_json:
        print_json(metadata(text))
    elif output is None:
        typer.echo(text, nl=False)
    else:
        typer.echo(output)
