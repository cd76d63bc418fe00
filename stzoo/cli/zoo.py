"""stzoo zoo."""

import typer

from stzoo.cli.flags import Json
from stzoo.cli.shared import print_json, register, show


@register("zoo")
def zoo_command(as_json: Json = False) -> None:
    """List published checkpoints, ready to use by name."""
    from stzoo.hub.zoo import zoo

    entries = zoo()
    if as_json:
        print_json([entry.as_json() for entry in entries])
        return
    show(entries)
    typer.echo(
        "Scores are those that the authors published. Name a checkpoint wherever a model is named:", err=True
    )
    typer.echo('  stzoo bench NAME …, stzoo finetune NAME …, stzoo.load("NAME")', err=True)
