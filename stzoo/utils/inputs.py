"""Checks user input in one place: paths, files, JSON and YAML.

Whatever is wrong with it becomes a StzooError here, or a ValueError whose text the caller puts after file and
line. So ~nouser, endless nesting, repeated keys, halves of surrogate pairs, pipes without a writer and dates
that Python cannot represent never reach other code.
"""

import contextlib
import json
import re
import stat
import types
from pathlib import Path
from typing import Any, BinaryIO, Union, get_args, get_origin

import yaml

from stzoo.errors import DataError, StzooError, abbreviated, quoted

MAX_DEPTH = 64
MAX_VALUES = 100_000  # values in a recipe, with its aliases expanded
_PIPES = (Path("/dev/fd"), Path("/proc/self/fd"), Path("/dev"))  # pipes of the shell: <(command), /dev/stdin
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
_NUMBER = re.compile(r"\s*[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?\s*")


# Paths and files


def user_path(given: str | Path, error: type[StzooError] = DataError) -> Path:
    """Expands `~` in a path that a user gave; the path need not exist.

    Args:
        given: The path.
        error: Type of the error.

    Raises:
        StzooError: If the path is impossible, or may not be accessed.
    """
    shown = quoted(str(given))
    try:
        path = Path(given).expanduser()
        str(path).encode()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except RuntimeError:
        raise error(
            f"{abbreviated(str(given))} names the home folder of a user that does not exist. Check the name; "
            "for a file whose name begins with ~, write ./ before it."
        ) from None
    except UnicodeEncodeError:
        raise error(f"{shown} is not valid UTF-8. Rename the file, or link to it.") from None
    except (OSError, ValueError) as problem:  # a part of over 255 characters, a NUL byte, no permission
        reason = getattr(problem, "strerror", None) or problem
        raise error(f"{shown} cannot be used as a path: {reason}.") from None
    return path


def is_url(given: object) -> bool:
    """True for a text such as s3://bucket/name."""
    return isinstance(given, str) and bool(_URL.match(given))


def path_or_url(given: Any) -> Any:
    """A path for a text that is not a URL; anything else as it is."""
    return Path(given) if isinstance(given, str) and not is_url(given) else given


def open_input(path: Path) -> BinaryIO:
    """Opens a file for reading bytes. Never waits for a writer.

    Raises:
        DataError: If it is something else, e.g. a named pipe or a folder. Pipes of the shell, <(command), can
            be read.
        OSError: If it cannot be opened.
    """
    check_is_file(path)
    return path.open("rb")


def check_is_file(path: Path, error: type[StzooError] = DataError) -> None:
    """Refuses anything but a regular file; see `open_input`."""
    mode = path.stat().st_mode
    if stat.S_ISREG(mode) or (stat.S_ISFIFO(mode) and path.absolute().parent in _PIPES):
        return
    kind = next((name for fits, name in _KINDS if fits(mode)), "a device")
    raise error(f"{abbreviated(str(path))} is {kind}; expected a file.")


# JSON and YAML


def parse_json(text: str) -> Any:
    """Parses a JSON text.

    Raises:
        ValueError: If it is not JSON, an object repeats a key, it is nested more than `MAX_DEPTH` deep, or a
            text in it contains half of a surrogate pair; the message says which.
    """
    try:
        value = _decoder.decode(text)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} deep") from None
    if text.count("[") + text.count("{") > MAX_DEPTH or _HALF_PAIR.search(text):
        check_value(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {quoted(next(n for n in names if names.count(n) > 1))} twice")
    return value


_decoder = json.JSONDecoder(object_pairs_hook=_unique)


def check_value(value: Any, most: int | None = None) -> None:
    """Refuses values that cannot be a row or setting.

    Args:
        value: Value parsed from JSON or YAML.
        most: Maximum number of values in it; None for no limit.

    Raises:
        ValueError: If it is nested more than `MAX_DEPTH` deep, a text contains half of a surrogate pair, a
            key is not text, or a value has a type that JSON lacks.
    """
    level, count = [("", value)], 0
    for _ in range(MAX_DEPTH + 1):
        below: list[tuple[str, Any]] = []
        count += len(level)
        if most is not None and count > most:
            raise ValueError(f"more than {most} values")
        for place, one in level:
            if isinstance(one, dict):
                for key, part in one.items():
                    if not isinstance(key, str):
                        raise ValueError(f"the key {quoted(str(key))}{_in(place)}, which is not text")
                    _check_text(key, f"a key{_in(place)}")
                    below.append((f"{place}.{key}" if place else key, part))
            elif isinstance(one, list):
                below.extend((f"{place}[{number}]", part) for number, part in enumerate(one))
            elif isinstance(one, str):
                _check_text(one, place or "the text")
            elif not isinstance(one, int | float | None):
                raise ValueError(f"a value of type {type(one).__name__}{_in(place)}")
        if not below:
            return
        level = below
    raise ValueError(f"nested more than {MAX_DEPTH} deep")


def _check_text(text: str, place: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"half of a surrogate pair, which is not a character, in {abbreviated(place)}"
        ) from None


def _in(place: str) -> str:
    return f" in {abbreviated(place)}" if place else ""


class _Loader(yaml.SafeLoader):
    """A YAML loader that reads numbers in the usual notation only.

    YAML 1.1 reads 1:30 as 90, 1_0 as 10, 010 as 8, and 1e-4 as text. Here the first three are text, which
    numeric settings refuse, and so are dates. A repeated key in a mapping is refused.
    """

    yaml_implicit_resolvers = {
        first: [
            (tag, pattern) for tag, pattern in known if not tag.endswith((":int", ":float", ":timestamp"))
        ]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if repeated := [name for name in names if names.count(name) > 1]:
            line = node.start_mark.line + 1
            raise ValueError(
                f"the key {quoted(repeated[0])} twice (in the mapping of line {line}); keep one of them"
            )
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def parse_yaml(text: str) -> Any:
    """Parses a YAML text to values of JSON's types.

    Raises:
        ValueError: If it is not YAML, a mapping repeats a key, or `check_value` refuses the value.
    """
    try:
        value = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} deep") from None
    except (yaml.YAMLError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
        raise ValueError(f"not YAML ({error})") from None  # e.g. !!bool of another word
    check_value(value, MAX_VALUES)
    return value


def check_number(kind: Any, value: Any) -> None:
    """Refuses true, 1_0 and the like for a type that is a number, or has numbers as items.

    Args:
        kind: Type annotation, e.g. int, float | None, dict[str, float].
        value: Value to be converted to that type.

    Raises:
        ValueError: If the value is not a plain number; the message says what was expected.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is dict and isinstance(value, dict):
        for one in value.values():
            check_number(parts[1], one)
    elif origin in (list, tuple) and isinstance(value, list | tuple):
        for one in value:
            check_number(parts[0], one)
    elif kind in (int, float) or (origin in (types.UnionType, Union) and {int, float} & {*parts}):
        others = {*parts} - {int, float}
        wrong_bool = isinstance(value, bool) and bool not in others
        if wrong_bool or (isinstance(value, str) and str not in others and not _NUMBER.fullmatch(value)):
            raise ValueError("expected a plain number such as 10, 0.5 or 1e-4")


def read_json(path: Path, kind: type = dict) -> Any:
    """The JSON value in a file; an empty `kind` if the file is missing, damaged or of another type."""
    value = None
    with contextlib.suppress(OSError, ValueError):
        value = parse_json(path.read_text(encoding="utf-8"))
    return value if isinstance(value, kind) else kind()
