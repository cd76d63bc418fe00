"""Relevance judgements, and how BEIR files them: query-id, corpus-id, score under a header, tab-separated."""

import re
from collections.abc import Iterable
from pathlib import Path

from stzoo.data.row_location import RowLocation
from stzoo.errors import DataError, quoted

Qrels = dict[str, dict[str, int]]  # grade by document id by query id; above 0 is relevant

# trec_eval keeps a counter for each grade up to the largest: memory and time of every query grow with it.
MAX_GRADE = 1_000_000
GRADE = f"a whole number in ASCII digits, at most {MAX_GRADE}"
_GRADE = re.compile(r"[+-]?[0-9]+(\.0*)?")


def read_judgements(path: Path, lines: Iterable[tuple[RowLocation, str]]) -> Qrels:
    """Reads the numbered lines of a file of qrels/: grade by document id by query id, in the file's order.

    Raises:
        DataError: if a line does not hold (named by file and line), or there is none.
    """
    qrels: Qrels = {}
    layout = "query-id<TAB>corpus-id<TAB>score"
    for at, row in lines:
        fields = row.split("\t")
        if len(fields) != 3:
            raise at.error(f"{len(fields)} fields", layout)
        if at.line > 1:
            add_judgement(qrels, fields[0], fields[1], fields[2], at)
        elif not is_header(fields):
            raise at.error("a judgement where the header belongs", f"the header {layout}")
    if not qrels:
        raise DataError(f"{path} holds no judgement; expected lines of {layout} under a header.")
    return qrels


def is_header(fields: list[str]) -> bool:
    """True if the fields of a first line are BEIR's header: three, and no digit in the third."""
    return len(fields) == 3 and not any(sign.isdigit() for sign in fields[2])


def add_judgement(qrels: Qrels, query: str, document: str, grade: str, at: RowLocation) -> None:
    """Adds the judgement of one line of a file.

    Raises:
        DataError: if an id is empty, the grade is not one, or not the one that the pair has already.
    """
    if not query or not document:
        raise at.error(f"an empty {'document' if query else 'query'} id", "an id")
    value = as_grade(grade)
    if value is None:
        raise at.error(f"the score {quoted(grade)}", GRADE)
    if qrels.setdefault(query, {}).setdefault(document, value) != value:
        pair = f"query {quoted(query)}, document {quoted(document)}"
        raise at.error(f"a second score for {pair}", "one score a pair")


def as_grade(field: str) -> int | None:
    """The grade that a field spells ("1", "-1", "1.0"), or None.

    Exponents are refused: trec_eval reads "1e1" as 1, Python as 10. So are digits that only Python reads
    ("1_0", full-width ones) and grades beyond MAX_GRADE.
    """
    digits = field.strip(" ")
    if not _GRADE.fullmatch(digits):
        return None
    digits = digits.partition(".")[0]
    if len(digits.lstrip("+-0")) > len(str(MAX_GRADE)):
        return None  # int() takes no more than 4300 digits
    value = int(digits)
    return value if abs(value) <= MAX_GRADE else None
