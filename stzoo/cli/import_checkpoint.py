"""stzoo import."""

from pathlib import Path
from typing import Annotated

import typer

from stzoo.cli.flags import Overwrite, command
from stzoo.cli.shared import done
from stzoo.hub.settings import ImportSettings


@command(ImportSettings, nested="options")
def import_command(
    settings: ImportSettings,
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Convert a published checkpoint for sentence-transformers.

    It gets the pooling, similarity and prompts that its authors trained it with.
    """
    from stzoo.hub.import_checkpoint import import_checkpoint

    done(import_checkpoint(**settings.arguments(), output=output, overwrite=overwrite))
