"""import_checkpoint(): published weights as a sentence-transformers folder, pooled as they were trained.

A checkpoint is a row of data (`stzoo.Checkpoint`) in the plugin that owns the method. Its importer reads the
files as they were published (`published.py`) and makes a SentenceTransformer of them; `export` writes and
checks it. What is not in a row is not guessed: a Hub id that no row knows is refused, as nothing in its files
tells how its authors pooled.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from stzoo.errors import ModelError, RecipeError, UnknownNameError
from stzoo.hub.export import check_model_output, export
from stzoo.hub.published import Published, fetch
from stzoo.models import limits
from stzoo.plugins import manager
from stzoo.plugins.hookspecs import Checkpoint
from stzoo.training.runs import versions
from stzoo.training.settings import SCHEMA_VERSION
from stzoo.utils.distributed import require_one_process
from stzoo.utils.files import sha256, write_json
from stzoo.utils.logging import silence_hf_logging
from stzoo.utils.outputs import IMPORTED


def import_checkpoint(
    checkpoint: str | Path,
    *,
    output: str | Path,
    like: str | None = None,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Turns a published checkpoint into a folder that plain sentence-transformers loads.

    Pooling, similarity, prompts and lengths are those that the authors trained with. Weights become
    safetensors of float32. Beside the model lie import.json, which says what was read, and a card.

    Args:
        checkpoint: name or Hub id of a checkpoint (`stzoo list checkpoints`), or a folder of the same form.
        output: the folder to write.
        like: name of the checkpoint whose form a folder has.
        options: of the importer, e.g. {"rescale_t5": True}.
        overwrite: True replaces a model folder at `output`.

    Returns:
        `output`.

    Raises:
        ExportError: if the draft does not answer as the model does.
        ModelError: if the checkpoint cannot be fetched, or is not of its form: weights missing, unexpected
            or more than plain tensors, or fewer word embeddings than its tokenizer has tokens.
        OutputError: if `output` is there, or cannot be written.
        RecipeError: if `like` is missing or given without a folder, or the importer has no such option.
        UnknownNameError: if there is no such checkpoint.
    """
    require_one_process("import")
    row = find(checkpoint, like)
    output = check_model_output(output, overwrite, [checkpoint])
    local = Path(checkpoint).is_dir()
    folder = Path(checkpoint) if local else fetch(row.hub_id, row.revision, row.files)
    published = Published(folder, row)
    with silence_hf_logging(), tqdm(total=2, desc="import", disable=None) as bar:
        made = manager.call(f"checkpoint {row.name!r}", manager.resolve(row), published, **(options or {}))
        limits.prepare(made.model, str(checkpoint))
        bar.update()
        facts = _facts(published, local, dict(options or {}))
        bar.update()

    def more(draft: Path) -> None:
        write_json(draft / IMPORTED, facts)
        if made.write is not None:
            made.write(draft)

    return export(
        made.model,
        output,
        masked_lm=made.masked_lm,
        extra=more,
        portable=made.portable,
        overwrite=overwrite,
    )


def find(checkpoint: str | Path, like: str | None = None) -> Checkpoint:
    """The row that says what a checkpoint is; see `import_checkpoint`.

    Raises:
        ModelError: if it is a file, or one that only folders have.
        RecipeError: if `like` is missing or given without a folder.
        UnknownNameError: if there is no such checkpoint.
    """
    rows = manager.all("checkpoint")
    given = str(checkpoint)
    if Path(given).is_dir():
        if like is None:
            raise RecipeError(
                f"{given} is a folder, whose files do not tell how it was trained. Say which published "
                f"checkpoint it is like: --like NAME. Known: {', '.join(rows)}."
            )
        found: Checkpoint = manager.find("checkpoint", like)
        return found
    if like is not None:
        raise RecipeError(f"--like goes with a folder, and {given} is none.")
    if Path(given).is_file():
        raise ModelError(f"{given} is a file; expected a folder, or a checkpoint's name or Hub id.")
    by_id = {row.hub_id: row for row in rows.values() if row.hub_id}
    if "/" in given:
        if given not in by_id:
            hint = (
                "What no checkpoint says of a model is not guessed. A folder like a known one goes by --like."
            )
            raise UnknownNameError("checkpoint of the Hub id", given, by_id, hint)
        return by_id[given]
    found = manager.find("checkpoint", given)
    if not found.hub_id:
        raise ModelError(
            f"{given} is in no repository. Fetch it ({found.source}), then: FOLDER --like {given}."
        )
    return found


def _facts(published: Published, local: bool, options: dict[str, Any]) -> dict[str, Any]:
    """For import.json; paths on this machine stay out of it."""
    row = published.checkpoint
    based = "base" in vars(published)  # which is fetched only where it is needed
    imported = {
        "checkpoint": row.name,
        "hub_id": None if local else row.hub_id,
        "commit": None if local else _commit(published.folder),
        "license": "" if local else row.license,  # a folder's weights may be anybody's
        "source": row.source,
        "options": options,
        "files": {
            str(path.relative_to(published.folder)): sha256(path) for path in dict.fromkeys(published.read)
        },
        "base": {"hub_id": row.base, "commit": _commit(published.base)} if based else None,
        "max_query_tokens": row.max_query_tokens,
        "expected": [
            dict(zip(("dataset", "measure", "value", "source"), one, strict=True))
            for one in row.expected * (not local)
        ],
    }
    return {"schema_version": SCHEMA_VERSION, "imported": imported, "versions": versions()}


def _commit(folder: Path) -> str | None:
    """By which the cache of the Hub names its folders."""
    return folder.name if re.fullmatch("[0-9a-f]{40}", folder.name) else None
