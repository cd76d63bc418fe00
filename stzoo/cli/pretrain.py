"""stzoo pretrain."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stzoo.cli.flags import Overwrite, Resume, settings_as_flags
from stzoo.cli.shared import command, done
from stzoo.training.settings import PretrainSettings


@command("pretrain")
@settings_as_flags(PretrainSettings)
def pretrain_command(
    recipe: str | None,
    settings: dict[str, Any],
    output: Annotated[Path, typer.Option(help="Folder for checkpoints, run.json and the finished model.")],
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Pre-train an encoder on plain text."""
    from stzoo.pretraining.pretrain import pretrain

    done(pretrain(recipe, output=output, resume=resume, overwrite=overwrite, **settings))
