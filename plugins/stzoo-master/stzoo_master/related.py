"""Neighbours of a passage: from the same document, by BM25, or by an encoder.

Each class is built once for a corpus and then called for ranges of rows, in any order; the result depends on
the corpus and the settings alone. Indexes and embeddings, which take long to make, are stored in a folder,
complete or not at all, and reused after a kill.

A passage's neighbours never include itself, a passage with the same text, or two passages with the same text.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from stzoo.data import words
from stzoo.data.beir import RetrievalDataset
from stzoo.data.texts import Texts
from stzoo.errors import RecipeError
from stzoo.models.loaded import open_model
from stzoo.retrieval.bm25 import choose_language, index_terms, settings_of
from stzoo.retrieval.search.exact import top_k
from stzoo.retrieval.search.retriever import Retriever
from stzoo.utils.files import atomic_folder, fingerprint, write_json
from stzoo.utils.messages import show_progress
from stzoo.utils.progress import progress_bar

if TYPE_CHECKING:
    from datasets import Dataset

# Matches the document in ids such as book/module.12 or page#3. Other separators are not used: file:12 is the
# name of a row without an id, and MED-10 and msmarco_passage_10 are whole documents.
DOCUMENT_PATTERN = r"(.+)[.#]\d+"
BAND = 4096  # rows read at once
POSTINGS = 1 << 16  # postings that BM25 reads for a passage


class SameDocument:
    """The passages closest to a passage in its document.

    Two rows belong to the same document if their ids, and those of all rows between them, fully match the
    pattern with the same first group. Takes 16 bytes per passage in memory.

    Args:
        rows: The corpus.
        k: Maximum number of neighbours per passage.
        pattern: Regular expression whose first group is the document.

    Attributes:
        has_any: True if any passage has a neighbour.
        metadata: Entry for a manifest: the settings, the number of documents with two or more passages, and
            the number of passages with a neighbour.

    Raises:
        RecipeError: If k is below 1, or the pattern is not a regular expression with a group.
    """

    def __init__(self, rows: "Dataset", k: int, pattern: str = DOCUMENT_PATTERN):
        _check_k(k)
        document = _document_of(pattern)
        self._k, self._texts = k, distinct_of(rows).indices
        # the number of each row's document; a row whose id does not match is a document by itself
        self._documents = np.empty(len(rows), np.int64)
        number, last = -1, None
        for row, row_id in enumerate(column(rows, "id", "Reading ids")):
            name = document(row_id)
            number += name is None or name != last
            self._documents[row], last = number, name
        same = self._documents[1:] == self._documents[:-1]
        # if two adjacent texts of a document differ, each of its rows has a neighbour
        mixed = np.unique(self._documents[1:][same & (self._texts[1:] != self._texts[:-1])])
        sizes = np.bincount(self._documents)
        self.has_any = len(mixed) > 0
        self.metadata: dict[str, Any] = {
            "source": "same document",
            "k": k,
            "pattern": pattern,
            "documents": int((sizes > 1).sum()),
            "passages_with_neighbours": int(sizes[mixed].sum()),
        }

    def __call__(self, first: int, last: int) -> list[list[int]]:
        """The neighbours of the rows `first` to `last` - 1, closest first; next before previous row."""
        return [self._nearest(row) for row in range(first, last)]

    def _nearest(self, row: int) -> list[int]:
        number = self._documents[row]
        begin, end = np.searchsorted(self._documents, [number, number + 1]).tolist()
        seen, nearest = {self._texts[row]}, list[int]()
        for distance in range(1, max(row - begin, end - 1 - row) + 1):
            for other in (row + distance, row - distance):
                if begin <= other < end and self._texts[other] not in seen:
                    seen.add(self._texts[other])
                    nearest.append(other)
                    if len(nearest) == self._k:
                        return nearest
        return nearest


class NearestByBM25:
    """The passages that share the rarest terms with a passage, by bm25s with the settings of `stzoo bench`.

    A passage is searched with its distinct terms, rarest (highest idf) first, as long as the numbers of
    passages that contain them sum up to at most POSTINGS. This leaves out the most common words, which matter
    least, and the work per passage does not grow with the corpus: on one core some 900 passages per second
    with a corpus of 22,000 passages, and 100 with nine million (simulated), as less of it fits the caches.

    Building the index reads the corpus once and needs memory for its terms (4 bytes each) and for bm25s (some
    25 bytes for each distinct term of a passage, and the vocabulary). Index and terms are then stored on
    disk, 8 bytes for each distinct term of a passage and 4 for each term, and memory-mapped; 32 bytes per
    passage and 8 for each term of the vocabulary stay in memory.

    Args:
        rows: The corpus. Of passages with the same text only the first is indexed.
        k: Number of neighbours per passage; fewer if fewer passages share a term.
        work: Folder in which the index is stored as "bm25".
        language: Language of the passages, a code or an English name, or "none"; None to detect it.

    Attributes:
        metadata: Entry for a manifest: how the index was built.

    Raises:
        RecipeError: If k is below 1, or the language is unknown.
        OutputError: If the index cannot be written.

    Unlike: stzoo's BM25, which searches with all terms, counts repeated ones, and breaks ties by id; here the
        earlier row comes first.
    """

    def __init__(self, rows: "Dataset", k: int, work: str | Path, language: str | None = None):
        import bm25s
        from safetensors import safe_open

        _check_k(k)
        self._k, self._rows, self._distinct = k, rows, distinct_of(rows)
        self._language = choose_language(language, DistinctTexts(rows, self._distinct), "the corpus")
        settings = {**settings_of(self._language), "postings": POSTINGS, "bm25s": bm25s.__version__}
        folder, texts = Path(work) / "bm25", self._distinct.fingerprint
        reuse_folder(folder, {**settings, "texts": texts, "words": fingerprint(words.__file__)}, self._build)
        parts = bm25s.BM25.load(folder, mmap=True, load_vocab=False).scores
        # still memory-mapped, but as plain arrays, which are faster to slice
        self._starts, self._passages, self._scores = map(
            np.asarray, (parts["indptr"], parts["indices"], parts["data"])
        )
        self._counts = np.diff(self._starts)
        self._terms = safe_open(folder / "terms.safetensors", "np")
        self._ends = self._terms.get_tensor("ends")
        # float32 [U], sums of scores, and int32 [U], the last posting of each indexed passage
        self._sums, self._last = np.zeros(len(self._ends), np.float32), np.empty(len(self._ends), np.int32)
        self.metadata: dict[str, Any] = {"source": "bm25", "k": k, **settings}

    def _build(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        index, _, terms = index_terms(DistinctTexts(self._rows, self._distinct), self._language)
        index.save(folder, show_progress=False)
        save_file({"terms": terms.flat, "ends": terms.ends}, folder / "terms.safetensors")

    def __call__(self, first: int, last: int) -> list[list[int]]:
        """The neighbours of the rows `first` to `last` - 1, nearest first."""
        return [
            self._distinct.rows[self._nearest(index)].tolist() for index in self._distinct.indices[first:last]
        ]

    def _nearest(self, index: int) -> np.ndarray:
        """int64 [at most k], the index positions of the nearest passages."""
        start, end = self._ends[index - 1] if index else 0, self._ends[index]
        if start == end:
            return np.empty(0, np.int64)
        terms = np.unique(self._terms.get_slice("terms")[start:end])
        terms = terms[np.argsort(self._counts[terms], kind="stable")]
        terms = terms[: max(1, np.searchsorted(np.cumsum(self._counts[terms]), POSTINGS, "right"))]
        postings = [slice(*ends) for ends in zip(self._starts[terms], self._starts[terms + 1], strict=True)]
        indices = np.concatenate([self._passages[part] for part in postings])
        np.add.at(self._sums, indices, np.concatenate([self._scores[part] for part in postings]))
        # keeps each index once, without sorting
        order = np.arange(len(indices), dtype=np.int32)
        self._last[indices] = order
        indices = indices[self._last[indices] == order]
        sums = self._sums[indices]
        self._sums[indices] = 0
        sums[indices == index] = -1
        k = min(self._k, len(indices) - 1)
        best = np.flatnonzero(sums >= np.partition(sums, -k)[-k])
        return indices[best][np.lexsort((indices[best], -sums[best]))][:k]


class NearestByEncoder:
    """The passages with the vectors nearest to a passage's, by exact search.

    All passages are encoded as documents, also when they are searched for. The vectors are kept in an
    embedding store, so a kill loses at most one of its shards. The store is read once per BAND rows, which
    are searched together; that takes 2 GiB (see `exact.top_k`). 34 bytes per passage stay in memory, and as
    much again is needed while a band is searched.

    Args:
        rows: The corpus. Of passages with the same text only the first is encoded.
        k: Number of neighbours per passage.
        model: Folder or Hub id of a sentence-transformers model.
        work: Folder in which the stores are kept, under "embeddings".
        device: Device of torch, or several separated by commas; None for the best available.

    Attributes:
        metadata: Entry for a manifest: the model and its settings.

    Raises:
        RecipeError: If k is below 1, or an option is invalid.
        ModelError: If the model cannot be loaded, or its vectors are not finite.
        OutputError: If the vectors cannot be written.
    """

    def __init__(self, rows: "Dataset", k: int, model: str, work: str | Path, *, device: str | None = None):
        _check_k(k)
        loaded = open_model(model, device=device)
        self._k, self._distinct = k, distinct_of(rows)
        texts = DistinctTexts(rows, self._distinct)
        # ties go to the greater id, so earlier rows get greater ids
        self._ids = Texts(f"{number:010d}" for number in reversed(range(len(texts))))
        root = Path(work) / "embeddings"
        dataset = RetrievalDataset(name="corpus", folder=root, corpus_ids=self._ids, passages=texts)
        self._store = Retriever(loaded, root, progress=show_progress()).documents(dataset)
        self._cached_from = 0
        self._cached: list[list[int]] = []
        self._similarity = loaded.similarity
        self._device = "cuda" if loaded.model.device.type == "cuda" else "cpu"
        self.metadata: dict[str, Any] = {
            "source": "encoder",
            "k": k,
            "model": loaded.name,
            "revision": loaded.revision,
            "role": "document",
            **loaded.settings,
        }

    def __call__(self, first: int, last: int) -> list[list[int]]:
        """The neighbours of the rows `first` to `last` - 1, nearest first."""
        start = self._cached_from
        if not start <= first <= last <= start + len(self._cached):  # one search serves many small calls
            self._cached_from, self._cached = first, self._search(first, max(last, first + BAND))
            start = first
        return self._cached[first - start : last - start]

    def _search(self, first: int, last: int) -> list[list[int]]:
        indices = np.unique(self._distinct.indices[first:last])
        if not len(indices):
            return []
        runs = np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1)
        vectors = np.concatenate([self._store[run[0] : run[-1] + 1] for run in runs])
        ids = [self._ids[index] for index in indices.tolist()]
        hits = top_k(
            vectors,
            self._store,
            ids,
            self._ids,
            self._k,
            drop_self=True,
            similarity=self._similarity,
            device=self._device,
            progress=show_progress(),
        )
        top = len(self._ids) - 1
        nearest = {
            index: self._distinct.rows[[top - int(other) for other in hits[name]]].tolist()
            for index, name in zip(indices.tolist(), ids, strict=True)
        }
        return [nearest[index] for index in self._distinct.indices[first:last].tolist()]


def combine(*sources: Sequence[Sequence[int]]) -> list[list[int]]:
    """Merges the neighbours of the same rows from several sources.

    Returns:
        For each row the first neighbour of each source in turn, then the second, and so on, each once.
    """
    return [
        [row for row in dict.fromkeys(chain.from_iterable(zip_longest(*lists))) if row is not None]
        for lists in zip(*sources, strict=True)
    ]


def texts_of(rows: "Dataset", numbers: Sequence[Sequence[int]]) -> list[list[str]]:
    """The texts of lists of row numbers; each row is read once."""
    needed = sorted(set(chain.from_iterable(numbers)))
    texts = dict(zip(needed, rows[needed]["text"], strict=True)) if needed else {}
    return [[texts[number] for number in row] for row in numbers]


class Distinct:
    """The rows of a corpus whose text no earlier row has.

    Attributes:
        rows: int64 [U], the numbers of these rows, ascending.
        indices: int64 [N], for each row the index in `rows` of the row with its text.
        fingerprint: SHA-256 (64 hex digits) of all texts in their order.
    """

    def __init__(self, rows: "Dataset"):
        digests = np.empty(len(rows), np.int64)
        fingerprint = hashlib.sha256()
        for row, text in enumerate(column(rows, "text", "Comparing texts")):
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            fingerprint.update(digest)
            digests[row] = int.from_bytes(digest[:8], "little", signed=True)
        _, firsts, groups = np.unique(digests, return_index=True, return_inverse=True)
        order = np.argsort(firsts)
        ranks = np.empty_like(order)
        ranks[order] = np.arange(len(order))
        self.rows, self.indices = firsts[order], ranks[groups]
        self.fingerprint = fingerprint.hexdigest()


@functools.lru_cache(maxsize=1)
def distinct_of(rows: "Dataset") -> Distinct:
    """`Distinct` of a corpus, computed once for each object."""
    return Distinct(rows)


class DistinctTexts(Sequence[str]):
    """The distinct texts of a corpus, read on demand.

    Args:
        rows: The corpus.
        distinct: The distinct rows of the corpus.
    """

    def __init__(self, rows: "Dataset", distinct: Distinct):
        self._rows, self._numbers = rows, distinct.rows

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if not isinstance(index, slice):
            return self._rows[int(self._numbers[index])]["text"]
        numbers = self._numbers[index].tolist()
        return list(self._rows[numbers]["text"]) if numbers else []

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BAND):
            yield from self[start : start + BAND]


def reuse_folder(folder: Path, metadata: dict[str, Any], write: Callable[[Path], None]) -> None:
    """Calls `write` to write a folder, unless it exists, is complete and has the same metadata."""
    if _is_complete(folder, metadata):
        return
    with atomic_folder(folder, replaces=[r"[^/]+"]) as draft:
        write(draft)
        sizes = {file.name: file.stat().st_size for file in sorted(draft.iterdir())}
        write_json(draft / "made.json", {"facts": metadata, "bytes": sizes})


def _is_complete(folder: Path, metadata: dict[str, Any]) -> bool:
    """True if the files have the size they were written with; a crash may have truncated them."""
    try:
        record = json.loads((folder / "made.json").read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in record["bytes"]}
        return bool(record == {"facts": metadata, "bytes": sizes})
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _document_of(pattern: str) -> Callable[[str], str | None]:
    """A function from an id to its document, or to None if the pattern does not match."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise RecipeError(f"the pattern {pattern!r} is not a regular expression: {error}.") from error
    if not compiled.groups:
        raise RecipeError(
            f"the pattern {pattern!r} has no group; put the document in a group, as in {DOCUMENT_PATTERN!r}."
        )
    return lambda text: match[1] if (match := compiled.fullmatch(text)) else None


def column(rows: "Dataset", name: str, desc: str) -> Iterator[str]:
    """Yields one column, read BAND rows at a time, with a progress bar after two seconds."""
    with progress_bar(total=len(rows), desc=desc, unit=" rows", delay=2, leave=False) as bar:
        rows = rows.select_columns(name)  # a slice of a corpus would make lists of every column
        for start in range(0, len(rows), BAND):
            values = rows[start : start + BAND][name]
            yield from values
            bar.update(len(values))


def _check_k(k: int) -> None:
    if k < 1:
        raise RecipeError(f"k is {k}; expected at least 1 neighbour.")
