"""stzoo finetune."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stzoo.cli.flags import Overwrite, Resume, command
from stzoo.cli.shared import done
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
    from stzoo.finetuning.finetune import finetune

    done(finetune(recipe=recipe, output=output, resume=resume, overwrite=overwrite, **changes))
