"""Judged sets: a corpus, queries and their relevance judgements, in BEIR's folder layout.

FOLDER/corpus.jsonl        {"_id", "title", "text"} a line (title and text may be missing or null)
FOLDER/queries.jsonl       {"_id", "text"} a line
FOLDER/qrels/SPLIT.tsv     query-id, corpus-id, score, tab-separated, under a header

Both jsonl files may be gzipped (.jsonl.gz). Where several tasks share one corpus, their judgements are
qrels/TASK.SPLIT.tsv, and FOLDER/TASK names one of them.

Source: https://github.com/beir-cellar/beir/wiki/Load-your-custom-dataset
Unlike beir's loader: duplicate ids, judgements of unknown ids and a missing header are errors with file and
line; number ids are read as their digits, and scores such as "1.0" as integers; texts are held as UTF-8.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from . import registry
from .errors import DataError, OutputError, nearest
from .files import check_replaceable, whole_folder
from .qrels import Qrels, read_judgements
from .texts import Texts, TextsWriter, numbered_lines, numbered_objects, once

# the files of a set in BEIR's layout, which `write_beir` replaces: regular expressions
BEIR_FILES = (r"(?:corpus|queries)\.jsonl(?:\.gz)?", r"qrels/[^/]+\.tsv(?:\.gz)?", "qrels/")


@dataclass(frozen=True)
class JudgedSet:
    """One split of a judged set, in memory.

    Attributes:
        name: the folder's name, or FOLDER-TASK, or as the caller named it.
        split: e.g. "test".
        corpus_ids: ids in file order, unique.
        passages: title and text joined by a space, in the order of corpus_ids; "" for an empty document.
        queries: text by id, judged queries only, in file order.
        qrels: grade by document id by query id; above 0 is relevant.
        folder: where it was read from.
        notes: what a reader of the scores should know of the data, e.g. counts that are not official.
        task: its queries get a model's prompt of this name, if it has one.
    """

    name: str
    split: str
    corpus_ids: Sequence[str]
    passages: Sequence[str]
    queries: dict[str, str]
    qrels: Qrels
    folder: Path
    notes: tuple[str, ...] = ()
    task: str = ""

    @property
    def shares_ids(self) -> bool:
        """True if query and document ids share a namespace: a document under the query's own id is no answer.

        Decided by the set's name alone: elsewhere equal ids mean nothing, as in Cranfield, where query 1 and
        document 1 are strangers.
        """
        return registry.shares_ids(self.name)

    @property
    def judgements(self) -> int:
        """Number of judged pairs, whatever their grade."""
        return sum(map(len, self.qrels.values()))

    @cached_property
    def corpus_fingerprint(self) -> str:
        """SHA-256 (64 hex digits) over document ids and passages, in order; the same for every split."""
        return digest_rows(zip(self.corpus_ids, self.passages, strict=True))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) over all that a score depends on: corpus, judged queries, judgements."""
        judged = ([query, text, sorted(self.qrels[query].items())] for query, text in self.queries.items())
        return digest_rows([self.corpus_fingerprint, *judged])


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
        name,
        find_jsonl(folder, "corpus"),
        find_jsonl(folder, "queries"),
        folder / "qrels" / f"{prefix}{split}.tsv",
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


def read_beir(
    folder: str | Path, split: str = "test", *, name: str | None = None, progress: bool | None = None
) -> JudgedSet:
    """Reads one split of a BEIR folder, or of one task in it (FOLDER/TASK).

    Memory grows to little more than the bytes of the corpus's ids and texts, and of what the split judges.

    Args:
        folder: as the head of this module describes it.
        split: e.g. "test".
        name: of the set; the folder's own if left out.
        progress: True for a progress bar on stderr after two seconds; None shows it on a terminal only.

    Raises:
        DataError: if the folder or the split is not there, or a line does not hold (named by file and line).
    """
    files = find_split(folder, split)
    name = files.name if name is None else name
    judgements = read_judgements(files.qrels, numbered_lines(files.qrels, progress))
    queries = _read_queries(files.queries, judgements, progress)
    if unknown := set(judgements).difference(queries):
        raise _unknown(files.qrels, 0, unknown, "query", "the queries")
    corpus_ids, passages, notes = read_corpus(files.corpus, progress)
    if unknown := {document for grades in judgements.values() for document in grades}.difference(corpus_ids):
        if len(unknown) > registry.missing(name):
            raise _unknown(files.qrels, 1, unknown, "document", "the corpus")
        notes += (f"{len(unknown)} judged documents are not in the corpus (known of {name}): never found",)
    return JudgedSet(
        name=name,
        split=split,
        corpus_ids=corpus_ids,
        passages=passages,
        queries=queries,
        qrels={query: judgements[query] for query in queries},
        folder=files.corpus.parent,
        notes=notes,
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
    check_replaceable(folder, BEIR_FILES)
    with whole_folder(folder, replaces=BEIR_FILES) as draft:
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


def names_beir(data: str | Path) -> bool:
    """True if this is a BEIR folder or names a task of one (FOLDER/TASK); a file inside one is none."""
    path = Path(data).expanduser()
    return is_beir(path) or (not path.exists() and is_beir(path.parent))


def read_corpus(path: Path, progress: bool | None) -> tuple[Texts, Texts, tuple[str, ...]]:
    """Reads a corpus.jsonl(.gz): ids, passages (title and text) and notes for the readers of scores.

    Inside `stzoo.texts.each_file_once` it is read once.

    Raises:
        DataError: if a line does not hold, an id stands twice, or there is no document.
    """
    return once(path, lambda: _read_corpus(path, progress))


def _read_corpus(path: Path, progress: bool | None) -> tuple[Texts, Texts, tuple[str, ...]]:
    ids, passages = TextsWriter(), TextsWriter()
    titled, untitled, first = False, 0, 0
    for line, row in numbered_objects(path, progress):
        document = _id(row, path, line)
        if "title" not in row and "text" not in row:
            raise DataError.at(path, line, f"document {document!r} without a text", '"text" or "title"')
        title, text = (as_text(row.get(key), key, path, line) for key in ("title", "text"))
        if row.get("title") is None:
            untitled, first = untitled + 1, first or line
        titled = titled or bool(title)
        ids.append(document)
        passages.append(f"{title} {text}".strip())
    held = ids.finish()
    if not held:
        raise DataError(f"{path} holds no document; expected one JSON object a line.")
    _refuse_repeats(path, "document", held)
    note = f"{untitled} of {len(held)} documents have no title, others do (the first: {path.name}:{first})"
    return held, passages.finish(), (note,) if titled and untitled else ()


def _read_queries(path: Path, judged: Qrels, progress: bool | None) -> dict[str, str]:
    """Texts of the judged queries by id, in the file's order; the others are only checked."""
    ids, texts = TextsWriter(), TextsWriter()
    for line, row in numbered_objects(path, progress):
        query = _id(row, path, line)
        if row.get("text") is None:
            raise DataError.at(path, line, f"query {query!r} without a text", 'a "text"')
        ids.append(query)
        texts.append(as_text(row["text"], "text", path, line))
    held = ids.finish()
    _refuse_repeats(path, "query", held)
    return {query: text for query, text in zip(held, texts.finish(), strict=True) if query in judged}


def _refuse_repeats(path: Path, kind: str, ids: Texts) -> None:
    place = ids.first_repeat()
    if place is not None:
        line, _ = next(islice(numbered_lines(path), place, None))
        raise DataError.at(path, line, f"{kind} id {ids[place]!r} for the second time", "unique ids")


def _unknown(path: Path, column: int, names: set[str], kind: str, where: str) -> DataError:
    """The error that names the first line of qrels with one of these names in a column."""
    for line, row in numbered_lines(path):
        name = row.split("\t")[column]
        if line > 1 and name in names:
            return DataError.at(
                path, line, f"the unknown {kind} {name!r}", f"an id of {where} beside {path.parent}"
            )
    return DataError(f"{path} was changed while it was read. Start again.")


def find_jsonl(folder: Path, stem: str) -> Path:
    """FOLDER/STEM.jsonl, or its .gz.

    Raises:
        DataError: if neither is there.
    """
    for end in (".jsonl", ".jsonl.gz"):
        if (folder / (stem + end)).is_file():
            return folder / (stem + end)
    raise DataError(f"{folder} has no {stem}.jsonl (or .jsonl.gz); expected a folder in BEIR's layout.")


def _id(row: dict[str, Any], path: Path, line: int) -> str:
    value = row.get("_id")
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        found = f"the _id {value!r}" if "_id" in row else "no _id"
        raise DataError.at(path, line, found, 'an "_id" that is text or a whole number')
    return as_text(str(value), "_id", path, line)


def as_text(value: object, key: str, path: Path, line: int) -> str:
    """A field of a row as text; "" for null.

    Raises:
        DataError: if it is something else, or no whole characters; it names file and line.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError.at(path, line, f"a {key} of type {type(value).__name__}", "text or null")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError.at(path, line, f"half of a surrogate pair in the {key}", "whole characters") from None
    return value


def _write_rows(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def digest_rows(rows: Iterable[Any]) -> str:
    """SHA-256 (64 hex digits) over rows of JSON values, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()
