"""stzoo finetune."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stzoo.cli.flags import Overwrite, Resume, command
from stzoo.training.finetune_settings import FinetuneSettings


@command(FinetuneSettings)
def finetune_command(
    recipe: str | None,
    changes: dict[str, Any],
    output: Annotated[Path, typer.Option(help="Folder for checkpoints, run.json and the finished model.")],
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune a retriever on queries with judged passages."""
    FinetuneSettings.read(recipe, changes).check_names()  # before torch is imported, which takes seconds
    from stzoo.finetuning.finetune import finetune

    finetune(recipe=recipe, output=output, resume=resume, overwrite=overwrite, **changes)
