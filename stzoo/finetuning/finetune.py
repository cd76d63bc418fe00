"""Fine-tuning on queries with known answers: in-batch, mined and refreshed negatives, and distillation."""

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from stzoo.data.corpus_sources import hub_ids
from stzoo.data.training_sets.sets import TrainingSet
from stzoo.errors import RecipeError
from stzoo.finetuning import episodes
from stzoo.finetuning.data import Data, read_data
from stzoo.finetuning.distillation import rescore
from stzoo.finetuning.fit import examples_of, fit, loss_of, single_or_dict
from stzoo.finetuning.losses import needs_scores
from stzoo.finetuning.mining.rules import check_rules
from stzoo.finetuning.multitask import check_balancer
from stzoo.hub import card, layout
from stzoo.hub.export import export
from stzoo.models import lora
from stzoo.models.cross_encoder import open_teacher
from stzoo.models.encode.batches import PROMPTS, prompt_of, reading_notes
from stzoo.models.loading import like, load_model
from stzoo.training import records, run_files, runs
from stzoo.training.arguments import arguments
from stzoo.training.finetune_settings import FinetuneSettings, MiningRules
from stzoo.training.history import PICTURE, PRETRAINING, draw
from stzoo.utils.distributed import is_main_process, main_process_first, refuse_sharding, world_size
from stzoo.utils.files import atomic_file, fingerprint
from stzoo.utils.messages import collect_notes, notify

# Settings that have no effect without episodes, or without LoRA adapters.
MINING = {*MiningRules.model_fields, "keep_old", "first_negatives"} - {"teacher", "teacher_tokens"}
ADAPTERS = {"lora_alpha", "lora_dropout", "lora_targets"}
WORTH = (  # files that a failed run keeps
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
        model: Path to the model folder, or its Hub id; may be set in the recipe instead.
        recipe: Path to a YAML file, or the name of an installed recipe.
        output: Folder for the checkpoints, run.json and, at the end, the model.
        resume: True to continue the unfinished run in `output`.
        overwrite: True to remove the run that is in `output`.
        settings: Fields of `stzoo.training.finetune_settings.FinetuneSettings`; they override those of the
            recipe.

    Returns:
        The output folder, which `SentenceTransformer(...)` loads without stzoo. It contains the weights of
        the step that scored best on the dev queries, or of the last step if there are none. If the built-in
        form of the pooling is only an approximation, OUTPUT/exact is the model with the pooling's own code,
        which users must trust.

    Raises:
        StzooError: If the user made a mistake; see `stzoo.errors`.
    """
    if model is not None:
        settings["model"] = model
    refuse_sharding()
    wanted = FinetuneSettings.read(recipe, settings)
    if wanted.threads:
        torch.set_num_threads(wanted.threads)
    with runs.start(output, wanted, resume=resume, overwrite=overwrite, worth=WORTH) as run:
        if run.metadata["status"] == "finished":
            _illustrate(run)
            return run.folder
        data = read_data(wanted)
        set_seed(wanted.seed)
        with collect_notes() as notes:
            student = load_model(
                wanted.model,
                pooling=wanted.pooling,
                pooling_options=wanted.pooling_options,
                device=wanted.device,
            )
        if wanted.portable:
            layout.built_in(student)  # refuses a model without a built-in form before it is trained
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
        _check(wanted, run.folder, student, trains)  # before the run that it overwrites is removed
        local = Path(wanted.model).is_dir()
        run.record_inputs(
            base={"fingerprint": fingerprint(wanted.model)} if local else {"id": wanted.model},
            data=single_or_dict({task: _facts(train) for task, train in trains.items()}),
            dev=single_or_dict({task: _dev_facts(one) for task, one in data.items()}),
            teacher=teacher.facts if teacher else None,
            processes=world_size(),
        )
        named = [name for one in wanted.each().values() for name in (one.data, one.corpus) if name]
        before, imported = records.earlier(wanted.model), records.imported(wanted.model)
        run.record(before=before, imported=imported, datasets=hub_ids(named))
        for note in _reading_notes(wanted, student, trains):
            notify(note)
            notes.append(note)
        if notes:
            run.record(notes=notes)
        for task, one in data.items():
            if one.shared:
                notify(
                    f"{one.shared} of the held-out queries{f' of {task}' * bool(task)} share an answer with "
                    "a training query; their scores flatter."
                )
        dev = {task: one.dev for task, one in data.items() if one.dev is not None}
        if wanted.episodes:
            judged = {task: train.judged() for task, train in trains.items()}
            facts = episodes.train(wanted, run, student, judged, teacher, partial(fit, dev=dev))
        else:
            if teacher:
                with main_process_first(cpu=wanted.device == "cpu"):  # the others read its scores
                    trains = {
                        task: rescore(train, teacher, run.folder / "teacher" / task)
                        for task, train in trains.items()
                    }
            facts = fit(wanted, run.folder, student, trains, dev=dev, record=run.record)
        if is_main_process():
            run.record(**facts)
            _finish(run, student, wanted.portable)
            run.record(status="finished")
            _illustrate(run)
        return run.folder


def _reading_notes(wanted: FinetuneSettings, student: Any, trains: Mapping[str, TrainingSet]) -> list[str]:
    """Notes for the user on texts that the student cannot read, or reads only in part."""
    notes = []
    for task, one in wanted.each().items():
        sides = (
            ("query", "queries", trains[task].queries, one.max_query_tokens),
            ("document", "passages", trains[task].passages, one.max_passage_tokens),
        )
        for role, what, texts, longest in sides:
            notes += reading_notes(
                student,
                texts,
                f"{what} of {task}" if task else what,
                prompt=prompt_of(student, role, task),
                max_tokens=min(longest, student.max_seq_length or longest),
            )
    return notes


def _facts(train: TrainingSet) -> dict[str, Any]:
    facts = {
        "fingerprint": train.fingerprint,
        "queries": len(train.query_ids),
        "pairs": len(train.positives.places),
        "negatives": len(train.negatives.places),
        "notes": list(train.notes),
    }
    if train.columns:
        facts["columns"] = list(train.columns)
    return facts | ({"mined": train.made} if train.made else {})


def _dev_facts(data: Data) -> dict[str, Any] | None:
    if data.dev is None:
        return None
    facts = {"fingerprint": data.dev.fingerprint, "queries": len(data.dev.queries)}
    return facts | ({"sharing_answers": data.shared} if data.shared else {})


def set_prompts(model: Any, wanted: FinetuneSettings) -> None:
    """Stores the prompts in the model, so that its encode_query and encode_document use them."""
    given = {"query": wanted.query_prompt, "document": wanted.passage_prompt}
    model.prompts.update({name: prompt for name, prompt in given.items() if prompt is not None})
    if wanted.passage_prompt is not None:  # also under the other names that the model has for it
        names = [name for name in PROMPTS["document"] if name in model.prompts]
        model.prompts.update(dict.fromkeys(names, wanted.passage_prompt))
    for task, one in wanted.each().items() if wanted.tasks else ():
        own = one.query_prompt
        model.prompts[task] = model.prompts.get("query", "") if own is None else own


def _check(wanted: FinetuneSettings, folder: Path, student: Any, trains: Mapping[str, TrainingSet]) -> None:
    """Checks the settings and, unless negatives are mined in episodes, that the data fit them.

    Raises:
        StzooError: If a setting is invalid, or the data do not fit the settings.
    """
    loss_of(wanted, student)
    check_balancer(wanted)
    of_nothing = {} if wanted.episodes else dict.fromkeys(MINING, "episodes (--episodes)")
    of_nothing |= {} if wanted.lora_rank else dict.fromkeys(ADAPTERS, "lora_rank (--lora-rank)")
    for name in sorted(of_nothing.keys() & wanted.model_fields_set):
        raise RecipeError(f"{name} says something of what {of_nothing[name]} asks for, which is 0.")
    if wanted.episodes:
        check_rules(wanted)
        if wanted.language is not None and wanted.first_negatives != "bm25s":
            raise RecipeError(
                "the language is for bm25s; set first_negatives (--first-negatives) to bm25s, or drop the "
                "language."
            )
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


def _finish(run: runs.Run, student: Any, portable: bool) -> None:
    """Exports the model in its built-in form, and also with its own code if that form is an approximation."""
    student.to("cpu").eval()
    lora.fold(student)
    own = like(student, list(student))  # without the autocast that training wrapped around it
    lossy = [module.lossy for module in own if hasattr(module, "lossy")]
    draft = run.folder / run_files.MODEL_DRAFT
    finished = like(student, layout.built_in(own)) if lossy and portable else own
    export(finished, draft, portable=portable, describe=False)
    if lossy and portable:
        export(own, draft / "exact", portable=False)
        run.record(lossy=lossy)
        for note in lossy:
            notify(f"{note} The model with its own code is in {run.folder / 'exact'}.")
    run.install(draft, also=(card.README, PICTURE, PRETRAINING))


def _illustrate(run: runs.Run) -> None:
    """Draws the curves and writes the card of a finished run, unless the card has been written already."""
    if is_main_process() and not (run.folder / card.README).exists():
        draw(run.folder)
        _keep_curve(run)
        card.write(run.folder)


def _keep_curve(run: runs.Run) -> None:
    """Copies the curves of the pre-training that the model started from, if there are any."""
    before = run.metadata["before"]
    pretrained = before and before[-1]["recipe"].get("command") == "pretrain"
    picture = Path(run.metadata["recipe"]["model"]) / (PICTURE if pretrained else PRETRAINING)
    if before and picture.is_file():
        with atomic_file(run.folder / PRETRAINING) as draft:
            shutil.copyfile(picture, draft)
