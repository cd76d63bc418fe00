"""Pre-trains an encoder with an objective on a corpus, and exports it for plain sentence-transformers.

The export also keeps what continued pre-training needs: the MLM head in the root (the folder is also an
`AutoModelForMaskedLM`) and the decoders in `pretraining/`. With such a folder as `base`, training continues
from all of them.
"""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import set_seed

from stzoo.data.beir import read_beir
from stzoo.data.corpus import Corpus, load_corpus
from stzoo.data.corpus_sources import hub_ids
from stzoo.data.find_datasets import locate
from stzoo.errors import ModelError, PluginError, RecipeError, first_line
from stzoo.evaluation.scoring import score
from stzoo.hub import card
from stzoo.hub.export import export
from stzoo.models.check_weights import first_not_finite, names
from stzoo.models.encode.batches import reading_notes
from stzoo.models.loading import check_device, like, load_masked_lm, with_pooling
from stzoo.models.names import model_source
from stzoo.plugins import classes, manager
from stzoo.pretraining.backbone import Backbone
from stzoo.pretraining.length_sampler import LengthBatchSampler
from stzoo.pretraining.objective import Objective
from stzoo.pretraining.token_cache import TokenRows, is_cacheable, load_tokens
from stzoo.retrieval.search.exact import retrieve
from stzoo.training import records, run_files, runs
from stzoo.training.arguments import arguments, choose_precision
from stzoo.training.callbacks import EveryNSteps
from stzoo.training.checkpoints import last_checkpoint
from stzoo.training.history import PICTURE, as_history, draw
from stzoo.training.pretrain_settings import PretrainSettings
from stzoo.training.sharding import check_loss, check_sharding
from stzoo.training.summary import print_summary
from stzoo.training.trained import TrainedModel
from stzoo.training.trainer import ObjectiveTrainer
from stzoo.utils.distributed import check_launcher, is_main_process, world_size
from stzoo.utils.files import fingerprint, write_json
from stzoo.utils.logging import silence_hf_logging
from stzoo.utils.messages import collect_notes, counted, notify
from stzoo.utils.outputs import RECORD
from stzoo.utils.public import public

PARTS = "pretraining"  # the folder of an export with the decoders and their run.json
PARTS_FILE = "objective.safetensors"


@dataclass
class Base:
    """A base model, ready to be trained.

    Attributes:
        backbone: The backbone, with the SentenceTransformer of encoder and bottleneck that is trained.
        finished: The whole model, which shares the encoder and adds the modules after the base's pooling.
        folder: Path to the base if it is local, otherwise None.
    """

    backbone: Backbone
    finished: Any
    folder: Path | None


@dataclass
class Setup:
    """What a training needs.

    Attributes:
        base: The base model.
        objective: The objective, with its parts.
        corpus: The corpus.
        rows: Its tokens, or its text if the objective tokenises in a `collate` of its own.
        new: Names of the objective's parameters that start untrained.
        notes: Sentences for the record of the run.
    """

    base: Base
    objective: Objective
    corpus: Corpus
    rows: Any
    new: frozenset[str]
    notes: list[str]


def load_base(
    base: str, *, pooling: str | None = None, max_tokens: int | None = None, device: str | None = None
) -> Base:
    """Loads a masked LM or a sentence-transformers model for pre-training.

    Args:
        base: Path to the model folder, or its Hub id.
        pooling: Name of the pooling that makes the bottleneck; None for the base's own, or cls for a bare
            masked LM.
        max_tokens: Number of tokens to which passages are truncated; None for the base's limit.
        device: Device that the model will be trained on. It is only checked here; the model stays on the CPU.

    Raises:
        ModelError: If the model does not exist, has no masked LM, or its pooling is not as wide as its hidden
            states.
        BackboneError: If the masked LM cannot be split into embeddings, encoder and MLM head.
    """
    check_device(device)
    base = model_source(base)
    model, masked_lm, new = load_masked_lm(base, "float32")
    whole = with_pooling(model, base, pooling)
    if new:
        notify(f"{base} has no MLM head; pre-training starts with a new one ({names(new)}).")
    transformer, *rest = list(whole)
    width = transformer.get_embedding_dimension()
    bottleneck = rest.pop(0) if rest and isinstance(rest[0], Pooling) else None
    if bottleneck is None or bottleneck.get_embedding_dimension() != width:
        raise ModelError(
            f"{base} has no pooling of the same dimension as its hidden states ({width}), which the "
            "bottleneck needs. Choose one with --pooling, e.g. --pooling mean."
        )
    trained = like(whole, [transformer, bottleneck])
    finished = like(whole, [transformer, bottleneck, *rest])
    backbone = Backbone(trained, masked_lm, whole.tokenizer, max_tokens, new)
    return Base(backbone, finished, Path(base) if Path(base).is_dir() else None)


def make_objective(base: Base, settings: PretrainSettings) -> Objective:
    """Builds the objective of the settings, with new (untrained) parts."""
    objective = manager.build("objective", settings.objective, base.backbone, **settings.options)
    if not isinstance(objective, Objective):
        raise PluginError(
            f"the objective {settings.objective!r} is a {type(objective).__name__}; expected a subclass of "
            "stzoo.Objective."
        )
    objective.set_weights(settings.weights)
    return objective


def load_parts(objective: Objective, base: Base, settings: PretrainSettings) -> frozenset[str]:
    """Loads the objective's parts from the base's `pretraining/` folder, if it has one.

    Returns:
        The names of the objective's parameters that start untrained.

    Raises:
        ModelError: If the stored parts are damaged, or belong to another objective or other options.
    """
    parts = own_parts(objective)
    stored = base.folder / PARTS / PARTS_FILE if base.folder else None
    if stored is not None and stored.is_file():
        try:
            tensors = load_file(stored)
            record = json.loads((stored.parent / RECORD).read_text("utf-8"))
            made_by = record["recipe"]["objective"]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{stored.parent} is damaged ({type(error).__name__}: {first_line(error)}). Copy its "
                f"{PARTS_FILE} and {RECORD} again, or remove the folder to start with new parts."
            ) from error
        if broken := first_not_finite(tensors.items()):
            raise ModelError(
                f"{broken} in {stored} contains NaN or infinity. Remove {stored.parent} to start with new "
                "parts."
            )
        same = manager.full_name("objective", made_by, record.get("components", ())) == manager.full_name(
            "objective", settings.objective
        )
        if any(map(classes.is_class, (made_by, settings.objective))):  # a class may become a plugin's
            same = classes.plain(made_by) == classes.plain(settings.objective) or not (parts or tensors)
        wrong = [n for n, t in parts.items() if n not in tensors or tensors[n].shape != t.shape]
        if wrong or not same:
            raise ModelError(
                f"{stored} was trained with {made_by!r} and does not fit {settings.objective!r} "
                f"(missing or of another shape: {', '.join(wrong[:5]) or 'nothing'}). Use the objective and "
                f"options in {stored.parent / RECORD}, or remove {stored.parent} to start with new parts."
            )
        with torch.no_grad():
            for name, part in parts.items():
                part.copy_(tensors[name])
        parts = {}
    heads = {id(p) for n, p in base.backbone.masked_lm.named_parameters() if n in base.backbone.new}
    untrained = {n for n, p in objective.named_parameters() if n in parts or id(p) in heads}
    return frozenset(untrained)


def own_parts(objective: Objective) -> dict[str, torch.Tensor]:
    """The objective's parameters that belong neither to the model nor to its MLM head, by name."""
    exported = {id(p) for p in objective.backbone.masked_lm.parameters()}
    exported |= {id(p) for p in objective.model.parameters()}
    return {n: p for n, p in objective.named_parameters() if id(p) not in exported}


@public(PretrainSettings)
def pretrain(
    recipe: str | Path | None = None,
    *,
    output: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> TrainedModel:
    """Pre-trains an encoder and exports it.

    Args:
        recipe: Path to a YAML file, or the name of an installed recipe.
        output: Folder for checkpoints, run.json and, at the end, the model.
        resume: True to continue the unfinished run in `output`.
        overwrite: True to replace the run in `output`.
        settings: Fields of `stzoo.training.pretrain_settings.PretrainSettings`; they override those of the
            recipe.

    Returns:
        The output folder, a Path with `.model`, `.scores` and `.history`, which plain
        `SentenceTransformer(...)` and `AutoModelForMaskedLM` load.

    Raises:
        StzooError: If something in the settings, the data or the model is wrong; see `stzoo.errors`.

    Example:
        >>> bert = "google-bert/bert-base-uncased"
        >>> stzoo.pretrain(base=bert, objective="retromae", corpus="corpus.jsonl", output="bert-retromae")
    """
    check_launcher()
    config = PretrainSettings.read(recipe, settings)
    config.check_names()
    check_sharding(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    with runs.start(output, config, resume=resume, overwrite=overwrite) as run:
        if run.metadata["status"] == "finished":
            _tidy(run, config)
            notify(f"the run is finished already; the model is in {run.folder}.")
            return TrainedModel(run.folder)
        # a run that is resumed on another machine keeps its precision
        precision = run.metadata.get("precision") or choose_precision(config)
        config = config.model_copy(update={"precision": precision["used"]})
        if precision["reason"] != "as set" and is_main_process():
            notify(f"training in {precision['used']} ({precision['reason']}).")
        setup = set_up(config)
        base, rows = setup.base, setup.rows
        check_loss(config, setup.objective)
        # refuses settings that cannot be trained with, before the overwritten run is gone
        trainer = make_trainer(config, setup, run.folder, lambda log: run.record(log=log))
        if run.resumed and "batches" not in run.metadata:
            notify(
                "This run was started by an older version of stzoo, which made other batches. In the "
                "unfinished epoch, some passages are read twice and others are left out."
            )
        run.record_inputs(
            base={"fingerprint": fingerprint(base.folder)} if base.folder else {"id": config.base},
            corpus=_describe(setup.corpus),
            batches=rows.record() if isinstance(rows, TokenRows) else {"sorted_by": "bytes"},
            new_parameters=sorted(setup.new),
            precision=precision,
        )
        source = base.folder or config.base
        before, imported = records.earlier(source), records.imported(source)
        datasets = hub_ids(config.corpus)
        run.record(
            before=before,
            imported=imported,
            datasets=datasets,
            notes=setup.notes,
            processes=run.metadata.get("processes", world_size()),
        )
        checkpoint = last_checkpoint(run.folder) if resume else None
        with silence_hf_logging():
            trainer.train_or_resume(checkpoint)
        if trainer.is_world_process_zero():
            _finish(run, base, setup.objective, trainer)
            _tidy(run, config)
            _summarise(run, config)
        return TrainedModel(run.folder)


def set_up(config: PretrainSettings) -> Setup:
    """Loads all that a training needs, and notifies the user of what is notable.

    Raises:
        StzooError: If something in the settings, the data or the model is wrong.
    """
    set_seed(config.seed)
    with collect_notes() as base_notes:
        base = load_base(
            config.base, pooling=config.pooling, max_tokens=config.max_tokens, device=config.device
        )
    objective = make_objective(base, config)
    corpus = load_corpus(
        config.corpus,
        min_words=config.min_words,
        skip_bad_lines=config.skip_bad_lines,
        columns=objective.columns,
    )
    notes = reading_notes(base.finished, [row["text"] for row in corpus.sample()], "passages")
    notes += objective.configure_for(corpus)
    new = load_parts(objective, base, config)
    rows: Any = corpus.rows
    if is_cacheable(objective):
        with config.on_engine():
            rows = load_tokens(objective, corpus)
    elif config.engine != "local":
        raise RecipeError(
            f"--engine {config.engine} has no effect on {config.objective}, which tokenises texts itself. "
            "Drop the option."
        )
    about_tokens = [rows.describe(base.backbone.tokenizer.unk_token)] if isinstance(rows, TokenRows) else []
    if is_main_process():
        for note in about_tokens + notes:
            notify(note)
    return Setup(base, objective, corpus, rows, new, base_notes + notes)


def _describe(corpus: Corpus) -> dict[str, Any]:
    prepared = []
    for source in corpus.sources:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # no run.json, or not ours
            record = json.loads((Path(source).expanduser() / RECORD).read_text(encoding="utf-8"))
            prepared.append({key: record[key] for key in ("made_by", "notes")})
    return corpus.record() | ({"prepared": prepared} if prepared else {})


def make_trainer(
    settings: PretrainSettings, setup: Setup, folder: Path, record: Callable[[list[dict[str, float]]], None]
) -> ObjectiveTrainer:
    """Makes the trainer of a run.

    Args:
        settings: Settings of the run, with the precision that was chosen.
        setup: What it trains, and on what.
        folder: Folder for checkpoints.
        record: Function that is called with the log so far at each checkpoint.
    """
    base, callbacks = setup.base, []
    if settings.probe:
        judged = read_beir(locate(settings.probe), settings.probe_split)

        def probe(_: Any) -> dict[str, float]:
            was = base.finished.training
            base.finished.eval()
            scores = score(judged.qrels, retrieve(base.finished, judged, k=100, progress=False, share=True))
            base.finished.train(was)
            return {"probe_ndcg_at_10": scores.mean["nDCG@10"]}

        callbacks.append(EveryNSteps(settings.probe_steps, probe))
    return ObjectiveTrainer(
        model=base.backbone.model,
        args=arguments(
            settings,
            folder,
            batch_sampler=partial(LengthBatchSampler, tokens=settings.batch_tokens),
        ),
        train_dataset=setup.rows,
        loss=setup.objective,
        settings=settings,
        new=setup.new,
        collate=setup.objective.pad if isinstance(setup.rows, TokenRows) else setup.objective.collate,
        callbacks=callbacks,
        record=record,
        plan=f"pre-training with {settings.objective} on {counted(len(setup.rows), 'passage')}",
    )


def _finish(run: runs.Run, base: Base, objective: Objective, trainer: ObjectiveTrainer) -> None:
    history = [line for line in trainer.state.log_history if "train_runtime" not in line]
    run.record(log=history, steps=trainer.state.global_step)
    base.finished.to("cpu").eval()
    base.backbone.masked_lm.to("cpu").eval()
    parts = {name: part.detach().cpu().contiguous() for name, part in own_parts(objective).items()}

    def save_parts(folder: Path) -> None:
        (folder / PARTS).mkdir()
        save_file(parts, folder / PARTS / PARTS_FILE)
        record = {name: value for name, value in run.metadata.items() if name != "files"}
        write_json(folder / PARTS / RECORD, record)

    draft = run.folder / run_files.MODEL_DRAFT
    export(base.finished, draft, masked_lm=base.backbone.masked_lm, extra=save_parts, describe=False)
    run.install(draft, also=(card.README, PICTURE))
    run.record(status="finished")


def _tidy(run: runs.Run, settings: PretrainSettings) -> None:
    """Draws the curves and writes the card of a finished run, if it has none, and removes its checkpoints."""
    if not is_main_process():
        return
    if not (run.folder / card.README).exists():
        draw(run.folder)
        card.write(run.folder)
    if not (settings.keep_checkpoints or run.metadata["recipe"].get("keep_checkpoints")):
        run_files.remove_checkpoints(run.folder)


def _summarise(run: runs.Run, settings: PretrainSettings) -> None:
    history, scores = as_history(run.metadata, run.folder), []
    for line in history.scores:
        points = line.points
        scores.append(f"{line.name} {points[0][1]:.4f} → {points[-1][1]:.4f} ({len(points)} evaluations).")
    folder = str(run.folder)
    advice = [["stzoo", "finetune", folder, "--data", "BEIR_FOLDER", "--output", f"{folder}-tuned"]]
    if settings.probe:
        bench = ["stzoo", "bench", settings.base, folder, "--data", settings.probe, "--output", "results"]
        advice.append(bench)
    print_summary(run.folder, run.metadata, scores, advice)
