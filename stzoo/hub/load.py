"""load(): a model of the zoo, of a folder or of the Hub, in one call."""

from pathlib import Path
from typing import Any

from stzoo.data.corpus import exclusive
from stzoo.errors import RecipeError
from stzoo.hub.import_checkpoint import convert, find, reading
from stzoo.hub.zoo import imported_folder
from stzoo.models.loading import load_plain
from stzoo.models.names import is_checkpoint
from stzoo.plugins.hookspecs import Checkpoint
from stzoo.training import records
from stzoo.utils.inputs import user_path
from stzoo.utils.messages import notify
from stzoo.utils.public import public


@public()
def load(
    model: str | Path,
    *,
    revision: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    backend: str = "torch",
) -> Any:
    """Loads a retriever, with all checks and without running code from its files.

    The first use of a published checkpoint downloads and converts it, as `stzoo import` does, into stzoo's
    cache ($STZOO_CACHE/zoo); later uses need no network.

    Args:
        model: Name of a published checkpoint (`stzoo zoo`), a model folder, or a Hub id; a folder
            comes first.
        revision: Branch, tag or commit on the Hub; None for that of `stzoo zoo`, or main.
        device: Device of torch; None for the best available.
        dtype: Type of the weights: float32, bfloat16 or float16; None for the published one.
        backend: Backend of sentence-transformers: torch, onnx or openvino.

    Returns:
        A SentenceTransformer.

    Raises:
        ModelError: If the model does not exist, cannot be downloaded, or lacks weights of its architecture.
        OutputError: If the cache cannot be written.
        RecipeError: If an option is invalid.

    Example:
        >>> model = stzoo.load("retromae-base.beir")
        >>> model.similarity(model.encode_query(["a question"]), model.encode_document(["a passage"]))
    """
    options: dict[str, Any] = {"device": device, "dtype": dtype, "backend": backend}
    if is_checkpoint(str(model)):
        return load_plain(str(checkpoint_folder(str(model), revision)), **options)
    folder = user_path(str(model))
    if not folder.is_dir():
        return load_plain(str(model), revision=revision, **options)
    if revision is not None:
        raise RecipeError(f"revision is for models on the Hub, and {model} is a folder; leave it out.")
    return load_plain(str(folder), **options)


def checkpoint_folder(name: str, revision: str | None = None) -> Path:
    """The folder of a published checkpoint in stzoo's cache, which the first use makes.

    Another process that wants it at the same time waits. A folder that was made by another description of the
    checkpoint, e.g. with another pooling, is made again.

    Args:
        name: Name of the checkpoint.
        revision: Branch, tag or commit on the Hub; None for that of the description. What a branch had at the
            first use is kept.

    Raises:
        ModelError: If it cannot be downloaded, or its files are not as expected.
        OutputError: If the cache cannot be written.
    """
    row = find(name)
    folder = imported_folder(row, revision)
    if not _is_current(folder, row):
        with exclusive(folder):
            if not _is_current(folder, row):  # another process may have made it meanwhile
                notify(f"{name} is imported into {folder} (once; later uses need no network).")
                convert(row, folder, revision=revision, overwrite=True)
    return folder


def _is_current(folder: Path, row: Checkpoint) -> bool:
    made = records.imported(folder)
    expected = reading(row) | {"hub_id": row.hub_id}
    return made is not None and all(made.get(key) == value for key, value in expected.items())
