"""Trains a retriever once, with the examples, the loss and the trainer that the settings name."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import EarlyStoppingCallback, TrainerCallback

from stzoo.data.beir import RetrievalDataset
from stzoo.data.training_sets.builder import note_missing
from stzoo.data.training_sets.sets import TrainingSet
from stzoo.errors import DataError, RecipeError
from stzoo.finetuning.collator import QueryPassageCollator
from stzoo.finetuning.data import DEV_METRIC, EVALUATIONS, DevScore
from stzoo.finetuning.gain import mean_score, read_scores
from stzoo.finetuning.gist import guide_of
from stzoo.finetuning.multitask import STATE, MultiTaskTrainer, in_order, make_task_batcher
from stzoo.finetuning.ranking_loss import make_loss, means, needs_negatives, needs_scores
from stzoo.training.arguments import arguments
from stzoo.training.callbacks import ScoreBase
from stzoo.training.checkpoints import last_checkpoint
from stzoo.training.finetune_settings import FinetuneSettings
from stzoo.training.sharding import is_sharded
from stzoo.training.trainer import ObjectiveTrainer
from stzoo.utils.distributed import is_main_process, world_size
from stzoo.utils.logging import silence_hf_logging
from stzoo.utils.messages import counted, notify
from stzoo.utils.progress import advancing, progress_bar

DEFAULT_NEGATIVES = 7
CLEAR_MARGIN = 1.0  # between a teacher's scores; probabilities never differ by more


def fit(
    settings: FinetuneSettings,
    folder: Path,
    student: Any,
    trains: Mapping[str, TrainingSet],
    *,
    dev: Mapping[str, RetrievalDataset],
    record: Callable[..., None],
    before: Path | None = None,
) -> dict[str, Any]:
    """Trains a model in place, from the last checkpoint in `folder` if there is one.

    Args:
        settings: The settings.
        folder: Folder for the checkpoints.
        student: The SentenceTransformer to train.
        trains: Training sets by task name; a single task has the name "".
        dev: Dev queries for early stopping, by task name.
        record: Called with entries for run.json as keyword arguments.
        before: Folder of an earlier training, from whose balancer state this one continues.

    Returns:
        The "log", the number of "steps" and, with dev queries, the best score and its step.

    Raises:
        DataError: If there are too few examples, or no scores for a loss that needs them.
        StzooError: If other settings are invalid.
    """
    each = settings.each()
    examples = {task: examples_of(each[task], student, train, task) for task, train in trains.items()}
    left_out, margins = {}, {}
    for task, train in trains.items():
        of = f" of {task}" * bool(task)
        if needs_scores(settings.losses):
            margins[task] = _score_margin(settings, train, of)
        if left := examples[task].left_out:
            left_out[task] = left
            queries = len(train.query_ids)
            notify(
                f"Leaving out {left:,} of {counted(queries, 'query')}{of} without a negative "
                f"({left / queries:.0%})."
                + " Mine more, or train without hard negatives (--negatives 0)."
                * bool(note_missing(left, queries))
            )
    for name, by_task in (("left_out", left_out), ("teacher_margin", margins)):
        if by_task:
            record(**{name: single_or_dict(by_task)})
    evaluator = DevScore(dev) if dev else None
    trainer = _trainer(settings, folder, student, examples, evaluator, record, before)
    if evaluator and before is not None and (scores := read_scores(before.parent.parent, 1, 0)):
        trainer.progress.base = {f"eval_{DEV_METRIC}": mean_score(scores)}
    checkpoint = last_checkpoint(folder)
    with silence_hf_logging():
        trainer.train_or_resume(checkpoint)
    if isinstance(trainer, MultiTaskTrainer) and is_main_process():
        trainer.leave_balancer(folder, checkpoint)
    history = [line for line in trainer.state.log_history if "train_runtime" not in line]
    best = {DEV_METRIC: trainer.state.best_metric, "best_step": trainer.state.best_global_step}
    return {"log": history, "steps": trainer.state.global_step, **(best if dev else {})}


def _scores_of_base(evaluator: DevScore, folder: Path, student: Any) -> dict[str, float]:
    output = str(folder / EVALUATIONS) if is_main_process() else None
    texts = sum(len(judged.passages) + len(judged.queries) for judged in evaluator.judged.values())
    texts //= 1 if is_sharded(student) else world_size()
    look = dict(total=texts, desc="Scoring the base", unit=" texts", delay=2)
    look |= {} if is_main_process() else {"disable": True}
    with progress_bar(**look) as bar, advancing(bar):
        scores = evaluator(student, output, steps=0)
    return {f"eval_{name}": value for name, value in scores.items()}


def _plan(settings: FinetuneSettings, examples: Mapping[str, QueryPassageCollator]) -> str:
    """What is trained on, in words."""
    parts = []
    for task, one in examples.items():
        queries, of = len(one.data.query_ids) - one.left_out, f" of {task}" * bool(task)
        hard = "without hard negatives"
        if one.negatives:
            hard = f"with {counted(one.negatives, 'hard negative')} each"
        parts.append(f"{counted(len(one.pairs), 'pair')} of {counted(queries, 'query')}{of} {hard}")
    batch = settings.batch_size * settings.accumulation * world_size()
    losses = " + ".join(settings.losses)
    return f"fine-tuning with {losses} on {'; '.join(parts)}, {batch} queries per step"


def _score_margin(settings: FinetuneSettings, train: TrainingSet, of: str) -> float | None:
    """Notifies the user whose scores are used and if they barely separate positives; returns the margin.

    None if there are no negatives.
    """
    positives, negatives = train.positives.scores, train.negatives.scores
    assert positives is not None
    assert negatives is not None
    if not len(negatives):
        return None
    margin = float(positives.mean() - negatives.mean())
    scorer = (train.made or {}).get("teacher") or (train.made or {}).get("model")
    if settings.teacher is None and isinstance(scorer, dict):
        name = scorer.get("name")
        notify(f"Training with the scores{of} in the data, which {name} gave when the negatives were mined.")
    if margin < CLEAR_MARGIN:
        notify(
            f"The teacher's scores{of} are on average only {margin:.2f} higher for positives than for "
            "negatives. If they are probabilities, use logits instead, or with the kl loss set "
            "loss_options.kl.teacher_temperature well below 1."
        )
    return margin


def check_negatives(settings: FinetuneSettings, train: TrainingSet) -> None:
    """Refuses training with hard negatives on data that have none.

    Raises:
        DataError: If it is so; the message says how to mine them.
    """
    if settings.negatives and not settings.episodes and not len(train.negatives.places):
        raise DataError(
            f"negatives is {settings.negatives}, but {settings.data} has no hard negatives. Run `stzoo mine "
            f"{settings.model} --data {settings.data} --output mined.parquet` first and train with --data "
            "mined.parquet, or leave --negatives out to train with the other passages of the batch alone."
        )


def examples_of(
    settings: FinetuneSettings, student: Any, train: TrainingSet, task: str = ""
) -> QueryPassageCollator:
    """Makes the examples of a training set, after checking that it fits the losses; see `fit`."""
    scores = needs_scores(settings.losses)
    negatives = settings.negatives
    if negatives is None:
        negatives = min(DEFAULT_NEGATIVES, int(np.diff(train.negatives.starts).max(initial=0)))
    if needs_negatives(settings.losses) and not negatives:
        raise RecipeError(
            f"training with {', '.join(settings.losses)} needs negatives, but there are none. Set negatives "
            "(--negatives) to 1 or more, and use data with negatives, e.g. from `stzoo mine`."
        )
    if scores and not (settings.teacher or train.scored):
        raise DataError(
            f"training with {', '.join(settings.losses)} needs a teacher's scores, but {settings.data} has "
            "none. Name a cross-encoder as teacher (--teacher), or use data with scores."
        )
    examples = QueryPassageCollator(
        train,
        student,
        negatives=negatives,
        max_query_tokens=settings.max_query_tokens,
        max_passage_tokens=settings.max_passage_tokens,
        seed=settings.seed,
        task=task,
        guide=guide_of(settings.losses, settings.loss_options),
    )
    # With several processes, the trainer drops an incomplete last batch. With several tasks, small tasks
    # start over instead.
    fewest = 2 if world_size() == 1 or task else world_size() * settings.batch_size
    if len(examples.pairs) < fewest:
        way = (
            f" --negatives 0 also trains on {counted(examples.left_out, 'query')} without a negative."
            if examples.left_out
            else ""
        )
        raise DataError(
            f"{settings.data} has {counted(len(examples.pairs), 'pair')} to train on; expected at least "
            f"{fewest}.{way}"
        )
    return examples


def loss_of(settings: FinetuneSettings, model: Any) -> Any:
    """Builds the loss that the settings name; see `stzoo.finetuning.ranking_loss.make_loss`."""
    return make_loss(
        model,
        settings.losses,
        settings.loss_options,
        temperature=settings.temperature,
        mini_batch_size=settings.mini_batch_size,
        cross_device=settings.cross_device,
        matryoshka=settings.matryoshka,
    )


def _trainer(
    settings: FinetuneSettings,
    folder: Path,
    model: Any,
    examples: Mapping[str, QueryPassageCollator],
    evaluator: DevScore | None,
    record: Callable[..., None],
    before: Path | None,
) -> ObjectiveTrainer:
    loss = loss_of(settings, model)
    more: dict[str, Any] = {"batch_sampler": in_order} if settings.tasks else {}
    callbacks: list[TrainerCallback] = []
    if evaluator is not None:
        more |= dict(eval_strategy="steps", eval_steps=settings.eval_steps, load_best_model_at_end=True)
        more |= dict(metric_for_best_model=f"eval_{DEV_METRIC}", greater_is_better=True)
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=settings.patience))
        if before is None:
            callbacks.append(ScoreBase(partial(_scores_of_base, evaluator, folder)))
        settings = settings.model_copy(update={"save_steps": settings.eval_steps})
    shared: dict[str, Any] = dict(
        model=model,
        args=arguments(settings, folder, **more),
        loss=loss,
        evaluator=evaluator,
        settings=settings,
        callbacks=callbacks,
        record=lambda log: record(log=log),
        plan=_plan(settings, examples),
    )
    if not settings.tasks:
        (single,) = examples.values()
        rows = Dataset.from_dict({"example": np.arange(len(single.pairs))})
        return ObjectiveTrainer(train_dataset=rows, collate=single, extra_logs=means, **shared)
    mixture = make_task_batcher(settings, examples)
    return MultiTaskTrainer(
        train_dataset=mixture.rows(),
        mixture=mixture,
        balancer=settings.balancer,
        options=settings.balancer_options,
        before=before and before / STATE,
        **shared,
    )


def single_or_dict(by_task: dict[str, Any]) -> Any:
    """Returns the value of a single task, which has the name "", or otherwise the whole dict."""
    return by_task.get("", by_task)
