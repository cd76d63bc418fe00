"""Judged sets: a corpus, queries and their relevance judgements, in BEIR's folder layout.

FOLDER/corpus.jsonl        {"_id", "title", "text"} a line (title and text may be missing or null)
FOLDER/queries.jsonl       {"_id", "text"} a line
FOLDER/qrels/SPLIT.tsv     query-id, corpus-id, score, tab-separated, under a header

All files may be gzipped (.jsonl.gz, .tsv.gz). Where several tasks share one corpus, their judgements are
qrels/TASK.SPLIT.tsv, and FOLDER/TASK names one of them.

Source: https://github.com/beir-cellar/beir/wiki/Load-your-custom-dataset
Unlike beir's loader: duplicate ids, judgements of unknown ids and a missing header are errors with file and
line; number ids are read as their digits, and scores such as "1.0" as integers; texts are held as UTF-8.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

from stzoo.data import registry
from stzoo.data.qrels import Qrels, read_judgements
from stzoo.data.read_once import once
from stzoo.data.row_location import RowLocation
from stzoo.data.rows import read_jsonl, read_lines
from stzoo.data.texts import Texts, TextsWriter
from stzoo.errors import DataError, OutputError, RecipeError, quoted, suggest
from stzoo.utils.files import atomic_folder, check_replaceable
from stzoo.utils.inputs import user_path

MISSING_JUDGED = ("error", "drop", "not-found")
_GO_ON = {  # a query without a text cannot be asked
    "query": "stzoo bench and score continue with --missing-judged drop (leave such judgements out)",
    "document": "stzoo bench and score continue with --missing-judged drop (leave such judgements out) or "
    "not-found (count such documents as not found)",
}
_QRELS_ENDS = (".tsv", ".tsv.gz")
# the files of a set in BEIR's layout, which `write_beir` replaces: regular expressions
BEIR_FILES = (r"(?:corpus|queries)\.jsonl(?:\.gz)?", r"qrels/[^/]+\.tsv(?:\.gz)?", "qrels/")


@dataclass(frozen=True)
class RetrievalDataset:
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
        columns: `TrainingSet.columns`, where it was made of training rows.
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
    columns: tuple[dict[str, Any], ...] = ()

    @cached_property
    def shares_ids(self) -> bool:
        """True if query and document ids share a namespace: a document under the query's own id is no answer.

        Known of some sets by name. Of others it is true if at least half of the queries are themselves in the
        corpus (`queries_in_corpus`). Equal ids alone mean nothing: in Cranfield query 1 and document 1 are
        strangers.
        """
        return registry.shares_ids(self.name) or 2 * self.queries_in_corpus >= max(len(self.queries), 1)

    @cached_property
    def queries_in_corpus(self) -> int:
        """Number of queries that are the document under their id, which is not judged relevant."""
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
    folder, prefix = user_path(folder), ""
    name = folder_name(folder)
    if not folder.is_dir() and is_beir(folder.parent):
        prefix = f"{name}."
        folder, name = folder.parent, f"{folder_name(folder.parent)}-{name}"
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not there; expected a BEIR folder (corpus.jsonl, queries.jsonl, qrels/)."
        )
    corpus, queries = find_jsonl(folder, "corpus"), find_jsonl(folder, "queries")
    for end in _QRELS_ENDS if Path(split).name == split else ():  # a split is no path
        qrels = user_path(folder / "qrels" / f"{prefix}{split}{end}")
        if qrels.is_file():
            return SplitFiles(name, corpus, queries, qrels)
    known = [each[len(prefix) :] for each in qrels_names(folder) if each.startswith(prefix)]
    raise DataError(
        f"{folder} has no split {split!r} (qrels/{prefix}{split}.tsv){suggest(split, known)} "
        f"Splits there: {', '.join(known) or 'none'}."
    )


def qrels_names(folder: Path) -> list[str]:
    """SPLIT or TASK.SPLIT of the files in the folder's qrels/, sorted."""
    files = (folder / "qrels").glob("*.tsv*")
    return sorted({file.name.partition(".tsv")[0] for file in files if file.name.endswith(_QRELS_ENDS)})


def folder_name(folder: str | Path) -> str:
    """A folder's name, also where the path ends in "." or ".."; "root" for the root itself."""
    path = Path(folder)
    return path.name if path.name not in ("", "..") else path.resolve().name or "root"


def read_beir(
    folder: str | Path,
    split: str = "test",
    *,
    name: str | None = None,
    missing_judged: str = "error",
    progress: bool | None = None,
) -> RetrievalDataset:
    """Reads one split of a BEIR folder, or of one task in it (FOLDER/TASK).

    Memory grows to little more than the bytes of the corpus's ids and texts, and of what the split judges.

    Args:
        folder: as the head of this module describes it.
        split: e.g. "test".
        name: of the set; the folder's own if left out.
        missing_judged: what to do about judged documents that the corpus lacks, and judged queries that
            queries.jsonl lacks: "error"; "drop" leaves their judgements out; "not-found" keeps those of
            documents, which no system can find (a missing query is an error). The last two are noted. Where
            the registry knows that a set lacks some documents, they count as not found without being asked.
        progress: True for a progress bar on stderr after two seconds; None shows it on a terminal only.

    Raises:
        DataError: if the folder or the split is not there, or a line does not hold (named by file and line).
        RecipeError: if missing_judged is none of these.
    """
    check_missing_judged(missing_judged)
    files = find_split(folder, split)
    name = files.name if name is None else name
    judgements = read_judgements(files.qrels, read_lines(files.qrels, progress))
    queries = _read_queries(files.queries, judgements, progress)
    of_queries = _settle_queries(judgements, queries, files.qrels, missing_judged)
    corpus_ids, passages, notes = read_corpus(files.corpus, progress)
    notes += of_queries
    notes += _settle_documents(judgements, corpus_ids, files.qrels, missing_judged, name)
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


def check_missing_judged(missing_judged: str) -> None:
    """Sees that this is a way to treat judgements of what is missing.

    Raises:
        RecipeError: if it is none.
    """
    if missing_judged not in MISSING_JUDGED:
        raise RecipeError(
            f"missing_judged is {quoted(missing_judged)}; expected one of {', '.join(MISSING_JUDGED)}."
        )


def _settle_queries(judgements: Qrels, queries: Mapping[str, str], path: Path, way: str) -> tuple[str, ...]:
    """Leaves out judged queries that are missing, or refuses them; returns notes about them."""
    unknown = set(judgements).difference(queries)
    if not unknown:
        return ()
    if way != "drop":
        raise _unknown(path, 0, unknown, "query", "the queries")
    for query in unknown:
        del judgements[query]
    if not judgements:
        raise DataError(f"{path}: none of the judged queries is in queries.jsonl, so nothing can be scored.")
    return (f"{len(unknown)} judged queries are not in queries.jsonl: left out (missing_judged: drop)",)


def _settle_documents(
    judgements: Qrels, corpus_ids: Texts, path: Path, way: str, name: str
) -> tuple[str, ...]:
    """Treats judgements of missing documents in the given way; returns notes about them."""
    unknown = {document for grades in judgements.values() for document in grades}.difference(corpus_ids)
    if not unknown:
        return ()
    text = f"{len(unknown)} judged documents are not in the corpus"
    if way == "not-found":
        return (f"{text}: they count as not found (missing_judged: not-found)",)
    if way == "error":
        if len(unknown) > registry.missing(name):
            raise _unknown(path, 1, unknown, "document", "the corpus")
        return (f"{text} (known of {name}): never found",)
    before = len(judgements)
    for query in list(judgements):
        for document in unknown.intersection(judgements[query]):
            del judgements[query][document]
        if not judgements[query]:
            del judgements[query]
    if not judgements:
        raise DataError(f"{path}: none of the judged documents is in the corpus, so nothing can be scored.")
    lost = before - len(judgements)
    return (
        f"{text}: left out (missing_judged: drop)" + f", with {lost} queries that have no other" * bool(lost),
    )


def notes_on_queries(judged: RetrievalDataset) -> Iterator[str]:
    """What to know, where a set is scored, of queries without an answer and of those that are documents."""
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
    with atomic_folder(folder, replaces=BEIR_FILES) as draft:
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
                            f"the ids {quoted(query)}, {quoted(document)} hold a tab or line break, unfit "
                            "for qrels."
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
    path = user_path(data)
    return is_beir(path) or (not path.exists() and is_beir(path.parent))


def read_corpus(path: Path, progress: bool | None) -> tuple[Texts, Texts, tuple[str, ...]]:
    """Reads a corpus.jsonl(.gz): ids, passages (title and text) and notes for the readers of scores.

    Inside `stzoo.data.texts.each_file_once` it is read once.

    Raises:
        DataError: if a line does not hold, an id stands twice, or there is no document.
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
        raise DataError(f"{path} holds no document; expected one JSON object a line.")
    _refuse_repeats(path, "document", held)
    note = f"{untitled} of {len(held)} documents have no title, others do (the first: {path.name}:{first})"
    return held, passages.finish(), (note,) if titled and untitled else ()


def _read_queries(path: Path, judged: Qrels, progress: bool | None) -> dict[str, str]:
    """Texts of the judged queries by id, in the file's order; the others are only checked."""
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


def _unknown(path: Path, column: int, names: set[str], kind: str, where: str) -> DataError:
    """The error that names the first line of qrels with one of these names in a column."""
    for at, row in read_lines(path):
        name = row.split("\t")[column]
        if at.line > 1 and name in names:
            found = f"the unknown {kind} {quoted(name)} (one of {len(names)})"
            return at.error(found, f"an id of {where} next to {path.parent} ({_GO_ON[kind]})")
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


def _id(row: dict[str, Any], at: RowLocation) -> str:
    value = row.get("_id")
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        found = f"the _id {quoted(value)}" if "_id" in row else "no _id"
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
