"""Settings of export, card, publish, import and merge; it imports nothing heavy."""

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from stzoo.training.settings import COMMAS, Name, Names, Settings, setting
from stzoo.utils.inputs import check_number

RESULTS_HELP = "Folder that bench wrote (its --output), for the scores of this model."
LICENSE_HELP = "Licence as the Hub spells it, e.g. apache-2.0; as in the folder's README.md by default."
LANGUAGE_HELP = "Language codes, with commas: en,de; as in the folder's README.md by default."


class ExportSettings(Settings):
    """Settings of `stzoo export`."""

    command: ClassVar[str] = "export"
    positional: ClassVar[tuple[str, ...]] = ("model",)

    model: str = setting(..., "Sentence-transformers model: folder or Hub id.")
    portable: bool = setting(True, "Save built-in modules only, so that loading needs no other code.")


class CardSettings(Settings):
    """Settings of `stzoo card`."""

    command: ClassVar[str] = "card"
    positional: ClassVar[tuple[str, ...]] = ("folder",)

    folder: Path = setting(..., "Folder of a trained or exported model.")
    results: Path | None = setting(None, RESULTS_HELP)
    repo_id: str = setting("", "ORG/NAME on the Hub, for the usage code.")
    license: str | None = setting(None, LICENSE_HELP)
    language: Annotated[list[str] | None, COMMAS] = setting(None, LANGUAGE_HELP)


class PublishSettings(Settings):
    """Settings of `stzoo publish`."""

    command: ClassVar[str] = "publish"
    positional: ClassVar[tuple[str, ...]] = ("folder", "repo")

    folder: Path = setting(..., "Folder of an exported model, or of a finished run.")
    repo: str = setting(..., "ORG/NAME on the Hub; created if it does not exist.")
    private: bool = setting(False, "Create the repository as private.")
    revision: str | None = setting(None, "Branch, created if it does not exist; main by default.")
    results: Path | None = setting(None, RESULTS_HELP)
    license: str | None = setting(None, LICENSE_HELP)
    language: Annotated[list[str] | None, COMMAS] = setting(None, LANGUAGE_HELP)
    collection: str | None = setting(
        None, "Collection to add the model to: a slug, or the title of one of yours."
    )


class ImportSettings(Settings):
    """Settings of `stzoo import`."""

    command: ClassVar[str] = "import"
    positional: ClassVar[tuple[str, ...]] = ("checkpoint",)

    checkpoint: Name = setting(
        ...,
        "Name or Hub id from `stzoo list checkpoints`; or a folder, with --like.",
        names="checkpoint",
    )
    like: str | None = setting(
        None, "Name of the published checkpoint whose format the folder has.", names="checkpoint"
    )
    options: dict[str, Any] = setting({}, "Options of the importer, e.g. rescale_t5.")


def _numbers(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    parts = given.split(",")
    try:
        check_number(list[float], parts)
    except ValueError:
        reason = "expected numbers with commas between, e.g. 0.7,0.3"
        raise PydanticCustomError("numbers", reason) from None
    return parts


class MergeSettings(Settings):
    """Settings of `stzoo merge`."""

    command: ClassVar[str] = "merge"
    positional: ClassVar[tuple[str, ...]] = ("sources",)

    sources: Names = setting(
        ..., "Model folders, checkpoints (RUN/checkpoints/checkpoint-N), or one RUN for all its checkpoints."
    )
    weights: Annotated[list[float] | None, BeforeValidator(_numbers)] = setting(
        None, "Weight of each source, with commas: 0.7,0.3; equal by default."
    )
