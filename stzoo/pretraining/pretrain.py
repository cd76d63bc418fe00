"""Pre-training: an objective and a corpus make a better encoder, exported for plain sentence-transformers.

Beside the model, the export keeps what continued pre-training needs: the MLM head in the root (the folder is
also an `AutoModelForMaskedLM`) and the decoders in `pretraining/`. Given as `base`, such a folder goes on.
"""

import contextlib
import json
from dataclasses import dataclass
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
from stzoo.errors import ModelError, PluginError, first_line
from stzoo.evaluation.scoring import score
from stzoo.hub import card
from stzoo.hub.export import export
from stzoo.models.check_weights import first_not_finite, names
from stzoo.models.encode.batches import reading_notes
from stzoo.models.loading import like, load_masked_lm, load_model
from stzoo.plugins import manager
from stzoo.pretraining.backbone import Backbone
from stzoo.pretraining.length_sampler import LengthBatchSampler
from stzoo.pretraining.objective import Objective
from stzoo.retrieval.search.exact import retrieve
from stzoo.training import runs
from stzoo.training.callbacks import EveryNSteps
from stzoo.training.checkpoints import last_checkpoint
from stzoo.training.history import PICTURE, draw
from stzoo.training.settings import PretrainSettings
from stzoo.training.trainer import ObjectiveTrainer, arguments
from stzoo.utils.distributed import is_main_process, refuse_sharding, world_size
from stzoo.utils.files import fingerprint, write_json
from stzoo.utils.logging import silence_hf_logging
from stzoo.utils.messages import collect_notes, notify
from stzoo.utils.outputs import RECORD

PARTS = "pretraining"  # the folder of an export that keeps decoders and recipe
PARTS_FILE = "objective.safetensors"


@dataclass
class Base:
    """A base, ready to be trained.

    Attributes:
        backbone: with the SentenceTransformer of encoder and bottleneck that trains.
        finished: the whole model; it shares the encoder and adds what follows the base's pooling.
        folder: of the base, if it is local.
    """

    backbone: Backbone
    finished: Any
    folder: Path | None


def load_base(
    base: str, *, pooling: str | None = None, max_tokens: int | None = None, device: str | None = None
) -> Base:
    """Loads a masked LM or a sentence-transformers model for pre-training.

    Args:
        base: folder or Hub id.
        pooling: name of the bottleneck; None is the base's own, or cls for a bare masked LM.
        max_tokens: passages are cut here; None is the base's own limit.
        device: it will be trained on; only looked for here.

    Raises:
        ModelError: if there is no such model or it has no masked LM.
        BackboneError: if it cannot be taken apart, or its pooling is not as wide as its hidden states.
    """
    whole = load_model(base, pooling=pooling, device=device)
    masked_lm, new = load_masked_lm(base, torch.float32)
    if new:
        notify(f"{base} has no MLM head; pre-training begins with a new one ({names(new)}).")
    transformer, *rest = list(whole)
    transformer.model = masked_lm.base_model
    width = transformer.get_embedding_dimension()
    bottleneck = rest.pop(0) if rest and isinstance(rest[0], Pooling) else None
    if bottleneck is None or bottleneck.get_embedding_dimension() != width:
        raise ModelError(
            f"{base} has no pooling as wide as its {width} hidden numbers, which a bottleneck must be. "
            "Choose one with --pooling, e.g. mean."
        )
    trained = like(whole, [transformer, bottleneck])
    finished = like(whole, [transformer, bottleneck, *rest])
    backbone = Backbone(trained, masked_lm, whole.tokenizer, max_tokens, new)
    return Base(backbone, finished, Path(base) if Path(base).is_dir() else None)


def make_objective(base: Base, settings: PretrainSettings) -> Objective:
    """The objective, with all its parts new."""
    objective = manager.build("objective", settings.objective, base.backbone, **settings.options)
    if not isinstance(objective, Objective):
        raise PluginError(
            f"the objective {settings.objective!r} is a {type(objective).__name__}; expected a subclass of "
            "stzoo.Objective."
        )
    objective.set_weights(settings.weights)
    return objective


def load_parts(objective: Objective, base: Base, settings: PretrainSettings) -> frozenset[str]:
    """Fills in the parts that the base's `pretraining/` folder has.

    Returns:
        the names of the objective's parameters that start untrained.

    Raises:
        ModelError: if parts are there for this objective but do not fit it.
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
                f"{PARTS_FILE} and {RECORD} again, or remove it to begin with new parts."
            ) from error
        if broken := first_not_finite(tensors.items()):
            raise ModelError(
                f"{broken} in {stored} has NaN or infinity; remove {stored.parent} to begin anew."
            )
        same = manager.full_name("objective", made_by, record.get("components", ())) == manager.full_name(
            "objective", settings.objective
        )
        wrong = [n for n, t in parts.items() if n not in tensors or tensors[n].shape != t.shape]
        if wrong or not same:
            raise ModelError(
                f"{stored} was made by {made_by!r} and does not fit the objective {settings.objective!r} "
                f"(missing or of another shape: {', '.join(wrong[:5]) or 'nothing'}). Use the objective and "
                f"options that it was made with (see "
                f"{stored.parent / RECORD}), or remove {stored.parent} to begin with new parts."
            )
        with torch.no_grad():
            for name, part in parts.items():
                part.copy_(tensors[name])
        parts = {}
    heads = {id(p) for n, p in base.backbone.masked_lm.named_parameters() if n in base.backbone.new}
    untrained = {n for n, p in objective.named_parameters() if n in parts or id(p) in heads}
    return frozenset(untrained)


def own_parts(objective: Objective) -> dict[str, torch.Tensor]:
    """The objective's tensors that no export of the encoder or its MLM head holds, by name."""
    theirs = {id(p) for p in objective.backbone.masked_lm.parameters()}
    theirs |= {id(p) for p in objective.model.parameters()}
    return {n: p for n, p in objective.named_parameters() if id(p) not in theirs}


def pretrain(
    recipe: str | Path | None = None,
    *,
    output: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> Path:
    """Pre-trains an encoder and exports it.

    Args:
        recipe: a YAML file or the name of an installed recipe.
        output: the folder for checkpoints, run.json and, at the end, the model.
        resume: go on with the unfinished run in `output`.
        overwrite: remove the run that is in `output`.
        settings: fields of `stzoo.training.settings.PretrainSettings`; they win over the recipe's.

    Returns:
        the output folder, which plain `SentenceTransformer(...)` and `AutoModelForMaskedLM` load.

    Raises:
        StzooError: for a user's mistake; see stzoo.errors.
    """
    refuse_sharding()
    wanted = PretrainSettings.read(recipe, settings)
    if wanted.threads:
        torch.set_num_threads(wanted.threads)
    with runs.start(output, wanted, resume=resume, overwrite=overwrite) as run:
        if run.facts["status"] == "finished":
            _illustrate(run)
            return run.folder
        set_seed(wanted.seed)
        with collect_notes() as of_base:
            base = load_base(
                wanted.base, pooling=wanted.pooling, max_tokens=wanted.max_tokens, device=wanted.device
            )
        objective = make_objective(base, wanted)
        corpus = load_corpus(
            wanted.corpus,
            min_words=wanted.min_words,
            skip_bad_lines=wanted.skip_bad_lines,
            columns=objective.columns,
        )
        notes = reading_notes(base.finished, corpus.rows["text"], "passages")
        notes += objective.configure_for(corpus)
        new = load_parts(objective, base, wanted)
        # refuses what cannot be trained with, before what it overwrites is gone
        trainer = _trainer(wanted, run, base, objective, new, corpus)
        run.record_inputs(
            base={"fingerprint": fingerprint(base.folder)} if base.folder else {"id": wanted.base},
            corpus=_describe(corpus),
            new_parameters=sorted(new),
            processes=world_size(),
        )
        before, imported = runs.earlier(wanted.base), runs.imported(wanted.base)
        datasets = hub_ids(wanted.corpus)
        run.record(before=before, imported=imported, datasets=datasets, notes=of_base + notes)
        if is_main_process():
            for note in notes:
                notify(note)
        checkpoint = last_checkpoint(run.folder) if resume else None
        with silence_hf_logging():
            trainer.train_or_resume(checkpoint)
        if trainer.is_world_process_zero():
            _finish(run, base, objective, trainer)
        return run.folder


def _describe(corpus: Corpus) -> dict[str, Any]:
    prepared = []
    for source in corpus.sources:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # no record, or none of ours
            facts = json.loads((Path(source).expanduser() / RECORD).read_text(encoding="utf-8"))
            prepared.append({key: facts[key] for key in ("made_by", "notes")})
    return corpus.facts() | ({"prepared": prepared} if prepared else {})


def _trainer(
    wanted: PretrainSettings,
    run: runs.Run,
    base: Base,
    objective: Objective,
    new: frozenset[str],
    corpus: Corpus,
) -> ObjectiveTrainer:
    callbacks = []
    if wanted.probe:
        judged = read_beir(wanted.probe, wanted.probe_split)

        def probe() -> dict[str, float]:
            was = base.finished.training
            base.finished.eval()
            scores = score(judged.qrels, retrieve(base.finished, judged, k=100, progress=False))
            base.finished.train(was)
            return {"probe_ndcg_at_10": scores.mean["nDCG@10"]}

        callbacks.append(EveryNSteps(wanted.probe_steps, probe))
    trainer = ObjectiveTrainer(
        model=base.backbone.model,
        args=arguments(wanted, run.folder, batch_sampler=LengthBatchSampler),
        train_dataset=corpus.rows,
        loss=objective,
        settings=wanted,
        new=new,
        collate=objective.collate,
        callbacks=callbacks,
        record=lambda log: run.record(log=log),
    )
    for callback in callbacks:
        callback.log = trainer.log
    return trainer


def _finish(run: runs.Run, base: Base, objective: Objective, trainer: ObjectiveTrainer) -> None:
    history = [line for line in trainer.state.log_history if "train_runtime" not in line]
    run.record(log=history, steps=trainer.state.global_step)
    base.finished.to("cpu").eval()
    base.backbone.masked_lm.to("cpu").eval()
    parts = {name: part.detach().cpu().contiguous() for name, part in own_parts(objective).items()}

    def keep_parts(folder: Path) -> None:
        (folder / PARTS).mkdir()
        save_file(parts, folder / PARTS / PARTS_FILE)
        own = {name: value for name, value in run.facts.items() if name != "files"}
        write_json(folder / PARTS / RECORD, own)

    draft = run.folder / runs.MODEL_DRAFT
    export(base.finished, draft, masked_lm=base.backbone.masked_lm, extra=keep_parts, describe=False)
    run.install(draft, also=(card.README, PICTURE))
    run.record(status="finished")
    _illustrate(run)


def _illustrate(run: runs.Run) -> None:
    """Draws the curves and writes the card of a finished run, unless a kill came after that."""
    if is_main_process() and not (run.folder / card.README).exists():
        draw(run.folder)
        card.write(run.folder)
