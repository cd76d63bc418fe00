"""Gives the public functions that take settings by keyword a signature and a docstring that list them."""

import functools
import inspect
import re
import types
from collections.abc import Callable
from typing import Annotated, Any, ParamSpec, TypeVar, Union, get_args, get_origin

from stzoo.errors import RecipeError, suggest
from stzoo.utils.logging import no_progress_bars
from stzoo.utils.messages import counted

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
FLAG = re.compile(r"(?<![\w-])--(no-)?([a-z][a-z-]*)")


def public(settings: Any = None) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """A decorator of public functions.

    The function's `**settings` become parameters in `help()` and in editors: the fields of the settings
    class, with their types, defaults and descriptions. With `progress=False`, which it takes in any case, no
    progress bar is shown, also none of the libraries that it calls. Arguments that it does not take are a
    RecipeError that suggests others.

    Args:
        settings: The settings class (see `stzoo.training.settings`); None if it has no `**settings`.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        signature = inspect.signature(function)
        takes_progress = "progress" in signature.parameters

        @functools.wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            progress = kwargs.get("progress") if takes_progress else kwargs.pop("progress", None)
            _check(function.__name__, signature, args, kwargs)
            if progress is not False:
                return function(*args, **kwargs)
            with no_progress_bars():
                return function(*args, **kwargs)

        call.__signature__ = _signature(signature, settings)  # type: ignore[attr-defined]
        if function.__doc__:
            more = _described(settings, signature) if settings is not None else ""
            call.__doc__ = _as_python(f"{inspect.cleandoc(function.__doc__)}\n\n{more}".strip())
        return call

    return decorate


def _check(name: str, signature: inspect.Signature, args: Any, kwargs: Any) -> None:
    """Checks that a function takes these arguments.

    Raises:
        RecipeError: If it does not.
    """
    try:
        signature.bind(*args, **kwargs)
        return
    except TypeError as error:
        reason = str(error)
    parameters = signature.parameters.values()
    named = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    unnamed = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    unknown = [key for key in kwargs if key not in named]
    if unknown and len(named) == len(parameters):
        known = list(dict.fromkeys([*named, "progress"]))
        guess = suggest(unknown[0], known)
        listed = f" Arguments: {', '.join(known)}." if guess == "." else ""
        raise RecipeError(f"{name}() has no argument {unknown[0]!r}{guess}{listed}")
    if len(args) > len(unnamed):
        taken = f" ({', '.join(unnamed)})" if unnamed else ""
        others = ", ".join(one for one in named if one not in unnamed)
        advice = f" Give several values as a list, and the others by name: {others}." if others else ""
        raise RecipeError(
            f"{name}() takes {counted(len(unnamed), 'argument')} without a name{taken}, but {len(args)} were "
            f"given.{advice}"
        )
    raise RecipeError(f"{name}(): {reason}.")


def _signature(signature: inspect.Signature, settings: Any) -> inspect.Signature:
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    known = {parameter.name for parameter in own}
    further = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.is_required() else field.get_default(),
            annotation=_plain(field.annotation),
        )
        for name, field in (settings.model_fields.items() if settings is not None else ())
        if name not in known
    ]
    if "progress" not in known:
        kind = inspect.Parameter.KEYWORD_ONLY
        further.append(inspect.Parameter("progress", kind, default=None, annotation=bool | None))
    return signature.replace(parameters=[*own, *further])


def _plain(kind: Any) -> Any:
    """A type without pydantic's validators, which help() would show."""
    parts = tuple(map(_plain, get_args(kind)))
    origin = get_origin(kind)
    if origin is Annotated:
        return parts[0]
    if origin in (Union, types.UnionType):
        return functools.reduce(lambda one, other: one | other, parts)
    return origin[parts] if hasattr(origin, "__class_getitem__") and parts else kind


def _described(settings: Any, signature: inspect.Signature) -> str:
    """The fields with their descriptions, apart from those that the function's docstring has already."""
    fields = settings.model_fields.items()
    lines = []
    for name, field in fields:
        if name not in signature.parameters:
            extra = field.json_schema_extra
            also = " Or a class." if isinstance(extra, dict) and extra.get("takes") == "class" else ""
            lines.append(f"    {name}: {field.description}{also}")
    return "\n".join(["Settings:", *lines])


def _as_python(text: str) -> str:
    """A text with arguments in place of flags: save_steps for --save-steps, keep_base=False for its --no."""
    return FLAG.sub(lambda found: found[2].replace("-", "_") + ("=False" if found[1] else ""), text)
