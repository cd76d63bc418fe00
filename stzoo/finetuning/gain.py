"""Compares the trained model with the base on the dev queries, and keeps the base if nothing beats it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from stzoo.errors import OutputError, first_line
from stzoo.evaluation.scoring import paired_test
from stzoo.finetuning.data import DEV_METRIC, EVALUATIONS, METRIC
from stzoo.training.finetune_settings import FinetuneSettings
from stzoo.utils.messages import counted

_OfQueries = Annotated[dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]], Field(min_length=1)]
_SCORES = TypeAdapter(Annotated[dict[str, _OfQueries], Field(min_length=1)])


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
        The result with "gain": the scores of both and, for each task, the paired difference over queries. If
        the base is kept, its `dev_ndcg_at_10` is that of the base, `best_step` is 0, and there is no
        `best_episode`.

    Raises:
        OutputError: If the stored scores are damaged.
    """
    before = read_scores(folder, 1 if settings.episodes else None, 0)
    if before is None:  # a run that an older version started
        return dict(result)
    after = read_scores(folder, result.get("best_episode"), result["best_step"])
    best = result[DEV_METRIC] if after is None else mean_score(after)  # summed as the base's, to find ties
    gain: dict[str, Any] = {"base": mean_score(before), "best": best, "kept_base": False}
    gain["step"] = result["best_step"]
    if after is not None:
        gain["tasks"] = {task: _difference(before[task], after[task]) for task in before}
    if not settings.keep_base or best > gain["base"]:
        return {**result, "gain": gain}
    student.load_state_dict(base, strict=False)
    kept = {name: value for name, value in result.items() if name != "best_episode"}
    return kept | {"gain": gain | {"kept_base": True}, DEV_METRIC: gain["base"], "best_step": 0}


def read_scores(folder: Path, episode: int | None, step: int | None) -> dict[str, dict[str, float]] | None:
    """The scores of each query by task, after a step of an episode or of a run without episodes.

    Returns:
        The scores; None if there is no file of them.

    Raises:
        OutputError: If the file is damaged.
    """
    of_episode = folder / f"episodes/{episode}" if episode else folder
    path = of_episode / EVALUATIONS / f"step-{step}.json"
    if not path.is_file():
        return None
    try:
        return _SCORES.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else first_line(error)
        raise OutputError(
            f"{path}, the scores of the dev queries, is damaged ({reason}). Restore it from a "
            "backup, or start again with --overwrite. Without the file, --resume finishes the run, but does "
            "not compare the model with the base."
        ) from None


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
        but = ", but no better than the base" if gain["kept_base"] else chance
        lines.append(f"{text} at step {gain['step']}, the best of the training{but}.")
    if gain["kept_base"]:
        lines.append(
            f"no step scored higher than the base ({gain['base']:.4f}) on the dev queries, so the model has "
            "the base's weights. Try harder negatives (stzoo mine), another learning rate or more data; "
            "--no-keep-base takes the best step in any case."
        )
    else:
        lines.append("the step was chosen on these queries, so score the model on others, too.")
    return lines
