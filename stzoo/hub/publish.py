"""publish(): check an exported model, show what will be published, and send it to a hub in one commit.

Everything that can be refused is checked before anything is created. Large files are uploaded before the
commit, and no branch shows them until then. The commit names its parent, so that it never overwrites another
change. The published files are listed in `.stzoo.json`, and only files listed there are ever deleted.

Source: huggingface_hub, HfApi.create_commit and preupload_lfs_files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session, get_token
from huggingface_hub.errors import RevisionNotFoundError

from stzoo.errors import PublishError
from stzoo.hub import card, licences
from stzoo.hub.api_errors import hub_errors, status
from stzoo.hub.card_data import read_model
from stzoo.hub.repository import LIST, MAIN, SHARED, Repository, listing, look, same
from stzoo.hub.settings import PublishSettings
from stzoo.hub.upload_files import Files, check_load, check_secrets, pack, size_of
from stzoo.utils.distributed import require_one_process
from stzoo.utils.inputs import user_path
from stzoo.utils.messages import counted
from stzoo.utils.network import interruptible
from stzoo.utils.progress import STAGES, progress_bar
from stzoo.utils.public import public

MESSAGE = "Publish with stzoo"
LINE = "-" * 40
ALL = "# stzoo: ignores nothing\n"  # in place of the repository's own .gitignore


@dataclass
class Publication:
    """The result of publish(), or of a dry run.

    Attributes:
        repo: ORG/NAME.
        url: URL of the model, or of the commit if one was made.
        revision: The branch.
        private: True if only the repository's owners can see it.
        commit: Commit of the branch's head, 40 hex digits; None if there is none yet.
        changed: True if this call made that commit.
        files: {path: {"bytes": int, "change": "new", "changed" or "same"}} for each file of the model.
        deleted: Files of an earlier publish that the model no longer has.
        stays: Files and folders that are not published.
        notes: Notes on the licences, the repository and the checks.
        collection: URL of the collection, if one was given.
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
        """True if publishing changes the repository's files."""
        return bool(self.deleted) or any(file["change"] != "same" for file in self.files.values())


@public()
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
    show_card: bool = False,
    say: Callable[[str], None] = print,
) -> Publication:
    """Publishes a model folder and its card in one commit, on the Hub or the hub at HF_ENDPOINT.

    Args:
        folder: An exported model, or a training run that is finished.
        repo: ORG/NAME; created if it does not exist.
        private: True creates a new repository that only its owners can see.
        revision: Branch to publish on, created if it does not exist; None means main.
        results: An --output of bench, for the card.
        license: Licence by the Hub's names, e.g. "apache-2.0"; None keeps that of the folder's README.md.
        language: Language codes ("en"), as a list or separated by commas; None keeps those of the folder's
            README.md.
        collection: Slug of a collection, or title of one of the owner's, to add the model to.
        dry_run: True checks and shows everything, but changes nothing; it also works offline.
        overwrite: True replaces files in a repository that stzoo did not publish; other files there stay.
        show_card: True shows the whole card, not only a summary of it.
        say: Function that shows text to the user: the card, the files, and the outcome.

    Returns:
        What was published.

    Raises:
        PublishError: If the model cannot be published, or the Hub rejects it. An existing repository is then
            unchanged; a new one is empty.
        RecipeError: If an option is invalid.
        StzooError: If the card cannot be made, as in `card`.

    Unlike `SentenceTransformer.push_to_hub`: it replaces the card, so that new scores appear, deletes files
    that the model no longer has, and sends only files that were checked and have changed.
    """
    require_one_process("publish")
    settings = PublishSettings.check(locals())
    folder, private = user_path(folder, PublishError), settings.private
    if not folder.is_dir():
        raise PublishError(f"{folder} is not a folder; expected an exported model.")
    api = HfApi(library_name="stzoo")
    if not dry_run:
        _check_token(api)
    with progress_bar(total=3, desc="checks", bar_format=STAGES) as bar:
        files, stays = pack(folder)
        of_card = {name: getattr(settings, name) for name in ("results", "license", "language")}
        card_files = card.make(folder, repo_id=repo, **of_card)
        check_secrets(card_files)
        files |= card_files
        text = card_files[card.README].decode()
        front = card.metadata(text)
        if not front.get("license"):
            raise PublishError(
                "the card has no licence. Give one by the Hub's names, e.g. --license apache-2.0."
            )
        bar.update()
        notes, remote = [], Repository()
        if reason := read_model(folder).keep_base:
            notes.append(f"`stzoo adapt` advised to keep the base model instead of this one: {reason}.")
        try:
            _check_card(api, text)
            notes += licences.notes(api, front)
            remote = look(api, repo, revision or MAIN)
            if collection and "/" in collection:
                with hub_errors(f"reading the collection {collection}"):
                    api.get_collection(collection)
        except PublishError as error:
            if not dry_run or error.__cause__ is None or status(error) is not None:
                raise
            notes.append(f"{error} The content of the repository was not checked.")
        publication = _compare(api, repo, revision or MAIN, private, files, remote)
        publication.stays = [name for name in stays if name not in files]
        publication.notes = [*notes, *publication.notes]
        _check_taken(publication, remote, private, overwrite)
        bar.update()
        dimension = check_load(files)
        bar.update()
    if find_spec("hf_xet") is None:
        publication.notes.append(
            "hf_xet is not installed, so large files are sent over plain HTTP, which is slower. Run: pip "
            "install hf_xet"
        )
    say(f"{LINE} README.md\n{text.rstrip()}\n{LINE}" if show_card else _summary(text))
    _show(publication, dimension, say)
    if dry_run:
        say("Dry run: nothing was changed.")
        return publication
    if publication.differs or not remote.branch:
        _send(api, publication, files, remote)
    if collection:
        _collect(api, publication, collection)
        say(f"In the collection {publication.collection}")
    say(f"{'Published' if publication.changed else 'Already published'}: {publication.url}")
    return publication


def _check_token(api: Any) -> None:
    with hub_errors("checking your token"):
        if get_token() is None:
            raise PublishError("publishing needs a token. Run `hf auth login`, or set HF_TOKEN.")
        user = api.whoami()
        name, role = user["name"], (user.get("auth") or {}).get("accessToken", {}).get("role")
    if role == "read":
        raise PublishError(
            f"{name}'s token is read-only. Create one with write permission at "
            f"{api.endpoint}/settings/tokens."
        )


def _check_card(api: Any, text: str) -> None:
    with hub_errors("validating the card"):
        response = get_session().post(
            f"{api.endpoint}/api/validate-yaml", json={"content": text, "repoType": "model"}
        )
        if response.status_code == 400:
            reasons = "; ".join(str(error.get("message")) for error in response.json().get("errors", []))
            raise PublishError(f"the Hub rejects the card: {reasons}")
        response.raise_for_status()


def _check_taken(publication: Publication, remote: Repository, private: bool, overwrite: bool) -> None:
    repo = publication.repo
    free = SHARED - {card.README} if remote.has_card else SHARED
    taken = [
        name for name, file in publication.files.items() if file["change"] == "changed" and name not in free
    ]
    if remote.ours is None and taken and not overwrite:
        raise PublishError(
            f"the name {repo} is taken: it has files that stzoo did not publish ({', '.join(taken[:3])}). "
            "Choose another name, or use --overwrite to replace them."
        )
    if private and remote.head and not remote.private:
        raise PublishError(
            f"{repo} exists and is public; --private is for new repositories. Make it private in its "
            "settings."
        )


def _compare(
    api: Any, repo: str, branch: str, private: bool, files: Files, remote: Repository
) -> Publication:
    """Determines what publishing changes, and adds the list of published files to `files`."""
    names = sorted({*files, LIST})
    files[LIST] = listing(names)
    publication = Publication(
        repo,
        f"{api.endpoint}/{repo}",
        branch,
        private=remote.private if remote.head else private,
        commit=remote.head if remote.branch else None,
    )
    for name in names:
        change = "new"
        if name in remote.files:
            change = "same" if same(files[name], remote.files[name]) else "changed"
        publication.files[name] = {"bytes": size_of(files[name]), "change": change}
    ours = remote.ours or frozenset()
    extra = remote.files.keys() - publication.files.keys() - SHARED
    publication.deleted = sorted(extra & ours)
    if others := sorted(extra - ours):
        publication.notes.append(
            f"{repo} has files that stzoo did not publish; they are kept: {', '.join(others)}."
        )
    return publication


def _summary(text: str) -> str:
    """What a card says, in a few lines."""
    front = card.metadata(text)
    scores = [result["metrics"] for model in front.get("model-index", ()) for result in model["results"]]
    fields = {
        "Licence": front.get("license"),
        "Languages": front.get("language"),
        "Base model": front.get("base_model"),
        "Data sets": front.get("datasets"),
        "Scores": counted(sum(map(len, scores)), "score") if scores else None,
    }
    lines = [
        f"  {name}: {', '.join(map(str, value)) if isinstance(value, list) else value or 'none'}"
        for name, value in fields.items()
    ]
    return "\n".join([f"The card, {counted(len(text.splitlines()), 'line')} (--show-card shows it):", *lines])


def _show(publication: Publication, dimension: int, say: Callable[[str], None]) -> None:
    private = ", private" if publication.private else ""
    say(f"{publication.repo}, branch {publication.revision}{private}:")
    for name, file in publication.files.items():
        say(f"{file['bytes']:>15,}  {file['change']:7}  {name}")
    for name in publication.deleted:
        say(f"{'':15}  deleted  {name}")
    total = sum(file["bytes"] for file in publication.files.values())
    say(f"{total:>15,}  bytes; vectors of dimension {dimension}")
    if publication.stays:
        say(f"Not published: {', '.join(publication.stays)}.")
    for note in publication.notes:
        say(f"Note: {note}")


def _send(api: Any, publication: Publication, files: Files, remote: Repository) -> None:
    repo, branch = publication.repo, publication.revision
    new_branch = branch != MAIN and not remote.branch
    sent = [name for name, file in publication.files.items() if file["change"] != "same"]
    adds = [CommitOperationAdd(name, files[name]) for name in sent]
    deletes = [CommitOperationDelete(name, is_folder=False) for name in publication.deleted]
    left = f"{repo} is unchanged" if remote.head else f"{repo} was created and is empty"
    if remote.head is None:
        with hub_errors(f"creating {repo}"):
            # None, as an organisation may allow private repositories only
            api.create_repo(repo, private=publication.private or None)
    with hub_errors(f"uploading the files of {repo}", left):
        now = api.model_info(repo)
        head, publication.private = remote.head or now.sha, bool(now.private)
        start = MAIN if new_branch else branch
        interruptible(lambda: api.preupload_lfs_files(repo, adds, revision=start, gitignore_content=ALL))
    if new_branch:
        try:
            with hub_errors(f"creating the branch {branch}", left):
                api.create_branch(repo, branch=branch, revision=head)
        except BaseException as error:
            if (status(error) or 500) >= 500:  # it may have been created
                _delete_branch(api, publication, head)
            raise
    publication.commit, publication.changed = head, True
    if not publication.differs:
        return  # the new branch needs no commit
    try:
        with hub_errors(f"committing to {repo}", left):
            options = dict(commit_message=MESSAGE, revision=branch, parent_commit=head)
            commit = api.create_commit(repo, [*adds, *deletes], **options)
            publication.commit, publication.url = commit.oid, str(commit.commit_url)
    except BaseException as error:
        if not isinstance(error, PublishError) or not _succeeded(api, publication, files, error):
            if new_branch:
                _delete_branch(api, publication, head)
            raise


def _delete_branch(api: Any, publication: Publication, head: str) -> None:
    """Deletes a new branch after its commit failed, as it only duplicates main."""
    branch = publication.revision
    with hub_errors(f"deleting the branch {branch}", "It has the content of main"):
        try:
            now = api.model_info(publication.repo, revision=branch).sha
        except RevisionNotFoundError:
            return
        if now == head:
            api.delete_branch(publication.repo, branch=branch)


def _succeeded(api: Any, publication: Publication, files: Files, error: PublishError) -> bool:
    """True if the commit was made and only the response was lost."""
    if (status(error) or 500) < 500:
        return False
    repo, branch = publication.repo, publication.revision
    remote = look(api, repo, branch, "It is unknown whether the commit was made; publish again to find out")
    if _compare(api, repo, branch, publication.private, files, remote).differs:
        return False
    publication.commit, publication.url = remote.head, f"{api.endpoint}/{repo}/commit/{remote.head}"
    return True


def _collect(api: Any, publication: Publication, collection: str) -> None:
    with hub_errors(f"adding to the collection {collection}", f"The model is at {publication.url}"):
        slug = collection
        if "/" not in slug:
            owner = publication.repo.split("/")[0]
            private = publication.private
            slug = api.create_collection(slug, namespace=owner, private=private, exists_ok=True).slug
        publication.collection = api.add_collection_item(slug, publication.repo, "model", exists_ok=True).url
