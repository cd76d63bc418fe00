"""The result of compare(), as sentences, JSON and tables."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape as html_escape
from textwrap import shorten
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from stzoo.evaluation.scoring import PairedTest, is_sum
from stzoo.utils.messages import counted
from stzoo.utils.tables import Tabular, new_table

LEVEL = 0.05
TEXT_LENGTH = 240  # characters of a query in a table; the JSON has the whole text


@dataclass(frozen=True)
class Example:
    """A query on which two systems differ.

    Attributes:
        query: Id of the query.
        text: Text of the query; None if it was not found.
        baseline: Score of the baseline.
        system: Score of the other system.
    """

    query: str
    text: str | None
    baseline: float
    system: float


@dataclass(frozen=True)
class Pair:
    """The difference between a system and the baseline on one split of a data set.

    Attributes:
        dataset: Name of the data set.
        split: Split of the judgements, e.g. "test".
        system: Label of the other system.
        baseline_mean: Mean score of the baseline.
        system_mean: Mean score of the other system.
        test: Paired test of the difference, system - baseline.
        p_holm: The p-value, adjusted over all pairs of the comparison.
        effect: Cohen's d_z; None if all queries have the same difference.
        won: Number of queries on which the system is better.
        tied: Number of queries on which both are equal.
        lost: Number of queries on which the baseline is better.
        gains: The system's largest gains, largest first.
        losses: The system's largest losses, largest first.
    """

    dataset: str
    split: str
    system: str
    baseline_mean: float
    system_mean: float
    test: PairedTest
    p_holm: float
    effect: float | None
    won: int
    tied: int
    lost: int
    gains: tuple[Example, ...]
    losses: tuple[Example, ...]

    @property
    def differ(self) -> bool:
        """True if the adjusted p-value is below 0.05."""
        return self.p_holm < LEVEL


@dataclass(frozen=True)
class Average:
    """The difference between a system and the baseline in the mean over data sets.

    Attributes:
        system: Label of the other system.
        sets: Number of data sets (and splits) that both have.
        baseline_mean: Mean of the baseline's means.
        system_mean: Mean of the other system's means.
        low: Lower end of the 95 % stratified bootstrap interval of the difference.
        high: Upper end of the interval.
    """

    system: str
    sets: int
    baseline_mean: float
    system_mean: float
    low: float
    high: float


@dataclass(frozen=True, repr=False)
class Comparison(Tabular):
    """The result of compare(); printed, tables and a verdict for each pair.

    Attributes:
        measure: Name of the measure, e.g. "nDCG@10".
        baseline: Label of the first system.
        systems: Labels of the others.
        pairs: Differences by data set and split, then in the order of the systems.
        averages: One for each system that shares several data sets with the baseline.
        notes: Notes for readers of the comparison.
    """

    measure: str
    baseline: str
    systems: tuple[str, ...]
    pairs: tuple[Pair, ...]
    averages: tuple[Average, ...]
    notes: tuple[str, ...]

    def rows(self) -> list[dict[str, Any]]:
        """A row for each pair."""
        return [
            {
                "dataset": pair.dataset,
                "split": pair.split,
                "system": pair.system,
                "baseline": self.baseline,
                self.measure: pair.system_mean,
                "baseline mean": pair.baseline_mean,
                "difference": pair.test.difference,
                "low": pair.test.low,
                "high": pair.test.high,
                "p": pair.test.p_value,
                "p (Holm)": pair.p_holm,
                "effect": pair.effect,
                "queries": pair.test.queries,
                "won": pair.won,
                "tied": pair.tied,
                "lost": pair.lost,
            }
            for pair in self.pairs
        ]

    def to_json(self) -> dict[str, Any]:
        """All of the comparison."""
        return as_json(self)

    def __rich__(self) -> Group:
        return Group(table(self), *(escape(verdict(self, pair)) for pair in self.pairs))

    def _repr_html_(self) -> str:
        verdicts = "<br>".join(html_escape(verdict(self, pair)) for pair in self.pairs)
        return f"{super()._repr_html_()}<p>{verdicts}</p>"


def verdict(comparison: Comparison, pair: Pair) -> str:
    """The outcome of a pair's test in words."""
    test, count = pair.test, len(comparison.pairs)
    p = f"p = {test.p_value:.4f}"
    if count > 1:
        p += f", or {pair.p_holm:.4f} after Holm's correction for {count} comparisons"
    if pair.differ:
        outcome = f"{pair.system if test.difference > 0 else comparison.baseline} "
        is_count = is_sum(comparison.measure) or comparison.measure.startswith("Judged")
        outcome += "has the higher value." if is_count else "is better."
    elif test.p_value < LEVEL:
        outcome = f"They do not differ beyond chance, as this is one of {count} comparisons."
    else:
        outcome = "They do not differ beyond chance."
        if test.low > 0 or test.high < 0:  # by the bootstrap, which knows nothing of the test
            outcome += " The p-value decides; the interval is a separate estimate."
    return (
        f"{pair.system} against {comparison.baseline} on {pair.dataset} ({pair.split}): "
        f"{test.difference:+.4f} {comparison.measure} (95 % interval {test.low:+.4f} to {test.high:+.4f}, "
        f"{p}, {counted(test.queries, 'query')}). {outcome}"
    )


def as_json(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON."""
    plain = asdict(comparison)
    for row, pair in zip(plain["pairs"], comparison.pairs, strict=True):
        row |= row.pop("test") | {"differ": pair.differ, "verdict": verdict(comparison, pair)}
    return plain


def table(comparison: Comparison) -> Group:
    """A comparison as tables of 80 columns: the scores, then the largest gains and losses."""
    examples = [_examples(comparison, pair) for pair in comparison.pairs if pair.gains or pair.losses]
    return Group(_figures(comparison), *examples)


def _figures(comparison: Comparison) -> Table:
    name, at, cut = comparison.measure.partition("@")
    heads = (f"{name}\n{at}{cut}", "Differ-\nence", "95 %\ninterval", "p\nHolm's", "Effect\nd_z")
    shown = new_table("Data set\n  System", numbers=[*heads, "Won/tied/\nlost"])

    def row(label: str, *cells: str) -> None:
        shown.add_row(escape(f"  {label}"), *cells)

    def figures(a: float, b: float, low: float, high: float) -> Sequence[str]:
        return f"{b:.4f}", f"{b - a:+.4f}", f"{low:+.4f}\n{high:+.4f}"

    for dataset, split in dict.fromkeys((pair.dataset, pair.split) for pair in comparison.pairs):
        pairs = [pair for pair in comparison.pairs if (pair.dataset, pair.split) == (dataset, split)]
        shown.add_row(escape(f"{dataset} ({split})\n{counted(pairs[0].test.queries, 'query')}"))
        row(comparison.baseline, f"{pairs[0].baseline_mean:.4f}")
        for pair in pairs:
            row(
                pair.system,
                *figures(pair.baseline_mean, pair.system_mean, pair.test.low, pair.test.high),
                f"{pair.test.p_value:.4f}\n{'[bold]' if pair.differ else ''}{pair.p_holm:.4f}",
                "-" if pair.effect is None else f"{pair.effect:+.2f}",
                f"{pair.won}/{pair.tied}/{pair.lost}",
            )
        shown.add_section()
    last = None
    for mean in comparison.averages:
        if last != (last := (mean.sets, mean.baseline_mean)):
            shown.add_row(f"Mean over {mean.sets} sets")
            row(comparison.baseline, f"{mean.baseline_mean:.4f}")
        row(mean.system, *figures(mean.baseline_mean, mean.system_mean, mean.low, mean.high))
    return shown


def _examples(comparison: Comparison, pair: Pair) -> Table:
    title = escape(f"{pair.dataset} ({pair.split}): {pair.system} against {comparison.baseline}")
    shown = new_table("Query", "Text", numbers=["Baseline", "System", "Differ-\nence"], title=title)
    shown.columns[0].max_width = 20
    for examples in (pair.gains, pair.losses):
        for row in examples:
            scores = (f"{row.baseline:.4f}", f"{row.system:.4f}", f"{row.system - row.baseline:+.4f}")
            text = shorten(row.text or "", TEXT_LENGTH, placeholder=" …")
            shown.add_row(escape(row.query), escape(text), *scores)
        shown.add_section()
    return shown
