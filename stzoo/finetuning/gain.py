"""Compares the trained model with the base on the dev queries, and keeps the base if nothing beats it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from stzoo.evaluation.scoring import paired_test
from stzoo.finetuning.data import DEV_METRIC, EVALUATIONS, METRIC
from stzoo.training.finetune_settings import FinetuneSettings
from stzoo.utils.messages import counted


def trained_tensors(student: Any) -> dict[str, Tensor]:
    """A copy, on the CPU, of the tensors of a model that training may change."""
    frozen = {name for name, parameter in student.named_parameters() if not parameter.requires_grad}
    tensors = student.state_dict().items()
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors if name not in frozen}


def keep_better(
    settings: FinetuneSettings,
    folder: Path,
    student: Any,
    base: Mapping[str, Tensor],
    result: Mapping[str, Any],
) -> dict[str, Any]:
    """Puts the base's weights back unless the best step scored higher on the dev queries.

    Args:
        settings: The settings.
        folder: Folder of the run.
        student: The trained model, with the weights of its best step.
        base: `trained_tensors` of the base.
        result: What `fit` or `episodes.train` returned.

    Returns:
        Entries for run.json: "gain" with the scores of both and, for each task, the paired difference over
        queries. If the base is kept, also `dev_ndcg_at_10` and `best_step`, which is then 0.
    """
    before = read_scores(folder, 1 if settings.episodes else None, 0)
    if before is None:  # a run that an older version started
        return {}
    after = read_scores(folder, result.get("best_episode"), result["best_step"])
    best = result[DEV_METRIC] if after is None else mean_score(after)  # summed as the base's, to find ties
    gain: dict[str, Any] = {"base": mean_score(before), "best": best, "kept_base": False}
    gain["step"] = result["best_step"]
    if after is not None:
        gain["tasks"] = {task: _difference(before[task], after[task]) for task in before}
    if not settings.keep_base or best > gain["base"]:
        return {"gain": gain}
    student.load_state_dict(base, strict=False)
    return {"gain": gain | {"kept_base": True}, DEV_METRIC: gain["base"], "best_step": 0}


def read_scores(folder: Path, episode: int | None, step: int | None) -> dict[str, dict[str, float]] | None:
    """The scores of each query by task, after a step of an episode or of a run without episodes."""
    of_episode = folder / f"episodes/{episode}" if episode else folder
    path = of_episode / EVALUATIONS / f"step-{step}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def mean_score(scores: Mapping[str, Mapping[str, float]]) -> float:
    """The mean over tasks of the mean over queries."""
    means = [sum(one.values()) / len(one) for one in scores.values()]
    return sum(means) / len(means)


def _difference(before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    means = {"base": mean_score({"": before}), "best": mean_score({"": after}), "queries": len(before)}
    if len(before) < 2:
        return means
    test = paired_test(before, after)
    return means | {"difference": test.difference, "low": test.low, "high": test.high}


def describe(gain: Mapping[str, Any]) -> list[str]:
    """Sentences on the gain over the base."""
    lines = []
    for task, one in gain.get("tasks", {}).items():
        of = f" of {task}" * bool(task)
        text = f"dev {METRIC}{of} {one['base']:.4f} → {one['best']:.4f}"
        if "low" in one:
            text += (
                f" ({one['difference']:+.4f}, 95 % interval {one['low']:+.4f} to {one['high']:+.4f}, "
                f"{counted(one['queries'], 'query')})"
            )
        chance = ", which may be chance" if one.get("low", 1) <= 0 < one["best"] - one["base"] else ""
        lines.append(f"{text} at step {gain['step']}, the best one{chance}.")
    if gain["kept_base"]:
        lines.append(
            f"no step scored higher than the base ({gain['base']:.4f}) on the dev queries, so the model has "
            "the base's weights. Try harder negatives (stzoo mine), another learning rate or more data; "
            "--no-keep-base takes the best step in any case."
        )
    else:
        lines.append("the step was chosen on these queries, so score the model on others, too.")
    return lines
