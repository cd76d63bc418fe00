"""Judged sets: a corpus, queries and their relevance judgements, in BEIR's folder layout.

FOLDER/corpus.jsonl        {"_id", "title", "text"} a line (title and text may be missing or null)
FOLDER/queries.jsonl       {"_id", "text"} a line
FOLDER/qrels/SPLIT.tsv     query-id, corpus-id, score, tab-separated, under a header

Both jsonl files may be gzipped (.jsonl.gz). Where several tasks share one corpus, their judgements are
qrels/TASK.SPLIT.tsv, and FOLDER/TASK names one of them.

Source: https://github.com/beir-cellar/beir/wiki/Load-your-custom-dataset
Unlike beir's loader: duplicate ids, judgements of unknown ids and a missing header are errors with file and
line; number ids are read as their digits, and scores such as "1.0" as integers.
"""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from .errors import DataError, OutputError, nearest
from .files import whole_folder

Qrels = dict[str, dict[str, int]]

# Where a query's own text lies in the corpus under the query's id, so that it would find itself.
SELF_HIT_SETS = frozenset({"arguana", "quora", "quoraretrieval", "nanoarguana", "nanoquoraretrieval"})


@dataclass(frozen=True)
class JudgedSet:
    """One split of a judged set, in memory.

    Attributes:
        name: the folder's name, or FOLDER-TASK.
        split: e.g. "test".
        corpus_ids: ids in file order, unique.
        passages: title and text joined by a space, in the order of corpus_ids; "" for an empty document.
        queries: text by id, judged queries only, in file order.
        qrels: grade by document id by query id; above 0 is relevant.
        folder: where it was read from.
        notes: what a reader of the scores should know of the data, e.g. counts that are not official.
    """

    name: str
    split: str
    corpus_ids: list[str]
    passages: list[str]
    queries: dict[str, str]
    qrels: Qrels
    folder: Path
    notes: tuple[str, ...] = ()

    @property
    def shares_ids(self) -> bool:
        """True if query and document ids share a namespace: a document under the query's own id is no answer.

        Decided by the set's name alone (SELF_HIT_SETS): elsewhere equal ids mean nothing, as in Cranfield,
        where query 1 and document 1 are strangers.
        """
        return re.sub(r"[^a-z]", "", self.name.lower()) in SELF_HIT_SETS

    @property
    def judgements(self) -> int:
        """Number of judged pairs, whatever their grade."""
        return sum(map(len, self.qrels.values()))

    @cached_property
    def corpus_fingerprint(self) -> str:
        """SHA-256 (64 hex digits) over document ids and passages, in order; the same for every split."""
        return _digest(zip(self.corpus_ids, self.passages, strict=True))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) over all that a score depends on: corpus, judged queries, judgements."""
        judged = ([query, text, sorted(self.qrels[query].items())] for query, text in self.queries.items())
        return _digest([self.corpus_fingerprint, *judged])


class SplitFiles(NamedTuple):
    """Where one split of a judged set lies."""

    name: str
    corpus: Path
    queries: Path
    qrels: Path


def find_split(folder: str | Path, split: str = "test") -> SplitFiles:
    """Finds the files of one split of a BEIR folder, or of one task in it (FOLDER/TASK); reads none.

    Raises:
        DataError: if the folder or the split is not there; it names the splits that are.
    """
    folder, name, prefix = Path(folder), Path(folder).name, ""
    if not folder.is_dir() and is_beir(folder.parent):
        prefix = f"{name}."
        folder, name = folder.parent, f"{folder.parent.name}-{name}"
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not there; expected a BEIR folder (corpus.jsonl, queries.jsonl, qrels/)."
        )
    files = SplitFiles(
        name, _jsonl(folder, "corpus"), _jsonl(folder, "queries"), folder / "qrels" / f"{prefix}{split}.tsv"
    )
    if not files.qrels.is_file():
        known = sorted(file.name[len(prefix) : -4] for file in files.qrels.parent.glob(f"{prefix}*.tsv"))
        near = nearest(split, known)
        raise DataError(
            f"{folder} has no split {split!r} (qrels/{files.qrels.name})"
            + (f"; did you mean {near!r}?" if near else ".")
            + f" Splits there: {', '.join(known) if known else 'none'}."
        )
    return files


def read_beir(folder: str | Path, split: str = "test") -> JudgedSet:
    """Reads one split of a BEIR folder, or of one task in it (FOLDER/TASK).

    Raises:
        DataError: if the folder or the split is not there, or a line does not hold (named by file and line).
    """
    name, corpus_file, queries_file, qrels_file = find_split(folder, split)
    corpus: dict[str, str] = {}
    for line, row in _rows(corpus_file):
        document = _id(row, corpus_file, line)
        if document in corpus:
            raise DataError.at(
                corpus_file, line, f"document id {document!r} for the second time", "unique ids"
            )
        title, text = (_text(row, key, corpus_file, line) for key in ("title", "text"))
        corpus[document] = f"{title} {text}".strip()
    if not corpus:
        raise DataError(f"{corpus_file} holds no document; expected one JSON object a line.")

    queries: dict[str, str] = {}
    for line, row in _rows(queries_file):
        query = _id(row, queries_file, line)
        if query in queries:
            raise DataError.at(queries_file, line, f"query id {query!r} for the second time", "unique ids")
        if row.get("text") is None:
            raise DataError.at(queries_file, line, f"query {query!r} without a text", 'a "text"')
        queries[query] = _text(row, "text", queries_file, line)

    qrels = _read_qrels(qrels_file, queries, corpus)
    return JudgedSet(
        name=name,
        split=split,
        corpus_ids=list(corpus),
        passages=list(corpus.values()),
        queries={query: text for query, text in queries.items() if query in qrels},
        qrels={query: qrels[query] for query in queries if query in qrels},
        folder=corpus_file.parent,
    )


def write_beir(
    folder: str | Path,
    corpus: Iterable[Mapping[str, str]],
    queries: Mapping[str, str],
    qrels_by_split: Mapping[str, Mapping[str, Mapping[str, int]]],
) -> Path:
    """Writes a judged set in BEIR's layout, whole or not at all, and returns the folder.

    Args:
        folder: a new or empty folder, or a BEIR folder that is to be replaced.
        corpus: rows with "_id", "title" (optional) and "text".
        queries: text by id.
        qrels_by_split: grade by document id by query id by split.

    Raises:
        OutputError: if the folder holds anything but a BEIR set, or cannot be written.
        DataError: if a judged id holds a tab or a line break, which a .tsv cannot carry.
    """
    folder = Path(folder)
    if folder.exists() and not is_beir(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} holds something other than a BEIR set; choose a new folder.")
    with whole_folder(folder) as draft:
        _write_rows(
            draft / "corpus.jsonl",
            ({"_id": row["_id"], "title": row.get("title", ""), "text": row["text"]} for row in corpus),
        )
        _write_rows(
            draft / "queries.jsonl", ({"_id": query, "text": text} for query, text in queries.items())
        )
        (draft / "qrels").mkdir()
        for split, qrels in qrels_by_split.items():
            lines = ["query-id\tcorpus-id\tscore"]
            for query, grades in qrels.items():
                for document, grade in grades.items():
                    if any(mark in query + document for mark in "\t\r\n"):
                        raise DataError(
                            f"the ids {query!r}, {document!r} hold a tab or line break, unfit for qrels."
                        )
                    lines.append(f"{query}\t{document}\t{grade}")
            (draft / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def is_beir(folder: Path) -> bool:
    """True if the folder looks like BEIR's layout: a corpus and qrels/."""
    return (
        any((folder / f"corpus.jsonl{end}").is_file() for end in ("", ".gz")) and (folder / "qrels").is_dir()
    )


def _read_qrels(path: Path, queries: Mapping[str, str], corpus: Mapping[str, str]) -> Qrels:
    qrels: Qrels = {}
    layout = "query-id<TAB>corpus-id<TAB>score"
    for line, row in _lines(path):
        fields = row.split("\t")
        if len(fields) != 3:
            raise DataError.at(path, line, f"{len(fields)} fields", layout)
        query, document, grade = fields
        if line == 1:
            if _grade(grade) is not None:
                raise DataError.at(path, line, "a judgement where the header belongs", f"the header {layout}")
            continue
        value = _grade(grade)
        if value is None:
            raise DataError.at(path, line, f"the score {grade!r}", "a whole number")
        if query not in queries:
            raise DataError.at(
                path, line, f"the unknown query {query!r}", f"an id of the queries beside {path.parent}"
            )
        if document not in corpus:
            raise DataError.at(
                path, line, f"the unknown document {document!r}", f"an id of the corpus beside {path.parent}"
            )
        if qrels.setdefault(query, {}).setdefault(document, value) != value:
            raise DataError.at(
                path, line, f"a second score for query {query!r}, document {document!r}", "one score a pair"
            )
    if not qrels:
        raise DataError(f"{path} holds no judgement; expected lines of {layout} under a header.")
    return qrels


def _grade(field: str) -> int | None:
    try:
        value = float(field)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None


def _jsonl(folder: Path, stem: str) -> Path:
    for end in (".jsonl", ".jsonl.gz"):
        if (folder / (stem + end)).is_file():
            return folder / (stem + end)
    raise DataError(f"{folder} has no {stem}.jsonl (or .jsonl.gz); expected a folder in BEIR's layout.")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank."""
    line = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for line, raw in enumerate(file, 1):
                text = raw.decode("utf-8-sig" if line == 1 else "utf-8").rstrip("\r\n")
                if text.strip():
                    yield line, text
    except UnicodeDecodeError:
        raise DataError.at(path, line, "bytes that are not UTF-8", "UTF-8 text") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read after line {line}: {error}.") from error


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in _lines(path):
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:  # brackets without end
            raise DataError.at(path, line, f"no JSON ({error})", "one JSON object a line") from None
        if not isinstance(row, dict):
            raise DataError.at(path, line, f"a JSON {type(row).__name__}", "a JSON object")
        yield line, row


def _id(row: dict[str, Any], path: Path, line: int) -> str:
    value = row.get("_id")
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        found = f"the _id {value!r}" if "_id" in row else "no _id"
        raise DataError.at(path, line, found, 'an "_id" that is text or a whole number')
    return _text(row | {"_id": str(value)}, "_id", path, line)


def _text(row: dict[str, Any], key: str, path: Path, line: int) -> str:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise DataError.at(path, line, f"a {key} of type {type(value).__name__}", "text or null")
    try:
        (value or "").encode()
    except UnicodeEncodeError:
        raise DataError.at(path, line, f"half of a surrogate pair in the {key}", "whole characters") from None
    return value or ""


def _write_rows(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _digest(rows: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()
