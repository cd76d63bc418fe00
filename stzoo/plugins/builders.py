"""From a component to what it builds: imports its builder, checks arguments and options, and calls it."""

import importlib
import importlib.resources
import inspect
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, get_type_hints

from stzoo.errors import PluginError, RecipeError, StzooError, suggest
from stzoo.plugins.hookspecs import Checkpoint, Component, Recipe
from stzoo.plugins.locate import defined_at, reason
from stzoo.utils.inputs import check_number

# number of positional arguments of the builders of a kind; commands are not called, recipes are data
ARGUMENTS = dict(objective=1, pooling=1, loss=1, balancer=1, decoder=1, preparation=4, checkpoint=1)


def resolve(component: Component | Checkpoint) -> Callable[..., Any]:
    """The callable of a component's `build` or a checkpoint's `importer`, imported if it is a string.

    Raises:
        PluginError: If the module cannot be imported, has no such attribute, or the attribute is not
            callable.
    """
    build = named = component.importer if isinstance(component, Checkpoint) else component.build
    if isinstance(build, str):
        module_name, _, attribute = build.partition(":")
        try:
            module = importlib.import_module(module_name)
        except StzooError:
            raise  # it already says what to do, e.g. install an extra
        except Exception as error:
            raise PluginError(
                f"{component.name!r} cannot be used: import of {module_name!r} failed: {reason(error)}."
            ) from error
        try:
            build = attrgetter(attribute)(module)
        except AttributeError as error:
            raise PluginError(
                f"{component.name!r} cannot be used: {named!r} does not exist: {error}."
            ) from error
    if not callable(build):
        raise PluginError(f"{component.name!r} cannot be used: {named!r} is not callable.")
    return build


def call(what: str, builder: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
    """Checks options and calls `builder(*args, **options)`.

    Args:
        what: Name of the builder in messages, e.g. "objective 'retromae'".
        builder: Callable that `resolve` returned.
        args: Positional arguments, which are not options.
        options: Options that the user gave.

    Raises:
        PluginError: If the builder does not accept the arguments.
        RecipeError: If an option is unknown, missing, or not of the type that the builder is annotated with.
    """
    check_arguments(what, builder, given=len(args))
    check_options(what, builder, options, given=len(args))
    return builder(*args, **_typed(what, builder, options))


def check_arguments(what: str, builder: Callable[..., Any], *, given: int) -> None:
    """Checks that a builder accepts this number of positional arguments, and all others by name.

    Raises:
        PluginError: If it does not; the message has the file and the line.
    """
    signature = _signature(builder)
    if signature is None:
        return
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    takes = sum(
        kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds
    )
    by_place = [
        parameter.name
        for parameter in list(signature.parameters.values())[given:]
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty
    ]
    if by_place or (takes < given and inspect.Parameter.VAR_POSITIONAL not in kinds):
        name = getattr(builder, "__qualname__", repr(builder))
        raise PluginError(
            f"{what} cannot be built: stzoo calls {name} with {given} positional "
            f"argument{'s' * (given != 1)}, and its options by name; its signature is "
            f"{name}{signature}{defined_at(builder)}."
        )


def check_options(what: str, builder: Callable[..., Any], options: Iterable[str], *, given: int) -> None:
    """Checks that a builder has all these options, and requires no others.

    Args:
        what: Name of the builder in messages, e.g. "objective 'retromae'".
        builder: Callable that `resolve` returned.
        options: Names of the options.
        given: Number of positional arguments that come first.

    Raises:
        RecipeError: If an option is unknown or missing; the message lists the nearest and all options.
    """
    signature = _signature(builder)
    if signature is None:
        return
    parameters = list(signature.parameters.values())[given:]
    known = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    listed = f"Options: {', '.join(known) or 'none'}."
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for name in options:
        if name not in known and not takes_any:
            raise RecipeError(f"{what} has no option {name!r}{suggest(name, known)} {listed}")
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in options:
            raise RecipeError(f"{what} needs the option {name!r}. {listed}")


def _signature(builder: Callable[..., Any]) -> inspect.Signature | None:
    """The signature of a builder; None for some that are written in C."""
    try:
        return inspect.signature(builder)
    except (TypeError, ValueError):
        return None


def _typed(what: str, builder: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """Converts options to the types of the builder's annotations; options without one stay unchanged."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    try:
        hints = get_type_hints(builder.__init__ if isinstance(builder, type) else builder)  # type: ignore[misc]
    except (NameError, TypeError, AttributeError):  # annotations that exist for type checkers only, or none
        return options
    typed = dict(options)
    for name, value in options.items():
        try:
            check_number(hints.get(name, Any), value)
            kind = TypeAdapter(hints.get(name, Any), config=ConfigDict(arbitrary_types_allowed=True))
            typed[name] = kind.validate_python(value)
        except ValueError as error:
            fault = error.errors()[0]["msg"].lower() if isinstance(error, ValidationError) else error
            raise RecipeError(f"{what}: the option {name} is {value!r}: {fault}.") from None
    return typed


def read_recipe(recipe: Recipe) -> str:
    """Reads the YAML text of a recipe.

    Raises:
        PluginError: If its file cannot be read.
    """
    package, _, file = recipe.resource.partition(":")
    try:
        return importlib.resources.files(package).joinpath(file).read_text(encoding="utf-8")
    except Exception as error:  # importing the package may raise anything
        raise PluginError(
            f"recipe {recipe.name!r}: {recipe.resource!r} cannot be read: {reason(error)}."
        ) from error
