"""Makes a command's flags from its settings class."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from rich.markup import escape

from stzoo.cli.complete import complete_choices, complete_names, complete_recipes, complete_settings
from stzoo.cli.shared import register
from stzoo.errors import DataError, RecipeError
from stzoo.training.finetune_settings import TaskSettings
from stzoo.training.recipes import parse_changes
from stzoo.training.settings import COMMAS, GROUPS, LORA, Settings, choices
from stzoo.utils.inputs import user_path

Recipe = Annotated[
    str | None,
    typer.Option(
        help="Recipe with settings: a YAML file, or the name of an installed one.",
        metavar="TEXT",
        autocompletion=complete_recipes,
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the unfinished run in --output.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what an earlier run wrote to --output.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

NESTED = (dict[str, Any], dict[str, float], list[TaskSettings])  # set by --set, or in a recipe
METAVARS = {int: "INTEGER", float: "NUMBER", Path: "PATH"}  # TEXT for other types
ON_HUB = ("training", "corpus", "corpora")  # what is read from the Hub, too
BM25 = "bm25s"  # which mine takes for a model
REQUIRED = r" [red]\[required][/red]"


def command(settings: type[Settings], nested: str = "") -> Callable[[Callable[..., None]], Any]:
    """Registers the command of some settings, in its panel, with the flags of `settings_as_flags`."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        return register(settings.command)(settings_as_flags(settings, nested=nested)(function))

    return decorate


def settings_as_flags(
    settings: type[Settings], hidden: Mapping[str, Any] = {}, nested: str = ""
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the flags of its settings, `--recipe` and `--set`.

    The command is called with its checked `settings`, or with `recipe` and the `changes` to it if it has
    these parameters; and with its other parameters. Typer reads every value as text, so that settings are
    checked in one place: `settings.read`.

    Args:
        settings: the class.
        hidden: values of fields without a flag, which the command itself sets.
        nested: a field, a dict, that `--set` puts its keys into; "" if they are names of settings.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = inspect.signature(command).parameters
        own = [p for name, p in parameters.items() if name not in ("settings", "recipe", "changes")]
        fields = {
            name: field
            for name, field in settings.model_fields.items()
            if field.annotation not in NESTED and name not in hidden
        }
        flags = [_flag(settings, name, field) for name, field in fields.items()]
        places = {name: _place(settings, name, field) for name, field in fields.items()}
        places |= {p.name: (1, 1 if p.name == "output" else 3) for p in own}
        places |= {"recipe": (1, 2), "changes": (1, 2)}
        others = [*map(_explained, own), *_of_recipe(settings, nested)]
        ordered = sorted([*flags, *others], key=lambda p: places[p.name])

        def run(*, recipe: str | None, changes: list[str] | None, **values: Any) -> None:
            named = {parameter.name: values.pop(parameter.name) for parameter in own}
            missing = [
                f"{parameter.name} is missing; give --{parameter.name}."
                for parameter in own
                if parameter.default is parameter.empty and named[parameter.name] is None
            ]
            by_flag = {name: value for name, value in values.items() if value not in (None, [])}
            by_set = parse_changes(changes or [])
            if nested:
                by_set = {f"{nested}.{name}": value for name, value in by_set.items()}
            if twice := sorted(by_flag.keys() & by_set.keys()):
                flag = twice[0].replace("_", "-")
                raise RecipeError(f"--{flag} and --set {twice[0]} are both given; keep one of the two.")
            changed = by_flag | by_set
            made = _read(settings, recipe, {**hidden, **changed}, missing)
            if "recipe" in parameters:
                command(recipe=recipe, changes=changed, **named)
            else:
                command(settings=made, **named)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in ordered]
        run.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in keyword_only}
        return run

    return decorate


def _read(
    settings: type[Settings], recipe: str | None, changes: Mapping[str, Any], missing: list[str]
) -> Settings:
    """Reads and checks settings before the command's code is imported, which takes seconds.

    Raises:
        RecipeError: If settings are invalid, or an option of the command is missing.
        StzooError: If a model or a path does not exist.
    """
    from stzoo.data.corpus_names import check_exists
    from stzoo.models.names import check_source, parse_name

    try:
        made = settings.read(recipe, changes)
    except RecipeError as error:
        raise RecipeError("\n  ".join([str(error), *missing])) from None
    if missing:
        raise settings.problems(missing)
    for name, field in settings.model_fields.items():
        value = getattr(made, name)
        kind, takes = _extra(field).get("names"), _extra(field).get("takes")
        several: Any = [value] if isinstance(value, str | Path) else value or ()
        if kind in ("model", "cross-encoder"):
            for model in several:
                if model != BM25:
                    check_source(parse_name(model)[1])
        elif kind == "data":
            for source in filter(None, several):
                check_exists(source, on_hub=takes in ON_HUB)
        elif isinstance(value, Path) and name != "store" and not user_path(value).exists():
            option = "" if name in settings.positional else f"--{name.replace('_', '-')} "
            raise DataError(f"{option}{value} does not exist. Expected: {field.description}")
    return made


def _explained(parameter: inspect.Parameter) -> inspect.Parameter:
    """A command's own option; its help shows its default, or that it is required, as for a setting."""
    default = parameter.default
    if default is False:
        return parameter
    kind, option = get_args(parameter.annotation)
    shown, default = (REQUIRED, None) if default is parameter.empty else (_default(default), default)
    option = typer.Option(help=option.help + shown, metavar="PATH", show_default=False)
    return parameter.replace(default=default, annotation=Annotated[kind | None, option])


def _of_recipe(settings: type[Settings], nested: str) -> list[inspect.Parameter]:
    example = "an option of the importer, e.g. rescale_t5=true" if nested else "any setting by its name"
    change = typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help=f"Set {example}. Can be repeated.",
        autocompletion=None if nested else complete_settings(settings),
    )
    kinds = {"recipe": Recipe, "changes": Annotated[list[str] | None, change]}
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in kinds.items()
    ]


def _flag(settings: type[Settings], name: str, field: FieldInfo) -> inspect.Parameter:
    kind, words = _kind(field), choices(field.annotation)
    extra = _extra(field)
    about: dict[str, Any] = dict(
        help=_help(field, words, repeated=kind == list[str]),
        metavar=None if kind is bool else METAVARS.get(_item(field), "TEXT"),
        rich_help_panel=extra.get("group") or None,
    )
    if extra.get("names"):
        about["autocompletion"] = complete_names(extra["names"])
    elif words:
        about["autocompletion"] = complete_choices(words)
    if name in settings.positional:
        about |= dict(metavar=name.upper(), rich_help_panel=None, help=_help(field, words, repeated=False))
        option = typer.Argument(**about)
    else:
        # a switch that is off by default has no --no- form; --set NAME=false overrides a recipe
        names = [f"--{name.replace('_', '-')}"] if field.default is False else []
        option = typer.Option(*names, **about)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _item(field: FieldInfo) -> Any:
    """The type of a setting, or of the items of a list; the first of a union."""
    if COMMAS in field.metadata:
        return str
    return next(iter(get_args(field.annotation)), field.annotation)


def _kind(field: FieldInfo) -> Any:
    """What typer reads: a switch, a text, or several texts."""
    if field.annotation is bool:
        return bool
    return list[str] if get_origin(field.annotation) is list and COMMAS not in field.metadata else str


def _help(field: FieldInfo, words: tuple[str, ...], *, repeated: bool) -> str:
    text = escape(field.description or "")
    if len(words) > 1:
        text += f" One of {', '.join(words)}."
    if repeated:
        text += " Can be repeated."
    return text + (REQUIRED if field.is_required() else _default(field.default))


def _default(value: Any) -> str:
    """A default as the user would type it, without a space, as lines break there."""
    if isinstance(value, bool):
        value = "on" if value else ""
    elif isinstance(value, list):
        value = ",".join(map(str, value))
    elif isinstance(value, float):
        value = f"{value:g}"
    return rf" [dim]\[default={escape(str(value))}][/dim]" if value not in (None, "") else ""


def _place(settings: type[Settings], name: str, field: FieldInfo) -> tuple[int, int]:
    """Sorts arguments first, then the flags of the first panel, then the groups in their order."""
    if name in settings.positional:
        return 0, settings.positional.index(name)
    title = _extra(field).get("group") or ""
    if not title:
        return 1, 0
    return 2, GROUPS.index(title if title in GROUPS else LORA)  # plugins' groups follow that of LoRA
