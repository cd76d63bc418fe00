"""Paths in texts for other people: only their last part is shown."""

import re
from pathlib import PurePosixPath, PureWindowsPath

_WORD = r"[^\s'\"`,;|()\[\]{}<>]"
_PATH = re.compile(
    rf"file://{_WORD}*|(?<!\w)[A-Za-z]:[\\/]{_WORD}+|\\\\{_WORD}+|(?<![\w/.~])(?<!:(?=//))(?:~(?:[a-z_]\w*)?|\.\.?)?/{_WORD}+"
)


def base_name(path: str) -> str:
    """The last part of a path of any operating system."""
    kind = PureWindowsPath if "\\" in path else PurePosixPath
    return kind(path).name or "a local folder"


def shorten_paths(text: str) -> str:
    """The text with the last part of each path in it instead of the path."""
    return _PATH.sub(lambda match: base_name(match[0]), text)
