"""A row of a corpus: its passage and its further columns.

A value is text, or the token ids of a text if the tokenizer that made them is given.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stzoo.data.row_location import RowLocation

EXPECTED = 'an object with a string "text" (a string "title" and an "_id" or "id" may be there too)'
A_STRING = "a string there, or its token ids and a tokenizer to read them with"


class Row(NamedTuple):
    """A passage.

    Attributes:
        id: In UTF-8.
        text: Title and text in UTF-8.
        columns: The further columns that are filled.
        columns_json: The same as one JSON object in UTF-8 with sorted keys; b"" if there are none.
    """

    id: bytes
    text: bytes
    columns: dict[str, str | list[str]]
    columns_json: bytes


class TextReader:
    """Reads values that are text, or the token ids of a text.

    Args:
        tokenizer: The fast tokenizer that made the ids; None if there are no ids.
    """

    def __init__(self, tokenizer: Any = None) -> None:
        self._tokenizer = tokenizer
        self._known = frozenset(tokenizer.get_vocab().values() if tokenizer is not None else ())

    def __call__(self, at: RowLocation, key: str, value: Any) -> str:
        """Returns the text.

        Args:
            at: The row's location, for messages.
            key: The value's path in the row, for messages.
            value: A text or a list of token ids, including special tokens.

        Raises:
            DataError: If it is neither, or the tokenizer does not have one of the ids.
        """
        if isinstance(value, str):
            return value
        if not isinstance(value, list):
            raise at.error(f'a "{key}" of type {type(value).__name__}', A_STRING)
        kinds = set(map(type, value))
        if self._tokenizer is None and kinds == {int}:
            raise at.error(f'token ids in "{key}" and no tokenizer', "text, or the tokenizer of the ids")
        if self._tokenizer is None or not kinds <= {int}:
            names = ", ".join(sorted(kind.__name__ for kind in kinds)) or "nothing"
            raise at.error(f'a "{key}" of type list (of {names})', A_STRING)
        if not self._known.issuperset(value):
            raise at.error(
                f'a "{key}" with the token id {min(set(value) - self._known)}',
                f"ids of the tokenizer's {len(self._known)} tokens; is it the one that made them?",
            )
        return str(
            self._tokenizer.decode(value, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )


def read_row(row: dict[str, Any], at: RowLocation, columns: Mapping[str, type], text_of: TextReader) -> Row:
    """The passage of a row.

    Args:
        row: Values by column.
        at: The row's location, for messages, and for the id of a row that has none: FILE:LINE.
        columns: str or list[str] by the name of each further column to keep.
        text_of: Reads a text, or token ids.

    Raises:
        DataError: If the row has no text, or a value of the wrong type.
    """
    if "text" not in row:
        raise at.error(f"an object with the keys {', '.join(sorted(row)[:9]) or 'none'}", EXPECTED)
    row_id = row["_id"] if row.get("_id") is not None else row.get("id")
    if row_id is None:
        row_id = f"{Path(at.file).name}:{at.line}"
    elif not isinstance(row_id, str | int):
        raise at.error(f'an "id" of type {type(row_id).__name__}', EXPECTED)
    text, title = text_of(at, "text", row["text"]), row.get("title")
    if title is not None:
        text = f"{text_of(at, 'title', title)} {text}"
    filled = _filled(row, at, columns, text_of) if columns else {}
    try:
        return Row(
            str(row_id).encode(),
            text.strip().encode(),
            filled,
            json.dumps(filled, ensure_ascii=False, sort_keys=True).encode() if filled else b"",
        )
    except UnicodeEncodeError:
        raise at.error("half of a surrogate pair, which is not a character", EXPECTED) from None


def _lookup(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or of a key of an object in it ("metadata.language"); None if there is none."""
    if name in row:
        return row[name]
    outer, _, inner = name.partition(".")
    value = row.get(outer)
    return value.get(inner) if isinstance(value, Mapping) else None


def _filled(
    row: dict[str, Any], at: RowLocation, columns: Mapping[str, type], text_of: TextReader
) -> dict[str, str | list[str]]:
    filled: dict[str, str | list[str]] = {}
    for name, kind in columns.items():
        value = _lookup(row, name)
        if value is None or value == []:
            continue
        if kind is str:
            if (text := text_of(at, name, value)).strip():
                filled[name] = text
            continue
        if not isinstance(value, list):
            raise at.error(f'a "{name}" of type {type(value).__name__}', "a list of strings")
        # Released data have an empty list (a text without tokens) where a model had no answer.
        texts = [text_of(at, f"{name}[{place}]", part) for place, part in enumerate(value) if part != []]
        if not all(map(str.strip, texts)):
            raise at.error(f'a blank string in "{name}"', "text in each string of the list")
        if texts:
            filled[name] = texts
    return filled
