"""The data of the charts, which the template draws as SVG.

Positions are percentages of the chart, so that a chart has any width, while its text keeps its size.
"""

import math
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from stzoo.evaluation.report.data import Group, Row
from stzoo.training.history import COLOURS, FEW, TOTAL, History, Line, running_mean

ROOM = 0.06  # of an axis, left free at both ends
MOST_POINTS = 500  # of a line
BANDS = 60  # of a learning curve that show their values


@dataclass(frozen=True)
class Axis:
    """An axis that fits its data.

    Attributes:
        low: Its lower end, as a logarithm on a logarithmic axis.
        high: Its upper end.
        ticks: Values with labels.
        log: True if it is logarithmic.
    """

    low: float
    high: float
    ticks: list[tuple[float, str]]
    log: bool = False

    def at(self, value: float) -> float:
        """The place of a value, in percent of the axis."""
        if self.log:
            value = math.log10(value)
        return round(100 * (value - self.low) / (self.high - self.low), 2)


def axis(values: Iterable[float], *, steps: int = 5, beyond_zero: bool = False) -> Axis:
    """A linear axis with about `steps` ticks.

    Args:
        values: The values to fit.
        steps: Number of ticks, about.
        beyond_zero: True to leave room below values of 0.
    """
    values = list(values) or [0.0, 1.0]
    low, high = min(values), max(values)
    room = ROOM * (high - low) or 0.1 * abs(high) or 1.0
    begin = low - room if beyond_zero or low < 0 else max(0.0, low - room)
    return _linear(begin, high + room, steps)


def _linear(low: float, high: float, steps: int) -> Axis:
    power = 10.0 ** math.floor(math.log10((high - low) / steps))
    step = next(one * power for one in (1, 2, 5, 10) if (high - low) / (one * power) <= steps + 1)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = [(number * step, f"{number * step:,.{digits}f}") for number in range(first, last + 1)]
    return Axis(low, high, ticks)


def log_axis(values: Iterable[float], label: Callable[[float], str]) -> Axis:
    """A logarithmic axis, with ticks at powers of ten, or at round values if it is short."""
    logs = [math.log10(value) for value in values]
    room = max(0.05, ROOM * (max(logs) - min(logs)))
    low, high = min(logs) - room, max(logs) + room
    if high - low < 1:
        ticks = [tick for tick, _ in _linear(10**low, 10**high, 4).ticks]
    else:
        powers = range(math.ceil(low), math.floor(high) + 1)
        ticks = [10.0**power for power in powers][:: math.ceil(len(powers) / 6)]
        if len(ticks) < 3:
            ticks = sorted(
                ticks
                + [
                    factor * 10.0**power
                    for power in range(math.floor(low), math.ceil(high))
                    for factor in (2, 5)
                    if low <= math.log10(factor) + power <= high
                ]
            )
    return Axis(low, high, [(tick, label(tick)) for tick in ticks], log=True)


def means_axis(group: Group, measure: str) -> Axis:
    """The axis of a data set's means and intervals."""
    means = [row.result.scores.mean[measure] for row in group.rows]
    ends = [end for row in group.rows for end in row.intervals[measure] or ()]
    return axis(means + ends)


@dataclass(frozen=True)
class Cost:
    """A cost of systems against their means.

    Attributes:
        title: Title of the x axis.
        points: Rank, row, cost, and whether no other system is both cheaper and better; by cost.
        x: Axis of the cost.
        y: Axis of the means.
    """

    title: str
    points: list[tuple[int, Row, float, bool]]
    x: Axis
    y: Axis


def cost(
    group: Group, measure: str, keys: Sequence[str], title: str, label: Callable[[float], str]
) -> Cost | None:
    """A chart of the first of `keys` that a result has; None if none has any."""
    found = []
    for rank, row in enumerate(group.rows, 1):
        value = next((row.cost[key] for key in keys if row.cost.get(key)), 0)
        if value > 0:
            found.append((rank, row, value))
    if not found:
        return None
    found.sort(key=lambda one: (one[2], one[0]))
    points, best = [], math.inf
    for rank, row, value in found:
        points.append((rank, row, value, rank < best))
        best = min(best, rank)
    return Cost(title, points, log_axis([one[2] for one in found], label), means_axis(group, measure))


@dataclass(frozen=True)
class Curve:
    """A line of a panel.

    Attributes:
        name: Its name.
        colour: A colour, or "" for that of text.
        dashed: True if it is dashed.
        path: The line, by its running means if there are many values, in thousandths of the panel.
        thin: The values themselves, if there are many.
        marks: Places and labels of values that are marked.
    """

    name: str
    colour: str
    dashed: bool
    path: str
    thin: str
    marks: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Panel:
    """Lines over the steps of a run.

    Attributes:
        title: Title of the y axis.
        y: The y axis.
        lines: The lines.
        best: Place and label of the best score.
    """

    title: str
    y: Axis
    lines: list[Curve]
    best: tuple[float, float, str] | None


@dataclass(frozen=True)
class Training:
    """The learning curve of a run.

    Attributes:
        x: The axis of the steps.
        panels: Losses, and scores.
        begins: Places where episodes begin.
        bands: Begin, width and text of the parts of the x axis that show their values.
    """

    x: Axis
    panels: list[Panel]
    begins: list[float]
    bands: list[tuple[float, float, str]]


def training(history: History) -> Training:
    """The learning curve of a run."""
    x = _linear(0, max(history.steps, 1) * 1.01, 6)
    panels = [_panel(lines, x, history) for lines in (history.losses, history.scores) if lines]
    begins = [x.at(step) for step in history.begins[1:]]
    return Training(x, panels, begins, _bands(history, x))


def _panel(lines: Sequence[Line], x: Axis, history: History) -> Panel:
    values = [value for line in lines for _, value in line.points]
    log = lines is history.losses and history.spread
    y = log_axis(values, lambda value: f"{value:g}") if log else axis(values, steps=4)
    best = None
    if lines is history.scores and history.best:
        value, step, name = history.best
        best = (x.at(step), 100 - y.at(value), f"best {name}: {value:.4f} at step {step:,}")
    title = "loss" if lines is history.losses else lines[0].name
    others = [line for line in lines if line.name != TOTAL]
    curves = []
    for line in lines:
        place = others.index(line) if line in others else -1
        colour = COLOURS[place % len(COLOURS)] if place >= 0 else ""
        curves.append(_line(line, x, y, colour, place >= len(COLOURS)))
    return Panel(lines[0].name if len(lines) == 1 else title, y, curves, best)


def _line(line: Line, x: Axis, y: Axis, colour: str, dashed: bool) -> Curve:
    means = [(steps, running_mean(values) or values) for steps, values in line.parts]
    long = any(running_mean(values) for _, values in line.parts)
    # a value alone in its episode has no line
    marked = [part for part in line.parts if len(line.points) <= FEW or len(part[0]) == 1]
    marks = [
        (x.at(step), 100 - y.at(value), f"{line.name} {value:.4g} at step {step:,}")
        for steps, values in marked
        for step, value in zip(steps, values, strict=True)
    ]
    return Curve(
        line.name, colour, dashed, _path(means, x, y), _path(line.parts, x, y) if long else "", marks
    )


def _path(parts: Iterable[tuple[Sequence[int], Sequence[float]]], x: Axis, y: Axis) -> str:
    """The data of an SVG path: one line per part."""
    path = []
    for steps, values in parts:
        points = [
            f"{10 * x.at(step):.0f} {1000 - 10 * y.at(value):.0f}" for step, value in _thinned(steps, values)
        ]
        path.append("M" + "L".join(points))
    return "".join(path)


def _thinned(steps: Sequence[int], values: Sequence[float]) -> list[tuple[int, float]]:
    """The points, or of many the least and the greatest of each stretch."""
    points = list(zip(steps, values, strict=True))
    if len(points) <= MOST_POINTS:
        return points
    size = math.ceil(2 * len(points) / MOST_POINTS)
    kept: list[tuple[int, float]] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        ends = {min(stretch, key=lambda one: one[1]), max(stretch, key=lambda one: one[1])}
        kept += sorted(ends)
    return kept


def _bands(history: History, x: Axis) -> list[tuple[float, float, str]]:
    """Stretches of steps with the values nearest to their middles."""
    lines = [(line.name, sorted(line.points)) for line in (*history.losses, *history.scores)]
    steps = sorted({step for _, points in lines for step, _ in points})
    count = min(BANDS, len(steps))
    bands = []
    for number in range(count):
        low, high = (history.steps * one / count for one in (number, number + 1))
        middle = min(steps, key=lambda step: abs(step - (low + high) / 2))
        texts = [f"step {middle:,}"]
        for name, points in lines:
            step, value = min(points, key=lambda one: abs(one[0] - middle))
            if abs(step - middle) <= (high - low) / 2:
                texts.append(f"{name} {value:.4g}")
        bands.append((x.at(low), round(x.at(high) - x.at(low), 2), "\n".join(texts)))
    return bands


def pictures(history: History) -> list[tuple[str, str]]:
    """The names and base64 contents of the images that plugins saved in a run's `figures/`."""
    files = sorted((history.folder / "figures").glob("*.png"))
    return [(file.stem.replace("-", " "), b64encode(file.read_bytes()).decode()) for file in files]
