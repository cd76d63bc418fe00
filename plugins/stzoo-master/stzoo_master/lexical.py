"""Pseudo-queries without a model: the title of a passage, and the keywords of its parts.

They replace generated queries if no generator is available. As they are words of the passage itself, an
objective that predicts them learns which words matter, not how people ask.
"""

import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stzoo.data import words as any_words
from stzoo.data.words import words_and_pairs
from stzoo.errors import RecipeError
from stzoo.utils.files import atomic_file, fingerprint
from stzoo_master.related import column, distinct_of

if TYPE_CHECKING:
    from datasets import Dataset

WORDS = 5  # words of a query


class LexicalQueries:
    """Keyword queries for passages.

    A passage's first query is its title, if it has one. The rest of the passage is split into parts of equal
    length, and the query of a part consists of its WORDS words with the highest tf-idf, in their order: tf is
    counted in the part, idf = ln(passages / passages with the word). Words are those of `words_and_pairs`; in
    scripts without spaces, pairs of neighbouring characters.

    The words are counted in one pass over the corpus, and the counts are stored. In memory they take some 150
    bytes for each distinct word of the corpus, plus 16 bytes per passage, which neighbours share.

    Args:
        rows: The corpus; a column "title" is used if it exists.
        per_passage: Number of queries per passage; fewer if it is too short, or a query would be repeated.
        work: Folder in which the counts are stored as "words.parquet".

    Attributes:
        metadata: Entry for a manifest: how the queries were made.

    Raises:
        RecipeError: If per_passage is below 1.
        OutputError: If the counts cannot be written.
    """

    def __init__(self, rows: "Dataset", per_passage: int, work: str | Path):
        if per_passage < 1:
            raise RecipeError(f"per_passage is {per_passage}; expected at least 1 query.")
        self._rows, self._per_passage = rows, per_passage
        self._counts = _counts(rows, Path(work) / "words.parquet")
        self._titled = "title" in rows.column_names
        self.metadata: dict[str, Any] = {
            "source": "keywords",
            "generated": False,
            "note": "no generated queries: titles and words of the passages themselves, chosen by tf-idf",
            "per_passage": per_passage,
            "words": WORDS,
            "titles": self._titled,
        }

    def __call__(self, first: int, last: int) -> list[list[str]]:
        """The queries of the rows `first` to `last` - 1."""
        rows = self._rows[first:last]
        titles = rows["title"] if self._titled else [None] * len(rows["text"])
        return [self._queries(text, title or "") for text, title in zip(rows["text"], titles, strict=True)]

    def _queries(self, text: str, title: str) -> list[str]:
        queries = [" ".join(title.split())] if title.strip() else []
        words = words_and_pairs(text.removeprefix(title))
        if parts := self._per_passage - len(queries):
            edges = np.linspace(0, len(words), parts + 1).round().astype(int).tolist()
            queries += [self._keywords(words[a:b]) for a, b in pairwise(edges) if a < b]
        distinct: dict[str, str] = {}
        for query in queries:
            distinct.setdefault(query.casefold(), query)
        return list(distinct.values())

    def _keywords(self, words: list[str]) -> str:
        counts = Counter(words)  # in the order of their first occurrence
        idf = math.log(len(self._rows)) - np.log([self._counts[word] for word in counts])
        best = np.argsort(-np.fromiter(counts.values(), float) * idf, kind="stable")[:WORDS]
        distinct = list(counts)
        return " ".join(distinct[index] for index in sorted(best.tolist()))


def _counts(rows: "Dataset", path: Path) -> dict[str, int]:
    """The number of passages that contain each word: counted once, then read from the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = {
        "rows": len(rows),
        "texts": distinct_of(rows).fingerprint,
        "words": fingerprint(any_words.__file__),
    }
    metadata = {b"stzoo": json.dumps(source).encode()}
    if not path.is_file() or (pq.read_schema(path).metadata or {}).get(b"stzoo") != metadata[b"stzoo"]:
        counts: Counter[str] = Counter()
        for text in column(rows, "text", "Counting words"):
            counts.update(set(words_and_pairs(text)))
        table = pa.table({"word": list(counts), "passages": list(counts.values())})
        with atomic_file(path) as draft:
            pq.write_table(table.replace_schema_metadata(metadata), draft)
        return counts
    table = pq.read_table(path)
    return dict(zip(table["word"].to_pylist(), table["passages"].to_pylist(), strict=True))
