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
    each_method: Annotated[
        bool, typer.Option("--methods", help="Run RetroMAE, DupMAE, MASTER and TACO for a few steps instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Adapt, fine-tune, pre-train, score and search in minutes.

    A second call continues where the first one ended.
    """
    from stzoo.cli.demo import demo
    from stzoo.cli.demo_methods import methods
    from stzoo.errors import RecipeError

    options = settings.arguments()
    if each_method and options.pop("corpus") is not None:
        raise RecipeError("--methods runs on docstrings of Python's library; drop --corpus.")
    run = methods if each_method else demo
    made = run(**options, output=output, say=lambda line: typer.echo(line, err=True))
    if as_json:
        print_json(made.to_json())
    else:
        typer.echo(str(made))
