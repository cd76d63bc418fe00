"""Components that are classes of the user's own, passed in Python, and belong to no plugin.

Their full names are "python:NAME@FINGERPRINT". The fingerprint is that of the class's code, so that a run is
not resumed with a class that has changed in between.
"""

import hashlib
import inspect
import re
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

from stzoo.errors import PluginError
from stzoo.plugins.hookspecs import Component

PLUGIN = "python"
CONSTANTS = (bool, int, float, str, bytes, tuple, list, dict, set, frozenset, type(None))


def is_class(name: str) -> bool:
    """True for the full name of such a component."""
    return name.startswith(f"{PLUGIN}:")


def plain(name: str) -> str:
    """A component's name alone: "words" for "words", "python:words@1a2b3c4d" and "plugin:words"."""
    return name.rpartition(":")[2].partition("@")[0]


def as_component(given: Component | Callable[..., Any]) -> Component:
    """The component of a class or function, which need not be installed; components are returned unchanged.

    Its name in kebab-case is the component's ("BagOfWords" becomes "bag-of-words"), and the first line of its
    docstring the summary.

    Raises:
        PluginError: If it is neither, or has no name.
    """
    if isinstance(given, Component):
        return given
    name = getattr(given, "__name__", "")
    if not (inspect.isclass(given) or inspect.isfunction(given)) or not name.isidentifier():
        raise PluginError(
            f"{given!r:.60} was given; expected a name, or a class or function that has a name."
        )
    summary = (inspect.getdoc(given) or f"the class {name}").partition("\n")[0]
    name = re.sub(r"(?<=[^\W_A-Z])(?=[A-Z])|_+", "-", name).strip("-").lower()
    return Component(name=name, build=given, summary=summary)


def fingerprint(build: Any) -> str:
    """8 hex digits of the code and constants of a class, with its bases outside stzoo and torch.

    It does not cover other functions that they call.
    """
    digest = hashlib.sha256()
    for text in _texts(build):
        digest.update(f"{text}\0".encode())
    return digest.hexdigest()[:8]


def _texts(part: Any) -> Iterator[str]:
    part = getattr(part, "__func__", None) or getattr(part, "fget", None) or part
    if isinstance(part, type):
        for base in part.__mro__:
            if base.__module__.partition(".")[0] not in ("builtins", "stzoo", "torch"):
                for name, value in sorted(vars(base).items()):
                    if not (name.startswith("__") and isinstance(value, CONSTANTS)):
                        yield name
                        yield from _texts(value)
    elif isinstance(part, FunctionType):
        yield repr((part.__defaults__, part.__kwdefaults__))
        yield from _texts(part.__code__)
    elif isinstance(part, CodeType):
        yield part.co_code.hex()
        yield repr((part.co_names, part.co_varnames))
        for constant in part.co_consts:
            yield from _texts(constant)
    elif isinstance(part, set | frozenset):
        yield repr(sorted(map(repr, part)))  # their order differs between processes
    elif isinstance(part, CONSTANTS):
        yield repr(part)
