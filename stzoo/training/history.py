"""Learning curves: reads the log of a training run from its run.json and draws it as a PNG.

A log entry belongs to one step. Its numbers are losses, except for scores, accuracies and the statistics
listed in `NO_LOSSES`.
"""

import json
import math
import warnings
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stzoo.errors import DataError
from stzoo.training.finetune_settings import FinetuneSettings
from stzoo.training.pretrain_settings import PretrainSettings
from stzoo.utils.files import atomic_file
from stzoo.utils.inputs import user_path
from stzoo.utils.messages import counted, duration
from stzoo.utils.outputs import RECORD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURE = "learning_curve.png"
PRETRAINING = "pretraining_curve.png"  # in the folder of a fine-tuned model: the curve of its pre-training
TOTAL = "loss"  # the weighted sum of the others
SCORES = {"eval_dev_ndcg_at_10": "dev nDCG@10", "probe_ndcg_at_10": "probe nDCG@10"}  # labels by key
NO_LOSSES = {"step", "epoch", "learning_rate", "grad_norm", "total_flos"} | {
    "tokens_per_s",
    "data_wait",
    "utilisation",
}
KINDS = {kind.command: kind for kind in (PretrainSettings, FinetuneSettings)}
FEW, MANY = 40, 200  # up to FEW points are marked one by one; from MANY on, a running mean is drawn
SPREAD = 50  # the axis is logarithmic if the greatest loss is more than so many times the least
# Okabe and Ito's colours, ordered so that neighbours differ in lightness too
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
DARK, SOFT = "#1b1f24", "#8a929c"
LOOK = {
    "font.size": 11,
    "text.parse_math": False,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.1,
}


@dataclass(frozen=True)
class Line:
    """Finite values by step.

    Attributes:
        name: Label of the line.
        parts: For each episode its steps, which rise over all episodes, and as many values.
    """

    name: str
    parts: list[tuple[list[int], list[float]]]

    @property
    def points(self) -> list[tuple[int, float]]:
        """Steps and values of all episodes."""
        return [point for steps, values in self.parts for point in zip(steps, values, strict=True)]


@dataclass(frozen=True)
class History:
    """The record of a training run.

    Attributes:
        folder: Path to the run's folder.
        command: "pretrain" or "finetune".
        method: Name of the objective, or names of the losses.
        base: Model that the run started from.
        data: Data that it was trained on.
        status: "running", "failed", "interrupted" or "finished".
        steps: Number of steps of all episodes.
        seconds: Duration of the run so far.
        settings: Settings that differ from the defaults.
        losses: The losses, the total first; a single loss without the total.
        scores: Scores on the dev queries or the probe.
        begins: For each episode the number of steps before it; [0] without episodes.
    """

    folder: Path
    command: str
    method: str
    base: str
    data: str
    status: str
    steps: int
    seconds: float
    settings: dict[str, Any]
    losses: list[Line]
    scores: list[Line]
    begins: list[int]

    @property
    def best(self) -> tuple[float, int, str] | None:
        """The best score, the first step that reached it, and its label; None if nothing was scored."""
        means = [
            line for line in self.scores if line.name in SCORES.values()
        ]  # without the scores of single tasks
        every = [(value, -step, line.name) for line in means for step, value in line.points]
        value, step, name = max(every, default=(0.0, 0, ""))
        return (value, -step, name) if every else None

    @property
    def base_score(self) -> float | None:
        """The score of the base, which is logged as that of step 0; None if it was not scored."""
        means = [line for line in self.scores if line.name in SCORES.values()]
        return next((value for line in means for step, value in line.points if not step), None)

    @property
    def spread(self) -> bool:
        """True if the losses differ so much that only a logarithmic axis shows them all."""
        values = [value for line in self.losses for _, value in line.points]
        return bool(values) and min(values) > 0 and max(values) > SPREAD * min(values)

    @property
    def title(self) -> str:
        """A title: the method, the model and the data."""
        return f"{self.command} ({self.method}) of {shortened(self.base)} on {shortened(self.data)}"

    @property
    def outcome(self) -> str:
        """A summary: steps, duration and best score."""
        parts = [counted(self.steps, "step")]
        parts += [f"{len(self.begins)} episodes"] if len(self.begins) > 1 else []
        parts += [duration(self.seconds)]
        if self.best:
            value, step, name = self.best
            base = "" if self.base_score is None else f" (base: {self.base_score:.4f})"
            parts.append(
                f"best {name} {value:.4f} at step {step:,}{base}"
                if step or self.base_score is None
                else f"no better {name} than the base's {value:.4f}"
            )
        return ", ".join(parts + (["unfinished"] if self.status != "finished" else []))


def read_history(folder: str | Path) -> History:
    """Reads the record of a training run, which may still be running.

    Args:
        folder: Path to the run's folder.

    Raises:
        DataError: If the folder contains no run of pretrain or finetune.
    """
    folder = user_path(folder)
    try:
        return as_history(json.loads((folder / RECORD).read_text(encoding="utf-8")), folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{folder} contains no training run; expected the --output folder of stzoo pretrain or finetune, "
            f"with its {RECORD}."
        ) from None


def as_history(metadata: dict[str, Any], folder: Path) -> History:
    """Reads a history from the content of run.json; raises LookupError or the like if it is not one.

    Args:
        metadata: Content of run.json. Without its log there are no losses and no scores.
        folder: Path to the run's folder.
    """
    recipe = metadata["recipe"]
    kind = KINDS[recipe["command"]]
    lines, begins, steps = _lines(metadata)
    changed = {
        name: value
        for name, value in recipe.items()
        if name not in ("schema_version", "command")
        and (name not in kind.model_fields or value != kind.model_fields[name].get_default())
    }
    losses = [
        lines[key]
        for key in sorted((k for k in lines if not score_label(k)), key=lambda key: (key != TOTAL, key))
    ]
    return History(
        folder=folder,
        command=kind.command,
        method=recipe.get("objective") or _method(recipe),
        base=recipe.get("base") or recipe["model"],
        data=_data(recipe),
        status=metadata["status"],
        steps=steps,
        seconds=metadata["seconds"],
        settings=changed,
        losses=losses[1:] if len(losses) == 2 else losses,
        scores=[lines[key] for key in sorted(lines) if score_label(key)],
        begins=begins,
    )


def _lines(metadata: dict[str, Any]) -> tuple[dict[str, Line], list[int], int]:
    """Lines by key of the log, the number of steps before each episode, and the total number of steps."""
    lines: dict[str, Line] = {}
    begins, end = [], 0
    for part in metadata.get("episodes") or [metadata]:
        log = part.get("log", [])
        begins.append(end)
        for key in {key: None for line in log for key in line if is_shown(key)}:
            points = [(end + line["step"], line[key]) for line in log if _is_number(line.get(key))]
            if points:
                steps, values = map(list, zip(*points, strict=True))
                lines.setdefault(key, Line(score_label(key) or key, [])).parts.append((steps, values))
        end += max([part.get("steps", 0), *(line["step"] for line in log)])
    return lines, begins, end


def is_shown(key: str) -> bool:
    """True for the losses and scores of a log entry, False for what else it has."""
    no_loss = key in NO_LOSSES or key.endswith("_accuracy") or key.startswith(("eval_", "probe_", "train_"))
    return bool(score_label(key)) or not no_loss


def score_label(key: str) -> str:
    """The label of a score, "dev nDCG@10" or "dev nDCG@10, TASK"; "" for other keys."""
    score = next((name for name in SCORES if key.startswith(name)), "")
    task = key[len(score) + 1 :]
    return (SCORES[score] + (f", {task}" if task else "")) if score else ""


def _method(recipe: dict[str, Any]) -> str:
    losses = " + ".join(recipe.get("losses", ()))
    return (
        f"{losses}, {recipe['balancer']} of {len(recipe['tasks'])} tasks" if recipe.get("tasks") else losses
    )


def _data(recipe: dict[str, Any]) -> str:
    """The training data as named in the recipe."""
    several = [task["name"] for task in recipe.get("tasks", [])] or recipe.get("corpus", [])
    return recipe.get("data") or ", ".join(several)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def running_mean(values: list[float]) -> list[float]:
    """The mean around each value, over a 25th of all values; empty for fewer than MANY values."""
    count, half = len(values), len(values) // 50
    if count < MANY:
        return []
    sums = [0.0, *accumulate(values)]
    ends = [(max(0, place - half), min(count, place + half + 1)) for place in range(count)]
    return [(sums[end] - sums[begin]) / (end - begin) for begin, end in ends]


def draw(run: str | Path) -> Path | None:
    """Draws a run's losses and, below them, its scores, as learning_curve.png in its folder.

    Args:
        run: Path to the run's folder. The same run.json gives the same bytes.

    Returns:
        The path to the picture, 1200 x 700 pixels; None if nothing was logged, or if matplotlib is not
        installed (it comes with `stzoo[report]`).

    Raises:
        DataError: If the folder contains no run of pretrain or finetune.
        OutputError: If the picture cannot be written.
    """
    history = read_history(run)
    if not history.losses and not history.scores:
        return None
    try:
        from matplotlib import style
    except ImportError:  # not worth a word, as nobody asked for the picture
        return None
    path = history.folder / PICTURE
    with style.context(["default", LOOK]), warnings.catch_warnings():  # independent of the user's settings
        warnings.filterwarnings("ignore", message="Glyph")  # e.g. Chinese names, which the font lacks
        figure = _figure(history)
        with atomic_file(path) as draft:
            figure.savefig(draft, format="png", metadata={"Software": None})
    return path


def _figure(history: History) -> "Figure":
    from matplotlib.figure import Figure

    panels = [lines for lines in (history.losses, history.scores) if lines]
    figure = Figure(figsize=(12, 7), dpi=100, layout="constrained")
    boxes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    figure.suptitle(f"{history.title}\n{history.outcome}", x=0.01, ha="left")
    for axes, lines in zip(boxes, panels, strict=True):
        _panel(axes, lines, history)
    boxes[-1].set_xlabel("step")
    figure.align_ylabels()
    if len(history.begins) > 1:
        _name_episodes(boxes[0], history)
    return figure


def _panel(axes: "Axes", lines: list[Line], history: History) -> None:
    """Draws one panel, with its legend to the right."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    for line, look in zip(lines, _looks(lines), strict=True):
        few = len(line.points) <= FEW
        for place, (steps, values) in enumerate(line.parts):
            named = look | {"label": line.name if place == 0 and len(lines) > 1 else None}
            means = running_mean(values)
            if means:
                axes.plot(steps, values, color=look["color"], linewidth=0.6, alpha=0.3)
            marker = "o" if few or len(steps) == 1 else None
            axes.plot(steps, means or values, marker=marker, markersize=4, **named)
    if history.best:
        value, step, _ = history.best
        axes.axvline(step, color=COLOURS[5], linestyle=":", linewidth=1.4, zorder=2)
        if lines is history.scores:
            label = f"best: {value:.4f}\nat step {step:,}"
            axes.plot(step, value, "*", markersize=15, color=COLOURS[5], zorder=4, label=label)
    for begin in history.begins[1:]:
        axes.axvline(begin, color=SOFT, linewidth=1, zorder=1.5)
    if lines is history.losses and history.spread:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_ylabel(lines[0].name if len(lines) == 1 or lines is history.scores else "loss")
    axes.set_xlim(0, history.steps * 1.01)
    axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(color="#e3e6ea")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.005, 1), frameon=False, borderaxespad=0)


def _looks(lines: list[Line]) -> list[dict[str, Any]]:
    """The style of each line: the total is dark and on top, repeated colours are dashed."""
    looks: list[dict[str, Any]] = []
    others = 0
    for line in lines:
        if line.name == TOTAL:
            looks.append(dict(color=DARK, linewidth=1.8, zorder=3))
        else:
            again, place = divmod(others, len(COLOURS))
            looks.append(dict(color=COLOURS[place], linewidth=1.8, linestyle="--" if again else "-"))
            others += 1
    return looks


def _name_episodes(axes: "Axes", history: History) -> None:
    """Numbers the episodes above the panel, as far as there is room."""
    ends = [*history.begins[1:], history.steps]
    shown = range(0, len(ends), math.ceil(len(ends) / 20))
    above = axes.secondary_xaxis("top")
    above.set_xticks([(history.begins[i] + ends[i]) / 2 for i in shown], [str(i + 1) for i in shown])
    above.set_xlabel("episode")
    above.tick_params(length=0)
    above.spines["top"].set_visible(False)


def shortened(text: str, most: int = 40) -> str:
    """The last part of a path or Hub id (or of each of several), with the middle left out if it is long."""
    text = ", ".join(Path(one).name or one for one in text.split(", "))
    return text if len(text) <= most else f"{text[: most // 3]}…{text[most // 3 + 1 - most :]}"
