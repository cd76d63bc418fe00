"""How specialised a model's parameters are: the entropy of their sensitivities over tasks, layer by layer.

1. Sensitivities are measured as TACO has them, |theta * g| over its median in the task (of what is not 0), as
   the mean of some batches of the run's own training data, without dropout and without training.
2. A parameter's shares of tasks are its sensitivities divided by their sum. Their entropy, divided by log(T),
   is 1 where all tasks need the parameter alike, and 0 where one alone does.
3. Of a layer or a module it is the mean over its parameters; so are the tasks' shares, which are drawn.
   Parameters that matter to no task (less than a millionth of the median), as words that do not occur, are
   left out.

Source: after the analysis in Zhang et al. (https://arxiv.org/abs/2307.00342), which compares entropies of
models that were trained with TACO and without.
Unlike it: shares are sensitivities over their sum, without a temperature to choose.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stzoo import DataError
from stzoo.finetuning.balancers import Gradients
from stzoo.finetuning.data import read_data
from stzoo.finetuning.finetune import set_prompts
from stzoo.finetuning.fit import examples_of, loss_of
from stzoo.finetuning.multitask import make_task_batcher
from stzoo.models.loading import load_model
from stzoo.training.settings import FinetuneSettings
from stzoo.utils.files import atomic_file
from stzoo_taco.taco import medians

FIGURE = "figures/specialisation.png"
LAYER = re.compile(r"\.(?:layer|layers|block|h)\.(\d+)\.")
TINY, UNUSED = 1e-12, 1e-6


def inspect(
    runs: Iterable[str | Path], *, batches: int = 16, device: str | None = None, threads: int | None = None
) -> list[dict[str, Any]]:
    """Measures runs and draws what was found into RUN/figures/specialisation.png.

    Args:
        runs: finished outputs of `stzoo finetune` with tasks.
        batches: that sensitivities are the mean of.
        device: of torch; None takes the CPU.
        threads: on the CPU; None leaves it to torch.

    Returns:
        for each run its `tasks`, and for the model `before` and `after` the training: `entropy` (0..1) over
        all parameters, and of each of `layers` and `modules` its entropy and the tasks' `shares`.

    Raises:
        DataError: if a folder holds no finished run of several tasks.
        StzooError: if its data or its models are gone.
    """
    if threads:
        torch.set_num_threads(threads)
    return [_inspect(Path(run), batches, device or "cpu") for run in runs]


def _inspect(run: Path, batches: int, device: str) -> dict[str, Any]:
    try:
        facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
        recipe = {k: v for k, v in facts["recipe"].items() if k not in ("schema_version", "command")}
        wanted = FinetuneSettings.model_validate(recipe)
        whole = facts["status"] == "finished"
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{run} holds no run of `stzoo finetune`: {error}.") from None
    if not wanted.tasks or not whole:
        raise DataError(f"{run}: expected a finished run of several tasks.")
    trains = {task: data.train for task, data in read_data(wanted).items()}
    found: dict[str, Any] = {"run": str(run), "balancer": wanted.balancer, "tasks": list(trains)}
    pooling: dict[str, Any] = dict(pooling=wanted.pooling, pooling_options=wanted.pooling_options)
    for when, model, how in (("before", wanted.model, pooling), ("after", str(run), {})):
        opened = load_model(model, device=device, **how)
        opened.to(device)
        set_prompts(opened, wanted)
        found[when] = summary(sensitivities(opened, wanted, trains, batches), opened)
    _draw(found, run / FIGURE)
    return found


def sensitivities(model: Any, wanted: FinetuneSettings, trains: dict[str, Any], batches: int) -> Tensor:
    """Float32 [T, P], the mean over batches of |theta * g| over its median in the task.

    Args:
        model: a SentenceTransformer.
        wanted: the settings of its training.
        trains: what it was trained on, by task.
        batches: how many.
    """
    model.eval()
    each = wanted.each()
    mixture = make_task_batcher(
        wanted, {task: examples_of(each[task], model, train, task) for task, train in trains.items()}
    )
    loss = loss_of(wanted, model)
    gradients = Gradients(list(model.parameters()), len(trains))
    total = torch.zeros_like(gradients.rows)
    for number in range(batches):
        gradients.rows.zero_()
        epoch, place = divmod(number, mixture.batches)
        mixture.set_epoch(epoch)
        for name, batch in mixture([{"batch": place}])["tasks"].items():
            features = [
                {key.removeprefix(f"{side}_"): _to(value, model.device) for key, value in batch.items()
                 if key.startswith(f"{side}_")}
                for side in ("query", "passage")
            ]  # fmt: skip
            labels = {key: _to(value, model.device) for key, value in batch["label"].items()}
            with gradients.row(list(trains).index(name)):
                loss(features, labels).backward()
        with torch.no_grad():
            found = gradients.rows.mul_(gradients.values()).abs_()
            total += found / medians(found, used_only=True)
    return total / batches


def _to(value: Any, device: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def summary(sensitivity: Tensor, model: Any) -> dict[str, Any]:
    """Entropies and shares by layer and by module.

    Args:
        sensitivity: float [T, P], of the trained parameters in their order.
        model: whose they are.
    """
    total = sensitivity.sum(0)
    used = total > UNUSED
    shares = torch.where(used, sensitivity / total, 0.0)
    tasks = max(len(shares), 2)
    entropy = -(shares * (shares + TINY).log()).sum(0) / torch.tensor(float(tasks)).log()
    named = [(name, p.numel()) for name, p in model.named_parameters() if p.requires_grad]
    groups: dict[str, dict[str, list[slice]]] = {"layers": {}, "modules": {}}
    start = 0
    for name, size in named:
        part = slice(start, start + size)
        start += size
        layer = LAYER.search(f".{name}")
        groups["layers"].setdefault(f"layer {layer[1]}" if layer else _outside(name), []).append(part)
        groups["modules"].setdefault(_module(name, layer), []).append(part)

    def mean(parts: Sequence[slice]) -> dict[str, Any]:
        count = sum(int(used[part].sum()) for part in parts)
        return {
            "entropy": round(float(sum(entropy[part].sum() for part in parts)) / max(count, 1), 4),
            "shares": [
                round(float(sum(row[part].sum() for part in parts)) / max(count, 1), 4) for row in shares
            ],
            "parameters": count,
        }

    every = {kind: {name: mean(parts) for name, parts in by.items()} for kind, by in groups.items()}
    found = {kind: {name: one for name, one in by.items() if one["parameters"]} for kind, by in every.items()}
    return {"entropy": mean([slice(0, start)])["entropy"], **found}


def _outside(name: str) -> str:
    return "embeddings" if "embedding" in name else "others"


def _module(name: str, layer: re.Match[str] | None) -> str:
    """What a parameter belongs to, whatever its layer: "attention.self.query"."""
    inside = f".{name}"[layer.end() :] if layer else name.rpartition("model.")[2]
    return inside.rpartition(".")[0] or inside


def table(found: Sequence[dict[str, Any]]) -> str:
    """The entropies of several runs, before and after, as lines of text."""
    wide = max(len(one["run"]) for one in found)
    lines = [f"{'run':{wide}}  {'balancer':12}  {'entropy before':>14}  {'after':>6}  most specialised layer"]
    for one in found:
        layers = one["after"]["layers"]
        least = min(layers, key=lambda name: layers[name]["entropy"])
        lines.append(
            f"{one['run']:{wide}}  {one['balancer']:12}  {one['before']['entropy']:14.4f}  "
            f"{one['after']['entropy']:6.4f}  {least} ({layers[least]['entropy']:.4f})"
        )
    lines.append("1: each parameter matters to all tasks alike; 0: to one alone.")
    return "\n".join(lines)


def _draw(found: dict[str, Any], path: Path) -> None:
    """Two heat maps, before and after: layers by tasks, their shares."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        from stzoo import MissingExtraError

        raise MissingExtraError("matplotlib", "report") from None
    names = list(found["after"]["layers"])
    tasks = found["tasks"]
    figure = Figure(
        figsize=(max(7, 2 + 1.6 * len(tasks)), 1.5 + 0.4 * len(names)), dpi=100, layout="constrained"
    )
    boxes = figure.subplots(1, 2, sharey=True)
    values = {when: [found[when]["layers"][name]["shares"] for name in names] for when in ("before", "after")}
    every = [one for rows in values.values() for row in rows for one in row]
    even = 1 / len(tasks)
    away = max(max(abs(one - even) for one in every), 1e-3)
    for axes, (when, rows) in zip(boxes, values.items(), strict=True):
        image = axes.imshow(rows, cmap="RdBu_r", vmin=even - away, vmax=even + away, aspect="auto")
        axes.set_xticks(range(len(tasks)), tasks, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        axes.set_title(f"{when} training: entropy {found[when]['entropy']:.4f}", fontsize=10)
        for y, row in enumerate(rows):
            for x, value in enumerate(row):
                dark = abs(value - even) > 0.6 * away
                colour = "white" if dark else "black"
                axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, ax=boxes, label="mean share")
    figure.suptitle(
        f"{Path(found['run']).name} ({found['balancer']}): whom the parameters serve", ha="left", x=0.01
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as draft:
        figure.savefig(draft, format="png", metadata={"Software": None})
