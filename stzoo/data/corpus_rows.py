"""Rows of a corpus: the passage, and what stands beside it, that a parsed line holds.

A value is text, or the token ids of a text where the tokenizer that made them is given.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

EXPECTED = 'an object with a string "text" (a string "title" and an "_id" or "id" may be there too)'
A_STRING = "a string there, or its token ids and a tokenizer to read them with"


class BadLineError(Exception):
    """What was found, and what was expected, on a line that holds no passage."""

    def __init__(self, found: str, expected: str = EXPECTED) -> None:
        super().__init__(found, expected)


class Row(NamedTuple):
    """A passage: id and text (title first) in UTF-8, and the further columns that are filled.

    `columns_json` is the columns as one JSON object in UTF-8, its keys sorted; b"" if there is none.
    """

    id: bytes
    text: bytes
    columns: dict[str, str | list[str]]
    columns_json: bytes


class TextReader:
    """Reads values that are text, or the token ids of a text.

    Args:
        tokenizer: the fast tokenizer that made the ids; None where there are none.
    """

    def __init__(self, tokenizer: Any = None) -> None:
        self._tokenizer = tokenizer
        self._known = frozenset(tokenizer.get_vocab().values() if tokenizer is not None else ())

    def __call__(self, key: str, value: Any) -> str:
        """The text.

        Args:
            key: the value's place in the row, for messages.
            value: a text, or token ids, special ones included.

        Raises:
            BadLineError: if it is neither, or an id is not the tokenizer's.
        """
        if isinstance(value, str):
            return value
        if not isinstance(value, list):
            raise BadLineError(f'a "{key}" of type {type(value).__name__}', A_STRING)
        kinds = set(map(type, value))
        if self._tokenizer is None and kinds == {int}:
            raise BadLineError(f'token ids in "{key}" and no tokenizer', "text, or the tokenizer of the ids")
        if self._tokenizer is None or not kinds <= {int}:
            names = ", ".join(sorted(kind.__name__ for kind in kinds)) or "nothing"
            raise BadLineError(f'a "{key}" of type list (of {names})', A_STRING)
        return self._decode(key, value)

    def _decode(self, key: str, ids: list[int]) -> str:
        if not self._known.issuperset(ids):
            raise BadLineError(
                f'a "{key}" with the token id {min(set(ids) - self._known)}',
                f"ids of the tokenizer's {len(self._known)} tokens; is it the one that made them?",
            )
        decoded = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(decoded)


def read_row(row: Any, default_id: str, columns: Mapping[str, type], text_of: TextReader) -> Row:
    """The passage that a parsed line holds.

    Args:
        row: what the line's parser made of it.
        default_id: where the row has none.
        columns: str or list[str] by the name of each further column to keep.
        text_of: reads a text, or token ids.

    Raises:
        BadLineError: if the row is no object, or has no text, or something in it is of the wrong type.
    """
    if not isinstance(row, dict):
        raise BadLineError(f"JSON that is no object but of type {type(row).__name__}")
    if "text" not in row:
        raise BadLineError(f"an object with the keys {', '.join(sorted(row)[:9]) or 'none'}")
    row_id = row["_id"] if row.get("_id") is not None else row.get("id")
    if not isinstance(row_id, str | int | None):
        raise BadLineError(f'an "id" of type {type(row_id).__name__}')
    text, title = text_of("text", row["text"]), row.get("title")
    if title is not None:
        text = f"{text_of('title', title)} {text}"
    filled = _filled(row, columns, text_of) if columns else {}
    try:
        return Row(
            str(default_id if row_id is None else row_id).encode(),
            text.strip().encode(),
            filled,
            json.dumps(filled, ensure_ascii=False, sort_keys=True).encode() if filled else b"",
        )
    except UnicodeEncodeError:
        raise BadLineError("half of a surrogate pair, which is no character") from None


def _filled(
    row: dict[str, Any], columns: Mapping[str, type], text_of: TextReader
) -> dict[str, str | list[str]]:
    filled: dict[str, str | list[str]] = {}
    for name, kind in columns.items():
        value = row.get(name)
        if value is None or value == []:
            continue
        if kind is str:
            if (text := text_of(name, value)).strip():
                filled[name] = text
            continue
        if not isinstance(value, list):
            raise BadLineError(f'a "{name}" of type {type(value).__name__}', "a list of strings")
        # An empty list is a text of no tokens: where a model had nothing to say, released data hold one.
        texts = [text_of(f"{name}[{place}]", part) for place, part in enumerate(value) if part != []]
        if not all(map(str.strip, texts)):
            raise BadLineError(f'a blank string in "{name}"', "text in each string of the list")
        if texts:
            filled[name] = texts
    return filled
