"""stzoo fetch."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from stzoo.cli.complete import complete_names
from stzoo.cli.components import list_datasets
from stzoo.cli.flags import Json
from stzoo.cli.shared import print_json, register, show
from stzoo.utils.messages import counted
from stzoo.utils.tables import new_table


@register("fetch")
def fetch_command(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Data set to download; without it, all are listed.",
            autocompletion=complete_names("data"),
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder to put the data set's folder into; stzoo's cache by default.", metavar="PATH"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Download a data set, or list those that can be."""
    if name is None:
        list_datasets(as_json)
        typer.echo("`stzoo fetch NAME` downloads one of them.", err=True)
        return
    from stzoo.data.fetch import contents, fetch

    folder = fetch(name, output=output)
    found = contents(folder)
    if as_json:
        print_json({"folder": str(folder), **asdict(found)})
        return
    typer.echo(folder)
    texts = f"{counted(found.passages, 'passage')}, {counted(found.queries, 'query')}"
    typer.echo(f"{texts}; licence: {found.licence or 'not known'}")
    table = new_table("split", numbers=["judged queries", "judgements"])
    for split, numbers in found.splits.items():
        table.add_row(split, *(f"{number:,}" for number in numbers.values()))
    show(table)
    given = folder if output else folder.name
    typer.echo(f"To use it: stzoo bench MODEL --data {given} --output results", err=True)
