"""stzoo publish."""

from typing import Annotated

import typer

from stzoo.cli.flags import Json, command
from stzoo.cli.shared import print_json
from stzoo.hub.settings import PublishSettings


@command(PublishSettings)
def publish_command(
    settings: PublishSettings,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and show everything, and change nothing.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that stzoo publish did not upload.")
    ] = False,
    show_card: Annotated[
        bool, typer.Option("--show-card", help="Show the whole card, not only a summary.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Publish a model on the Hub, with its card, in one commit."""
    from dataclasses import asdict

    from stzoo.hub.publish import publish

    made = publish(
        **settings.arguments(),
        dry_run=dry_run,
        overwrite=overwrite,
        show_card=show_card,
        say=lambda line: typer.echo(line, err=as_json),
    )
    if as_json:
        print_json(asdict(made))
