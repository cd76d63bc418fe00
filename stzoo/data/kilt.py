"""KILT: retrieval of Wikipedia pages, scored against sets of pages that are needed together as evidence.

A KILT file has one question per line:
{"id", "input", "output": [{"answer", "provenance": [{"wikipedia_id"}]}]}.
The provenance of one output is one evidence set, all of whose pages are needed. A system's guess has the same
format, with one output whose provenance is its ranking. Passages are searched, and their pages are scored:

    judged = read_kilt("nq-dev-kilt.jsonl", "corpus.jsonl.gz")
    pages = judged.to_pages(retrieve(model, judged))
    kilt_scoring.score(judged.evidence, pages)

A ranking of 1000 passages has fewer than 1000 pages, so measures with a larger cutoff see no more pages.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from stzoo.data.beir import RetrievalDataset, digest_rows, read_corpus
from stzoo.data.beir_layout import find_jsonl
from stzoo.data.kilt_provenance import evidence_sets, pages_in_rows
from stzoo.data.qrels import Qrels
from stzoo.data.ranking import Ranked, rank
from stzoo.data.row_location import RowLocation
from stzoo.data.rows import read_jsonl, read_lines
from stzoo.data.texts import Texts
from stzoo.data.trec import Run
from stzoo.errors import DataError, quoted
from stzoo.utils.messages import counted

Evidence = dict[str, tuple[frozenset[str], ...]]  # distinct evidence sets of page ids by question id


def to_pages(run: Run, page_of: Mapping[str, str]) -> Ranked:
    """Turns a ranking of passages into one of their pages, each with the score of its best passage.

    Args:
        run: Score by passage id by query id.
        page_of: Page id by passage id.

    Returns:
        float32 scores by query id and page id, best first.

    Raises:
        DataError: If a passage has no page.
    """
    of_pages: dict[str, dict[str, float]] = {}
    for query, found in run.items():
        best = of_pages[query] = {}
        for passage, value in found.items():
            if passage not in page_of:
                raise DataError(
                    f"the passage {quoted(passage)}, found for query {quoted(query)}, has no page."
                )
            page = page_of[passage]
            best[page] = max(value, best.get(page, value))
    return rank(of_pages)


@dataclass(frozen=True, kw_only=True)
class KiltSet(RetrievalDataset):
    """A KILT file over a corpus of passages, which are searched and judged by their pages.

    Attributes:
        qrels: 1 by page id (not passage id) by question id, for each page of any evidence set.
        pages: Page id of each passage, in the order of corpus_ids.
        evidence: Distinct evidence sets by question id.
    """

    pages: Sequence[str]
    evidence: Evidence

    def part(self, queries: Iterable[str]) -> Self:
        """The same passages with the judgements and evidence of some questions."""
        part = super().part(queries)
        return replace(part, evidence={query: self.evidence[query] for query in part.queries})

    def to_pages(self, run: Run) -> Ranked:
        """See the function `to_pages`."""
        run = rank(run)
        retrieved = run.documents()
        both = zip(self.corpus_ids, self.pages, strict=True)
        return to_pages(run, {passage: page for passage, page in both if passage in retrieved})

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) over all that a score depends on, including pages and evidence sets."""
        sets = ([query, sorted(map(sorted, found))] for query, found in self.evidence.items())
        return digest_rows([super().fingerprint, digest_rows(self.pages), *sets])


def read_kilt(
    file: str | Path, corpus: str | Path, pages: str | Path | None = None, *, progress: bool | None = None
) -> KiltSet:
    """Reads a KILT file and the passages to search.

    Args:
        file: Path of a jsonl(.gz) file in KILT's format. TASK-SPLIT-kilt.jsonl is the data set TASK-kilt,
            split SPLIT.
        corpus: Path of a BEIR folder or a corpus.jsonl(.gz), whose rows have their page's id under
            "wikipedia_id", at the top level or in "metadata".
        pages: Path of a file with lines of passage-id<TAB>page-id, to use instead of "wikipedia_id".
        progress: True for a progress bar on stderr after two seconds; None shows it on a terminal only.

    Raises:
        DataError: If a file does not exist, a line is invalid (named by file and line), a passage has no
            page, or no page of the evidence has a passage.
    """
    file, corpus = Path(file), Path(corpus)
    corpus = find_jsonl(corpus, "corpus") if corpus.is_dir() else corpus
    evidence: Evidence = {}
    queries: dict[str, str] = {}
    for at, query, row in _questions(file, progress):
        evidence[query] = evidence_sets(row, at)
        queries[query] = at.optional_text(row.get("input"), "input")
        if not queries[query]:
            raise at.error(f"question {quoted(query)} without a text", 'an "input"')
    ids, passages, notes = read_corpus(corpus, progress)
    named = _pages_in_map(Path(pages), ids, progress) if pages else pages_in_rows(corpus, progress)
    page_of_each = Texts(named)

    qrels = page_qrels(evidence)
    wanted = {page for grades in qrels.values() for page in grades}
    absent = len(wanted.difference(page_of_each))
    if absent == len(wanted):
        raise DataError(f"no evidence page of {file} has a passage in {corpus}.")
    if absent:
        notes += (f"{absent} of {len(wanted)} evidence pages have no passage in the corpus",)
    if blank := sum(not grades for grades in qrels.values()):
        notes += (f"{blank} of {len(qrels)} questions have no provenance; as in KILT they score 0",)
    stem = file.name.removesuffix(".gz").removesuffix(".jsonl")
    official = re.fullmatch(r"(.+)-(train|dev|test)\w*-kilt", stem)
    return KiltSet(
        name=f"{official[1]}-kilt" if official else stem,  # the task's name alone may be a BEIR data set's
        split=official[2] if official else "test",
        corpus_ids=ids,
        passages=passages,
        queries=queries,
        qrels=qrels,
        folder=corpus.parent,
        notes=notes,
        pages=page_of_each,
        evidence=evidence,
    )


def read_gold(path: str | Path) -> Evidence:
    """Reads the evidence sets of a KILT file (jsonl or jsonl.gz) by question id.

    Raises:
        DataError: If a line is invalid (named by file and line), or there is none.
    """
    path = Path(path)
    return {query: evidence_sets(row, at) for at, query, row in _questions(path)}


def page_qrels(evidence: Evidence) -> Qrels:
    """Judgements of pages for the usual measures: 1 for each page of any evidence set."""
    return {query: dict.fromkeys(sorted(set().union(*sets)), 1) for query, sets in evidence.items()}


def read_guess(path: str | Path) -> dict[str, list[str]]:
    """Reads a system's answers in KILT's format (jsonl or jsonl.gz): page ids by question id, best first.

    Raises:
        DataError: If a line is invalid (named by file and line), or there is none.
    """
    path, guess = Path(path), {}
    for at, query, row in _questions(path):
        if len(row["output"]) != 1:
            raise at.error(f"{len(row['output'])} outputs", "exactly one in a guess")
        items = at.objects(row["output"][0], "provenance")
        guess[query] = [at.id(item, "wikipedia_id") for item in items if "wikipedia_id" in item]
    return guess


def _questions(path: Path, progress: bool | None = None) -> Iterator[tuple[RowLocation, str, dict[str, Any]]]:
    """The location, id and row of each question; every row has at least one output, an object."""
    seen: set[str] = set()
    for at, row in read_jsonl(path, progress):
        query = at.id(row, "id")
        if query in seen:
            raise at.error(f"question id {quoted(query)} for the second time", "unique ids")
        seen.add(query)
        if not at.objects(row, "output"):
            found = f"question {quoted(query)} without output"
            raise at.error(found, "at least one output (KILT's test files have none)")
        yield at, query, row
    if not seen:
        raise DataError(f"{path} has no question; expected one JSON object per line.")


def _pages_in_map(path: Path, passages: Iterable[str], progress: bool | None) -> Iterator[str]:
    page_of: dict[str, str] = {}
    for at, row in read_lines(path, progress):
        fields = [field.strip() for field in row.split("\t")]
        if len(fields) != 2 or not all(fields):
            raise at.error(counted(len(fields), "field"), "passage-id<TAB>page-id")
        if page_of.setdefault(*fields) != fields[1]:
            raise at.error(f"a second page for passage {quoted(fields[0])}", "one")
    for passage in passages:
        if passage not in page_of:
            raise DataError(
                f"{path} has no page for the passage {quoted(passage)}; expected one for each passage."
            )
        yield page_of[passage]
