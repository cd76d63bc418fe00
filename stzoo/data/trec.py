"""Runs and judgements in TREC's formats, which trec_eval and similar tools read.

run     qid Q0 docid rank score tag     one line per retrieved document, fields separated by ASCII white space
qrels   qid iter docid grade            one line per judged pair, fields separated likewise

Files whose names end in .gz are decompressed.

Source: https://github.com/usnistgov/trec_eval (formats; what orders a run)
As in trec_eval, which is written in C, only ASCII white space separates fields: an id may contain a no-break
space. Unlike trec_eval: a score that is NaN or not a number, and words after the tag (a sign of a space in an
id), are errors with file and line; a judgement may be repeated with the same grade.
"""

import re
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from stzoo.data.beir import RetrievalDataset
from stzoo.data.qrels import Qrels, add_judgement, is_header, read_judgements
from stzoo.data.rows import read_lines
from stzoo.errors import DataError, quoted
from stzoo.utils.files import atomic_file
from stzoo.utils.messages import counted

Run = Mapping[str, Mapping[str, float]]  # score by document id by query id; `ranking.rank` orders it

RUN_LAYOUT = "qid Q0 docid rank score tag"
QRELS_LAYOUT = "qid iter docid grade"
_SPACE = " \t\n\v\f\r"  # white space according to C's isspace()
_SPACES = re.compile(rf"[{_SPACE}]+")
_SCORE = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?inf(inity)?", re.IGNORECASE)


def read_run(path: str | Path, progress: bool | None = None) -> Run:
    """Reads a TREC run.

    As in trec_eval, only the scores order a query's documents (see `stzoo.data.ranking.rank`): ranks, the
    second field and the tag are ignored, and the lines may be in any order.

    Args:
        path: Path of the file.
        progress: True for a progress bar on stderr after two seconds; None shows it on a terminal only.

    Returns:
        Scores by document id by query id, in file order.

    Raises:
        DataError: If a line is invalid (named by file and line), or there is none.
    """
    path = Path(path)
    run: dict[str, dict[str, float]] = {}
    for at, row in read_lines(path, progress):
        fields = _fields(row)
        if len(fields) != 6:
            raise at.error(counted(len(fields), "field"), RUN_LAYOUT)
        query, _, document, _, score, _ = fields
        if score.lower().lstrip("+-") == "nan":
            raise at.error("NaN as score", "a number, so that documents can be ordered")
        if not _SCORE.fullmatch(score):
            raise at.error(f"the score {quoted(score)}", f"a number ({RUN_LAYOUT})")
        found = run.setdefault(query, {})
        if document in found:
            pair = f"document {quoted(document)} for the second time for query {quoted(query)}"
            raise at.error(pair, "each document once per query")
        found[document] = float(score)
    if not run:
        raise DataError(f"{path} has no results; expected lines of {RUN_LAYOUT}.")
    return run


def write_run(path: str | Path, run: Run, tag: str) -> None:
    """Writes a TREC run with ranks from 1 and scores in nine digits, which preserve each float32 exactly.

    Args:
        path: Path of the file.
        run: Score by document id by query id, best first; a query without results has no line.
        tag: Name of the system, one word.
    """
    with atomic_file(path) as draft, draft.open("w", encoding="utf-8") as file:
        for query, found in run.items():
            file.writelines(
                f"{query} Q0 {document} {rank} {score:.9g} {tag}\n"
                for rank, (document, score) in enumerate(found.items(), 1)
            )


def read_qrels(path: str | Path, progress: bool | None = None) -> Qrels:
    """Reads judgements in TREC's format, or in BEIR's, which is recognised by its header.

    Args:
        path: Path of the file.
        progress: True for a progress bar on stderr after two seconds; None shows it on a terminal only.

    Returns:
        Grade by document id by query id, in file order.

    Raises:
        DataError: If a line is invalid (named by file and line), or there is none.
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
            raise at.error(counted(len(fields), "field"), expected)
        query, _, document, grade = fields
        add_judgement(qrels, query, document, grade, at)
    if not qrels:
        raise DataError(f"{path} has no judgement; expected lines of {QRELS_LAYOUT}.")
    return qrels


def _fields(line: str) -> list[str]:
    return _SPACES.split(line.strip(_SPACE))


def check_ids(judged: RetrievalDataset) -> None:
    """Refuses ids that are not possible in a TREC run file.

    Raises:
        DataError: If an id contains ASCII white space, which separates the fields of a run.
    """
    for name in chain(judged.queries, judged.corpus_ids):
        if _SPACES.search(name):
            raise DataError(
                f"{judged.name}: the id {quoted(name)} contains white space, which a TREC run file cannot "
                "represent. Rename it, or write no run files (run_files=False, --no-run-files)."
            )
