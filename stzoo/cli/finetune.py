"""stzoo finetune."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stzoo.cli.flags import Overwrite, Resume, settings_as_flags
from stzoo.cli.shared import command, done
from stzoo.training.settings import FinetuneSettings


@command("finetune")
@settings_as_flags(FinetuneSettings)
def finetune_command(
    recipe: str | None,
    settings: dict[str, Any],
    output: Annotated[Path, typer.Option(help="Folder for checkpoints, run.json and the finished model.")],
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune a retriever on queries with judged passages."""
    from stzoo.finetuning.finetune import finetune

    done(finetune(recipe=recipe, output=output, resume=resume, overwrite=overwrite, **settings))
