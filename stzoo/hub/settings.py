"""Settings of export, card, publish, import and merge; it imports nothing heavy."""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from stzoo.training.settings import COMMAS, PORTABLE_HELP, Name, Names, Settings, setting
from stzoo.utils.inputs import check_number


def _wrong(expected: str, **values: Any) -> PydanticCustomError:
    return PydanticCustomError("wrong", expected, values)


def _norwegian(given: Any) -> Any:
    """YAML reads the code of Norwegian, no, as false."""
    if isinstance(given, list):
        return list(map(_norwegian, given))
    return "no" if given is False else given


def _repo_id(given: str) -> str:
    from huggingface_hub.utils import validate_repo_id

    try:
        if given:
            validate_repo_id(given)
    except ValueError as error:
        raise _wrong("expected ORG/NAME ({reason})", reason=str(error).rstrip(".")) from None
    if given and "/" not in given:
        raise _wrong("it has no owner; expected ORG/NAME")
    return given


def _branch(given: str | None) -> str | None:
    if given and re.fullmatch(r"[0-9a-f]{40}", given):
        raise _wrong("this is a commit; expected the name of a branch")
    return given


def _numbers(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    parts = given.split(",")
    try:
        check_number(list[float], parts)
    except ValueError:
        raise _wrong("expected numbers with commas between, e.g. 0.7,0.3") from None
    return parts


def _positive(given: list[float] | None) -> list[float] | None:
    if given and min(given) <= 0:
        raise _wrong("expected numbers above 0; leave a model out to ignore it")
    return given


RepoId = Annotated[str, AfterValidator(_repo_id)]


class ExportSettings(Settings):
    """Settings of `stzoo export`."""

    command: ClassVar[str] = "export"
    positional: ClassVar[tuple[str, ...]] = ("model",)

    model: Any = setting(
        ..., "Sentence-transformers model: folder, Hub id or name from `stzoo zoo`.", names="model"
    )  # or one in memory
    portable: bool = setting(True, PORTABLE_HELP)
    onnx: Literal["float32", "int8"] | None = setting(
        None, "Also write ONNX: onnx/model.onnx, and with int8 a smaller onnx/model_quantized.onnx."
    )

    @field_validator("onnx")
    @classmethod
    def _check_onnx(cls, given: str | None, info: ValidationInfo) -> str | None:
        if given and info.data.get("portable") is False:
            raise _wrong("servers of ONNX run built-in modules only; leave out --onnx or --no-portable")
        return given


class _OfCard(Settings):
    """What card and publish share: what the card says."""

    results: Path | None = setting(
        None, "Folder that bench wrote (its --output), for the scores of this model."
    )
    license: str | None = setting(
        None, "Licence as the Hub spells it, e.g. apache-2.0; as in the folder's README.md by default."
    )
    language: Annotated[list[str] | None, COMMAS, BeforeValidator(_norwegian)] = setting(
        None, "Codes of the model's languages, with commas: en,de; as in the folder's README.md by default."
    )


class CardSettings(_OfCard):
    """Settings of `stzoo card`."""

    command: ClassVar[str] = "card"
    positional: ClassVar[tuple[str, ...]] = ("folder",)

    folder: Path = setting(..., "Folder of a trained or exported model.")
    repo_id: RepoId = setting("", "ORG/NAME on the Hub, for the usage code.")


class PublishSettings(_OfCard):
    """Settings of `stzoo publish`."""

    command: ClassVar[str] = "publish"
    positional: ClassVar[tuple[str, ...]] = ("folder", "repo")

    folder: Path = setting(..., "Folder of an exported model, or of a finished run.")
    repo: RepoId = setting(..., "ORG/NAME on the Hub; created if it does not exist.", min_length=1)
    private: bool = setting(False, "Create the repository as private.")
    revision: Annotated[str | None, AfterValidator(_branch)] = setting(
        None, "Branch, created if it does not exist; main by default."
    )
    collection: str | None = setting(
        None, "Collection to add the model to: a slug, or the title of one of yours."
    )


class ImportSettings(Settings):
    """Settings of `stzoo import`."""

    command: ClassVar[str] = "import"
    positional: ClassVar[tuple[str, ...]] = ("checkpoint",)

    checkpoint: Name = setting(
        ...,
        "Name or Hub id from `stzoo zoo`; or a folder, with --like.",
        names="checkpoint",
    )
    like: str | None = setting(
        None, "Name of the published checkpoint whose format the folder has.", names="checkpoint"
    )
    revision: str | None = setting(
        None, "Branch, tag or commit on the Hub; the one that `stzoo zoo` shows by default."
    )
    options: dict[str, Any] = setting({}, "Options of the importer, e.g. rescale_t5.")


class MergeSettings(Settings):
    """Settings of `stzoo merge`."""

    command: ClassVar[str] = "merge"
    positional: ClassVar[tuple[str, ...]] = ("sources",)

    sources: Names = setting(
        ...,
        "Model folders, checkpoints (RUN/checkpoints/checkpoint-N), or one RUN for all its checkpoints.",
        min_length=1,
        takes="models",
    )
    weights: Annotated[list[float] | None, BeforeValidator(_numbers), AfterValidator(_positive)] = setting(
        None, "Weight of each source, with commas: 0.7,0.3; equal by default."
    )
