"""The sources of a merge: model folders, and checkpoints of finished runs."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stzoo.errors import ModelError
from stzoo.models import lora
from stzoo.models.loaded import folder_revision
from stzoo.models.names import is_checkpoint, model_source
from stzoo.training.checkpoints import STATE, is_whole
from stzoo.utils.files import fingerprint
from stzoo.utils.inputs import read_json
from stzoo.utils.outputs import RECORD, no_model

CHECKPOINTS = "checkpoints/checkpoint-*"


@dataclass(frozen=True)
class Source:
    """A model to merge.

    Attributes:
        name: Name as given by the user.
        folder: Folder of the model, or of the model that the checkpoint's run exported.
        checkpoint: Folder of the checkpoint whose weights replace the model's, if any.
        factor: Scale of the checkpoint's adapters, if it has any.
    """

    name: str
    folder: Path
    checkpoint: Path | None = None
    factor: float = 1.0

    @property
    def revision(self) -> str:
        """Fingerprint of 12 hex digits: the revision of a model folder, or that of a checkpoint's weights."""
        if self.checkpoint is None:
            return folder_revision(self.folder)
        return fingerprint(self.checkpoint / STATE)[:12]


def find(folders: Sequence[str | Path]) -> list[Source]:
    """Finds the models and checkpoints in folders.

    Raises:
        ModelError: If a folder is neither a model nor a complete checkpoint of a finished run.
    """
    if len(folders) == 1:
        run = Path(folders[0])
        if checkpoints := _checkpoints(run):
            return [_checkpoint(folder) for folder in checkpoints]
        if read_json(run / RECORD).get("status") == "finished":
            raise ModelError(
                f"{run} is a single finished run without checkpoints, so there is nothing to average. Give "
                "several models, or train with --keep-checkpoints 5 and merge the checkpoints of that run."
            )
    return [_source(str(folder)) for folder in folders]


def _checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, in order of creation."""
    folders = [*run.glob(CHECKPOINTS), *run.glob(f"episodes/*/{CHECKPOINTS}")]

    def numbers(folder: Path) -> list[int]:
        return [int(digits) for digits in re.findall(r"\d+", str(folder.relative_to(run)))]

    return sorted(filter(is_whole, folders), key=numbers)


def _source(name: str) -> Source:
    folder = Path(model_source(name) if is_checkpoint(name) else name)
    if (folder / "modules.json").is_file():
        return Source(name, folder)
    if folder.is_dir() and folder.resolve().parent.name == "checkpoints":
        return _checkpoint(folder)
    if (folder / RECORD).is_file() and not (folder / "config.json").is_file():
        raise ModelError(no_model(folder))
    raise ModelError(
        f"{folder} cannot be merged; expected a model folder (with modules.json), or a checkpoint of a run "
        "(RUN/checkpoints/checkpoint-N)."
    )


def _checkpoint(folder: Path) -> Source:
    if not is_whole(folder):
        raise ModelError(
            f"the checkpoint {folder} is incomplete: saving it was interrupted, or files are missing. Use "
            "another one."
        )
    run = next((parent for parent in folder.resolve().parents if (parent / RECORD).is_file()), folder)
    if not (run / "modules.json").is_file():
        raise ModelError(no_model(run))
    try:
        recipe = json.loads((run / RECORD).read_text(encoding="utf-8"))["recipe"]
        rank = recipe.get("lora_rank")
        factor = lora.scale(rank, recipe["lora_alpha"]) if rank else 1.0
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{run / RECORD}, the record of {folder}, cannot be read: {error!r}.") from None
    return Source(str(folder), run, folder, factor)
