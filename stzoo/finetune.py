"""Fine-tuning: queries with known answers, in-batch, mined and refreshed negatives, a teacher's scores."""

import shutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, set_seed

from . import episodes, lora, runs
from .calls import callable_module
from .curves import PICTURE, PRETRAINING, draw
from .errors import DataError, RecipeError
from .examples import Examples
from .files import fingerprint, whole_file
from .hub import card, layout
from .hub.export import export
from .judged import JudgedSet
from .losses import make_loss, means, needs_scores
from .mining import check_rules
from .models import like, load_model
from .multitask import STATE, MultiTaskTrainer, check_balancer, in_order, mixed
from .quiet import quietly
from .recipe import FinetuneSettings, MiningRules
from .runs import first_process_first, is_first_process, processes
from .sources import hub_ids
from .splits import DEV_METRIC, Data, DevScore, read_data
from .teacher import open_teacher, rescore
from .trainer import ObjectiveTrainer, arguments, last_checkpoint
from .training import TrainingSet

DEFAULT_NEGATIVES = 7
CLEAR_MARGIN = 1.0  # between a teacher's scores; probabilities are never further apart
# settings of mining and of adapters, which mean nothing without them
MINING = {*MiningRules.model_fields, "keep_old", "first_negatives"} - {"teacher", "teacher_tokens"}
ADAPTERS = {"lora_alpha", "lora_dropout", "lora_targets"}
WORTH = (  # what of a failed run is kept
    "checkpoints/checkpoint-*",
    "teacher/**/*.safetensors",
    "episodes/*/embeddings",
    "episodes/*/*negatives*",
    "episodes/*/checkpoints/checkpoint-*",
)


def finetune(
    model: str | None = None,
    recipe: str | Path | None = None,
    *,
    output: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> Path:
    """Fine-tunes a retriever on queries with known answers and exports it.

    Args:
        model: folder or Hub id; may stand in the recipe.
        recipe: a YAML file or the name of an installed recipe.
        output: the folder for checkpoints, run.json and, at the end, the model.
        resume: go on with the unfinished run in `output`.
        overwrite: remove the run that is in `output`.
        settings: fields of `stzoo.recipe.FinetuneSettings`; they win over the recipe's.

    Returns:
        the output folder, which plain `SentenceTransformer(...)` loads: of all scored steps the best on the
        dev queries, or the last where there are none. Of a pooling whose built-in form leaves something out,
        OUTPUT/exact is the model with the pooling's own code, which users must trust.

    Raises:
        StzooError: for a user's mistake; see stzoo.errors.
    """
    if model is not None:
        settings["model"] = model
    wanted = FinetuneSettings.read(recipe, settings)
    if wanted.threads:
        torch.set_num_threads(wanted.threads)
    with runs.start(output, wanted, resume=resume, overwrite=overwrite, worth=WORTH) as run:
        if run.facts["status"] == "finished":
            return run.folder
        data = read_data(wanted)
        set_seed(wanted.seed)
        student = load_model(
            wanted.model, pooling=wanted.pooling, pooling_options=wanted.pooling_options, device=wanted.device
        )
        if wanted.portable:
            layout.built_in(student)  # what has no built-in form is refused before it is trained
        set_prompts(student, wanted)
        if wanted.similarity:
            student.similarity_fn_name = wanted.similarity
        if wanted.lora_rank:
            lora.add(
                student,
                rank=wanted.lora_rank,
                alpha=wanted.lora_alpha,
                dropout=wanted.lora_dropout,
                targets=wanted.lora_targets,
            )
        teacher = None
        if wanted.teacher:
            teacher = open_teacher(wanted.teacher, max_tokens=wanted.teacher_tokens, device=wanted.device)
        trains = {task: one.train for task, one in data.items()}
        _check(wanted, run.folder, student, trains)  # before what it overwrites is gone
        local = Path(wanted.model).is_dir()
        run.record_inputs(
            base={"fingerprint": fingerprint(wanted.model)} if local else {"id": wanted.model},
            data=_alone({task: _facts(train) for task, train in trains.items()}),
            dev=_alone({task: _dev_facts(one) for task, one in data.items()}),
        )
        named = [name for one in wanted.each().values() for name in (one.data, one.corpus) if name]
        before, imported = runs.earlier(wanted.model), runs.imported(wanted.model)
        run.record(before=before, imported=imported, datasets=hub_ids(named))
        for task, one in data.items() if is_first_process() else ():
            if one.shared:
                print(
                    f"stzoo: {one.shared} of the held-out queries{f' of {task}' * bool(task)} share an "
                    "answer with a training query; their scores flatter.",
                    file=sys.stderr,
                )
        dev = {task: one.dev for task, one in data.items() if one.dev is not None}
        if wanted.episodes:
            judged = {task: one.judged for task, one in data.items() if one.judged is not None}
            facts = episodes.train(wanted, run, student, judged, teacher, partial(fit, dev=dev))
        else:
            if teacher:
                with first_process_first(cpu=wanted.device == "cpu"):  # the others find its scores
                    trains = {
                        task: rescore(train, teacher, run.folder / "teacher" / task)
                        for task, train in trains.items()
                    }
            facts = fit(wanted, run.folder, student, trains, dev=dev, record=run.record)
        if is_first_process():
            run.record(**facts)
            _finish(run, student, wanted.portable)
            run.record(status="finished")
            draw(run.folder)
            _keep_curve(run)
            card.write(run.folder)
        return run.folder


def _alone(by_task: dict[str, Any]) -> Any:
    """What stands under '' where there is a single task."""
    return by_task.get("", by_task)


def _facts(train: TrainingSet) -> dict[str, Any]:
    facts = {
        "fingerprint": train.fingerprint,
        "queries": len(train.query_ids),
        "pairs": len(train.positives.places),
        "negatives": len(train.negatives.places),
        "notes": list(train.notes),
    }
    return facts | ({"mined": train.made} if train.made else {})


def _dev_facts(data: Data) -> dict[str, Any] | None:
    if data.dev is None:
        return None
    facts = {"fingerprint": data.dev.fingerprint, "queries": len(data.dev.queries)}
    return facts | ({"sharing_answers": data.shared} if data.shared else {})


def set_prompts(model: Any, wanted: FinetuneSettings) -> None:
    """Keeps the prompts in the model, so that its encode_query and encode_document use them."""
    given = {"query": wanted.query_prompt, "document": wanted.passage_prompt}
    model.prompts.update({name: prompt for name, prompt in given.items() if prompt is not None})
    for task, one in wanted.each().items() if wanted.tasks else ():
        own = one.query_prompt
        model.prompts[task] = model.prompts.get("query", "") if own is None else own


def fit(
    wanted: FinetuneSettings,
    folder: Path,
    student: Any,
    trains: Mapping[str, TrainingSet],
    *,
    dev: Mapping[str, JudgedSet],
    record: Callable[..., None],
    before: Path | None = None,
) -> dict[str, Any]:
    """Trains a model in place, from the last checkpoint in `folder` if there is one.

    Args:
        wanted: the settings.
        folder: for checkpoints.
        student: a SentenceTransformer.
        trains: what it learns from, by task; a single task has the name ''.
        dev: queries to stop early by, by task.
        record: keeps facts, by keyword.
        before: the folder of an earlier training whose balancer's state is gone on with.

    Returns:
        log, steps and, with dev queries, the best score and its step.

    Raises:
        DataError: if there are too few examples, or no scores for a loss that needs them.
        StzooError: for other mistakes in the settings.
    """
    each = wanted.each()
    examples = {task: examples_of(each[task], student, train, task) for task, train in trains.items()}
    left_out, margins = {}, {}
    for task, train in trains.items():
        of = f" of {task}" * bool(task)
        if needs_scores(wanted.losses):
            margins[task] = _tell_of_scores(wanted, train, of)
        if left := examples[task].left_out:
            left_out[task] = left
            if is_first_process():
                print(
                    f"stzoo: {left} of {len(train.query_ids)} queries{of} have no negative and are left out.",
                    file=sys.stderr,
                )
    for name, found in (("left_out", left_out), ("teacher_margin", margins)):
        if found:
            record(**{name: _alone(found)})
    evaluator = DevScore(dev) if dev else None
    trainer = _trainer(wanted, folder, student, examples, evaluator, record, before)
    checkpoint = last_checkpoint(folder)
    with quietly():
        trainer.go_on(checkpoint)
    if isinstance(trainer, MultiTaskTrainer) and is_first_process():
        trainer.leave_balancer(folder, checkpoint)
    history = [line for line in trainer.state.log_history if "train_runtime" not in line]
    best = {DEV_METRIC: trainer.state.best_metric, "best_step": trainer.state.best_global_step}
    return {"log": history, "steps": trainer.state.global_step, **(best if dev else {})}


def _tell_of_scores(wanted: FinetuneSettings, train: TrainingSet, of: str) -> float:
    """Says whose scores are learnt from, and if they hardly tell positives from negatives; the margin."""
    own, others = train.positives.scores, train.negatives.scores
    assert own is not None
    assert others is not None
    margin = float(own.mean() - others.mean())
    if not is_first_process():
        return margin
    scorer = (train.made or {}).get("teacher") or (train.made or {}).get("model")
    if wanted.teacher is None and isinstance(scorer, dict):
        name = scorer.get("name")
        print(f"stzoo: the scores{of} to learn from are those of {name}, as mined.", file=sys.stderr)
    if margin < CLEAR_MARGIN:
        print(
            f"stzoo: the teacher scores positives{of} {margin:.2f} above negatives on average. That says "
            "little; are they probabilities? Learn from logits, or with kl set "
            "loss_options.kl.teacher_temperature well below 1.",
            file=sys.stderr,
        )
    return margin


def _check(wanted: FinetuneSettings, folder: Path, student: Any, trains: Mapping[str, TrainingSet]) -> None:
    """Sees that the settings hold and, where no episode mines anew, that the data go with them.

    Raises:
        StzooError: if they do not.
    """
    loss_of(wanted, student)
    check_balancer(wanted)
    of_nothing = {} if wanted.episodes else dict.fromkeys(MINING, "episodes (--episodes)")
    of_nothing |= {} if wanted.lora_rank else dict.fromkeys(ADAPTERS, "lora_rank (--lora-rank)")
    for name in sorted(of_nothing.keys() & wanted.model_fields_set):
        raise RecipeError(f"{name} says something of what {of_nothing[name]} asks for, which is 0.")
    if wanted.episodes:
        check_rules(wanted)
        if needs_scores(wanted.losses) and not wanted.teacher:
            raise RecipeError(
                f"{', '.join(wanted.losses)} learns from a teacher, and these episodes have none. "
                "Name a cross-encoder by teacher (--teacher)."
            )
    else:
        for task, one in wanted.each().items():
            examples_of(one, student, trains[task], task)
        if wanted.teacher and not needs_scores(wanted.losses):
            raise RecipeError(
                f"nothing learns from the teacher {wanted.teacher}: losses has only "
                f"{', '.join(wanted.losses)}, and without episodes nothing is mined. Add kl or margin-mse to "
                "losses, or leave the teacher out."
            )
    arguments(wanted, folder)


def examples_of(wanted: FinetuneSettings, student: Any, train: TrainingSet, task: str = "") -> Examples:
    """The examples of a training set, which has to go with the losses; see `fit`."""
    scores = needs_scores(wanted.losses)
    negatives = wanted.negatives
    if negatives is None:
        negatives = min(DEFAULT_NEGATIVES, int(np.diff(train.negatives.starts).max(initial=0)))
    if scores and not negatives:
        raise RecipeError(
            f"{', '.join(wanted.losses)} compares several passages of a query: set negatives (--negatives) "
            "to 1 or more, and give data that has them, as `stzoo mine` writes."
        )
    if scores and not (wanted.teacher or train.scored):
        raise DataError(
            f"{wanted.data} has no teacher's scores, which {', '.join(wanted.losses)} learns from. Name a "
            "cross-encoder by teacher (--teacher), or give data with scores."
        )
    examples = Examples(
        train,
        student,
        negatives=negatives,
        max_query_tokens=wanted.max_query_tokens,
        max_passage_tokens=wanted.max_passage_tokens,
        seed=wanted.seed,
        task=task,
    )
    # On several processes the host drops what is left of a batch; of several tasks, small ones begin anew.
    fewest = 2 if processes() == 1 or task else processes() * wanted.batch_size
    if len(examples.pairs) < fewest:
        without = f", {examples.left_out} queries without a negative left out" if examples.left_out else ""
        raise DataError(
            f"{wanted.data}: {len(examples.pairs)} pairs to train on{without}; expected {fewest} at least, a "
            "batch."
        )
    return examples


def loss_of(wanted: FinetuneSettings, model: Any) -> Any:
    """The loss that the settings ask for; see `stzoo.losses.make_loss`."""
    return make_loss(
        model,
        wanted.losses,
        wanted.loss_options,
        temperature=wanted.temperature,
        mini_batch_size=wanted.mini_batch_size,
        cross_device=wanted.cross_device,
        matryoshka=wanted.matryoshka,
    )


def _trainer(
    wanted: FinetuneSettings,
    folder: Path,
    model: Any,
    examples: Mapping[str, Examples],
    evaluator: DevScore | None,
    record: Callable[..., None],
    before: Path | None,
) -> ObjectiveTrainer:
    loss = loss_of(wanted, model)
    more: dict[str, Any] = {"batch_sampler": in_order} if wanted.tasks else {}
    callbacks = []
    if evaluator is not None:
        more |= dict(eval_strategy="steps", eval_steps=wanted.eval_steps, load_best_model_at_end=True)
        more |= dict(metric_for_best_model=f"eval_{DEV_METRIC}", greater_is_better=True)
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=wanted.patience))
        wanted = wanted.model_copy(update={"save_steps": wanted.eval_steps})
    given: dict[str, Any] = dict(
        model=model,
        args=arguments(wanted, folder, **more),
        loss=loss,
        evaluator=evaluator,
        settings=wanted,
        callbacks=callbacks,
        record=lambda log: record(log=log),
    )
    if not wanted.tasks:
        (single,) = examples.values()
        rows = Dataset.from_dict({"example": np.arange(len(single.pairs))})
        return ObjectiveTrainer(train_dataset=rows, collate=single, figures=partial(means, loss), **given)
    mixture = mixed(wanted, examples)
    return MultiTaskTrainer(
        train_dataset=mixture.rows(),
        mixture=mixture,
        balancer=wanted.balancer,
        options=wanted.balancer_options,
        before=before and before / STATE,
        **given,
    )


def _finish(run: runs.Run, student: Any, portable: bool) -> None:
    """Exports the model in its built-in form, and in its own beside it where that is another."""
    student.to("cpu").eval()
    lora.fold(student)
    own = like(student, list(student))  # without the autocast that training put around it
    lossy = [module.lossy for module in own if hasattr(module, "lossy")]
    draft = run.folder / ".model.part"
    finished = like(student, layout.built_in(own)) if lossy and portable else own
    export(finished, draft, portable=portable, describe=False)
    if lossy and portable:
        export(own, draft / "exact", portable=False)
        run.record(lossy=lossy)
        for note in lossy:
            print(f"stzoo: {note} The model with its own code is in {run.folder / 'exact'}.", file=sys.stderr)
    run.install(draft)


def _keep_curve(run: runs.Run) -> None:
    """Keeps the picture of the pre-training that the model began from, where there is one."""
    before = run.facts["before"]
    pretrained = before and before[-1]["recipe"].get("command") == "pretrain"
    picture = Path(run.facts["recipe"]["model"]) / (PICTURE if pretrained else PRETRAINING)
    if before and picture.is_file():
        with whole_file(run.folder / PRETRAINING) as draft:
            shutil.copyfile(picture, draft)


callable_module(__name__)
