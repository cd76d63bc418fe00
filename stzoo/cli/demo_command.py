"""stzoo demo."""

from pathlib import Path
from typing import Annotated

import typer

from stzoo.cli.flags import Json, command
from stzoo.cli.settings import DemoSettings
from stzoo.cli.shared import print_json


@command(DemoSettings)
def demo_command(
    settings: DemoSettings,
    output: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo"),
    as_json: Json = False,
) -> None:
    """Adapt, fine-tune, pre-train, score and search in minutes.

    A second call continues where the first one ended.
    """
    from stzoo.cli.demo import demo

    made = demo(**settings.arguments(), output=output, say=lambda line: typer.echo(line, err=True))
    if as_json:
        print_json(made.to_json())
    else:
        typer.echo(str(made))
