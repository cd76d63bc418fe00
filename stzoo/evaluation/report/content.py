"""What the page, the text and the CSV show, and how values are written in them."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stzoo.data.corpus_names import datasets_folder
from stzoo.evaluation.adapt_record import ADAPTED, BASE, HELD_OUT
from stzoo.evaluation.query_texts import query_texts
from stzoo.evaluation.report.adaptation import Adaptation
from stzoo.evaluation.report.data import COST, Group, Page
from stzoo.evaluation.report.intervals import Interval
from stzoo.evaluation.report.leaderboard import (
    Leaderboard,
    first_pair,
    leaderboard,
    set_letters,
    suite_letters,
)
from stzoo.retrieval import bm25
from stzoo.utils.paths import shorten_paths


@dataclass(frozen=True)
class Content:
    """What the page and the text show.

    Attributes:
        page: The results.
        folder: Folder of the results.
        seed: Random seed of the tests.
        show_bars: True shows progress bars on stderr.
        data: Folder with the texts of queries.
        adaptation: The run of adapt, if the folder is one.
    """

    page: Page
    folder: Path
    seed: int
    show_bars: bool
    data: Path | None
    adaptation: Adaptation | None

    @cached_property
    def leaderboard(self) -> Leaderboard:
        """The order of all systems."""
        return leaderboard(self.page.groups, self.page.systems, self.page.measure, self.seed)

    @cached_property
    def letters(self) -> list[list[str]]:
        """The letters of each data set's systems."""
        return [set_letters(group, self.page.measure, self.seed) for group in self.page.groups]

    @cached_property
    def suite_letters(self) -> list[list[str]]:
        """The letters of each suite's systems."""
        return [suite_letters(suite, self.page.measure, self.seed) for suite in self.page.suites]

    def pair(self, group: Group) -> tuple[int, int] | None:
        """The systems of a data set that are compared first, as indices of its rows."""
        return first_pair(group, *((BASE, ADAPTED) if self.is_held_out(group) else (bm25.NAME,)))

    def is_held_out(self, group: Group) -> bool:
        """True for the held-out questions of a run of adapt."""
        return self.adaptation is not None and group.data.dataset == HELD_OUT

    def texts(self, group: Group) -> dict[str, str]:
        """The texts of a data set's queries by id, as far as they can be found."""
        ids = group.data.scores.per_query[self.page.measure]
        places = [self.folder / HELD_OUT] if self.is_held_out(group) else []
        for place in [*places, self.data or datasets_folder()]:
            if texts := query_texts(place, group.data.dataset, ids, self.show_bars):
                return texts
        return {}


def distinct(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records without repetitions."""
    found: list[dict[str, Any]] = []
    for record in records:
        if record not in found:
            found.append(record)
    return found


def pairs(settings: dict[str, Any]) -> str:
    """Settings as text, without local folders."""
    given = (f"{key} {value}" for key, value in settings.items() if value not in (None, {}, ""))
    return shorten_paths(", ".join(given))


def span(interval: Interval) -> str:
    """An interval as text."""
    return "{:.4f} to {:.4f}".format(*interval) if interval else "-"


def cost_of(value: float, key: str) -> str:
    """A cost in readable form; no time for encoding means that the vectors of another model were copied."""
    return "reused" if key == "encode_s" and not value else amount(value, COST[key][1])


def amount(value: float, unit: str) -> str:
    """A cost in readable form, with bytes in a decimal unit (kB, MB, ...)."""
    if unit != "bytes":
        return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"
    power = 0
    while value >= 999.5 and power < 4:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {('', 'k', 'M', 'G', 'T')[power]}B"
