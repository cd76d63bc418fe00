"""Names of models: NAME=FOLDER_OR_HUB_ID, names of published checkpoints, and the folder name for results."""

import contextlib
import os
import pkgutil
import re
from pathlib import Path

import httpx2
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from stzoo.data.beir_layout import folder_name
from stzoo.errors import ModelError, RecipeError, suggest
from stzoo.plugins import manager
from stzoo.utils.files import fingerprint
from stzoo.utils.inputs import user_path
from stzoo.utils.network import is_cut_off, limit_waits

IMPORT = "stzoo.hub.load:checkpoint_folder"  # named, as it belongs to a later package


def parse_name(text: str) -> tuple[str, str]:
    """Splits NAME=FOLDER_OR_HUB_ID. The default name is that of the folder, or the Hub id.

    Returns:
        The name, and the folder or Hub id.

    Raises:
        RecipeError: If the text contains no name.
    """
    name, equals, source = text.partition("=")
    path = user_path(text, ModelError)
    if not equals or path.exists():
        # not resolved: a symbolic link keeps the name that the user gave it
        name, source = folder_name(path) if path.is_dir() else text, text
    if not slug(name) or not source:
        raise RecipeError(
            f"the model {text!r} has no name; expected FOLDER, HUB_ID or NAME=FOLDER_OR_HUB_ID."
        )
    return name, source


def model_source(source: str) -> str:
    """The folder or Hub id to load a model from.

    For the name of a published checkpoint (`stzoo zoo`), it is the folder in stzoo's cache, which the first
    use makes. A folder of that name in the current folder comes first. Anything else is returned unchanged.

    Raises:
        ModelError: If there is no such model (see `check_source`), or the checkpoint cannot be downloaded or
            imported.
        OutputError: If the cache cannot be written.
    """
    if not is_checkpoint(source):
        check_source(source)
        folder = user_path(source, ModelError)
        return str(folder) if folder.is_dir() else source
    return str(pkgutil.resolve_name(IMPORT)(source))


def source_identity(source: str) -> dict[str, str]:
    """What records of runs know a model by: the fingerprint of a folder, or a Hub id.

    Args:
        source: As `model_source` returns it.
    """
    return {"fingerprint": fingerprint(source)} if Path(source).is_dir() else {"id": source}


def is_checkpoint(source: str) -> bool:
    """True for the name of a published checkpoint, unless there is a folder of that name."""
    checkpoint = "/" not in source and source in manager.all("checkpoint")
    return checkpoint and not user_path(source, ModelError).is_dir()


def check_source(source: str) -> None:
    """Refuses what cannot be a model, without torch, before anything is downloaded.

    Raises:
        ModelError: If it is neither a folder, nor a published checkpoint's name, nor a possible Hub id; or if
            the Hub's cache has no such model, and the Hub has none either, cannot be reached, or must not be
            used (HF_HUB_OFFLINE).
    """
    path = user_path(source, ModelError)
    if path.is_dir() or is_checkpoint(source):
        return
    if path.exists():
        raise ModelError(
            f"{source} is a file; expected a model: a folder, a Hub id or a name of `stzoo zoo`."
        )
    failed = f"{source} is not a folder, and cannot be loaded from the Hub"
    try:
        validate_repo_id(source)
    except HFValidationError:
        raise ModelError(f"{failed}, as it is not a Hub id either{similar(source)}") from None
    if _is_cached(source):
        return
    if constants.is_offline_mode():
        raise ModelError(
            f"{failed}: HF_HUB_OFFLINE is set, and the Hub's cache has no such model{similar(source)}"
        )
    if is_cut_off(constants.ENDPOINT):
        raise ModelError(
            f"{failed}: {constants.ENDPOINT} cannot be reached, and the Hub's cache has no such "
            f"model{similar(source)}"
        )
    if all(map(_is_unknown, _hub_ids(source))):
        raise ModelError(
            f"there is no folder {source}, and no such repository on the Hub, or your token cannot read "
            f"it{similar(source)}"
        )


def similar(source: str) -> str:
    """The end of a sentence on an unknown model: a folder or checkpoint with a similar name, if any."""
    known = [] if "/" in source else list(manager.all("checkpoint"))
    with contextlib.suppress(OSError, ModelError):
        folder = user_path(source, ModelError).parent
        known += [str(Path(source).with_name(one.name)) for one in folder.iterdir() if one.is_dir()]
    return suggest(source, known)


def _hub_ids(source: str) -> list[str]:
    """The repositories that sentence-transformers may load a name from."""
    return [source] if "/" in source else [source, f"sentence-transformers/{source}"]


def _is_unknown(hub_id: str) -> bool:
    """True if the Hub says that it has no such repository; False if it says anything else, or nothing."""
    limit_waits()
    try:
        get_hf_file_metadata(hf_hub_url(hub_id, "modules.json"))
    except RepositoryNotFoundError as error:
        return not isinstance(error, GatedRepoError)
    except (OSError, httpx2.HTTPError):  # whoever loads the model asks again, and says what is wrong
        pass
    return False


def _is_cached(hub_id: str) -> bool:
    """True if the Hub's cache has files of a model, at any revision."""
    names = _hub_ids(hub_id)
    caches = filter(None, (constants.HF_HUB_CACHE, os.environ.get("SENTENCE_TRANSFORMERS_HOME")))
    folders = [Path(cache, f"models--{name.replace('/', '--')}") for cache in caches for name in names]
    return any(next(folder.glob("snapshots/*/*"), None) for folder in folders)


def slug(name: str) -> str:
    """Turns a model's name into a folder name: "/" becomes "__", other unsafe characters "-"."""
    return re.sub(r"[^\w.-]+", "-", name.replace("/", "__")).lstrip(".")
