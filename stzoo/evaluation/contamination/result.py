"""What contamination() finds, and how it is shown: as plain values and as tables."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table

SCHEMA_VERSION = 1
WAYS = ("exact", "ngram", "minhash")


@dataclass(frozen=True)
class Hit:
    """A test text that was found, and the training text most like it.

    Attributes:
        kind: "query" or "passage".
        id: of the query or passage.
        how: "exact", "ngram" or "minhash"; see `overlap.py`.
        similarity: 0 to 1.
        places: how many training texts it was found in, in this way.
        file: that holds the training text.
        line: or row, from 1.
        field: e.g. "pos[0]"; "" for a line of text.
        text: the test text's beginning.
        training_text: the training text's beginning.
    """

    kind: str
    id: str
    how: str
    similarity: float
    places: int
    file: str
    line: int
    field: str
    text: str
    training_text: str


@dataclass(frozen=True)
class CleanScore:
    """A system's mean score with and without what was found; None where no query is left.

    Attributes:
        system: its label.
        path: of the result.
        all: mean over all judged queries.
        without_found: mean over the queries whose text was not found.
        without_contaminated: mean over the queries of which no relevant passage was found either.
    """

    system: str
    path: str
    all: float
    without_found: float | None
    without_contaminated: float | None


@dataclass(frozen=True)
class Contamination:
    """What of a test stands in training data.

    Attributes:
        dataset: the judged set's name.
        split: e.g. "test".
        train: the training files and folders, as given.
        texts: training texts gone through.
        queries: judged queries.
        passages: passages relevant to any of them.
        found_queries: ids of queries whose text was found.
        found_passages: ids of relevant passages that were found.
        contaminated: ids of queries that were found, or any of whose relevant passages were.
        hits: queries first, in the order of the data.
        ngram: words of a run.
        jaccard: threshold of MinHash; None if it was left out.
        measure: of the scores.
        scores: one a system.
    """

    dataset: str
    split: str
    train: tuple[str, ...]
    texts: int
    queries: int
    passages: int
    found_queries: tuple[str, ...]
    found_passages: tuple[str, ...]
    contaminated: tuple[str, ...]
    hits: tuple[Hit, ...]
    ngram: int
    jaccard: float | None
    measure: str
    scores: tuple[CleanScore, ...]

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """How many were found, by kind and by way; "any" counts each once."""
        ways = Counter((hit.kind, hit.how) for hit in self.hits)
        found = {"query": len(self.found_queries), "passage": len(self.found_passages)}
        return {kind: {how: ways[kind, how] for how in WAYS} | {"any": found[kind]} for kind in found}


def as_json(report: Contamination) -> dict[str, Any]:
    """A report as plain values."""
    return {"schema_version": SCHEMA_VERSION, **asdict(report), "counts": report.counts}


def table(report: Contamination) -> "Group":
    """Counts and scores as tables that 80 columns can hold."""
    found = Table("Found", box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("whole", f"by {report.ngram}\nwords", "by\nMinHash", "in any\nway", "of"):
        found.add_column(head, justify="right")
    for kind, total in (("query", report.queries), ("passage", report.passages)):
        counts = report.counts[kind]
        name = {"query": "test queries", "passage": "their relevant passages"}[kind]
        minhash = "-" if report.jaccard is None else str(counts["minhash"])
        found.add_row(
            name, str(counts["exact"]), str(counts["ngram"]), minhash, str(counts["any"]), str(total)
        )
    either = str(len(report.contaminated))
    found.add_row("queries with either", "", "", "", either, str(report.queries))
    if not report.scores:
        return Group(found)
    scores = Table("System", box=box.SIMPLE_HEAD, pad_edge=False)
    left = (0, len(report.found_queries), len(report.contaminated))
    for head, without in zip(("all", "without\nfound", "without\neither"), left, strict=True):
        scores.add_column(f"{head}\n({report.queries - without})", justify="right", no_wrap=True)
    scores.title, scores.title_justify = f"{report.measure} (queries)", "left"
    for row in report.scores:
        means = (row.all, row.without_found, row.without_contaminated)
        scores.add_row(escape(row.system), *("-" if mean is None else f"{mean:.4f}" for mean in means))
    return Group(found, scores)
