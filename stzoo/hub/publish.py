"""Publishes an exported model on a hub: seen to first, shown in full, and sent in one commit.

Everything that can be refused is asked before anything is made. The large files go up before the commit, and
no branch shows them until it is there. The commit names its parent, so that nobody's change in between is
lost. What a publish put there is listed in `.stzoo.json`: only such files are ever deleted.

Source: huggingface_hub, HfApi.create_commit and preupload_lfs_files.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session, get_token
from huggingface_hub.errors import RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id
from tqdm import tqdm

from stzoo.errors import PublishError
from stzoo.hub import card, licences
from stzoo.hub.api_errors import asking, status
from stzoo.hub.repository import LIST, MAIN, SHARED, Repository, listing, look, same
from stzoo.hub.upload_files import Files, check_load, check_secrets, pack, size_of
from stzoo.utils.distributed import require_one_process
from stzoo.utils.network import interruptible

MESSAGE = "Publish with stzoo"
ALL = "# stzoo: no file that is listed is left out\n"  # in place of the repository's own .gitignore


@dataclass
class Publication:
    """What was published, or would be.

    Attributes:
        repo: ORG/NAME.
        url: of the model; of the commit once there is one.
        revision: the branch.
        private: True if only its owners see it.
        commit: 40 hex digits of the branch's head; None if there is none yet.
        changed: True if this call made that commit.
        files: {path: {"bytes": int, "change": "new", "changed" or "same"}} of all that is the model's.
        deleted: files of an earlier publish that the model no longer has.
        stays: what of the folder is not published.
        notes: what to know before.
        collection: its address, if one was asked for.
    """

    repo: str
    url: str
    revision: str
    private: bool
    commit: str | None = None
    changed: bool = False
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    stays: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    collection: str | None = None

    @property
    def differs(self) -> bool:
        """True if the repository's files are not just these."""
        return bool(self.deleted) or any(facts["change"] != "same" for facts in self.files.values())


def publish(
    folder: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    results: str | Path | None = None,
    license: str | None = None,  # noqa: A002 - the Hub's name of it
    language: str | Sequence[str] | None = None,
    collection: str | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> Publication:
    """Publishes a model folder on the Hub (or the one that HF_ENDPOINT names), with a card, in one commit.

    Args:
        folder: an exported model, or a run that ended in one.
        repo: ORG/NAME; made if it is not there.
        private: True makes a new repository that only its owners see.
        revision: the branch to publish on, made if it is not there; main if None.
        results: an --output of bench, for the card.
        license: by the Hub's names, as "apache-2.0"; None for what the folder's README.md says.
        language: codes ("en"), a list or with commas between; None likewise.
        collection: slug of a collection, or title of one of the owner's, that the model is put into.
        dry_run: True checks and shows everything, and changes nothing; the Hub need not be within reach.
        overwrite: True replaces files of a repository that no publish filled. Files beside them stay.
        say: is given what is to be shown: the card, the files, and how it ended.

    Raises:
        PublishError: if the model is not fit to be published, or the Hub does not take it. The repository is
            then as it was; a new one is empty.
        StzooError: if its card cannot be made, as of results of another model; see `card.make`.

    Unlike `SentenceTransformer.push_to_hub`: the card is replaced, so that new scores appear; files that the
    model no longer has go; and nothing is sent that was not seen to, or that is there already.
    """
    require_one_process("publish")
    folder = Path(folder)
    _check_names(folder, repo, revision)
    api = HfApi(library_name="stzoo")
    if not dry_run:
        _check_token(api)
    with tqdm(total=3, desc="checks", disable=None) as bar:
        files, stays = pack(folder)
        about = card.make(folder, repo_id=repo, results=results, license=license, language=language)
        check_secrets(about)
        files |= about
        text = about[card.README].decode()
        front = card.metadata(text)
        if not front.get("license"):
            raise PublishError(
                "the card names no licence. Give one, by the Hub's names: --license apache-2.0."
            )
        bar.update()
        notes, there = [], Repository()
        try:
            _check_card(api, text)
            notes += licences.notes(api, front)
            there = look(api, repo, revision or MAIN)
            if collection and "/" in collection:
                with asking(f"for the collection {collection}"):
                    api.get_collection(collection)
        except PublishError as error:
            if not dry_run or error.__cause__ is None or status(error) is not None:
                raise
            notes.append(f"{error} What it holds, and whether it takes this, is not known.")
        made = _compare(api, repo, revision or MAIN, private, files, there)
        made.stays = [name for name in stays if name not in files]
        made.notes = [*notes, *made.notes]
        _check_taken(made, there, private, overwrite)
        bar.update()
        dimension = check_load(files)
        bar.update()
    _show(made, text, dimension, say)
    if dry_run:
        say("Dry run: nothing was changed.")
        return made
    if made.differs or not there.branch:
        _send(api, made, files, there)
    if collection:
        _collect(api, made, collection)
        say(f"In the collection {made.collection}")
    say(f"{'Published' if made.changed else 'It is there already'}: {made.url}")
    return made


def _check_names(folder: Path, repo: str, revision: str | None) -> None:
    try:
        validate_repo_id(repo)
    except ValueError as error:
        raise PublishError(f"{repo!r} cannot be a model's name: {error}") from None
    if "/" not in repo:
        raise PublishError(f"{repo!r} names no owner; expected ORG/NAME.")
    if revision and re.fullmatch(r"[0-9a-f]{40}", revision):
        raise PublishError(f"the revision {revision} is a commit; name the branch to publish on.")
    if not folder.is_dir():
        raise PublishError(f"{folder} is no folder; expected an exported model.")


def _check_token(api: Any) -> None:
    with asking("who you are"):
        if get_token() is None:
            raise PublishError("there is no token to publish with. Run `hf auth login`, or set HF_TOKEN.")
        known = api.whoami()
        name, role = known["name"], (known.get("auth") or {}).get("accessToken", {}).get("role")
    if role == "read":
        where = f"{api.endpoint}/settings/tokens"
        raise PublishError(
            f"{name}'s token is for reading only. Make one with the right to write at {where}."
        )


def _check_card(api: Any, text: str) -> None:
    with asking("what it says to the card"):
        sent = {"content": text, "repoType": "model"}
        response = get_session().post(f"{api.endpoint}/api/validate-yaml", json=sent)
        if response.status_code == 400:
            said = "; ".join(str(error.get("message")) for error in response.json().get("errors", []))
            raise PublishError(f"the Hub refuses the card: {said}")
        response.raise_for_status()


def _check_taken(made: Publication, there: Repository, private: bool, overwrite: bool) -> None:
    taken = [
        name for name, facts in made.files.items() if facts["change"] == "changed" and name not in SHARED
    ]
    if there.ours is None and taken and not overwrite:
        raise PublishError(
            f"the name {made.repo} is taken: what it holds ({', '.join(taken[:3])}) no publish of stzoo put "
            "there. Choose another name, or use --overwrite to replace it."
        )
    if private and there.head and not there.private:
        raise PublishError(
            f"{made.repo} is there, and public; --private is for a new one. Its settings can make it private."
        )


def _compare(api: Any, repo: str, branch: str, private: bool, files: Files, there: Repository) -> Publication:
    """What publishing changes. Adds the list of what is ours to the files."""
    names = sorted({*files, LIST})
    files[LIST] = listing(names)
    shown = there.private if there.head else private
    made = Publication(repo, f"{api.endpoint}/{repo}", branch, shown, there.head if there.branch else None)
    for name in names:
        change = "new"
        if name in there.files:
            change = "same" if same(files[name], there.files[name]) else "changed"
        made.files[name] = {"bytes": size_of(files[name]), "change": change}
    ours = there.ours or frozenset()
    beside = there.files.keys() - made.files.keys() - SHARED
    made.deleted = sorted(beside & ours)
    if others := sorted(beside - ours):
        made.notes.append(f"{repo} has files that are not ours, and keeps them: {', '.join(others)}.")
    return made


def _show(made: Publication, text: str, dimension: int, say: Callable[[str], None]) -> None:
    line = "-" * 40
    say(f"{line} README.md\n{text.rstrip()}\n{line}")
    say(f"{made.repo}, branch {made.revision}{', private' if made.private else ''}:")
    for name, facts in made.files.items():
        say(f"{facts['bytes']:>15,}  {facts['change']:7}  {name}")
    for name in made.deleted:
        say(f"{'':15}  deleted  {name}")
    total = sum(facts["bytes"] for facts in made.files.values())
    say(f"{total:>15,}  bytes; vectors of {dimension} numbers")
    if made.stays:
        say(f"Not published: {', '.join(made.stays)}.")
    for note in made.notes:
        say(f"Note: {note}")


def _send(api: Any, made: Publication, files: Files, there: Repository) -> None:
    repo, new_branch = made.repo, made.revision != MAIN and not there.branch
    sent = [name for name, facts in made.files.items() if facts["change"] != "same"]
    adds = [CommitOperationAdd(name, files[name]) for name in sent]
    deletes = [CommitOperationDelete(name, is_folder=False) for name in made.deleted]
    left = f"{repo} is {'as it was' if there.head else 'there now, and empty'}"
    if there.head is None:
        with asking(f"to make {repo}"):
            api.create_repo(repo, private=made.private or None)  # an organisation may have private ones only
    with asking(f"to take the files of {repo}", left):
        now = api.model_info(repo)
        head, made.private = there.head or now.sha, bool(now.private)
        start = MAIN if new_branch else made.revision
        interruptible(lambda: api.preupload_lfs_files(repo, adds, revision=start, gitignore_content=ALL))
    if new_branch:
        try:
            with asking(f"to make the branch {made.revision}", left):
                api.create_branch(repo, branch=made.revision, revision=head)
        except BaseException as error:
            if (status(error) or 500) >= 500:  # it may be there all the same
                _take_back(api, made, head)
            raise
    made.commit, made.changed = head, True
    if not made.differs:
        return  # the new branch is all that there is to do
    try:
        with asking(f"to commit to {repo}", left):
            options = dict(commit_message=MESSAGE, revision=made.revision, parent_commit=head)
            commit = api.create_commit(repo, [*adds, *deletes], **options)
            made.commit, made.url = commit.oid, str(commit.commit_url)
    except BaseException as error:
        if not isinstance(error, PublishError) or not _landed(api, made, files, error):
            if new_branch:
                _take_back(api, made, head)
            raise


def _take_back(api: Any, made: Publication, head: str) -> None:
    """Deletes a branch that was made for a commit that failed: it shows what main has under another name."""
    with asking(f"to delete the branch {made.revision} again", "It holds what main holds"):
        try:
            now = api.model_info(made.repo, revision=made.revision).sha
        except RevisionNotFoundError:
            return
        if now == head:
            api.delete_branch(made.repo, branch=made.revision)


def _landed(api: Any, made: Publication, files: Files, error: PublishError) -> bool:
    """True if the commit is there after all, and only its answer was lost."""
    if (status(error) or 500) < 500:
        return False
    there = look(
        api, made.repo, made.revision, "Whether it has the commit is not known; publish again to see"
    )
    if _compare(api, made.repo, made.revision, made.private, files, there).differs:
        return False
    made.commit, made.url = there.head, f"{api.endpoint}/{made.repo}/commit/{there.head}"
    return True


def _collect(api: Any, made: Publication, collection: str) -> None:
    with asking(f"to put it into the collection {collection}", f"The model itself is at {made.url}"):
        slug = collection
        if "/" not in slug:
            owner = made.repo.split("/")[0]
            slug = api.create_collection(slug, namespace=owner, private=made.private, exists_ok=True).slug
        made.collection = api.add_collection_item(slug, made.repo, "model", exists_ok=True).url
