"""Files that are named by a URL (s3://, gs://, memory://, …), through fsspec."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import fsspec

from stzoo.errors import MissingPackageError, StzooError, first_line


def file_system(url: str, error: type[StzooError]) -> tuple[Any, str]:
    """The file system of a URL or a local path, and the path in it.

    Raises:
        MissingPackageError: If the package for this kind of URL is not installed.
        StzooError: If there is no such kind, or it cannot be reached.
    """
    with reaching(url, error):
        try:
            return fsspec.core.url_to_fs(url)
        except ImportError as problem:  # fsspec's message says which: "Install s3fs to access S3"
            package = re.search(r"[Ii]nstall (?:the )?['\"]?([\w-]+)", str(problem))
            raise MissingPackageError(package[1] if package else first_line(problem), url) from None


@contextlib.contextmanager
def reaching(url: str, error: type[StzooError]) -> Iterator[None]:
    """Turns the errors of a file system, whatever their type, into one that names the URL.

    Raises:
        StzooError: If the block fails.
    """
    try:
        yield
    except StzooError:
        raise
    except Exception as problem:  # each client library has errors of its own
        raise error(
            f"{url} cannot be read or written: {type(problem).__name__}: {first_line(problem)}. Check the "
            "name, the network and the credentials of this kind of storage."
        ) from problem
