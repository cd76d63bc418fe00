"""Gives the public functions that take settings by keyword a signature and a docstring that list them."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from stzoo.utils.logging import no_progress_bars

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def public(settings: Any = None) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """A decorator of public functions.

    The function's `**settings` become parameters in `help()` and in editors: the fields of the settings
    class, with their types, defaults and descriptions. With `progress=False`, which it takes in any case, no
    progress bar is shown, also none of the libraries that it calls.

    Args:
        settings: The settings class (see `stzoo.training.settings`); None if it has no `**settings`.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        signature = inspect.signature(function)
        takes_progress = "progress" in signature.parameters

        @functools.wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            progress = kwargs.get("progress") if takes_progress else kwargs.pop("progress", None)
            if progress is not False:
                return function(*args, **kwargs)
            with no_progress_bars():
                return function(*args, **kwargs)

        call.__signature__ = _signature(signature, settings)  # type: ignore[attr-defined]
        if function.__doc__ and settings is not None:
            call.__doc__ = f"{inspect.cleandoc(function.__doc__)}\n\n{_described(settings)}"
        return call

    return decorate


def _signature(signature: inspect.Signature, settings: Any) -> inspect.Signature:
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    known = {parameter.name for parameter in own}
    further = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.is_required() else field.get_default(),
            annotation=field.annotation,
        )
        for name, field in (settings.model_fields.items() if settings is not None else ())
        if name not in known
    ]
    if "progress" not in known:
        kind = inspect.Parameter.KEYWORD_ONLY
        further.append(inspect.Parameter("progress", kind, default=None, annotation=bool | None))
    return signature.replace(parameters=[*own, *further])


def _described(settings: Any) -> str:
    lines = [f"    {name}: {field.description}" for name, field in settings.model_fields.items()]
    return "\n".join(["Settings:", *lines])
