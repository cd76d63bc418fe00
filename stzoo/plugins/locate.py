"""Where the faulty code of a plugin is: file and line, for messages."""

import inspect
import sys
import traceback
from typing import Any

from stzoo.errors import StzooError


def defined_at(builder: Any) -> str:
    """File and line of a class or function, in brackets; "" if it has no Python code."""
    function = inspect.unwrap(getattr(builder, "__init__") if isinstance(builder, type) else builder)  # noqa: B009
    code = getattr(function, "__code__", None)
    return f" ({code.co_filename}:{code.co_firstlineno})" if code else ""


def reason(error: BaseException) -> str:
    """The text of an error, with its type unless it is stzoo's own, and with the place that raised it."""
    text, where = " ".join(str(error).split()), raised_at(error)
    text = text if isinstance(error, StzooError) else f"{type(error).__name__}: {text}"
    return f"{text} ({where})" if where else text


def raised_at(error: BaseException) -> str:
    """File and line of the plugin's code that raised an error; "" if no such code was running."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [
        (str(frame.f_globals.get("__name__")), frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    tops = [
        (top, f"{file}:{line}")
        for name, file, line in frames
        if not name.startswith("stzoo.plugins.")
        and (top := name.partition(".")[0]) not in sys.stdlib_module_names | {"pluggy"}
    ]
    places = [place for top, place in tops if top == tops[0][0]]  # not what it called
    return places[-1] if places else ""
