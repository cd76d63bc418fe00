"""stzoo publish: a model on its way to the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from stzoo.cli.shared import Json, app, print_json


@app.command("publish")
def publish_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="An exported model, or a run that ended in one.")
    ],
    repo: Annotated[
        str, typer.Argument(metavar="ORG/NAME", help="The model on the Hub; made if it is not there.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make it one that only its owners see.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="The branch, made if it is not there; main if left out.")
    ] = None,
    results: Annotated[Path | None, typer.Option(help="An --output of bench, for the card.")] = None,
    license: Annotated[  # noqa: A002 - the Hub's name of it
        str | None, typer.Option(help="By the Hub's names: apache-2.0; else as DIR's README.md has it.")
    ] = None,
    language: Annotated[str | None, typer.Option(help="Codes, with commas between: en,de; likewise.")] = None,
    collection: Annotated[
        str | None, typer.Option(help="Its slug, or a title of your own: the model is put into it.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and show all, and change nothing.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that no publish put there.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a model, show its card and files, and put them on the Hub in one commit."""
    from dataclasses import asdict

    from stzoo.hub.publish import publish

    made = publish(
        folder,
        repo,
        private=private,
        revision=revision,
        results=results,
        license=license,
        language=language,
        collection=collection,
        dry_run=dry_run,
        overwrite=overwrite,
        say=lambda line: typer.echo(line, err=as_json),
    )
    if as_json:
        print_json(asdict(made))
