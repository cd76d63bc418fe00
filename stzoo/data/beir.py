"""Retrieval data sets (a corpus, queries and their relevance judgements) in BEIR's folder layout.

FOLDER/corpus.jsonl        {"_id", "title", "text"} per line (title and text may be missing or null; "id" may
                           stand for "_id")
FOLDER/queries.jsonl       {"_id", "text"} per line
FOLDER/qrels/SPLIT.tsv     query-id, corpus-id, score, tab-separated, under a header

All files may be gzipped (.jsonl.gz, .tsv.gz). If several tasks share one corpus, their judgements are in
qrels/TASK.SPLIT.tsv, and FOLDER/TASK names one of them.

Source: https://github.com/beir-cellar/beir/wiki/Load-your-custom-dataset
Unlike beir's loader: duplicate ids, judgements of unknown ids and a missing header are errors with file and
line; numeric ids are read as their digits, and scores such as "1.0" as integers; texts are kept as UTF-8.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Self

from stzoo.data import registry
from stzoo.data.beir_layout import find_split, is_beir
from stzoo.data.missing_judged import check_missing_judged, settle_documents, settle_queries
from stzoo.data.qrels import Qrels, read_judgements
from stzoo.data.read_once import once
from stzoo.data.row_location import RowLocation
from stzoo.data.rows import read_jsonl, read_lines
from stzoo.data.texts import Texts, TextsWriter
from stzoo.errors import DataError, OutputError, quoted
from stzoo.utils.files import atomic_folder, check_replaceable

# Regular expressions for the files that `write_beir` replaces.
BEIR_FILES = (r"(?:corpus|queries)\.jsonl(?:\.gz)?", r"qrels/[^/]+\.tsv(?:\.gz)?", "qrels/")


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Passages in memory: what data sets for retrieval and for training have in common.

    Attributes:
        name: Name of the folder or file, or FOLDER-TASK, or the name that the caller gave.
        folder: Path of the folder that it was read from.
        corpus_ids: N unique ids.
        passages: N passages in the order of corpus_ids: title and text joined by a space; "" for an empty
            document.
        notes: Sentences that users of the data should know, e.g. counts that are not official.
        columns: The roles of the columns, for each layout of the training files that it was read from; empty
            for BEIR folders.
    """

    name: str
    folder: Path
    corpus_ids: Sequence[str]
    passages: Sequence[str]
    notes: tuple[str, ...] = ()
    columns: tuple[dict[str, Any], ...] = ()

    def attributes(self, kind: type["Collection"]) -> dict[str, Any]:
        """The attributes that `kind`, a base class, declares, by name."""
        return {field.name: getattr(self, field.name) for field in fields(kind)}


@dataclass(frozen=True, kw_only=True)
class RetrievalDataset(Collection):
    """One split of a retrieval data set: a whole corpus in file order, and its judgements by id, if any.

    Attributes:
        split: Name of the split, e.g. "test".
        queries: Text by id of the judged queries, in file order.
        qrels: Grade by document id by query id; above 0 is relevant.
        task: Name of the model's prompt for the queries; without such a prompt it has no effect.
    """

    split: str = ""
    queries: dict[str, str] = field(default_factory=dict)
    qrels: Qrels = field(default_factory=dict)
    task: str = ""

    @cached_property
    def shares_ids(self) -> bool:
        """True if query and document ids share a namespace, so that equal ids are no answer.

        The registry knows this for some sets by name. For others it is true if at least half of the queries
        are in the corpus (`queries_in_corpus`). Equal ids alone are not enough: in Cranfield, query 1 and
        document 1 are unrelated. A corpus without queries has no such namespace.
        """
        in_corpus = registry.shares_ids(self.name) or 2 * self.queries_in_corpus >= len(self.queries)
        return bool(self.queries) and in_corpus

    @cached_property
    def queries_in_corpus(self) -> int:
        """Number of queries whose text is also the document with their id, which is not judged relevant."""
        places = (place for place, document in enumerate(self.corpus_ids) if document in self.queries)
        return sum(self._is_query(self.corpus_ids[place], self.passages[place]) for place in places)

    def _is_query(self, name: str, passage: str) -> bool:
        query = " ".join(self.queries[name].split())
        relevant = self.qrels.get(name, {}).get(name, 0) > 0
        document = " ".join(passage.split())  # a title may be in front of the query's own text
        return not relevant and document.endswith(query) and 2 * len(query) > len(document)

    def part(self, queries: Iterable[str]) -> Self:
        """The same corpus with the judgements of some queries, by id, in their present order."""
        kept = frozenset(queries)
        return replace(
            self,
            queries={query: text for query, text in self.queries.items() if query in kept},
            qrels={query: grades for query, grades in self.qrels.items() if query in kept},
        )

    @property
    def relevant(self) -> dict[str, list[str]]:
        """Ids of the relevant documents of each query, which the corpus may lack."""
        return {
            query: [document for document, grade in self.qrels[query].items() if grade > 0]
            for query in self.queries
        }

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


def read_beir(
    folder: str | Path,
    split: str = "test",
    *,
    name: str | None = None,
    missing_judged: str = "error",
    progress: bool | None = None,
) -> RetrievalDataset:
    """Reads one split of a BEIR folder, or of one task in it (FOLDER/TASK).

    Memory grows with the split's judgements only, as ids and texts of a large corpus are in a temporary file;
    see `stzoo.data.texts`.

    Args:
        folder: Path to the BEIR folder, or to a task in it; see the head of this module.
        split: Name of the split, e.g. "test".
        name: Name of the data set; by default the folder's name.
        missing_judged: What to do about judged documents that the corpus lacks and judged queries that
            queries.jsonl lacks: "error" refuses them; "drop" leaves their judgements out; "not-found" keeps
            the judgements of documents, which count as not found, and refuses missing queries. The last two
            add a note. Missing documents that the registry knows of always count as not found.
        progress: True for a progress bar on stderr after two seconds; None shows it on a terminal only.

    Raises:
        DataError: If the folder or the split does not exist, or a line is invalid (named by file and line).
        OutputError: If there is no space for the temporary file of a large corpus.
        RecipeError: If missing_judged has another value.
    """
    check_missing_judged(missing_judged)
    files = find_split(folder, split)
    name = files.name if name is None else name
    judgements = read_judgements(files.qrels, read_lines(files.qrels, progress))
    queries = _read_queries(files.queries, judgements, progress)
    of_queries = settle_queries(judgements, queries, files.qrels, missing_judged)
    corpus_ids, passages, notes = read_corpus(files.corpus, progress)
    notes += of_queries
    notes += settle_documents(judgements, corpus_ids, files.qrels, missing_judged, name)
    judged = RetrievalDataset(
        name=name,
        split=split,
        corpus_ids=corpus_ids,
        passages=passages,
        queries={query: text for query, text in queries.items() if query in judgements},
        qrels={query: judgements[query] for query in queries if query in judgements},
        folder=files.corpus.parent,
        notes=notes,
    )
    return replace(judged, notes=(*judged.notes, *notes_on_queries(judged)))


def notes_on_queries(judged: RetrievalDataset) -> Iterator[str]:
    """Notes for readers of scores: on queries without text or answer, and on queries that are documents."""
    if empty := sum(not text.strip() for text in judged.queries.values()):
        yield f"{empty} of {len(judged.queries)} judged queries have an empty text; they count like others"
    if idle := sum(max(grades.values()) < 1 for grades in judged.qrels.values()):
        yield (
            f"{idle} of {len(judged.qrels)} judged queries have no relevant document (no grade above 0); "
            "they count and score 0, as in trec_eval"
        )
    if not registry.shares_ids(judged.name) and judged.queries_in_corpus:
        yield (
            f"{judged.queries_in_corpus} of {len(judged.queries)} queries are themselves in the corpus, "
            "under the same id; "
            + (
                "a document under the query's own id is not counted, as in ArguAna and Quora"
                if judged.shares_ids
                else "these documents are counted as found"
            )
        )


def check_beir_or_empty(folder: Path) -> None:
    """Refuses to replace what is not a BEIR data set.

    Raises:
        OutputError: If the folder has other content, or is a file.
    """
    if folder.exists() and not is_beir(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} has content that is not a BEIR data set; choose a new folder.")
    check_replaceable(folder, BEIR_FILES)


def write_beir(
    folder: str | Path,
    corpus: Iterable[Mapping[str, str]] | Path,
    queries: Mapping[str, str],
    qrels_by_split: Mapping[str, Mapping[str, Mapping[str, int]]],
) -> Path:
    """Writes a data set in BEIR's layout, completely or not at all, and returns the folder.

    Args:
        folder: Path of a new or empty folder, or of a BEIR folder to replace.
        corpus: Rows with "_id", "title" (optional) and "text"; or the path of a corpus.jsonl(.gz) to
            copy.
        queries: Text by query id.
        qrels_by_split: Grade by document id by query id by split.

    Raises:
        OutputError: If the folder has other content, or cannot be written.
        DataError: If a judged id has a tab or a line break, which are not possible in a .tsv file.
    """
    folder = Path(folder)
    check_beir_or_empty(folder)
    with atomic_folder(folder, replaces=BEIR_FILES) as draft:
        if isinstance(corpus, Path):
            shutil.copyfile(corpus, draft / corpus.name)
        else:
            _write_rows(
                draft / "corpus.jsonl",
                ({"_id": row["_id"], "title": row.get("title", ""), "text": row["text"]} for row in corpus),
            )
        write_queries(draft / "queries.jsonl", queries)
        (draft / "qrels").mkdir()
        for split, qrels in qrels_by_split.items():
            write_qrels(draft / "qrels" / f"{split}.tsv", qrels)
    return folder


def write_queries(path: Path, queries: Mapping[str, str]) -> None:
    """Writes a queries.jsonl from texts by query id."""
    _write_rows(path, ({"_id": query, "text": text} for query, text in queries.items()))


def write_qrels(path: Path, qrels: Mapping[str, Mapping[str, int]]) -> None:
    """Writes a file of qrels/ from grades by document id by query id.

    Raises:
        DataError: If an id has a tab or a line break, which are not possible in a .tsv file.
    """
    lines = ["query-id\tcorpus-id\tscore"]
    for query, grades in qrels.items():
        for document, grade in grades.items():
            if any(mark in query + document for mark in "\t\r\n"):
                raise DataError(
                    f"the ids {quoted(query)}, {quoted(document)} contain a tab or line break, which "
                    "qrels/*.tsv cannot represent; change the ids."
                )
            lines.append(f"{query}\t{document}\t{grade}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_corpus(path: Path, progress: bool | None) -> tuple[Texts, Texts, tuple[str, ...]]:
    """Reads a corpus.jsonl(.gz): ids, passages (title and text) and notes for readers of scores.

    Inside `stzoo.data.read_once.each_file_once` it is read once.

    Raises:
        DataError: If a line is invalid, an id is repeated, or there is no document.
        OutputError: If there is no space for the temporary file of a large corpus.
    """
    return once(path, lambda: _read_corpus(path, progress))


def _read_corpus(path: Path, progress: bool | None) -> tuple[Texts, Texts, tuple[str, ...]]:
    ids, passages = TextsWriter(), TextsWriter()
    titled, untitled, first = False, 0, 0
    for at, row in read_jsonl(path, progress):
        document = _id(row, at)
        if "title" not in row and "text" not in row:
            raise at.error(f"document {quoted(document)} without a text", '"text" or "title"')
        title, text = (at.optional_text(row.get(key), key) for key in ("title", "text"))
        if row.get("title") is None:
            untitled, first = untitled + 1, first or at.line
        titled = titled or bool(title)
        ids.append(document)
        passages.append(f"{title} {text}".strip())
    held = ids.finish()
    if not held:
        raise DataError(f"{path} has no document; expected one JSON object per line.")
    _refuse_repeats(path, "document", held)
    note = f"{untitled} of {len(held)} documents have no title, others do (the first: {path.name}:{first})"
    return held, passages.finish(), (note,) if titled and untitled else ()


def _read_queries(path: Path, judged: Qrels, progress: bool | None) -> dict[str, str]:
    """Text by id of the judged queries, in file order; other queries are only checked."""
    ids, texts = TextsWriter(), TextsWriter()
    for at, row in read_jsonl(path, progress):
        query = _id(row, at)
        if row.get("text") is None:
            raise at.error(f"query {quoted(query)} without a text", 'a "text"')
        ids.append(query)
        texts.append(at.optional_text(row["text"], "text"))
    held = ids.finish()
    _refuse_repeats(path, "query", held)
    return {query: text for query, text in zip(held, texts.finish(), strict=True) if query in judged}


def _refuse_repeats(path: Path, kind: str, ids: Texts) -> None:
    place = ids.first_repeat()
    if place is not None:
        at, _ = next(islice(read_lines(path), place, None))
        raise at.error(f"{kind} id {quoted(ids[place])} for the second time", "unique ids")


def _id(row: dict[str, Any], at: RowLocation) -> str:
    value = row.get("_id") if row.get("_id") is not None else row.get("id")
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        found = f"the _id {quoted(value)}" if {"_id", "id"} & row.keys() else "no _id"
        raise at.error(found, 'an "_id" that is text or a whole number')
    return at.optional_text(str(value), "_id")


def _write_rows(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def digest_rows(rows: Iterable[Any]) -> str:
    """SHA-256 (64 hex digits) over rows of JSON values, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()
