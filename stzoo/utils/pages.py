"""HTML pages from Jinja templates."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jinja2


@cache
def html_template(path: Path, **filters: Callable[..., Any]) -> jinja2.Template:
    """A template that escapes what it is given, and refuses names that it is not given.

    Args:
        path: Path of the template; it may include others in its folder.
        filters: Further filters by name.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(path.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(path.name)
