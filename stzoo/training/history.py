"""Learning curves: what a training run logged, read back from its run.json and drawn as a PNG.

A line of the log is of one step. Every number in it is a loss, but for scores, accuracies, and what says how
training went (`BESIDE`).
"""

import json
import math
import sys
import warnings
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stzoo.errors import DataError, MissingExtraError
from stzoo.training.settings import FinetuneSettings, PretrainSettings
from stzoo.utils.files import atomic_file
from stzoo.utils.inputs import user_path
from stzoo.utils.outputs import RECORD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURE = "learning_curve.png"
PRETRAINING = "pretraining_curve.png"  # in a fine-tuned model's folder, that of the pre-training before
TOTAL = "loss"  # the weighted sum of the others
SCORES = {"eval_dev_ndcg_at_10": "dev nDCG@10", "probe_ndcg_at_10": "probe nDCG@10"}  # shown as, by key
BESIDE = {"step", "epoch", "learning_rate", "grad_norm", "tokens_per_s", "total_flos"}
KINDS = {kind.command: kind for kind in (PretrainSettings, FinetuneSettings)}
FEW, MANY = 40, 200  # points: up to FEW are marked one by one, from MANY on a running mean is drawn over them
SPREAD = 50  # how many times the least loss the greatest is, where the axis is logarithmic
# Okabe and Ito's colours, in an order in which neighbours differ in lightness too
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
    """Values by step, without those that are no number.

    Attributes:
        name: to show.
        parts: steps, rising over all parts, and as many values; a part an episode.
    """

    name: str
    parts: list[tuple[list[int], list[float]]]

    @property
    def points(self) -> list[tuple[int, float]]:
        """Steps and values of all parts."""
        return [point for steps, values in self.parts for point in zip(steps, values, strict=True)]


@dataclass(frozen=True)
class History:
    """What a training run recorded.

    Attributes:
        folder: of the run.
        command: pretrain or finetune.
        method: the objective, or the losses.
        base: the model it began from.
        data: what it trained on.
        status: "running", "failed", "interrupted" or "finished".
        steps: of all episodes.
        seconds: that it took, or has taken so far.
        settings: those that differ from the defaults.
        losses: the total first; without it where it is of one loss only.
        scores: on the dev queries or the probe.
        begins: of each episode the number of steps before it; [0] where there are no episodes.
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
        """The best score, the first step that had it, and what score it is; None where nothing was scored."""
        means = [line for line in self.scores if line.name in SCORES.values()]  # not those of single tasks
        every = [(value, -step, line.name) for line in means for step, value in line.points]
        value, step, name = max(every, default=(0.0, 0, ""))
        return (value, -step, name) if every else None

    @property
    def spread(self) -> bool:
        """True where the losses differ so much that only a logarithmic axis shows them all."""
        values = [value for line in self.losses for _, value in line.points]
        return bool(values) and min(values) > 0 and max(values) > SPREAD * min(values)

    @property
    def title(self) -> str:
        """What was trained on what, in words."""
        return f"{self.command} ({self.method}) of {shortened(self.base)} on {shortened(self.data)}"

    @property
    def outcome(self) -> str:
        """Steps, time and best score in words."""
        found = [f"{self.steps:,} step{'s' * (self.steps != 1)}"]
        found += [f"{len(self.begins)} episodes"] if len(self.begins) > 1 else []
        found += [self.duration]
        if self.best:
            value, step, name = self.best
            found.append(f"best {name} {value:.4f} at step {step:,}")
        return ", ".join(found + (["unfinished"] if self.status != "finished" else []))

    @property
    def duration(self) -> str:
        """The seconds for people."""
        if self.seconds < 60:
            return f"{self.seconds:.3g} s"
        minutes, rest = divmod(round(self.seconds), 60)
        return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def read_history(folder: str | Path) -> History:
    """Reads what a training run recorded; the run may still be going on.

    Raises:
        DataError: if the folder holds no run of pretrain or finetune.
    """
    folder = user_path(folder)
    try:
        return as_history(json.loads((folder / RECORD).read_text(encoding="utf-8")), folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{folder} holds no training run: expected a {RECORD} of stzoo pretrain or finetune in it. Give "
            "the --output of one."
        ) from None


def as_history(facts: dict[str, Any], folder: Path) -> History:
    """What a run's record says of it; LookupError and the like if it is none.

    Args:
        facts: the record; without its log there are no losses and no scores.
        folder: of the run.
    """
    recipe = facts["recipe"]
    kind = KINDS[recipe["command"]]
    lines, begins, steps = _lines(facts)
    changed = {
        name: value
        for name, value in recipe.items()
        if name not in ("schema_version", "command")
        and (name not in kind.model_fields or value != kind.model_fields[name].get_default())
    }
    losses = [
        lines[key]
        for key in sorted((k for k in lines if not _score_name(k)), key=lambda key: (key != TOTAL, key))
    ]
    return History(
        folder=folder,
        command=kind.command,
        method=recipe.get("objective") or _method(recipe),
        base=recipe.get("base") or recipe["model"],
        data=_data(recipe),
        status=facts["status"],
        steps=steps,
        seconds=facts["seconds"],
        settings=changed,
        losses=losses[1:] if len(losses) == 2 else losses,
        scores=[lines[key] for key in sorted(lines) if _score_name(key)],
        begins=begins,
    )


def _lines(facts: dict[str, Any]) -> tuple[dict[str, Line], list[int], int]:
    """Lines by key of the log, episode behind episode; the steps before each episode; steps in all."""
    lines: dict[str, Line] = {}
    begins, end = [], 0
    for part in facts.get("episodes") or [facts]:
        log = part.get("log", [])
        begins.append(end)
        for key in {key: None for line in log for key in line if _is_shown(key)}:
            points = [(end + line["step"], line[key]) for line in log if _is_number(line.get(key))]
            if points:
                steps, values = map(list, zip(*points, strict=True))
                lines.setdefault(key, Line(_score_name(key) or key, [])).parts.append((steps, values))
        end += max([part.get("steps", 0), *(line["step"] for line in log)])
    return lines, begins, end


def _is_shown(key: str) -> bool:
    beside = key in BESIDE or key.endswith("_accuracy") or key.startswith(("eval_", "probe_", "train_"))
    return bool(_score_name(key)) or not beside


def _score_name(key: str) -> str:
    """What a score is shown as, "dev nDCG@10" or "dev nDCG@10, TASK"; "" for what is none."""
    found = next((name for name in SCORES if key.startswith(name)), "")
    task = key[len(found) + 1 :]
    return (SCORES[found] + (f", {task}" if task else "")) if found else ""


def _method(recipe: dict[str, Any]) -> str:
    losses = " + ".join(recipe.get("losses", ()))
    return (
        f"{losses}, {recipe['balancer']} of {len(recipe['tasks'])} tasks" if recipe.get("tasks") else losses
    )


def _data(recipe: dict[str, Any]) -> str:
    """What was learnt from, as the recipe has it."""
    several = [task["name"] for task in recipe.get("tasks", [])] or recipe.get("corpus", [])
    return recipe.get("data") or ", ".join(several)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def running_mean(values: list[float]) -> list[float]:
    """The mean around each value, over a 25th of all; empty where there are fewer than MANY."""
    count, half = len(values), len(values) // 50
    if count < MANY:
        return []
    sums = [0.0, *accumulate(values)]
    ends = [(max(0, place - half), min(count, place + half + 1)) for place in range(count)]
    return [(sums[end] - sums[begin]) / (end - begin) for begin, end in ends]


def draw(run: str | Path) -> Path | None:
    """Draws a run's losses and, below them, its scores, as learning_curve.png in its folder.

    Args:
        run: the folder. The same run.json gives the same bytes.

    Returns:
        the picture, 1200 x 700 pixels; None where nothing was logged, or where matplotlib is not installed,
        which a line on stderr then says: what was trained is none the worse.

    Raises:
        DataError: if the folder holds no run of pretrain or finetune.
        OutputError: if the picture cannot be written.
    """
    history = read_history(run)
    if not history.losses and not history.scores:
        return None
    try:
        from matplotlib import style
    except ImportError:
        print(f"no learning curve: {MissingExtraError('matplotlib', 'report')}", file=sys.stderr)
        return None
    path = history.folder / PICTURE
    with style.context(["default", LOOK]), warnings.catch_warnings():  # not as the user has set matplotlib up
        warnings.filterwarnings("ignore", message="Glyph")  # in names: the font has no Chinese
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
    """One panel, with its legend beside it, where it covers nothing."""
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
    """A look for each line; the total is dark and on top, and colours that come again are dashed."""
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
    """Numbers the episodes above the panel, as many as there is room for."""
    ends = [*history.begins[1:], history.steps]
    shown = range(0, len(ends), math.ceil(len(ends) / 20))
    above = axes.secondary_xaxis("top")
    above.set_xticks([(history.begins[i] + ends[i]) / 2 for i in shown], [str(i + 1) for i in shown])
    above.set_xlabel("episode")
    above.tick_params(length=0)
    above.spines["top"].set_visible(False)


def shortened(text: str, most: int = 40) -> str:
    """The last part of a path or Hub id, or of each of several, without its middle where it is long."""
    text = ", ".join(Path(one).name or one for one in text.split(", "))
    return text if len(text) <= most else f"{text[: most // 3]}…{text[most // 3 + 1 - most :]}"
