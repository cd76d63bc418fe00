"""Measures how specialised parameters are: the entropy of their sensitivities over tasks, by layer.

1. Sensitivities are TACO's, |theta * g| divided by its median in the task (over the nonzero entries),
   averaged over some batches of the run's training data, without dropout and without training.
2. A parameter's shares of the tasks are its sensitivities divided by their sum. Their entropy divided by
   log(T) is 1 if all tasks need the parameter equally, and 0 if a single task does.
3. The value of a layer or module is the mean over its parameters, and so are the tasks' shares, which are
   drawn. Parameters that matter to no task (less than a millionth of the median), such as the embeddings of
   words that do not occur, are left out.

Source: after the analysis in Zhang et al. (https://arxiv.org/abs/2307.00342), which compares the entropies of
models trained with and without TACO.
Unlike it: shares are sensitivities divided by their sum, without a temperature.
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
    """Measures runs and draws RUN/figures/specialisation.png for each.

    Args:
        runs: Output folders of finished multi-task runs of `stzoo finetune`.
        batches: Number of batches to average sensitivities over.
        device: Device of torch; None for the CPU.
        threads: Number of CPU threads; None for torch's default.

    Returns:
        For each run its `tasks`, and for the model `before` and `after` the training: `entropy` (0..1) over
        all parameters, and for each of `layers` and `modules` its entropy and the tasks' `shares`.

    Raises:
        DataError: If a folder does not contain a finished multi-task run.
        StzooError: If its data or its models no longer exist.
    """
    if threads:
        torch.set_num_threads(threads)
    return [_inspect(Path(run), batches, device or "cpu") for run in runs]


def _inspect(run: Path, batches: int, device: str) -> dict[str, Any]:
    try:
        metadata = json.loads((run / "run.json").read_text(encoding="utf-8"))
        recipe = {k: v for k, v in metadata["recipe"].items() if k not in ("schema_version", "command")}
        settings = FinetuneSettings.model_validate(recipe)
        is_finished = metadata["status"] == "finished"
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{run} does not contain a run of `stzoo finetune`: {error}.") from None
    if not settings.tasks or not is_finished:
        raise DataError(
            f"{run} contains an unfinished run or one of a single task; expected a finished multi-task run."
        )
    trains = {task: data.train for task, data in read_data(settings).items()}
    result: dict[str, Any] = {"run": str(run), "balancer": settings.balancer, "tasks": list(trains)}
    pooling: dict[str, Any] = dict(pooling=settings.pooling, pooling_options=settings.pooling_options)
    for when, model, how in (("before", settings.model, pooling), ("after", str(run), {})):
        loaded = load_model(model, device=device, **how)
        loaded.to(device)
        set_prompts(loaded, settings)
        result[when] = summary(sensitivities(loaded, settings, trains, batches), loaded)
    _draw(result, run / FIGURE)
    return result


def sensitivities(model: Any, settings: FinetuneSettings, trains: dict[str, Any], batches: int) -> Tensor:
    """The mean over batches of |theta * g| divided by its median in the task: float32 [T, P].

    Args:
        model: A SentenceTransformer.
        settings: Settings of its training.
        trains: Training data by task.
        batches: Number of batches.
    """
    model.eval()
    each = settings.each()
    mixture = make_task_batcher(
        settings, {task: examples_of(each[task], model, train, task) for task, train in trains.items()}
    )
    loss = loss_of(settings, model)
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
            current = gradients.rows.mul_(gradients.values()).abs_()
            total += current / medians(current, used_only=True)
    return total / batches


def _to(value: Any, device: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def summary(sensitivity: Tensor, model: Any) -> dict[str, Any]:
    """Entropies and shares by layer and by module.

    Args:
        sensitivity: float [T, P], the sensitivities of the trained parameters in their order.
        model: Model that has these parameters.
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
    used_by = {
        kind: {name: one for name, one in by.items() if one["parameters"]} for kind, by in every.items()
    }
    return {"entropy": mean([slice(0, start)])["entropy"], **used_by}


def _outside(name: str) -> str:
    return "embeddings" if "embedding" in name else "others"


def _module(name: str, layer: re.Match[str] | None) -> str:
    """The module that a parameter belongs to, without the layer: "attention.self.query"."""
    inside = f".{name}"[layer.end() :] if layer else name.rpartition("model.")[2]
    return inside.rpartition(".")[0] or inside


def table(results: Sequence[dict[str, Any]]) -> str:
    """Formats the entropies of several runs, before and after training, as a table."""
    wide = max(len(one["run"]) for one in results)
    lines = [f"{'run':{wide}}  {'balancer':12}  {'entropy before':>14}  {'after':>6}  most specialised layer"]
    for one in results:
        layers = one["after"]["layers"]
        least = min(layers, key=lambda name: layers[name]["entropy"])
        lines.append(
            f"{one['run']:{wide}}  {one['balancer']:12}  {one['before']['entropy']:14.4f}  "
            f"{one['after']['entropy']:6.4f}  {least} ({layers[least]['entropy']:.4f})"
        )
    lines.append("1: each parameter matters to all tasks equally; 0: to a single task.")
    return "\n".join(lines)


def _draw(result: dict[str, Any], path: Path) -> None:
    """Draws two heat maps, before and after training: the tasks' shares by layer."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        from stzoo import MissingExtraError

        raise MissingExtraError("matplotlib", "report") from None
    names = list(result["after"]["layers"])
    tasks = result["tasks"]
    figure = Figure(
        figsize=(max(7, 2 + 1.6 * len(tasks)), 1.5 + 0.4 * len(names)), dpi=100, layout="constrained"
    )
    boxes = figure.subplots(1, 2, sharey=True)
    values = {
        when: [result[when]["layers"][name]["shares"] for name in names] for when in ("before", "after")
    }
    every = [one for rows in values.values() for row in rows for one in row]
    even = 1 / len(tasks)
    away = max(max(abs(one - even) for one in every), 1e-3)
    for axes, (when, rows) in zip(boxes, values.items(), strict=True):
        image = axes.imshow(rows, cmap="RdBu_r", vmin=even - away, vmax=even + away, aspect="auto")
        axes.set_xticks(range(len(tasks)), tasks, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        axes.set_title(f"{when} training: entropy {result[when]['entropy']:.4f}", fontsize=10)
        for y, row in enumerate(rows):
            for x, value in enumerate(row):
                dark = abs(value - even) > 0.6 * away
                colour = "white" if dark else "black"
                axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, ax=boxes, label="mean share")
    figure.suptitle(
        f"{Path(result['run']).name} ({result['balancer']}): tasks that the parameters serve",
        ha="left",
        x=0.01,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as draft:
        figure.savefig(draft, format="png", metadata={"Software": None})
