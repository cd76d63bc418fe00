"""The result of contamination(), as JSON and tables."""

import html
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group
from rich.markup import escape

from stzoo.utils.tables import Tabular, new_table

SCHEMA_VERSION = 1
WAYS = ("exact", "ngram", "minhash")


@dataclass(frozen=True)
class Hit:
    """A test text that was found, and the most similar training text.

    Attributes:
        kind: "query" or "passage".
        id: Id of the query or passage.
        how: "exact", "ngram" or "minhash"; see `overlap.py`.
        similarity: Similarity of both texts, 0 to 1.
        places: Number of training texts in which it was found in this way.
        negatives: Number of these that are negatives of training queries.
        file: File of the training text.
        line: Line or row of the training text, from 1.
        field: Field of the training text, e.g. "pos[0]"; "" for a line of text.
        text: Beginning of the test text.
        training_text: Beginning of the training text.
    """

    kind: str
    id: str
    how: str
    similarity: float
    places: int
    negatives: int
    file: str
    line: int
    field: str
    text: str
    training_text: str

    @property
    def only_negative(self) -> bool:
        """True if it was found in negatives only, which teach no answer."""
        return self.negatives == self.places


@dataclass(frozen=True)
class CleanScore:
    """A system's mean score with and without contaminated queries; None if no query is left.

    Attributes:
        system: Label of the system.
        path: Path to the result.
        all: Mean over all judged queries.
        without_found: Mean over the queries whose text was not found.
        without_contaminated: Mean over the queries of which neither text nor relevant passages were found.
    """

    system: str
    path: str
    all: float
    without_found: float | None
    without_contaminated: float | None


@dataclass(frozen=True, repr=False)
class Contamination(Tabular):
    """The test texts that occur in training data; printed, tables of counts and scores.

    Attributes:
        dataset: Name of the test data set.
        split: Split of the judgements, e.g. "test".
        train: Training files and folders, as given.
        texts: Number of training texts read.
        queries: Number of judged queries.
        passages: Number of passages relevant to any of them.
        found_queries: Ids of queries whose text was found, not counting negatives.
        found_passages: Ids of relevant passages that were found, not counting negatives.
        only_negatives: Ids of relevant passages that were found in negatives only.
        contaminated: Ids of queries whose text or any of whose relevant passages was found.
        hits: The texts found: queries first, in the order of the data.
        ngram: Number of words in an n-gram.
        jaccard: Threshold of MinHash; None if it was skipped.
        measure: Measure of the scores.
        scores: Scores of each system.
    """

    dataset: str
    split: str
    train: tuple[str, ...]
    texts: int
    queries: int
    passages: int
    found_queries: tuple[str, ...]
    found_passages: tuple[str, ...]
    only_negatives: tuple[str, ...]
    contaminated: tuple[str, ...]
    hits: tuple[Hit, ...]
    ngram: int
    jaccard: float | None
    measure: str
    scores: tuple[CleanScore, ...]

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Number of texts found, by kind and by way, without negatives; "any" counts each text once."""
        ways = Counter((hit.kind, hit.how) for hit in self.hits if not hit.only_negative)
        found = {"query": len(self.found_queries), "passage": len(self.found_passages)}
        counts = {kind: {how: ways[kind, how] for how in WAYS} | {"any": found[kind]} for kind in found}
        counts["passage"]["only_negatives"] = len(self.only_negatives)
        return counts

    def rows(self) -> list[dict[str, Any]]:
        """A row for each text that was found, and each way in which it was."""
        return [asdict(hit) for hit in self.hits]

    def to_json(self) -> dict[str, Any]:
        """All of the report."""
        return as_json(self)

    def __rich__(self) -> Group:
        return table(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def as_json(report: Contamination) -> dict[str, Any]:
    """A report as JSON."""
    return {"schema_version": SCHEMA_VERSION, **asdict(report), "counts": report.counts}


def table(report: Contamination) -> "Group":
    """Counts and scores as tables of 80 columns."""
    ways = ("whole", f"by {report.ngram}\nwords", "by\nMinHash", "in any\nway", "of")
    found = new_table("Found", numbers=ways)
    for kind, total in (("query", report.queries), ("passage", report.passages)):
        counts = report.counts[kind]
        name = {"query": "test queries", "passage": "their relevant passages"}[kind]
        minhash = "-" if report.jaccard is None else str(counts["minhash"])
        found.add_row(
            name, str(counts["exact"]), str(counts["ngram"]), minhash, str(counts["any"]), str(total)
        )
    if report.only_negatives:
        found.add_row(
            "passages, as negatives only", "", "", "", str(len(report.only_negatives)), str(report.passages)
        )
    either = str(len(report.contaminated))
    found.add_row("queries with either", "", "", "", either, str(report.queries))
    if not report.scores:
        return Group(found)
    left_out = (0, len(report.found_queries), len(report.contaminated))
    heads = zip(("all", "without\nfound", "without\neither"), left_out, strict=True)
    numbers = [f"{head}\n({report.queries - without})" for head, without in heads]
    scores = new_table("System", numbers=numbers, title=f"{report.measure} (queries)")
    for row in report.scores:
        means = (row.all, row.without_found, row.without_contaminated)
        scores.add_row(escape(row.system), *("-" if mean is None else f"{mean:.4f}" for mean in means))
    return Group(found, scores)
