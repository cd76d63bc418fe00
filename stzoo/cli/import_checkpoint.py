"""stzoo import."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stzoo.cli.flags import Overwrite, settings_as_flags
from stzoo.cli.shared import command, done
from stzoo.hub.settings import ImportSettings


@command("import")
@settings_as_flags(ImportSettings, nested="options")
def import_command(
    recipe: str | None,
    settings: dict[str, Any],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Convert a published checkpoint for sentence-transformers.

    It gets the pooling, similarity and prompts that its authors trained it with.
    """
    given = ImportSettings.read(recipe, settings)
    from stzoo.hub.import_checkpoint import import_checkpoint

    done(import_checkpoint(**given.arguments(), output=output, overwrite=overwrite))
