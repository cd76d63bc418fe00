"""stzoo pretrain."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stzoo.cli.flags import Overwrite, Resume, command
from stzoo.cli.shared import done
from stzoo.training.pretrain_settings import PretrainSettings


@command(PretrainSettings)
def pretrain_command(
    recipe: str | None,
    changes: dict[str, Any],
    output: Annotated[Path, typer.Option(help="Folder for checkpoints, run.json and the finished model.")],
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Pre-train an encoder on plain text."""
    from stzoo.pretraining.pretrain import pretrain

    done(pretrain(recipe, output=output, resume=resume, overwrite=overwrite, **changes))
