"""import_checkpoint(): convert published weights to a sentence-transformers folder with the right pooling.

A checkpoint is described by a `stzoo.Checkpoint` in the plugin of its method. Its importer reads the files as
published (`published.py`) and builds a SentenceTransformer; `export` writes and checks it. Nothing is
guessed: a Hub id without a description is refused, as its files do not tell how its authors pooled.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stzoo.errors import ModelError, RecipeError, UnknownNameError
from stzoo.hub.export import export
from stzoo.hub.published import Published, fetch
from stzoo.hub.settings import ImportSettings
from stzoo.models import limits
from stzoo.plugins import builders, manager
from stzoo.plugins.hookspecs import Checkpoint
from stzoo.training.recipes import SCHEMA_VERSION
from stzoo.training.records import versions
from stzoo.training.trained import TrainedModel
from stzoo.utils.distributed import require_one_process
from stzoo.utils.files import sha256, write_json
from stzoo.utils.logging import silence_hf_logging
from stzoo.utils.messages import show_progress
from stzoo.utils.outputs import IMPORTED, check_model_output
from stzoo.utils.progress import STAGES, progress_bar
from stzoo.utils.public import public


@public()
def import_checkpoint(
    checkpoint: str | Path,
    *,
    output: str | Path,
    like: str | None = None,
    revision: str | None = None,
    options: Mapping[str, Any] = {},
    overwrite: bool = False,
    progress: bool | None = None,
) -> TrainedModel:
    """Converts a published checkpoint to a folder that plain sentence-transformers loads.

    Pooling, similarity, prompts and lengths are those that the authors trained with. Weights become float32
    safetensors. The folder also gets import.json, a record of the import, and a card.

    Args:
        checkpoint: Name or Hub id of a checkpoint (`stzoo list checkpoints`), or a folder with such files.
        output: Folder to write.
        like: For a folder, the name of the checkpoint that its files are like.
        revision: Branch, tag or commit of the Hub repository; None for the one that `stzoo zoo` shows.
        options: Options of the importer, e.g. {"rescale_t5": True}.
        overwrite: True replaces a model folder at `output`.
        progress: True for progress bars on stderr; None shows them on a terminal only.

    Returns:
        The folder, a Path with `.model` and the published `.scores`.

    Raises:
        ExportError: If the draft's embeddings differ from the model's.
        ModelError: If the checkpoint cannot be downloaded, or its files are not as expected: weights are
            missing, unexpected or not plain tensors, or there are fewer word embeddings than tokens.
        OutputError: If `output` exists already, or cannot be written.
        RecipeError: If `like` is missing or given without a folder, or the importer has no such option.
        UnknownNameError: If there is no such checkpoint.
    """
    require_one_process("import")
    settings = ImportSettings.check(locals())
    checkpoint, options = settings.checkpoint, settings.options
    row = find(checkpoint, like)
    output = check_model_output(output, overwrite, [checkpoint])
    local = Path(checkpoint).is_dir()
    if local and revision is not None:
        raise RecipeError(f"--revision is for checkpoints on the Hub, and {checkpoint} is a folder; drop it.")
    folder = Path(checkpoint) if local else None
    convert(row, output, folder, revision, options=options, overwrite=overwrite, progress=progress)
    return TrainedModel(output)


def convert(
    row: Checkpoint,
    output: Path,
    folder: Path | None = None,
    revision: str | None = None,
    *,
    options: Mapping[str, Any] = {},
    overwrite: bool = False,
    progress: bool | None = None,
) -> None:
    """Converts a checkpoint by its description; see `import_checkpoint`.

    Args:
        row: The description.
        output: Folder to write.
        folder: Folder with the files; None downloads them.
        revision: Branch, tag or commit to download; None for that of the description.
        options: Options of the importer.
        overwrite: True replaces a model folder at `output`.
        progress: True for a progress bar on stderr; None shows it on a terminal only.
    """
    local = folder is not None
    if folder is None:
        folder = fetch(row.hub_id, revision or row.revision, row.files)
    published = Published(folder, row)
    hidden = not show_progress(progress)
    with silence_hf_logging(), progress_bar(total=2, desc="import", bar_format=STAGES, disable=hidden) as bar:
        imported = builders.call(f"checkpoint {row.name!r}", builders.resolve(row), published, **options)
        limits.prepare(imported.model, str(folder) if local else row.name)
        bar.update()
        record = _record(published, local, dict(options))
        bar.update()

    def write_more(draft: Path) -> None:
        write_json(draft / IMPORTED, record)
        if imported.write is not None:
            imported.write(draft)

    export(
        imported.model,
        output,
        masked_lm=imported.masked_lm,
        extra=write_more,
        portable=imported.portable,
        overwrite=overwrite,
    )


def find(name: str, like: str | None = None) -> Checkpoint:
    """Finds the description of a checkpoint; see `import_checkpoint`.

    Raises:
        ModelError: If it is a file, or a checkpoint that is not on the Hub.
        RecipeError: If `like` is missing or given without a folder.
        UnknownNameError: If there is no such checkpoint.
    """
    rows = manager.all("checkpoint")
    if Path(name).is_dir():
        if like is None:
            raise RecipeError(
                f"{name} is a folder, whose files do not tell how it was trained. Name the published "
                f"checkpoint that it is like: --like NAME. Known: {', '.join(rows)}."
            )
        row: Checkpoint = manager.find("checkpoint", like)
        return row
    if like is not None:
        raise RecipeError(f"--like is for folders, and {name} is not a folder; drop it.")
    if Path(name).is_file():
        raise ModelError(f"{name} is a file; expected a folder, or a checkpoint's name or Hub id.")
    by_id = {row.hub_id: row for row in rows.values() if row.hub_id}
    if "/" in name:
        if name not in by_id:
            hint = (
                "Its pooling is unknown. If its files are like a known checkpoint's, use FOLDER --like NAME."
            )
            raise UnknownNameError("checkpoint of the Hub id", name, by_id, hint)
        return by_id[name]
    row = manager.find("checkpoint", name)
    if not row.hub_id:
        raise ModelError(
            f"{name} is not on the Hub. Download it ({row.source}), then import FOLDER --like {name}."
        )
    return row


def reading(row: Checkpoint) -> dict[str, Any]:
    """How a checkpoint's vectors are made, by its description, as import.json keeps it."""
    names = ("pooling", "normalize", "similarity", "prompts", "max_tokens", "max_query_tokens")
    return {name: getattr(row, name) for name in names} | {"prompts": dict(row.prompts)}


def _record(published: Published, local: bool, options: dict[str, Any]) -> dict[str, Any]:
    """The content of import.json, without local paths."""
    row = published.checkpoint
    based = "base" in vars(published)  # the base is fetched only when needed
    imported = {
        "checkpoint": row.name,
        "hub_id": None if local else row.hub_id,
        "commit": None if local else _commit(published.folder),
        "license": "" if local else row.license,  # the weights of a folder may have another
        "source": row.source,
        "options": options,
        "files": {
            str(path.relative_to(published.folder)): sha256(path) for path in dict.fromkeys(published.read)
        },
        "base": {"hub_id": row.base, "commit": _commit(published.base)} if based else None,
        **reading(row),
        "expected": [
            dict(zip(("dataset", "measure", "value", "source"), one, strict=True))
            for one in row.expected * (not local)
        ],
    }
    return {"schema_version": SCHEMA_VERSION, "imported": imported, "versions": versions()}


def _commit(folder: Path) -> str | None:
    """The commit, after which the Hub's cache names its folders."""
    return folder.name if re.fullmatch("[0-9a-f]{40}", folder.name) else None
