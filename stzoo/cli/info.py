"""stzoo --version, plugins, recipe show."""

from typing import Annotated, Any

import typer

from stzoo import __version__
from stzoo.cli.complete import complete_recipes
from stzoo.cli.flags import Json
from stzoo.cli.shared import PANEL_OF, app, print_json, register, show
from stzoo.utils.tables import new_table

recipes = typer.Typer(help="Show an installed recipe.", no_args_is_help=True)
app.add_typer(recipes, name="recipe", rich_help_panel=PANEL_OF["recipe"])


@app.callback(invoke_without_command=True)
def _about(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@register("plugins")
def plugins_command(
    as_json: Json = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Import everything that plugins provide, and exit with 1 on any fault."
        ),
    ] = False,
) -> None:
    """Show the installed plugins and why any of them failed."""
    from stzoo.plugins import manager

    faults = manager.faults() if strict else []
    rows: list[dict[str, Any]] = [
        {
            "plugin": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "provides": {kind: sorted(parts) for kind, parts in plugin.provides.items() if parts},
            "failures": [
                *plugin.failures,
                *(text for owner, text in faults if owner is plugin and text not in plugin.failures),
            ],
        }
        for plugin in manager.plugins()
    ]
    if as_json:
        print_json(rows)
    else:
        _show_plugins(rows)
    if faults:
        raise typer.Exit(1)


def _show_plugins(rows: list[dict[str, Any]]) -> None:
    table = new_table("plugin", "distribution", "version", "provides")
    for row in rows:
        parts = "\n".join(f"{kind}: {', '.join(names)}" for kind, names in row["provides"].items())
        table.add_row(row["plugin"], row["distribution"], row["version"], parts)
    show(table)
    for row in rows:
        for failure in row["failures"]:
            typer.echo(f"{row['plugin']} ({row['distribution']}): {failure}", err=True)


@recipes.command("show")
def recipe_show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Name from `stzoo list recipes`.", autocompletion=complete_recipes
        ),
    ],
) -> None:
    """Print a recipe as YAML, to copy and change."""
    from stzoo.plugins import manager

    typer.echo(manager.recipe_text(name), nl=False)
