"""Runs and judgements in the files of TREC, which trec_eval and its kin read.

run     qid Q0 docid rank score tag     ASCII white space between the fields, a line for each document found
qrels   qid iter docid grade            likewise, a line for each judged pair

Files whose names end in .gz are unpacked.

Source: https://github.com/usnistgov/trec_eval (formats; what orders a run)
As in trec_eval, which is written in C, white space is that of ASCII: an id may hold a no-break space.
Unlike trec_eval: a score that is no number or NaN, and words after the tag (there is a space in an id), are
errors with file and line; a judgement may stand twice if it says the same.
"""

import re
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import numpy as np

from stzoo.data.beir import RetrievalDataset
from stzoo.data.qrels import Qrels, add_judgement, is_header, read_judgements
from stzoo.data.rows import read_lines
from stzoo.errors import DataError, quoted
from stzoo.utils.files import atomic_file

Run = Mapping[str, Mapping[str, float]]  # score by document id by query id

RUN_LAYOUT = "qid Q0 docid rank score tag"
QRELS_LAYOUT = "qid iter docid grade"
_SPACE = " \t\n\v\f\r"  # what isspace() of C takes for white space
_SPACES = re.compile(rf"[{_SPACE}]+")
_SCORE = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?inf(inity)?", re.IGNORECASE)


def read_run(path: str | Path, progress: bool | None = None) -> Run:
    """Reads a TREC run.

    As in trec_eval, the scores alone order a query's documents (`in_order`): ranks, the second field
    and the tag are passed over, and the lines may stand in any order.

    Args:
        path: of the file.
        progress: True for a progress bar on stderr after two seconds; None shows it on a terminal only.

    Returns:
        float32 scores by document id by query id, in the file's order.

    Raises:
        DataError: if a line does not hold (named by file and line), or there is none.
    """
    path = Path(path)
    run: dict[str, dict[str, float]] = {}
    for at, row in read_lines(path, progress):
        fields = _fields(row)
        if len(fields) != 6:
            raise at.error(f"{len(fields)} fields", RUN_LAYOUT)
        query, _, document, _, score, _ = fields
        if score.lower().lstrip("+-") == "nan":
            raise at.error("NaN as score", "a number, which has a place in the order")
        if not _SCORE.fullmatch(score):
            raise at.error(f"the score {quoted(score)}", f"a number ({RUN_LAYOUT})")
        found = run.setdefault(query, {})
        if document in found:
            pair = f"document {quoted(document)} for the second time for query {quoted(query)}"
            raise at.error(pair, "it once")
        found[document] = float(score)
    if not run:
        raise DataError(f"{path} holds no results; expected lines of {RUN_LAYOUT}.")
    with np.errstate(over="ignore"):  # beyond float32 is infinite, for trec_eval too
        for query, found in run.items():
            scores = np.fromiter(found.values(), np.float32, len(found)).tolist()
            run[query] = dict(zip(found, scores, strict=True))
    return run


def write_run(path: str | Path, run: Run, tag: str) -> None:
    """Writes a TREC run, ranks from 1; nine digits give each float32 score back exactly.

    Args:
        path: of the file.
        run: scores by document id by query id, best first; a query without results leaves no line.
        tag: one word that names the system.
    """
    with atomic_file(path) as draft, draft.open("w", encoding="utf-8") as file:
        for query, found in run.items():
            file.writelines(
                f"{query} Q0 {document} {rank} {score:.9g} {tag}\n"
                for rank, (document, score) in enumerate(found.items(), 1)
            )


def read_qrels(path: str | Path, progress: bool | None = None) -> Qrels:
    """Reads judgements: of TREC, or of BEIR (three columns, tab-separated), told by its header.

    Args:
        path: of the file.
        progress: True for a progress bar on stderr after two seconds; None shows it on a terminal only.

    Returns:
        grade by document id by query id, in the file's order.

    Raises:
        DataError: if a line does not hold (named by file and line), or there is none.
    """
    path = Path(path)
    qrels: Qrels = {}
    lines = read_lines(path, progress)
    for at, row in lines:
        if at.line == 1 and is_header(row.split("\t")):
            return read_judgements(path, lines)
        fields = _fields(row)
        if len(fields) != 4:
            expected = f"{QRELS_LAYOUT}, or BEIR's tab-separated query-id, corpus-id, score under a header"
            raise at.error(f"{len(fields)} fields", expected)
        query, _, document, grade = fields
        add_judgement(qrels, query, document, grade, at)
    if not qrels:
        raise DataError(f"{path} holds no judgement; expected lines of {QRELS_LAYOUT}.")
    return qrels


def _fields(line: str) -> list[str]:
    return _SPACES.split(line.strip(_SPACE))


def check_ids(judged: RetrievalDataset) -> None:
    """Refuses ids that a TREC run file cannot hold.

    Raises:
        DataError: if an id holds ASCII white space, which separates the fields of a run.
    """
    for name in chain(judged.queries, judged.corpus_ids):
        if _SPACES.search(name):
            raise DataError(
                f"{judged.name}: the id {quoted(name)} holds white space, which a TREC run file cannot "
                "carry. Rename it, or leave run files out (run_files=False, --no-run-files)."
            )


def in_order(found: Mapping[str, float]) -> list[str]:
    """One query's document ids in trec_eval's order: float32 score descending, then id descending."""
    scores = dict(zip(found, np.fromiter(found.values(), np.float32, len(found)).tolist(), strict=True))
    return sorted(found, key=lambda document: (scores[document], document), reverse=True)
