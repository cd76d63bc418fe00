"""What can be merged: a folder of a finished model, or a checkpoint of a run that made one."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stzoo.errors import ModelError, RecipeError
from stzoo.models import lora
from stzoo.models.loaded import folder_revision
from stzoo.training.checkpoints import STATE, is_whole
from stzoo.utils.files import fingerprint
from stzoo.utils.outputs import RECORD

CHECKPOINTS = "checkpoints/checkpoint-*"


@dataclass(frozen=True)
class Source:
    """A model to be merged.

    Attributes:
        name: as the user gave it.
        folder: of the model that it is, or that its run exported.
        checkpoint: the folder whose weights are taken in place of that model's.
        factor: that the checkpoint's adapters are multiplied by, if it has any.
    """

    name: str
    folder: Path
    checkpoint: Path | None = None
    factor: float = 1.0

    @property
    def revision(self) -> str:
        """12 hex digits: those that results of a model folder are filed under; of a checkpoint's weights."""
        if self.checkpoint is None:
            return folder_revision(self.folder)
        return fingerprint(self.checkpoint / STATE)[:12]


def find(given: Sequence[str | Path]) -> list[Source]:
    """What the given folders are.

    Raises:
        ModelError: if one is neither a model nor a whole checkpoint of a finished run.
        RecipeError: if there is none.
    """
    if not given:
        raise RecipeError("there is nothing to merge; expected model folders, or checkpoints of a run.")
    if len(given) == 1 and (kept := _kept(Path(given[0]))):
        return [_checkpoint(folder) for folder in kept]
    return [_source(Path(one)) for one in given]


def _kept(run: Path) -> list[Path]:
    """The whole checkpoints of a run, in the order in which it made them."""
    folders = [*run.glob(CHECKPOINTS), *run.glob(f"episodes/*/{CHECKPOINTS}")]

    def numbers(folder: Path) -> list[int]:
        return [int(digits) for digits in re.findall(r"\d+", str(folder.relative_to(run)))]

    return sorted(filter(is_whole, folders), key=numbers)


def _source(folder: Path) -> Source:
    if (folder / "modules.json").is_file():
        return Source(str(folder), folder)
    if folder.is_dir() and folder.resolve().parent.name == "checkpoints":
        return _checkpoint(folder)
    if (folder / RECORD).is_file():
        raise ModelError(f"the run {folder} has no model yet; end it with --resume.")
    raise ModelError(
        f"{folder} cannot be merged; expected a model folder (with modules.json), or a checkpoint of a run "
        "(RUN/checkpoints/checkpoint-N)."
    )


def _checkpoint(folder: Path) -> Source:
    if not is_whole(folder):
        raise ModelError(f"the checkpoint {folder} is not whole: its save was cut short, or files are gone.")
    run = next((above for above in folder.resolve().parents if (above / RECORD).is_file()), folder)
    if not (run / "modules.json").is_file():
        raise ModelError(
            f"the run of {folder} has no model yet, whose weights these would be; end it with --resume."
        )
    try:
        recipe = json.loads((run / RECORD).read_text(encoding="utf-8"))["recipe"]
        rank = recipe.get("lora_rank")
        factor = lora.scale(rank, recipe["lora_alpha"]) if rank else 1.0
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{run / RECORD}, the record of {folder}, cannot be read: {error!r}.") from None
    return Source(str(folder), run, folder, factor)
