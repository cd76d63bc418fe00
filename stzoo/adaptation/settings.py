"""Settings of read; it imports nothing heavy."""

import codecs
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, field_validator

from stzoo.data.column_roles import parse_columns
from stzoo.training.settings import DATA, LanguageCode, Name, Settings, setting

# columns of rows by role; the roles are those of `stzoo.data.documents.tables.ROLES`
TextColumns = Annotated[
    dict[str, list[str]] | None,
    BeforeValidator(lambda given: parse_columns(given, ("text", "title", "id"), "text=body,id=key") or None),
]


class ReadSettings(Settings):
    """Settings of `stzoo read`."""

    command: ClassVar[str] = "read"
    positional: ClassVar[tuple[str, ...]] = ("source",)

    source: Name = setting(..., "Folder with documents, which is searched with its subfolders, or one file.")
    passage_tokens: int = setting(
        200,
        "Maximum size of a passage without its title, in words and punctuation marks, or in tokens of "
        "--tokenizer.",
        ge=8,
        le=10**6,
    )
    tokenizer: Name | None = setting(
        None, "Model folder or Hub id whose tokens are counted; it must have a fast tokenizer."
    )
    copies: Literal["near", "exact", "keep"] = setting(
        "near", "Leave out near-copies of earlier passages, exact copies only, or keep all."
    )
    jaccard: float = setting(
        0.8, "Jaccard similarity of three-word sequences that counts as a near-copy.", ge=0.1, le=1
    )
    split_rows: bool = setting(
        True,
        "Split rows of csv, jsonl and Parquet files that exceed --passage-tokens; --no-split-rows keeps each "
        "as one passage.",
        DATA,
    )
    columns: TextColumns = setting(
        None, "Columns of rows by role (text, title, id) if they have other names: text=body,id=key.", DATA
    )
    language: LanguageCode | None = setting(
        None, "Language of all passages (de, german, none); detected by default.", DATA
    )
    encoding: str = setting("windows-1252", "Encoding of text files that are not UTF-8.", DATA)
    max_file_mib: float = setting(
        200.0, "Skip larger files, except those of rows, which are streamed.", DATA, gt=0, le=10**6
    )

    @field_validator("encoding")
    @classmethod
    def _known(cls, name: Any) -> Any:
        try:
            codecs.lookup(name)
            b"".decode(name)
        except (LookupError, ValueError):
            raise ValueError("expected an encoding that Python knows, e.g. windows-1252") from None
        return name
