"""Fine-tuning on queries with known answers: in-batch, mined and refreshed negatives, and distillation."""

import contextlib
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from stzoo.data.beir_layout import names_beir
from stzoo.data.corpus_names import known_dataset
from stzoo.data.corpus_sources import hub_ids
from stzoo.data.objects import is_copy
from stzoo.data.training_sets.sets import TrainingSet
from stzoo.errors import RecipeError
from stzoo.finetuning import episodes
from stzoo.finetuning.data import Data, read_data
from stzoo.finetuning.distillation import rescore
from stzoo.finetuning.fit import check_negatives, examples_of, fit, loss_of, single_or_dict
from stzoo.finetuning.gain import describe, keep_better, trained_tensors
from stzoo.finetuning.gist import guide_identity
from stzoo.finetuning.mining.rules import check_rules
from stzoo.finetuning.multitask import check_balancer
from stzoo.finetuning.ranking_loss import needs_scores
from stzoo.hub import card, layout
from stzoo.hub.export import export
from stzoo.models import lora
from stzoo.models.cross_encoder import open_teacher
from stzoo.models.encode.batches import PROMPTS, prompt_of, reading_notes
from stzoo.models.loading import like, load_model
from stzoo.models.names import model_source, source_identity
from stzoo.training import records, run_files, runs
from stzoo.training.arguments import arguments
from stzoo.training.finetune_settings import FinetuneSettings, MiningRules
from stzoo.training.history import PICTURE, PRETRAINING, draw
from stzoo.training.sharding import check_loss, check_sharding
from stzoo.training.summary import print_summary
from stzoo.training.trained import TrainedModel
from stzoo.utils.distributed import check_launcher, is_main_process, world_size
from stzoo.utils.files import atomic_file
from stzoo.utils.messages import collect_notes, notify
from stzoo.utils.public import public

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


@public(FinetuneSettings)
def finetune(
    model: Any = None,
    recipe: str | Path | None = None,
    *,
    output: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> TrainedModel:
    """Fine-tunes a retriever on queries with known answers and exports it.

    Args:
        model: Path to the model folder, its Hub id, or a SentenceTransformer, which is not changed; may
            be set in the recipe instead.
        recipe: Path to a YAML file, or the name of an installed recipe.
        output: Folder for the checkpoints, run.json and, at the end, the model.
        resume: True to continue the unfinished run in `output`.
        overwrite: True to remove the run that is in `output`.
        settings: Fields of `stzoo.training.finetune_settings.FinetuneSettings`; they override those of the
            recipe.

    Returns:
        The output folder, a Path with `.model`, `.scores` and `.history`, which `SentenceTransformer(...)`
        loads without stzoo. It contains the weights of the step that scored best on the dev queries, those of
        the base if no step scored higher, or those of the last step if there are no dev queries. If the
        built-in form of the pooling is only an approximation, OUTPUT/exact is the model with the code of
        the pooling, which users must trust.

    Raises:
        StzooError: If the user made a mistake; see `stzoo.errors`.
    """
    if model is not None:
        settings["model"] = model
    check_launcher()
    config = FinetuneSettings.read(recipe, settings)
    config.check_names()
    check_sharding(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    with (
        runs.start(output, config, resume=resume, overwrite=overwrite, worth=WORTH) as run,
        contextlib.ExitStack() as engine,
    ):
        if run.metadata["status"] == "finished":
            _tidy(run, config)
            notify(f"the run is finished already; the model is in {run.folder}.")
            return TrainedModel(run.folder)
        data = read_data(config, dev_passages=config.dev_passages, mining=config.episodes > 0)
        for task, one in data.items():
            check_negatives(config.each()[task], one.train)
        set_seed(config.seed)
        with collect_notes() as notes:
            source = model_source(config.model)
            student = load_model(
                source,
                pooling=config.pooling,
                pooling_options=config.pooling_options,
                device=config.device,
            )
        if config.portable:
            layout.built_in(student)  # refuses a model without a built-in form before it is trained
        set_prompts(student, config)
        if config.similarity:
            student.similarity_fn_name = config.similarity
        if config.lora_rank:
            lora.add(
                student,
                rank=config.lora_rank,
                alpha=config.lora_alpha,
                dropout=config.lora_dropout,
                targets=config.lora_targets,
            )
        teacher = None
        if config.teacher:
            teacher = open_teacher(config.teacher, max_tokens=config.teacher_tokens, device=config.device)
        trains = {task: one.train for task, one in data.items()}
        _check(config, run.folder, student, trains)  # before the run that it overwrites is removed
        engine.enter_context(config.on_engine())  # likewise: it may not be reached
        run.record_inputs(
            base=source_identity(source),
            data=single_or_dict({task: _metadata_of(train) for task, train in trains.items()}),
            dev=single_or_dict({task: _dev_metadata(one) for task, one in data.items()}),
            teacher=teacher.metadata if teacher else None,
            guide=guide_identity(config.losses, config.loss_options),
        )
        named = [name for one in config.each().values() for name in (one.data, one.corpus) if name]
        before, imported = records.earlier(source), records.imported(source)
        processes = run.metadata.get("processes", world_size())  # of a resumed run, those that it began with
        run.record(before=before, imported=imported, datasets=hub_ids(named), processes=processes)
        for note in _reading_notes(config, student, trains):
            notify(note)
            notes.append(note)
        if notes:
            run.record(notes=notes)
        for task, one in data.items():
            if one.shared:
                notify(
                    f"Held-out queries{f' of {task}' * bool(task)} that share an answer with a training "
                    f"query: {one.shared}. Their scores are too optimistic."
                )
        dev = {task: one.dev for task, one in data.items() if one.dev is not None}
        base = trained_tensors(student) if dev and is_main_process() else {}
        if config.episodes:
            judged = {task: train.judged() for task, train in trains.items()}
            result = episodes.train(config, run, student, judged, teacher, partial(fit, dev=dev))
        else:
            if teacher:
                trains = {
                    task: rescore(train, teacher, run.folder / "teacher" / task)
                    for task, train in trains.items()
                }
            engine.close()
            result = fit(config, run.folder, student, trains, dev=dev, record=run.record)
        if is_main_process():
            if dev:
                result = keep_better(config, run.folder, student, base, result)
                run.metadata.pop("best_episode", None)  # of a run that was killed here
            run.record(**result)
            _finish(run, student, config.portable)
            run.record(status="finished")
            _tidy(run, config)
            _summarise(run, config)
        return TrainedModel(run.folder)


def _reading_notes(settings: FinetuneSettings, student: Any, trains: Mapping[str, TrainingSet]) -> list[str]:
    """Notes for the user on texts that the student cannot read, or reads only in part."""
    notes = []
    for task, one in settings.each().items():
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


def _metadata_of(train: TrainingSet) -> dict[str, Any]:
    metadata = {
        "fingerprint": train.fingerprint,
        "queries": len(train.query_ids),
        "pairs": len(train.positives.places),
        "negatives": len(train.negatives.places),
        "notes": list(train.notes),
    }
    if train.columns:
        metadata["columns"] = list(train.columns)
    return metadata | ({"mined": train.made} if train.made else {})


def _dev_metadata(data: Data) -> dict[str, Any] | None:
    if data.dev is None:
        return None
    metadata = {"fingerprint": data.dev.fingerprint, "queries": len(data.dev.queries)}
    return metadata | ({"sharing_answers": data.shared} if data.shared else {})


def set_prompts(model: Any, settings: FinetuneSettings) -> None:
    """Stores the prompts in the model, so that its encode_query and encode_document use them."""
    prompts = {"query": settings.query_prompt, "document": settings.passage_prompt}
    model.prompts.update({name: prompt for name, prompt in prompts.items() if prompt is not None})
    if settings.passage_prompt is not None:  # also under the other names that the model has for it
        names = [name for name in PROMPTS["document"] if name in model.prompts]
        model.prompts.update(dict.fromkeys(names, settings.passage_prompt))
    for task, one in settings.each().items() if settings.tasks else ():
        default = model.prompts.get("query", "")
        model.prompts[task] = default if one.query_prompt is None else one.query_prompt


def _check(settings: FinetuneSettings, folder: Path, student: Any, trains: Mapping[str, TrainingSet]) -> None:
    """Checks the settings and, unless negatives are mined in episodes, that the data fit them.

    Raises:
        StzooError: If a setting is invalid, or the data do not fit the settings.
    """
    check_loss(settings, loss_of(settings, student))
    check_balancer(settings)
    switches = {} if settings.episodes else dict.fromkeys(MINING, "episodes (--episodes)")
    switches |= {} if settings.lora_rank else dict.fromkeys(ADAPTERS, "lora_rank (--lora-rank)")
    for name in sorted(switches.keys() & settings.model_fields_set):
        raise RecipeError(
            f"{name} has no effect while {switches[name]} is 0. Set that to 1 or more, or leave {name} out."
        )
    if settings.engine != "local" and not (settings.episodes or settings.teacher):
        raise RecipeError(
            f"--engine {settings.engine} has no effect without --teacher or --episodes: workers compute "
            "the scores of a teacher, and mine. Drop it; to train in several processes, use torchrun."
        )
    if settings.episodes:
        check_rules(settings)
        if settings.language is not None and settings.first_negatives != "bm25s":
            raise RecipeError(
                "language (--language) applies to BM25 only. Set first_negatives (--first-negatives) to "
                "bm25s, or leave language out."
            )
        if needs_scores(settings.losses) and not settings.teacher:
            raise RecipeError(
                f"training with {', '.join(settings.losses)} in episodes needs a teacher. Name a "
                "cross-encoder as teacher (--teacher)."
            )
    else:
        for task, one in settings.each().items():
            examples_of(one, student, trains[task], task)
        if settings.teacher and not needs_scores(settings.losses):
            raise RecipeError(
                f"the teacher {settings.teacher} has no effect: its scores are not used by "
                f"{', '.join(settings.losses)}, and negatives are mined in episodes only. Add kl or "
                "margin-mse to losses, or leave teacher out."
            )
    arguments(settings, folder)


def _finish(run: runs.Run, student: Any, portable: bool) -> None:
    """Exports the model in its built-in form, and also with its own code if that form is an approximation."""
    student.to("cpu").eval()
    lora.fold(student)
    unwrapped = like(student, list(student))  # without the autocast that training wrapped around it
    lossy = [module.lossy for module in unwrapped if hasattr(module, "lossy")]
    draft = run.folder / run_files.MODEL_DRAFT
    finished = like(student, layout.built_in(unwrapped)) if lossy and portable else unwrapped
    export(finished, draft, portable=portable, describe=False)
    if lossy and portable:
        export(unwrapped, draft / "exact", portable=False)
        run.record(lossy=lossy)
        for note in lossy:
            notify(f"{note} The model with its own code is in {run.folder / 'exact'}.")
    run.install(draft, also=(card.README, PICTURE, PRETRAINING))


def _tidy(run: runs.Run, settings: FinetuneSettings) -> None:
    """Draws the curves and writes the card of a finished run, if it has none, and removes its checkpoints."""
    if not is_main_process():
        return
    if not (run.folder / card.README).exists():
        draw(run.folder)
        _keep_curve(run)
        card.write(run.folder)
    if not (settings.keep_checkpoints or run.metadata["recipe"].get("keep_checkpoints")):
        run_files.remove_checkpoints(run.folder)


def _summarise(run: runs.Run, settings: FinetuneSettings) -> None:
    gain = run.metadata.get("gain")
    is_judged = settings.data and (names_beir(settings.data) or known_dataset(settings.data))
    data = settings.data if is_judged else settings.dev_data
    data = "BEIR_FOLDER" if not data or is_copy(data) else data
    folder = str(run.folder)
    models = [folder] if is_copy(settings.model) else [settings.model, folder]
    advice = [
        ["stzoo", "bench", *models, "--data", data, "--output", "results"],
        ["stzoo", "export", folder, "--output", f"{folder}-export"],
        ["stzoo", "publish", folder, "ORG/NAME", "--dry-run"],
    ]
    print_summary(run.folder, run.metadata, describe(gain) if gain else [], advice)


def _keep_curve(run: runs.Run) -> None:
    """Copies the curves of the pre-training that the model started from, if there are any."""
    before = run.metadata["before"]
    pretrained = before and before[-1]["recipe"].get("command") == "pretrain"
    picture = Path(run.metadata["recipe"]["model"]) / (PICTURE if pretrained else PRETRAINING)
    if before and picture.is_file():
        with atomic_file(run.folder / PRETRAINING) as draft:
            shutil.copyfile(picture, draft)
