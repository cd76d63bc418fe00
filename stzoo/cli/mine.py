"""stzoo mine: hard negatives."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stzoo.cli.shared import Json, app, new_table, print_json, show
from stzoo.cli.train import Recipe, Resume, Set, settings_as_flags
from stzoo.training.settings import MineSettings


@app.command("mine")
@settings_as_flags(MineSettings, positional="model")
def mine_command(
    output: Annotated[Path, typer.Option(help="The file to write, .parquet or .jsonl.")],
    settings: dict[str, Any],
    recipe: Recipe = None,
    changes: Set = None,  # noqa: ARG001 - merged into settings
    resume: Resume = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew; replace the file.")] = False,
    as_json: Json = False,
) -> None:
    """Mine hard negatives: what a model ranks high for a query, though it is no known answer."""
    from stzoo.finetuning.mining.mine import mine

    model = settings.pop("model", None)
    made = mine(model, recipe, output=output, resume=resume, overwrite=overwrite, **settings)
    if as_json:
        print_json(made)
        return
    table = new_table("", "number")
    for name, count in made["counts"].items():
        table.add_row(name.replace("_", " "), str(count))
    show(table)
    typer.echo(f"The negatives are in {output}; train on them with --data {output}.", err=True)
