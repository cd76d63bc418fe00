"""stzoo --version, plugins, list, recipe show: what is installed."""

from typing import Annotated, Any

import typer

from stzoo import __version__
from stzoo.cli.shared import Json, app, new_table, print_json, show

# what JSON tells of a checkpoint beside what every part has
CHECKPOINT = (
    *("hub_id", "revision", "license", "recipe", "pooling", "normalize", "similarity", "prompts"),
    *("max_tokens", "max_query_tokens", "expected"),
)

recipes = typer.Typer(help="Show the recipes that plugins bring.", no_args_is_help=True)
app.add_typer(recipes, name="recipe")


@app.callback(invoke_without_command=True)
def _about(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command("plugins")
def plugins_command(
    as_json: Json = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="import everything that plugins provide, and exit with 1 on any fault"),
    ] = False,
) -> None:
    """Show the installed plugins: versions, what each provides, and what failed and why."""
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


@app.command("list")
def list_command(
    kind: Annotated[
        str | None, typer.Argument(help="objectives, poolings, …, or datasets; all but these if left out")
    ] = None,
    as_json: Json = False,
) -> None:
    """List what can be asked for by name."""
    from stzoo.plugins import manager

    if kind in ("dataset", "datasets"):
        _list_datasets(as_json)
        return
    kinds = [manager.singular(kind)] if kind else list(manager.KINDS)
    rows = []
    for one in kinds:
        for name, part in manager.all(one).items():
            more = {key: getattr(part, key) for key in CHECKPOINT if hasattr(part, key)}
            rows.append({"kind": one, "name": name, "summary": part.summary, **more, "source": part.source})
    if as_json:
        print_json(rows)
        return
    table = new_table("kind", "name", "summary", "source")
    for row in rows:
        table.add_row(row["kind"], row["name"], _about_checkpoint(row) + row["summary"], row["source"])
    show(table)


def _about_checkpoint(row: dict[str, Any]) -> str:
    """Where a checkpoint is, how it pools and compares, and its licence; nothing for other kinds."""
    if "pooling" not in row:
        return ""
    facts = [row["pooling"], row["similarity"], row["license"] or "licence unknown"]
    return f"{row['hub_id'] or 'a folder'} ({', '.join(facts)}): "


def _list_datasets(as_json: bool) -> None:
    from dataclasses import asdict

    from stzoo.data import registry

    if as_json:
        print_json(
            {"datasets": list(map(asdict, registry.entries().values())), "suites": dict(registry.suites())}
        )
        return
    table = new_table("data set", "split", "documents", "queries", "licence", "suites")
    for name, entry in registry.entries().items():
        inside = [suite for suite in registry.suites() if name in registry.expand([suite])]
        counts = ["" if count is None else str(count) for count in (entry.documents, entry.queries)]
        licence = "not public" if entry.get else entry.licence or ""
        table.add_row(name, entry.split, *counts, licence, ", ".join(inside))
    show(table)


@recipes.command("show")
def recipe_show(name: Annotated[str, typer.Argument(help="see `stzoo list recipes`")]) -> None:
    """Print a recipe, to be copied and changed."""
    from stzoo.plugins import manager

    typer.echo(manager.recipe_text(name), nl=False)
