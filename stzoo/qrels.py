"""Relevance judgements, and how BEIR files them: query-id, corpus-id, score under a header, tab-separated."""

from collections.abc import Iterable
from pathlib import Path

from .errors import DataError

Qrels = dict[str, dict[str, int]]  # grade by document id by query id; above 0 is relevant


def read_judgements(path: Path, lines: Iterable[tuple[int, str]]) -> Qrels:
    """Reads the numbered lines of a file of qrels/: grade by document id by query id, in the file's order.

    Raises:
        DataError: if a line does not hold (named by file and line), or there is none.
    """
    qrels: Qrels = {}
    layout = "query-id<TAB>corpus-id<TAB>score"
    for line, row in lines:
        fields = row.split("\t")
        if len(fields) != 3:
            raise DataError.at(path, line, f"{len(fields)} fields", layout)
        query, document, grade = fields
        if line > 1:
            add_judgement(qrels, query, document, grade, path, line)
        elif as_grade(grade) is not None:
            raise DataError.at(path, line, "a judgement where the header belongs", f"the header {layout}")
    if not qrels:
        raise DataError(f"{path} holds no judgement; expected lines of {layout} under a header.")
    return qrels


def add_judgement(qrels: Qrels, query: str, document: str, grade: str, path: Path, line: int) -> None:
    """Adds the judgement of one line of a file.

    Raises:
        DataError: if the grade is no whole number, or not the one that the pair has already.
    """
    value = as_grade(grade)
    if value is None:
        raise DataError.at(path, line, f"the score {grade!r}", "a whole number")
    if qrels.setdefault(query, {}).setdefault(document, value) != value:
        raise DataError.at(
            path, line, f"a second score for query {query!r}, document {document!r}", "one score a pair"
        )


def as_grade(field: str) -> int | None:
    """The whole number that a field spells ("1", "1.0"), or None."""
    try:
        value = float(field)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None
