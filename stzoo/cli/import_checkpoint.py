"""stzoo import: published checkpoints as plain sentence-transformers folders."""

from pathlib import Path
from typing import Annotated

import typer

from stzoo.cli.shared import app, done
from stzoo.training.settings import parse_changes


@app.command("import")
def import_command(
    checkpoint: Annotated[
        str, typer.Argument(help="A name or Hub id of `stzoo list checkpoints`; or a folder, with --like.")
    ],
    output: Annotated[Path, typer.Option(help="The folder to write.")],
    like: Annotated[
        str | None, typer.Option(help="The name of the checkpoint whose form the folder has.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An option of the importer, e.g. rescale_t5=true."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that is there.")] = False,
) -> None:
    """Turn a published checkpoint into a sentence-transformers folder, pooled as it was trained."""
    options = parse_changes(changes or [])
    from stzoo.hub.import_checkpoint import import_checkpoint

    done(import_checkpoint(checkpoint, output=output, like=like, options=options, overwrite=overwrite))
