"""stzoo merge: the average of several models' weights."""

import json
from pathlib import Path
from typing import Annotated

import typer

from stzoo.cli.shared import app, done, new_table, show
from stzoo.errors import RecipeError


@app.command("merge")
def merge_command(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Model folders, or checkpoints (RUN/checkpoints/checkpoint-N); one RUN: all it kept."
        ),
    ],
    output: Annotated[Path, typer.Option(help="The folder to write.")],
    weights: Annotated[
        str | None, typer.Option(help="One for each, with commas: 0.7,0.3. All the same if left out.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that is there.")] = False,
) -> None:
    """Average the weights of models of one architecture (a model soup), and export the result."""
    numbers = _numbers(weights)
    from stzoo.hub.merge import merge
    from stzoo.utils.outputs import MERGED

    folder = merge(sources, output=output, weights=numbers, overwrite=overwrite)
    table = new_table("source", "weight", "revision")
    for one in json.loads((folder / MERGED).read_text(encoding="utf-8"))["merged"]:
        table.add_row(one["source"], f"{one['weight']:.4g}", one["revision"])
    show(table)
    done(folder)


def _numbers(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise RecipeError(
            f"weights is {text!r}; expected numbers with commas between, e.g. 0.7,0.3."
        ) from None
