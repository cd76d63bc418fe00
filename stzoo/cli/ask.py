"""stzoo ask."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stzoo.adaptation.settings import AskSettings
from stzoo.cli.flags import Json, Overwrite, command
from stzoo.cli.shared import print_json, show
from stzoo.utils.tables import new_table


@command(AskSettings)
def ask_command(
    recipe: str | None,
    changes: dict[str, Any],
    output: Annotated[Path, typer.Option(help="Folder for the queries.")],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Generate queries for passages without labels.

    Run the same command again to continue after an interruption, or with a larger --count for more.
    """
    from stzoo.adaptation.ask import ask

    made = ask(recipe=recipe, output=output, overwrite=overwrite, **changes)
    if as_json:
        print_json(made.record)
        return
    table = new_table("", "number")
    for name, number in made["counts"].items():
        table.add_row(name.replace("_", " "), f"{number:,}")
    for reason, found in made["rejected"].items():
        table.add_row(f"  {reason}", f"{found['number']:,}")
    show(table)
    typer.echo(f"The queries are in {output / 'questions.jsonl'}; see {output / 'questions.html'}.", err=True)
