"""The answers of a judge, in a journal to which each is appended before the next pair is shown.

A line is {"query", "document", "grade", "date"}, with null as the grade of a skipped pair, or {"query",
"document", "undo": true, "date"}. So closing the page, Ctrl-C or a crash loses no answer.
"""

import datetime
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stzoo.data.qrels import Qrels
from stzoo.errors import OutputError
from stzoo.utils.files import writing
from stzoo.utils.inputs import parse_json

GRADES = ("not relevant", "partly relevant", "relevant")

_Pair = tuple[str, str]  # query id, document id


class Answers:
    """Answers to the pairs of a pool, in the order given.

    Args:
        path: Path of the journal, which is read if it exists.
        pairs: Query id and document id of the pairs to judge, in order.

    Raises:
        OutputError: If the journal is damaged.
    """

    def __init__(self, path: Path, pairs: Sequence[_Pair]):
        self.path, self.pairs = path, pairs
        self._given: dict[_Pair, int | None] = _read(path) if path.exists() else {}

    @property
    def position(self) -> int:
        """The place of the first pair without an answer; their number if there is none."""
        return next(
            (place for place, pair in enumerate(self.pairs) if pair not in self._given), len(self.pairs)
        )

    @property
    def answered(self) -> int:
        """Number of the pairs with an answer."""
        return sum(pair in self._given for pair in self.pairs)

    @property
    def counts(self) -> list[int]:
        """Numbers of answers: one for each grade from 0, then that of the skipped pairs."""
        grades = list(self._given.values())
        return [*(grades.count(grade) for grade in range(len(GRADES))), grades.count(None)]

    @property
    def qrels(self) -> Qrels:
        """Grades by query id and document id, without skipped pairs, sorted by id."""
        qrels: Qrels = {}
        for (query, document), grade in sorted(self._given.items()):
            if grade is not None:
                qrels.setdefault(query, {})[document] = grade
        return qrels

    def give(self, grade: int | None) -> None:
        """Answers the pair at `position`; None skips it."""
        pair = self.pairs[self.position]
        self._append(pair, {"grade": grade})
        self._given[pair] = grade

    def undo(self) -> bool:
        """Takes back the last answer; False if there is none."""
        if not self._given or next(reversed(self._given)) not in self.pairs:
            return False
        self._append(next(reversed(self._given)), {"undo": True})
        self._given.popitem()
        return True

    def _append(self, pair: _Pair, entry: Mapping[str, Any]) -> None:
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        row = {"query": pair[0], "document": pair[1], **entry, "date": date}
        with writing(self.path), self.path.open("ab") as file:
            start = file.tell()
            try:
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            except OSError:  # the disk is full
                os.truncate(self.path, start)
                raise


def _read(path: Path) -> dict[_Pair, int | None]:
    """Reads a journal, after removing a last line that was not written to its end."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(path, len(whole))
    given: dict[_Pair, int | None] = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = parse_json(line.decode())
            pair = (row["query"], row["document"])
            if row.get("undo"):
                del given[pair]
                continue
            grade = row["grade"]
            if grade is not None and grade not in range(len(GRADES)):
                raise ValueError(f"the grade {grade!r}")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise OutputError(
                f"{path}:{number} is not an answer of `stzoo judge` ({error}); mend the line or remove it."
            ) from None
        given[pair] = grade
    return given
