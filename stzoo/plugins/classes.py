"""Components that are classes of the user's own, passed in Python, and belong to no plugin.

Their full names are "python:NAME@FINGERPRINT". The fingerprint is that of the class's code, so that a run is
not resumed with a class that has changed in between.
"""

import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any

from stzoo.errors import PluginError
from stzoo.plugins.hookspecs import Component

PLUGIN = "python"
PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...))
LIBRARIES = ("builtins", "stzoo", "torch")
# where functions, methods, properties, cached properties and partial functions have what they consist of
HELD = (
    "__code__",
    "__defaults__",
    "__kwdefaults__",
    "__closure__",
    "__func__",
    "fget",
    "fset",
    "fdel",
    "func",
    "args",
    "keywords",
)
IGNORED = {
    "__dict__",
    "__weakref__",
    "__module__",
    "__doc__",
    "__qualname__",
    "__firstlineno__",
    "__static_attributes__",
}


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
    """8 hex digits of the code of a class or function, and of all that belongs to it.

    These are its bases, the functions that it decorates or closes over, its defaults and its plain constants.
    Not covered are global functions and variables that it uses, libraries, and the state of other objects.
    """
    digest = hashlib.sha256()
    for text in _texts(build):
        digest.update(f"{text}\0".encode())
    return digest.hexdigest()[:8]


def _texts(part: Any, within: tuple[Any, ...] = ()) -> Iterator[str]:
    """What makes up a part of a class, in words that are the same in each process (no addresses).

    `within` are the parts that it belongs to; a method, for instance, may refer to its own class.
    """
    if isinstance(part, PLAIN):
        yield repr(part)
        return
    if isinstance(part, set | frozenset):
        yield repr(sorted("\1".join(_texts(one, within)) for one in part))
        return
    yield type(part).__name__
    if any(part is one for one in within) or _library(part):
        yield getattr(part, "__qualname__", "")
        return
    for name, one in _inside(part):
        yield name
        yield from _texts(one, (*within, part))


def _library(part: Any) -> bool:
    module = getattr(part, "__module__", None) or ""
    return isinstance(part, type | FunctionType) and module.partition(".")[0] in LIBRARIES


def _inside(part: Any) -> Iterable[tuple[str, Any]]:
    """The parts of a class, function, code or container, with names."""
    if isinstance(part, type):
        bases = [("base", base) for base in part.__bases__]
        return [*bases, *((name, one) for name, one in sorted(vars(part).items()) if name not in IGNORED)]
    if isinstance(part, CodeType):
        names = (part.co_names, part.co_varnames)
        return [("code", part.co_code.hex()), ("names", names), ("constants", part.co_consts)]
    if isinstance(part, dict):
        return [(repr(key) if isinstance(key, PLAIN) else "", one) for key, one in part.items()]
    if isinstance(part, list | tuple):
        return [("", one) for one in part]
    return [(name, one) for name in HELD if (one := _held(part, name)) is not None]


def _held(part: Any, name: str) -> Any:
    try:
        found = getattr(part, name, None)
        return [cell.cell_contents for cell in found] if name == "__closure__" and found else found
    except ValueError:  # a cell that is still empty
        return None
