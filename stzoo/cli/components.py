"""stzoo list: the kinds of components, the components of a kind, and everything about one of them."""

import inspect
from dataclasses import asdict
from typing import Annotated, Any

import typer

from stzoo.cli.complete import complete_kinds, complete_listed
from stzoo.cli.flags import Json
from stzoo.cli.shared import print_json, register, show
from stzoo.errors import StzooError, UnknownNameError
from stzoo.utils.tables import new_table

# what JSON has of a checkpoint in addition to what every component has
CHECKPOINT = (
    *("hub_id", "revision", "license", "recipe", "pooling", "normalize", "similarity", "prompts"),
    *("base", "max_tokens", "max_query_tokens", "parameters", "expected"),
)


MODELS = "Checkpoints are published models (see also `stzoo zoo`), datasets what models are scored on."


@register("list")
def list_command(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND", help="Kind to list, e.g. objectives or datasets.", autocompletion=complete_kinds
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Component to show.", autocompletion=complete_listed),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the installed components and data sets, or show one."""
    from stzoo.plugins import manager

    given, kind = kind, manager.singular(kind) if kind else None
    if given and kind not in (*manager.KINDS, "dataset"):
        hint = MODELS if kind in ("model", "data", "benchmark") else ""
        raise UnknownNameError("kind", given, [*map(manager.plural, manager.KINDS), "datasets"], hint)
    if kind == "dataset":
        _show_dataset(name, as_json) if name else list_datasets(as_json)
    elif kind and name:
        _show_component(kind, name, as_json)
    elif as_json:
        print_json(_rows(kind))
    elif kind:
        _list_kind(kind)
    else:
        _list_kinds()


def _rows(kind: str | None) -> list[dict[str, Any]]:
    from stzoo.plugins import manager

    return [
        {"kind": one, "name": name, "summary": part.summary, **_of_checkpoint(part), "source": part.source}
        for one in ([kind] if kind else manager.KINDS)
        for name, part in manager.all(one).items()
    ]


def _of_checkpoint(part: Any) -> dict[str, Any]:
    return {key: getattr(part, key) for key in CHECKPOINT if hasattr(part, key)}


def _list_kinds() -> None:
    from stzoo.data import registry
    from stzoo.plugins import manager

    table = new_table("kind", "names")
    for kind in manager.KINDS:
        table.add_row(manager.plural(kind), ", ".join(manager.all(kind)))
    table.add_row("datasets", ", ".join(registry.suites()) + f" and {len(registry.entries())} data sets")
    show(table)
    typer.echo("`stzoo list KIND` describes the components of a kind, `stzoo list KIND NAME` one.", err=True)


def _list_kind(kind: str) -> None:
    checkpoints = kind == "checkpoint"
    table = new_table("name", *(["on the Hub", "licence"] if checkpoints else []), "summary")
    for row in _rows(kind):
        more = [row["hub_id"], row["license"] or "unknown"] if checkpoints else []
        table.add_row(row["name"], *more, row["summary"])
    show(table)


def _show_component(kind: str, name: str, as_json: bool) -> None:
    from stzoo.plugins import manager

    part, origin = manager.find(kind, name), manager.origin(kind, name)
    about = {**origin, "summary": part.summary, **_of_checkpoint(part), "source": part.source}
    about["citation"] = getattr(part, "citation", "")
    try:
        options = _options(kind, part)
    except StzooError as error:  # e.g. of an extra that is not installed
        options = []
        typer.echo(f"its options cannot be read: {error}", err=True)
    if as_json:
        print_json(about | {"options": options})
        return
    typer.echo(f"{kind} {origin['name']}: {part.summary}\n")
    plugin = f"{origin['plugin']} ({origin['distribution']} {origin['version']})"
    aliases = getattr(part, "aliases", ())
    _show_fields({"plugin": plugin, "aliases": aliases, **_of_checkpoint(part), "source": part.source})
    if options:
        listed = new_table("option", "type", "default")
        for option in options:
            default = "required" if option["required"] else repr(option["default"])
            listed.add_row(option["name"], option["type"], default)
        show(listed)
    if kind == "recipe":
        typer.echo(f"`stzoo recipe show {name}` prints its settings.")
    if about["citation"]:
        typer.echo(about["citation"].strip())


def _show_fields(fields: dict[str, Any]) -> None:
    """Prints the fields that are not empty, one per line."""
    table = new_table("", "")
    table.show_header = False
    for key, value in fields.items():
        if value not in ("", None, (), [], {}):
            table.add_row(key, _words(key, value))
    show(table)


def _words(key: str, value: Any) -> str:
    if key == "expected":
        return "\n".join(f"{measure} {score} on {data} ({url})" for data, measure, score, url in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {text!r}" for key, text in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _options(kind: str, part: Any) -> list[dict[str, Any]]:
    """The options of a component: parameters of its builder, or the settings that a preparation adds.

    Raises:
        StzooError: if its code cannot be imported.
    """
    from stzoo.plugins import builders
    from stzoo.training.pretrain_settings import PrepareSettings

    if kind not in builders.ARGUMENTS:
        return []
    builder: Any = builders.resolve(part)
    if kind == "preparation":
        return [
            _option(name, field.annotation, field.is_required(), field.get_default(call_default_factory=True))
            for name, field in builder.Settings.model_fields.items()
            if name not in PrepareSettings.model_fields
        ]
    parameters = list(inspect.signature(builder).parameters.values())[builders.ARGUMENTS[kind] :]
    return [
        _option(one.name, one.annotation, one.default is one.empty, one.default)
        for one in parameters
        if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]


def _option(name: str, kind: Any, required: bool, default: Any) -> dict[str, Any]:
    if kind is inspect.Parameter.empty:
        shown = ""
    else:
        shown = kind if isinstance(kind, str) else inspect.formatannotation(kind)
    plain = default if isinstance(default, str | int | float | list | dict | None) else repr(default)
    return {"name": name, "type": shown, "required": required, "default": None if required else plain}


def list_datasets(as_json: bool) -> None:
    """Prints the data sets of the registry."""
    from stzoo.data import registry

    if as_json:
        print_json(
            {"datasets": list(map(asdict, registry.entries().values())), "suites": dict(registry.suites())}
        )
        return
    table = new_table("data set", "split", "documents", "queries", "licence", "suites")
    for name, entry in registry.entries().items():
        counts = ["" if count is None else f"{count:,}" for count in (entry.documents, entry.queries)]
        licence = "not public" if entry.get else entry.licence or ""
        table.add_row(name, entry.split, *counts, licence, ", ".join(_suites(name)))
    show(table)


def _suites(dataset: str) -> list[str]:
    from stzoo.data import registry

    return [suite for suite in registry.suites() if dataset in registry.expand([suite])]


def _show_dataset(name: str, as_json: bool) -> None:
    from stzoo.data import registry

    entry = registry.find(name)
    if entry is None:
        raise UnknownNameError("data set", name, registry.entries())
    about = asdict(entry) | {"suites": _suites(entry.name)}
    if as_json:
        print_json(about)
        return
    _show_fields(about)
