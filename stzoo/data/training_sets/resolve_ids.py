"""Training rows that refer to passages, pages or queries by id, and the corpus with their texts."""

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from stzoo.data.beir import read_corpus
from stzoo.data.beir_layout import find_jsonl
from stzoo.data.kilt_provenance import pages_in_rows
from stzoo.data.read_once import once
from stzoo.data.row_location import RowLocation
from stzoo.data.rows import read_jsonl, read_lines
from stzoo.data.texts import Texts, TextsWriter, indices_of
from stzoo.data.training_sets.formats import Example
from stzoo.data.training_sets.sets import Candidate
from stzoo.errors import DataError
from stzoo.utils.inputs import check_is_file, user_path
from stzoo.utils.messages import counted

Examples = Callable[[], Iterator[tuple[RowLocation, Example]]]


class Passages(NamedTuple):
    """Ids and texts of a corpus in file order, and notes."""

    ids: Texts
    texts: Texts
    notes: tuple[str, ...]


class Corpus:
    """The passages and queries that training rows refer to by id, read once, at first use.

    Args:
        path: Path of a BEIR folder, of its corpus.jsonl(.gz), or of a folder with MS MARCO's
            collection.tsv(.gz) and queries*.tsv(.gz), whose lines are id<TAB>text.
        progress: See `stzoo.data.rows.read_rows`.

    Raises:
        DataError: If it does not exist.
    """

    def __init__(self, path: str | Path, progress: bool | None = None):
        path = user_path(path)
        self._progress = progress
        collections = [path / f"collection.tsv{end}" for end in ("", ".gz")] if path.is_dir() else []
        self._collection = next((file for file in collections if file.is_file()), None)
        if path.is_dir():
            self.file = self._collection or find_jsonl(path, "corpus")
        elif path.exists():
            check_is_file(path)
            self.file = path
        else:
            raise DataError(f"there is no corpus {path}; expected a BEIR folder or a corpus.jsonl(.gz).")

    @cached_property
    def passages(self) -> Passages:
        """All passages.

        Raises:
            DataError: If a line is invalid, or an id is repeated.
        """
        if self._collection is None:
            return Passages(*read_corpus(self.file, self._progress))
        return Passages(*once(self.file, lambda: _pairs(self.file, self._progress)), ())

    def places(self, needed: set[str]) -> dict[str, int]:
        """Index by id of the needed passages that exist."""
        return indices_of(needed, self.passages.ids)

    def places_by_page(self, needed: set[str]) -> dict[str, list[int]]:
        """Indices of passages by page id, for the needed pages that have passages.

        Raises:
            DataError: If a passage has no page.
        """
        found: dict[str, list[int]] = {}
        for place, page in enumerate(pages_in_rows(self.file, self._progress)):
            if page in needed:
                found.setdefault(page, []).append(place)
        return found

    def queries(self, needed: set[str]) -> dict[str, str]:
        """Text by id of the needed queries that exist.

        Raises:
            DataError: If the folder of the passages has no file of queries, or a line is invalid.
        """
        folder, found = self.file.parent, {}
        if self._collection is None:
            file = find_jsonl(folder, "queries")
            for at, row in read_jsonl(file, self._progress):
                if (name := at.id(row, "_id")) in needed:
                    found[name] = at.optional_text(row.get("text"), "text")
            return found
        files = sorted(path for path in folder.glob("queries*.tsv*") if path.suffix in (".tsv", ".gz"))
        if not files:
            raise DataError(
                f"{folder} has no queries*.tsv next to {self.file.name}; expected the queries there."
            )
        for file in files:
            ids, texts = _pairs(file, self._progress)
            found |= {name: text for name, text in zip(ids, texts, strict=True) if name in needed}
        return found


def with_texts(read: Examples, corpus: Corpus) -> Iterator[tuple[RowLocation, Example]]:
    """Fills in the texts of passages, and of queries without text, from a corpus by their ids.

    The rows are read several times, so that only ids are kept in memory.

    Args:
        read: Streams the rows, the same each time.
        corpus: The corpus with the passages and queries.

    Raises:
        DataError: If the corpus lacks a passage or query.
    """
    needed = {one.id or "" for _, row in read() for one in (*row.positives, *row.negatives)}
    asked = {row.query_id for _, row in read() if not row.query}
    places, queries = corpus.places(needed), corpus.queries(asked) if asked else {}
    texts = corpus.passages.texts

    def found(candidates: list[Candidate], at: RowLocation) -> list[Candidate]:
        for one in candidates:
            if one.id not in places:
                raise at.error(f"the unknown passage {one.id!r}", f"an id of {corpus.file}")
        return [Candidate(texts[places[one.id or ""]], one.id, one.score) for one in candidates]

    for at, row in read():
        if not row.query and not queries.get(row.query_id):
            raise at.error(
                f"the unknown query {row.query_id!r}", f"an id of the queries next to {corpus.file}"
            )
        query = row.query or queries[row.query_id]
        yield at, Example(query, found(row.positives, at), found(row.negatives, at), row.query_id)


def with_pages(
    read: Examples, file: Path, corpus: Corpus, notes: list[str]
) -> Iterator[tuple[RowLocation, Example]]:
    """Replaces pages by all of their passages as positives; rows without any are left out.

    Args:
        read: Streams the rows, the same each time.
        file: Path of their file, for messages.
        corpus: The corpus with the passages and their pages.
        notes: List to which notes on what was left out are added.

    Raises:
        DataError: If no row has a page, or no page has a passage.
    """
    needed = {one.id or "" for _, row in read() for one in row.positives}
    if not needed:
        raise DataError(f"no row of {file} has provenance; expected the pages of evidence of each question.")
    places = corpus.places_by_page(needed)
    if not places:
        raise DataError(f"no evidence page of {file} has a passage in {corpus.file}.")
    if len(places) < len(needed):
        absent = len(needed) - len(places)
        notes.append(f"{absent} of {len(needed)} evidence pages have no passage in the corpus")
    ids, texts = corpus.passages.ids, corpus.passages.texts
    left_out = 0
    for at, row in read():
        found = [place for one in row.positives for place in places.get(one.id or "", ())]
        if found:
            positives = [Candidate(texts[place], ids[place]) for place in found]
            yield at, Example(row.query, positives, [], row.query_id)
        else:
            left_out += 1
    if left_out:
        notes.append(f"left out {counted(left_out, 'question')} without a passage of the evidence")


def _pairs(file: Path, progress: bool | None) -> tuple[Texts, Texts]:
    """Ids and texts of a file with lines of id<TAB>text."""
    ids, texts = TextsWriter(), TextsWriter()
    for at, row in read_lines(file, progress):
        name, mark, text = row.partition("\t")
        if not mark or not name.strip():
            raise at.error("a line without an id and a tab", "id<TAB>text")
        ids.append(name.strip())
        texts.append(text.strip())
    held = ids.finish()
    repeat = held.first_repeat()
    if repeat is not None:
        raise DataError(f"{file} has the id {held[repeat]!r} twice; expected unique ids.")
    return held, texts.finish()
