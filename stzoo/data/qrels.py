"""Relevance judgements, and BEIR's format: query-id, corpus-id, score, tab-separated, under a header."""

import re
from collections.abc import Iterable
from pathlib import Path

from stzoo.data.row_location import RowLocation
from stzoo.errors import DataError, quoted
from stzoo.utils.messages import counted

Qrels = dict[str, dict[str, int]]  # grade by document id by query id; above 0 is relevant

# trec_eval keeps a counter for each grade, so its memory and time grow with the largest one.
MAX_GRADE = 1_000_000
GRADE = f"a whole number in ASCII digits, at most {MAX_GRADE}"
_GRADE = re.compile(r"[+-]?[0-9]+(\.0*)?")


def read_judgements(path: Path, lines: Iterable[tuple[RowLocation, str]]) -> Qrels:
    """Parses the lines of a file in qrels/.

    Args:
        path: Path of the file, for messages.
        lines: The lines with their locations, see `stzoo.data.rows.read_lines`.

    Returns:
        Grade by document id by query id, in file order.

    Raises:
        DataError: If a line is invalid (named by file and line), or there is none.
    """
    qrels: Qrels = {}
    layout = "query-id<TAB>corpus-id<TAB>score"
    for at, row in lines:
        fields = row.split("\t")
        if len(fields) != 3:
            raise at.error(counted(len(fields), "field"), layout)
        if at.line > 1:
            add_judgement(qrels, fields[0], fields[1], fields[2], at)
        elif not is_header(fields):
            raise at.error("a judgement in place of the header", f"the header {layout}")
    if not qrels:
        raise DataError(f"{path} has no judgement; expected lines of {layout} under a header.")
    return qrels


def is_header(fields: list[str]) -> bool:
    """True if the first line is BEIR's header: three fields, without a digit in the third."""
    return len(fields) == 3 and not any(sign.isdigit() for sign in fields[2])


def add_judgement(qrels: Qrels, query: str, document: str, grade: str, at: RowLocation) -> None:
    """Adds the judgement of one line of a file.

    Raises:
        DataError: If an id is empty, the grade is invalid, or the pair already has another grade.
    """
    if not query or not document:
        raise at.error(f"an empty {'document' if query else 'query'} id", "an id")
    value = as_grade(grade)
    if value is None:
        raise at.error(f"the score {quoted(grade)}", GRADE)
    if qrels.setdefault(query, {}).setdefault(document, value) != value:
        pair = f"query {quoted(query)}, document {quoted(document)}"
        raise at.error(f"a second score for {pair}", "one score per pair")


def as_grade(field: str) -> int | None:
    """Parses a grade ("1", "-1", "1.0"); None if it is invalid.

    Exponents are invalid, since trec_eval reads "1e1" as 1 and Python as 10. So are digits that only Python
    reads ("1_0", full-width digits) and grades beyond MAX_GRADE.
    """
    digits = field.strip(" ")
    if not _GRADE.fullmatch(digits):
        return None
    digits = digits.partition(".")[0]
    if len(digits.lstrip("+-0")) > len(str(MAX_GRADE)):
        return None  # int() refuses more than 4300 digits
    value = int(digits)
    return value if abs(value) <= MAX_GRADE else None
