"""The content of a repository on a hub, and which of its files stzoo published."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import RepoFile
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from stzoo.errors import PublishError
from stzoo.hub.api_errors import hub_errors
from stzoo.hub.upload_files import read, size_of
from stzoo.utils.files import sha256

LIST = ".stzoo.json"
SCHEMA_VERSION = 1
MAIN = "main"
README = "README.md"
SHARED = {README, ".gitattributes", LIST}  # the Hub itself creates the first two


@dataclass(frozen=True)
class Repository:
    """The state of a repository.

    Attributes:
        head: Commit of the branch, or of main if the branch does not exist, 40 hex digits; None if the
            repository does not exist.
        private: True if only its owners can see it.
        branch: True if the branch exists.
        files: huggingface_hub's RepoFile by path.
        ours: Paths that stzoo published; None if it never did.
        has_card: True if README.md has a text; that of a new repository only has front matter.
    """

    head: str | None = None
    private: bool = False
    branch: bool = False
    files: Mapping[str, Any] = field(default_factory=dict)
    ours: frozenset[str] | None = None
    has_card: bool = False


def look(api: Any, repo: str, branch: str, left: str = "") -> Repository:
    """Reads the state of a branch of a repository; `left` is as in `hub_errors`.

    Raises:
        PublishError: If it cannot be read, or the list of published files is invalid.
    """
    with hub_errors(f"listing the files of {repo}", left):
        try:
            info, branch_exists = api.model_info(repo), True
        except RepositoryNotFoundError:
            return Repository()
        if branch != MAIN:
            try:
                info = api.model_info(repo, revision=branch)
            except RevisionNotFoundError:
                branch_exists = False
        tree = api.list_repo_tree(repo, recursive=True, revision=info.sha)
        files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        contents = {}
        with tempfile.TemporaryDirectory() as scratch:
            for name in {LIST, README} & files.keys():
                path = api.hf_hub_download(repo, name, revision=info.sha, cache_dir=scratch)
                contents[name] = Path(path).read_bytes()
        ours = _listed(contents[LIST], repo) if LIST in files else None
        readme = contents.get(README, b"").decode(errors="replace")
        has_card = bool(REGEX_YAML_BLOCK.sub("", readme, count=1).strip())
        return Repository(info.sha, bool(info.private), branch_exists, files, ours, has_card)


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
            f"{LIST} in {repo} is not a list of this version of stzoo. If a newer version wrote it, publish "
            "with that version; otherwise delete the file."
        ) from None


def same(content: Path | bytes, entry: Any) -> bool:
    """True if the repository has the same file, by its sha256 for a large file, else by git's hash."""
    if size_of(content) != entry.size:
        return False
    if entry.lfs is None:
        raw = read(content)
        return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest() == entry.blob_id  # noqa: S324 - git's
    digest = hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else sha256(content)
    return digest == str(entry.lfs.sha256)
