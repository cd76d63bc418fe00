"""The pairs to judge: a pool of the systems' best passages for a random sample of queries.

1. A query's pool is the union of every system's DEPTH best passages, as at TREC, with BM25 and fused
   rankings. A judge sees neither the system nor its rank or score.
2. A query on which all systems agree down to DEPTH cannot change their order, so queries on which they
   differ are drawn first; judging only what can change a comparison is the idea of minimal test collections.
3. Pools are shallow, so that the pairs cover many queries. When the full judgements of Cranfield answered,
   40 pairs put two of four systems in the right order in 78 % of cases at depth 2, the default, in 67 % at
   depth 1, 77 % at 3 and 75 % at 5.
4. The queries are in random order, and so are the passages of each. All passages of a query follow each
   other, so that the judge reads a question once, and whoever stops early has judged whole pools. The order
   does not depend on the number of pairs, so a judge can continue with more.

Source: Spärck Jones, van Rijsbergen, British Library R&D report 5266, 1975 (pooling); Carterette, Allan,
Sitaraman, SIGIR 2006, https://doi.org/10.1145/1148170.1148219 (minimal test collections); Carterette, Pavlu,
Kanoulas, Aslam, Allan, SIGIR 2008, https://doi.org/10.1145/1390334.1390445 (many queries, few judgements).
Unlike minimal test collections, which choose the next document by the answers so far, the pool is fixed
before the first answer, so that it does not depend on the judge.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from stzoo.data.ranking import rank
from stzoo.data.row_location import RowLocation
from stzoo.data.rows import read_jsonl
from stzoo.data.trec import Run
from stzoo.errors import DataError, quoted
from stzoo.utils.messages import counted

Best = Mapping[str, tuple[str, ...]]  # a system's best documents by query id, best first


@dataclass(frozen=True)
class Pool:
    """The pairs to judge, in the order in which they are shown.

    Attributes:
        pairs: Query id and document id; the pairs of a query follow each other.
        queries: Number of queries that the systems have results for.
        differing: Number of these on which the systems differ.
    """

    pairs: tuple[tuple[str, str], ...]
    queries: int
    differing: int


class Passage(NamedTuple):
    """The texts of a passage."""

    title: str
    text: str


def best_of(run: Run, depth: int) -> Best:
    """The `depth` best documents of each query of a run, in trec_eval's order."""
    ranked = rank(run, depth)
    return {query: tuple(ranked[query]) for query in ranked}


def make_pool(systems: Mapping[str, Best], *, pairs: int, seed: int) -> Pool:
    """Draws whole queries until the pool of the next one would exceed the number of pairs.

    Args:
        systems: The best documents of each system, by its name.
        pairs: Largest number of pairs; the first query is taken in any case.
        seed: Random seed.
    """
    queries = sorted(set().union(*systems.values()))
    random.Random(seed).shuffle(queries)  # noqa: S311 - no secret
    lists = {query: [best.get(query, ()) for best in systems.values()] for query in queries}
    differing = [query for query in queries if len(set(lists[query])) > 1]
    agreeing = [query for query in queries if len(set(lists[query])) == 1]
    chosen: list[tuple[str, str]] = []
    for query in differing + agreeing:
        documents = sorted(set().union(*lists[query]))
        if chosen and len(chosen) + len(documents) > pairs:
            break
        random.Random(f"{seed} {query}").shuffle(documents)  # noqa: S311 - no secret
        chosen += [(query, document) for document in documents]
    return Pool(tuple(chosen), len(queries), len(differing))


def read_questions(queries: Path, names: Iterable[str], progress: bool | None = None) -> dict[str, str]:
    """Streams a queries.jsonl and returns the texts of some queries by id.

    Raises:
        DataError: If one is missing.
    """
    rows = _rows(queries, names, progress)
    return {name: at.optional_text(row.get("text"), "text") for name, at, row in rows}


def read_passages(corpus: Path, names: Iterable[str], progress: bool | None = None) -> dict[str, Passage]:
    """Streams a corpus.jsonl and returns some passages by id.

    Raises:
        DataError: If one is missing.
    """
    rows = _rows(corpus, names, progress)
    return {
        name: Passage(*(at.optional_text(row.get(key), key) for key in ("title", "text")))
        for name, at, row in rows
    }


def _rows(
    path: Path, names: Iterable[str], progress: bool | None
) -> Iterator[tuple[str, RowLocation, dict[str, Any]]]:
    """The rows of these ids; the file is read only as far as needed."""
    missing = set(names)
    for at, row in read_jsonl(path, progress) if missing else ():
        name = str(row.get("_id"))
        if name in missing:
            yield name, at, row
            missing.remove(name)
            if not missing:
                return
    if missing:
        raise DataError(
            f"{path} lacks {counted(len(missing), 'id')} of the results, e.g. {quoted(min(missing))}; give "
            "the data set that the results were made on as --data."
        )
