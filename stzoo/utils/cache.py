"""The folder for downloads and for what can be computed again."""

import os
from pathlib import Path

from stzoo.errors import OutputError
from stzoo.utils.inputs import user_path


def cache_folder() -> Path:
    """The cache folder: $STZOO_CACHE, or stzoo in $XDG_CACHE_HOME or ~/.cache."""
    given = os.environ.get("STZOO_CACHE")
    path = Path(given or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "stzoo"))
    return user_path(path, OutputError)
