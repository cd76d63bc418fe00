"""Corpora that are named by a URL (s3://, gs://, …), copied to stzoo's cache."""

import hashlib
import json
from pathlib import Path

from stzoo.errors import DataError
from stzoo.utils.cache import cache_folder
from stzoo.utils.files import atomic_file
from stzoo.utils.remote import file_system, reaching

_VERSION = ("size", "ETag", "etag", "md5Hash", "generation", "LastModified", "mtime", "created")


def local_copy(url: str) -> Path:
    """Copies a file to the cache, unless this version of it is there, and returns its path.

    A version is known by size, ETag and time. Its folder has the name of the URL's folder.

    Args:
        url: URL of a file, or of a BEIR folder, of which only the corpus is copied.

    Raises:
        DataError: If it does not exist or cannot be read.
    """
    system, path = file_system(url, DataError)
    with reaching(url, DataError):
        if system.isdir(path):
            names = [f"{path.rstrip('/')}/corpus.jsonl{end}" for end in ("", ".gz")]
            path = next(filter(system.isfile, names), "")
        if not path or not system.exists(path):
            raise DataError(f"{url} does not exist; expected a file, or a folder with a corpus.jsonl.")
        info = system.info(path)
        version = {"url": url, "path": path} | {key: str(info[key]) for key in _VERSION if key in info}
        digest = hashlib.sha256(json.dumps(version).encode()).hexdigest()[:12]
        *_, folder, name = ["", "corpus", *filter(None, path.split("/"))]
        target = cache_folder() / "remote" / digest / folder / name
        if not target.exists():
            with atomic_file(target) as draft:
                system.get_file(path, str(draft))
    return target
