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
from stzoo.training.finetune_settings import FinetuneSettings
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
    trains = {task: data.train for task, data in read_data(settings, mining=settings.episodes > 0).items()}
    result: dict[str, Any] = {"run": str(run), "balancer": settings.balancer, "tasks": list(trains)}
    pooling: dict[str, Any] = dict(pooling=settings.pooling, pooling_options=settings.pooling_options)
    for time, name, options in (("before", settings.model, pooling), ("after", str(run), {})):
        model = load_model(name, device=device, **options)
        model.to(device)
        set_prompts(model, settings)
        result[time] = summary(sensitivities(model, settings, trains, batches), model)
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
    by_task = settings.each()
    batcher = make_task_batcher(
        settings, {task: examples_of(by_task[task], model, train, task) for task, train in trains.items()}
    )
    loss = loss_of(settings, model)
    gradients = Gradients(list(model.parameters()), len(trains))
    total = torch.zeros_like(gradients.rows)
    for number in range(batches):
        gradients.rows.zero_()
        epoch, index = divmod(number, batcher.batches)
        batcher.set_epoch(epoch)
        for name, batch in batcher([{"batch": index}])["tasks"].items():
            features = [
                {key.removeprefix(side): _to(value, model.device) for key, value in batch.items()
                 if key.startswith(side)}
                for side in ("query_", "passage_")
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
    groups: dict[str, dict[str, list[slice]]] = {"layers": {}, "modules": {}}
    start = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = slice(start, start + parameter.numel())
            start = part.stop
            layer = LAYER.search(f".{name}")
            outside = "embeddings" if "embedding" in name else "others"
            groups["layers"].setdefault(f"layer {layer[1]}" if layer else outside, []).append(part)
            groups["modules"].setdefault(_module(name, layer), []).append(part)

    def mean(parts: Sequence[slice]) -> dict[str, Any]:
        count = sum(int(used[part].sum()) for part in parts)

        def mean_of(values: Tensor) -> float:
            return round(float(sum(values[part].sum() for part in parts)) / max(count, 1), 4)

        return {"entropy": mean_of(entropy), "shares": [mean_of(row) for row in shares], "parameters": count}

    means: dict[str, Any] = {"entropy": mean([slice(0, start)])["entropy"]}
    for kind, group in groups.items():
        values = {name: mean(parts) for name, parts in group.items()}
        means[kind] = {name: value for name, value in values.items() if value["parameters"]}
    return means


def _module(name: str, layer: re.Match[str] | None) -> str:
    """The module that a parameter belongs to, without the layer: "attention.self.query"."""
    suffix = f".{name}"[layer.end() :] if layer else name.rpartition("model.")[2]
    return suffix.rpartition(".")[0] or suffix


def table(results: Sequence[dict[str, Any]]) -> str:
    """Formats the entropies of several runs, before and after training, as a table."""
    width = max(len(result["run"]) for result in results)
    lines = [
        f"{'run':{width}}  {'balancer':12}  {'entropy before':>14}  {'after':>6}  most specialised layer"
    ]
    for result in results:
        layers = result["after"]["layers"]
        lowest = min(layers, key=lambda name: layers[name]["entropy"])
        lines.append(
            f"{result['run']:{width}}  {result['balancer']:12}  {result['before']['entropy']:14.4f}  "
            f"{result['after']['entropy']:6.4f}  {lowest} ({layers[lowest]['entropy']:.4f})"
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
    subplots = figure.subplots(1, 2, sharey=True)
    shares = {
        time: [result[time]["layers"][name]["shares"] for name in names] for time in ("before", "after")
    }
    even = 1 / len(tasks)
    limit = max(1e-3, *(abs(share - even) for rows in shares.values() for row in rows for share in row))
    for axes, (time, rows) in zip(subplots, shares.items(), strict=True):
        image = axes.imshow(rows, cmap="RdBu_r", vmin=even - limit, vmax=even + limit, aspect="auto")
        axes.set_xticks(range(len(tasks)), tasks, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        axes.set_title(f"{time} training: entropy {result[time]['entropy']:.4f}", fontsize=10)
        for y, row in enumerate(rows):
            for x, share in enumerate(row):
                colour = "white" if abs(share - even) > 0.6 * limit else "black"
                axes.text(x, y, f"{share:.2f}", ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, ax=subplots, label="mean share")
    figure.suptitle(
        f"{Path(result['run']).name} ({result['balancer']}): tasks that the parameters serve",
        ha="left",
        x=0.01,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as draft:
        figure.savefig(draft, format="png", metadata={"Software": None})
