"""Packages that an extra of stzoo installs."""

from importlib import import_module
from typing import Any

from stzoo.errors import MissingExtraError


def import_extra(module: str, extra: str, package: str = "") -> Any:
    """Imports a module of an optional package.

    Args:
        module: Name of the module.
        extra: The extra of stzoo that installs it.
        package: Name of the package, for the message; by default the module's.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        return import_module(module)
    except ImportError:
        raise MissingExtraError(package or module, extra) from None
