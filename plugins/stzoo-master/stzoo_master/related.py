"""Passages related to a passage: of the same document, near by BM25, near by an encoder.

Each class is built once over a corpus and then asked for the neighbours of some rows after others, in any
order: what it answers depends on the corpus and its settings alone. What takes long to make (an index,
embeddings) is kept in a folder, whole or not at all, and found again after a kill.

No passage gets itself, a passage of the very same text, or two of one text as neighbours.
"""

import functools
import hashlib
import json
import re
import sys
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

if TYPE_CHECKING:
    from datasets import Dataset

# The document of an id such as book/module.12 or page#3. No other sign is taken: file:12 is what a row
# without an id is called, and MED-10 and msmarco_passage_10 are documents of their own.
DOCUMENT_PATTERN = r"(.+)[.#]\d+"
BAND = 4096  # rows read at once
POSTINGS = 1 << 16  # of a passage's terms that BM25 looks at


class SameDocument:
    """The passages that stand next to a passage in its document.

    Two rows are of one document if their ids, and those of all rows between them, match the pattern as a
    whole with the same first group. It keeps 16 bytes a passage in memory.

    Args:
        rows: the corpus.
        k: neighbours a passage, at most.
        pattern: a regular expression whose first group is the document.

    Attributes:
        found: True if any passage has a neighbour.
        facts: what it was made with, how many documents of two or more passages there are, and how many
            passages have a neighbour.

    Raises:
        RecipeError: if k is below 1, or the pattern is no regular expression with a group.
    """

    def __init__(self, rows: "Dataset", k: int, pattern: str = DOCUMENT_PATTERN):
        _check_k(k)
        document = _document_of(pattern)
        self._k, self._texts = k, distinct_of(rows).places
        # the number of the document of each row; a row whose id does not match is one by itself
        self._documents = np.empty(len(rows), np.int64)
        number, last = -1, None
        for row, row_id in enumerate(column(rows, "id", "Reading ids")):
            name = document(row_id)
            number += name is None or name != last
            self._documents[row], last = number, name
        same = self._documents[1:] == self._documents[:-1]
        # a document of several texts has two of them side by side, and then each of its rows has a neighbour
        mixed = np.unique(self._documents[1:][same & (self._texts[1:] != self._texts[:-1])])
        sizes = np.bincount(self._documents)
        self.found = len(mixed) > 0
        self.facts: dict[str, Any] = {
            "source": "same document",
            "k": k,
            "pattern": pattern,
            "documents": int((sizes > 1).sum()),
            "passages_with_neighbours": int(sizes[mixed].sum()),
        }

    def __call__(self, first: int, last: int) -> list[list[int]]:
        """The neighbours of the rows first to last - 1, nearest first; the next before the previous."""
        return [self._nearest(row) for row in range(first, last)]

    def _nearest(self, row: int) -> list[int]:
        number = self._documents[row]
        begin, end = np.searchsorted(self._documents, [number, number + 1]).tolist()
        seen, found = {self._texts[row]}, list[int]()
        for distance in range(1, max(row - begin, end - 1 - row) + 1):
            for other in (row + distance, row - distance):
                if begin <= other < end and self._texts[other] not in seen:
                    seen.add(self._texts[other])
                    found.append(other)
                    if len(found) == self._k:
                        return found
        return found


class NearestByBM25:
    """The passages that share the rarest terms with a passage, by bm25s with the settings of `stzoo bench`.

    A passage asks with its distinct terms from the rarest (highest idf) on, as long as the numbers of
    passages that they stand in sum up to no more than POSTINGS. What is left out are the commonest words,
    which tell least, and the work for a passage does not grow with the corpus: on one core some 900 passages
    a second ask 22,000; with nine million (simulated) it is 100, as a processor's caches hold less of them.

    Making the index streams the corpus once and holds its terms (4 bytes each) and what bm25s makes of them
    (some 25 bytes for each distinct term of a passage, and the vocabulary). Then index and terms lie on disk,
    8 bytes for each distinct term of a passage and 4 for each term, and are memory-mapped; 32 bytes a passage
    and 8 for each term of the vocabulary stay in memory.

    Args:
        rows: the corpus. Of passages of one text only the first is in the index.
        k: neighbours a passage; there are fewer where fewer share a term.
        work: a folder in which the index is kept, as "bm25".
        language: of the passages, a code or an English name, or "none"; None detects it.

    Attributes:
        facts: what it was made with.

    Raises:
        RecipeError: if k is below 1, or the language is not known.
        OutputError: if the index cannot be written.

    Unlike: stzoo's BM25, which asks with all terms, repeated ones counted again, and settles ties by
        the id; here the earlier row comes first.
    """

    def __init__(self, rows: "Dataset", k: int, work: str | Path, language: str | None = None):
        import bm25s
        from safetensors import safe_open

        _check_k(k)
        self._k, self._rows, self._distinct = k, rows, distinct_of(rows)
        self._language = choose_language(language, DistinctTexts(rows, self._distinct), "the corpus")
        about = {**settings_of(self._language), "postings": POSTINGS, "bm25s": bm25s.__version__}
        folder, texts = Path(work) / "bm25", self._distinct.fingerprint
        keep_folder(folder, {**about, "texts": texts, "words": fingerprint(words.__file__)}, self._build)
        parts = bm25s.BM25.load(folder, mmap=True, load_vocab=False).scores
        # still mapped, but as plain arrays, of which a slice costs less
        self._starts, self._places, self._scores = map(
            np.asarray, (parts["indptr"], parts["indices"], parts["data"])
        )
        self._counts = np.diff(self._starts)
        self._terms = safe_open(folder / "terms.safetensors", "np")
        self._ends = self._terms.get_tensor("ends")
        # float32 [U] sums of scores, and int32 [U] which of a passage's postings was the last of a place
        self._sums, self._last = np.zeros(len(self._ends), np.float32), np.empty(len(self._ends), np.int32)
        self.facts: dict[str, Any] = {"source": "bm25", "k": k, **about}

    def _build(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        index, _, terms = index_terms(DistinctTexts(self._rows, self._distinct), self._language)
        index.save(folder, show_progress=False)
        save_file({"terms": terms.flat, "ends": terms.ends}, folder / "terms.safetensors")

    def __call__(self, first: int, last: int) -> list[list[int]]:
        """The neighbours of the rows first to last - 1, nearest first."""
        return [
            self._distinct.rows[self._nearest(place)].tolist() for place in self._distinct.places[first:last]
        ]

    def _nearest(self, place: int) -> np.ndarray:
        """int64 [at most k] places of the nearest."""
        start, end = self._ends[place - 1] if place else 0, self._ends[place]
        if start == end:
            return np.empty(0, np.int64)
        terms = np.unique(self._terms.get_slice("terms")[start:end])
        terms = terms[np.argsort(self._counts[terms], kind="stable")]
        terms = terms[: max(1, np.searchsorted(np.cumsum(self._counts[terms]), POSTINGS, "right"))]
        here = [slice(*ends) for ends in zip(self._starts[terms], self._starts[terms + 1], strict=True)]
        places = np.concatenate([self._places[part] for part in here])
        np.add.at(self._sums, places, np.concatenate([self._scores[part] for part in here]))
        # each place once, without sorting them
        order = np.arange(len(places), dtype=np.int32)
        self._last[places] = order
        places = places[self._last[places] == order]
        sums = self._sums[places]
        self._sums[places] = 0
        sums[places == place] = -1
        k = min(self._k, len(places) - 1)
        near = np.flatnonzero(sums >= np.partition(sums, -k)[-k])
        return places[near][np.lexsort((places[near], -sums[near]))][:k]


class NearestByEncoder:
    """The passages whose vectors lie nearest to a passage's, by exact search.

    All passages are encoded as documents, those that ask as well. The vectors are kept in an embedding store
    (its store), so that a kill costs the work of one shard of it at most. The store is read once for each
    BAND rows, which are searched together; that takes 2 GiB (see `exact.top_k`). 34 bytes a passage
    stay in memory, and as much again is taken while a band is searched.

    Args:
        rows: the corpus. Of passages of one text only the first is encoded.
        k: neighbours a passage.
        model: a folder or Hub id of a sentence-transformers model.
        work: a folder in which the stores are kept, under "embeddings".
        device: of torch, several with commas between; None takes the best there is.
        batch_tokens: tokens encoded at once, padding included; None suits the device.

    Attributes:
        facts: what it was made with.

    Raises:
        RecipeError: if k is below 1, or an option does not hold.
        ModelError: if the model cannot be loaded, or gives no finite vectors.
        OutputError: if the vectors cannot be written.
    """

    def __init__(
        self,
        rows: "Dataset",
        k: int,
        model: str,
        work: str | Path,
        *,
        device: str | None = None,
        batch_tokens: int | None = None,
    ):
        _check_k(k)
        opened = open_model(model, device=device)
        self._k, self._distinct = k, distinct_of(rows)
        texts = DistinctTexts(rows, self._distinct)
        # ties are settled by the greater id, so the earlier row gets that
        self._ids = Texts(f"{number:010d}" for number in reversed(range(len(texts))))
        root = Path(work) / "embeddings"
        judged = RetrievalDataset("corpus", "", self._ids, texts, {}, {}, root)
        self._store = Retriever(opened, root, batch_tokens, progress=_shown()).documents(judged)
        self._found_from = 0
        self._found: list[list[int]] = []
        self._similarity = opened.similarity
        self._device = "cuda" if opened.model.device.type == "cuda" else "cpu"
        self.facts: dict[str, Any] = {
            "source": "encoder",
            "k": k,
            "model": opened.name,
            "revision": opened.revision,
            "role": "document",
            **opened.settings,
        }

    def __call__(self, first: int, last: int) -> list[list[int]]:
        """The neighbours of the rows first to last - 1, nearest first."""
        start = self._found_from
        if not start <= first <= last <= start + len(self._found):  # one search for many small calls
            self._found_from, self._found = first, self._search(first, max(last, first + BAND))
            start = first
        return self._found[first - start : last - start]

    def _search(self, first: int, last: int) -> list[list[int]]:
        places = np.unique(self._distinct.places[first:last])
        if not len(places):
            return []
        runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
        vectors = np.concatenate([self._store[run[0] : run[-1] + 1] for run in runs])
        ids = [self._ids[place] for place in places.tolist()]
        found = top_k(
            vectors,
            self._store,
            ids,
            self._ids,
            self._k,
            drop_self=True,
            similarity=self._similarity,
            device=self._device,
            progress=_shown(),
        )
        top = len(self._ids) - 1
        near = {
            place: self._distinct.rows[[top - int(other) for other in found[name]]].tolist()
            for place, name in zip(places.tolist(), ids, strict=True)
        }
        return [near[place] for place in self._distinct.places[first:last].tolist()]


def combine(*sources: Sequence[Sequence[int]]) -> list[list[int]]:
    """Merges the neighbours that several sources give for the same rows.

    Returns:
        for each row the first of each source in turn, then the second …, each number once.
    """
    return [
        [one for one in dict.fromkeys(chain.from_iterable(zip_longest(*lists))) if one is not None]
        for lists in zip(*sources, strict=True)
    ]


def texts_of(rows: "Dataset", numbers: Sequence[Sequence[int]]) -> list[list[str]]:
    """The texts of lists of row numbers; each row is read once."""
    wanted = sorted(set(chain.from_iterable(numbers)))
    texts = dict(zip(wanted, rows[wanted]["text"], strict=True)) if wanted else {}
    return [[texts[number] for number in row] for row in numbers]


class Distinct:
    """Which rows of a corpus have a text that no earlier row has.

    Attributes:
        rows: int64 [U], those rows, ascending.
        places: int64 [N], for each row the place in `rows` of the one with its text.
        fingerprint: SHA-256 (64 hex digits) of all texts in their order.
    """

    def __init__(self, rows: "Dataset"):
        digests = np.empty(len(rows), np.int64)
        whole = hashlib.sha256()
        for row, text in enumerate(column(rows, "text", "Comparing texts")):
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            whole.update(digest)
            digests[row] = int.from_bytes(digest[:8], "little", signed=True)
        _, firsts, groups = np.unique(digests, return_index=True, return_inverse=True)
        order = np.argsort(firsts)
        ranks = np.empty_like(order)
        ranks[order] = np.arange(len(order))
        self.rows, self.places = firsts[order], ranks[groups]
        self.fingerprint = whole.hexdigest()


@functools.lru_cache(maxsize=1)
def distinct_of(rows: "Dataset") -> Distinct:
    """`Distinct` of a corpus, found once for all that ask of the same object."""
    return Distinct(rows)


class DistinctTexts(Sequence[str]):
    """The texts of a corpus, each once, read when asked for.

    Args:
        rows: the corpus.
        distinct: its rows that count.
    """

    def __init__(self, rows: "Dataset", distinct: Distinct):
        self._rows, self._numbers = rows, distinct.rows

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if not isinstance(place, slice):
            return self._rows[int(self._numbers[place])]["text"]
        numbers = self._numbers[place].tolist()
        return list(self._rows[numbers]["text"]) if numbers else []

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BAND):
            yield from self[start : start + BAND]


def keep_folder(folder: Path, facts: dict[str, Any], make: Callable[[Path], None]) -> None:
    """Lets a folder be made, unless it is there with the same facts, whole."""
    if _is_whole(folder, facts):
        return
    with atomic_folder(folder, replaces=[r"[^/]+"]) as draft:
        make(draft)
        sizes = {file.name: file.stat().st_size for file in sorted(draft.iterdir())}
        write_json(draft / "made.json", {"facts": facts, "bytes": sizes})


def _is_whole(folder: Path, facts: dict[str, Any]) -> bool:
    """True if the files are as long as when they were written; a crash of the machine may have cut them."""
    try:
        made = json.loads((folder / "made.json").read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in made["bytes"]}
        return bool(made == {"facts": facts, "bytes": sizes})
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _document_of(pattern: str) -> Callable[[str], str | None]:
    """From an id to its document; None where the pattern does not match."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise RecipeError(f"the pattern {pattern!r} is no regular expression: {error}.") from error
    if not compiled.groups:
        raise RecipeError(
            f"the pattern {pattern!r} has no group; put the document in one, as in {DOCUMENT_PATTERN!r}."
        )
    return lambda text: found[1] if (found := compiled.fullmatch(text)) else None


def column(rows: "Dataset", name: str, desc: str) -> Iterator[str]:
    """One column, some rows at a time, with a bar after two seconds."""
    from tqdm import tqdm

    with tqdm(total=len(rows), desc=desc, unit=" rows", delay=2, leave=False, disable=None) as bar:
        rows = rows.select_columns(name)  # a slice of a corpus makes lists of every column in it
        for start in range(0, len(rows), BAND):
            found = rows[start : start + BAND][name]
            yield from found
            bar.update(len(found))


def _shown() -> bool:
    return sys.stderr.isatty()


def _check_k(k: int) -> None:
    if k < 1:
        raise RecipeError(f"k is {k}; expected at least 1 neighbour.")
