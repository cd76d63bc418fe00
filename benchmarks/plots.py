"""Draws the sweep of pretrain_speed.py: time and memory of a step against length, batch and vocabulary.

    python benchmarks/pretrain_speed.py --parts sweep --output sweep.json
    python benchmarks/plots.py sweep.json sweep.svg

The same JSON gives the same bytes. The ending names the format, SVG or PNG.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pretrain_speed import SWEEP, SWEEP_SIDES

from stzoo.training.history import COLOURS, LOOK

PLACES = {"passages": 0, "tokens": 1, "vocabulary": 2}  # in a point
LABELS = {
    "passages": "passages of {tokens} tokens",
    "tokens": "tokens in each of {passages} passages",
    "vocabulary": "size of the vocabulary; {passages} passages of {tokens} tokens",
}
NAMES = {"stzoo": "stzoo", "plain": "plain torch"}


def draw(report: dict[str, Any]) -> Figure:
    """A panel of times and one of memory for each axis of the sweep."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    panels = figure.subplots(2, len(SWEEP), sharex="col", sharey="row")
    for column, (axis, points) in enumerate(SWEEP.items()):
        measured = {point: report["sweep"].get("x".join(map(str, point))) for point in points}
        shown = {point[PLACES[axis]]: case for point, case in measured.items() if case}
        for row, (quantity, label) in enumerate((("seconds", "CPU seconds"), ("MB", "memory in MB"))):
            axes = panels[row, column]
            for side, colour in zip(SWEEP_SIDES, COLOURS, strict=False):
                values = [case[quantity][side] for case in shown.values()]
                axes.plot(list(shown), values, marker="o", color=colour, label=NAMES[side])
            axes.grid(color="#e3e6ea")
            axes.spines[["top", "right"]].set_visible(False)
            if column == 0:
                axes.set_ylabel(label)
        fixed = {name: points[0][place] for name, place in PLACES.items()}
        panels[1, column].set_xlabel(LABELS[axis].format(**fixed))
        panels[1, column].xaxis.set_major_locator(MaxNLocator(4, integer=True))
        panels[1, column].xaxis.set_major_formatter("{x:,.0f}")
    for axes in panels[:, 0]:  # after all are drawn, as the panels of a row share the axis
        axes.set_ylim(bottom=0)
    panels[0, 0].legend(frameon=False)
    where = report["processor"]["name"]
    figure.suptitle(f"One step of RetroMAE, 4 layers of 256, fp32, one thread ({where})", x=0.01, ha="left")
    return figure


def main() -> None:
    """Draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    given = parser.parse_args()
    with mpl.rc_context({**LOOK, "svg.hashsalt": "stzoo"}):
        metadata = {"Date": None} if given.picture.suffix == ".svg" else {"Software": None}
        draw(json.loads(given.report.read_text())).savefig(given.picture, metadata=metadata)


if __name__ == "__main__":
    main()
