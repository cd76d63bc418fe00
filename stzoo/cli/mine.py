"""stzoo mine."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stzoo.cli.flags import Json, Overwrite, Resume, command
from stzoo.cli.shared import print_json, show
from stzoo.training.finetune_settings import MineSettings


@command(MineSettings)
def mine_command(
    recipe: str | None,
    changes: dict[str, Any],
    output: Annotated[Path, typer.Option(help="File to write, .parquet or .jsonl.")],
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Mine hard negatives for training.

    They are passages that a model ranks high for a query although they are not known to be relevant.
    """
    from stzoo.finetuning.mining.mine import mine
    from stzoo.utils.distributed import is_main_process

    made = mine(recipe=recipe, output=output, resume=resume, overwrite=overwrite, **changes)
    if not is_main_process():
        return
    if as_json:
        print_json(made.record)
        return
    show(made.counts)
    typer.echo(f"The negatives are in {output}; train on them with --data {output}.", err=True)
