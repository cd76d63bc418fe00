"""What a repository on a hub holds, and which of its files an earlier publish put there."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import RepoFile
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from stzoo.errors import PublishError
from stzoo.hub.api_errors import asking
from stzoo.hub.upload_files import read, size_of
from stzoo.utils.files import sha256

LIST = ".stzoo.json"
SCHEMA_VERSION = 1
MAIN = "main"
SHARED = {"README.md", ".gitattributes", LIST}  # a repository made by hand has the first two as well


@dataclass(frozen=True)
class Repository:
    """What is there.

    Attributes:
        head: 40 hex digits of the commit that the branch is at, or, where there is no such branch, main;
            None if there is no repository.
        private: True if only its owners see it.
        branch: True if the branch is there.
        files: huggingface_hub's RepoFile by path.
        ours: paths that an earlier publish put there; None if there was none.
    """

    head: str | None = None
    private: bool = False
    branch: bool = False
    files: Mapping[str, Any] = field(default_factory=dict)
    ours: frozenset[str] | None = None


def look(api: Any, repo: str, branch: str, left: str = "") -> Repository:
    """Asks a hub what a branch of a repository holds; `left` is as in `asking`.

    Raises:
        PublishError: if the hub does not tell, or the list of what is ours cannot be read.
    """
    with asking(f"what {repo} holds", left):
        try:
            info, is_there = api.model_info(repo), True
        except RepositoryNotFoundError:
            return Repository()
        if branch != MAIN:
            try:
                info = api.model_info(repo, revision=branch)
            except RevisionNotFoundError:
                is_there = False
        tree = api.list_repo_tree(repo, recursive=True, revision=info.sha)
        files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        ours = None
        if LIST in files:
            with tempfile.TemporaryDirectory() as scratch:
                place = api.hf_hub_download(repo, LIST, revision=info.sha, cache_dir=scratch)
                ours = _listed(Path(place).read_bytes(), repo)
        return Repository(info.sha, bool(info.private), is_there, files, ours)


def listing(names: list[str]) -> bytes:
    """The content of `.stzoo.json`."""
    return json.dumps({"schema_version": SCHEMA_VERSION, "files": names}, indent=1).encode() + b"\n"


def _listed(content: bytes, repo: str) -> frozenset[str]:
    try:
        listed = json.loads(content)
        if listed["schema_version"] != SCHEMA_VERSION:
            raise ValueError("of another version")
        return frozenset(map(str, listed["files"]))
    except (ValueError, TypeError, KeyError):
        raise PublishError(
            f"{LIST} in {repo} is no list of this version of stzoo. If a newer one wrote it, publish with "
            "that; else delete the file."
        ) from None


def same(content: Path | bytes, entry: Any) -> bool:
    """True if the repository has the very file; of a large one it tells the sha256, else git's own hash."""
    if size_of(content) != entry.size:
        return False
    if entry.lfs is None:
        raw = read(content)
        return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest() == entry.blob_id  # noqa: S324 - git's
    found = hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else sha256(content)
    return found == str(entry.lfs.sha256)
