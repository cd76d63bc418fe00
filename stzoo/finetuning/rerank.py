"""rerank(): train a cross-encoder that ranks passages for a query, with sentence-transformers' own trainer.

Each positive and its negatives are pairs with the labels 1 and 0 (binary cross-entropy). Dev queries show how
well it ranks the best passages of a first stage, BM25 or a retriever: nDCG@10.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.util import get_device_name
from transformers import EarlyStoppingCallback, set_seed

from stzoo.data.beir import RetrievalDataset
from stzoo.data.ranking import Ranked
from stzoo.data.training_sets.sets import TrainingSet
from stzoo.errors import DataError, ExportError
from stzoo.evaluation.scoring import score
from stzoo.finetuning.data import DEV_METRIC, METRIC, read_data
from stzoo.hub import redact
from stzoo.models import limits
from stzoo.models.check_weights import check_report, loading_reports
from stzoo.models.cross_encoder import Teacher, open_teacher
from stzoo.models.loaded import limit, open_model
from stzoo.models.loading import check_device, is_self_contained, loading_errors
from stzoo.models.names import model_source
from stzoo.retrieval import bm25
from stzoo.retrieval.rerank import rerank as rank_again
from stzoo.retrieval.search.retriever import Retriever, default_root
from stzoo.training import run_files, runs
from stzoo.training.arguments import arguments
from stzoo.training.callbacks import EachStep, FindBest, preserve_rng_state, remove_host_progress
from stzoo.training.checkpoints import last_checkpoint
from stzoo.training.guarded_trainer import GRADIENT, GuardedTrainer
from stzoo.training.rerank_settings import RerankSettings
from stzoo.utils.distributed import require_one_process
from stzoo.utils.files import atomic_file, fingerprint
from stzoo.utils.logging import silence_hf_logging
from stzoo.utils.messages import counted, notify
from stzoo.utils.public import public

README = "README.md"
TOLERANCE = 1e-4  # between the scores of the trained model and those of its files
CHECKED = 8  # pairs to compare


@public(RerankSettings)
def rerank(
    data: Any = None,
    base: Any = None,
    recipe: str | Path | None = None,
    *,
    output: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> Path:
    """Trains a cross-encoder, which `bench(rerank=…)`, `search(rerank=…)` and `mine(teacher=…)` take.

    Args:
        data: Training data with negatives: the path of a file, e.g. one that `stzoo mine` wrote, or rows as
            Python objects; may be set in the recipe.
        base: Encoder or cross-encoder to start from: the path of its folder, its Hub id, or an object of
            sentence-transformers, which is not changed; may be set in the recipe.
        recipe: Path to a YAML file, or the name of an installed recipe.
        output: Folder for the checkpoints, run.json and, at the end, the model.
        resume: True to continue the unfinished run in `output`.
        overwrite: True to remove the run that is in `output`.
        settings: Fields of `stzoo.training.rerank_settings.RerankSettings`; they override those of the
            recipe.

    Returns:
        The output folder, which plain `CrossEncoder(...)` loads. It contains the weights of the step that
        scored best on the dev queries; those of a base that is a cross-encoder if no step was better; or of
        the last step if there are no dev queries.

    Raises:
        StzooError: If the user made a mistake; see `stzoo.errors`.
    """
    given = {name: value for name, value in (("data", data), ("base", base)) if value is not None}
    require_one_process("rerank")
    config = RerankSettings.read(recipe, settings | given)
    config.check_names()
    if config.threads:
        torch.set_num_threads(config.threads)
    check_device(config.device)
    with runs.start(output, config, resume=resume, overwrite=overwrite) as run:
        if run.metadata["status"] == "finished":
            return run.folder
        train, judged, _ = read_data(config)[""]
        set_seed(config.seed)
        pairs = make_pairs(train, config)
        source = model_source(config.base)
        model, is_new = load(source, config)
        dev = DevRanking(judged, first_stage(judged, config), config.dev_depth) if judged else None
        run.record_inputs(
            base={"fingerprint": fingerprint(source)} if Path(source).is_dir() else {"id": source},
            data={"fingerprint": train.fingerprint, "queries": len(train.query_ids), "pairs": len(pairs)},
            dev={"fingerprint": judged.fingerprint, "queries": len(judged.queries)} if judged else None,
        )
        if dev and "dev_before" not in run.metadata:
            before = {"first_stage": dev.first_score}
            if not is_new:
                before["base"] = dev(model)[DEV_METRIC]
            run.record(dev_before=before)
        result = _fit(config, run, model, pairs, dev)
        before = run.metadata.get("dev_before", {}).get("base")
        if before is not None and result[DEV_METRIC] <= before:
            notify(f"No step was better than the base on the dev queries ({before:.4f}), so it is kept.")
            model, _ = load(source, config)
            result |= {"kept": "base", DEV_METRIC: before, "best_step": 0}
        if dev and result[DEV_METRIC] <= dev.first_score:
            notify(
                "On the dev queries the cross-encoder ranks no better than "
                f"{Path(config.retriever).name} alone: {METRIC} {result[DEV_METRIC]:.4f} against "
                f"{dev.first_score:.4f}. Train it on more queries, or for more steps."
            )
        run.record(**result)
        _install(run, model, pairs)
        run.record(status="finished")
        if not config.keep_checkpoints:
            run_files.remove_checkpoints(run.folder)
        return run.folder


def load(source: str, config: RerankSettings) -> tuple[Any, bool]:
    """Loads a model to train as a CrossEncoder, and says whether its head is new.

    Raises:
        ModelError: If it cannot be loaded, weights of its encoder are missing, or it cannot read so many
            tokens.
    """
    with loading_errors("model", source), loading_reports() as reports:
        options = dict(
            device="cpu", trust_remote_code=False, local_files_only=is_self_contained(Path(source))
        )
        model = CrossEncoder(source, num_labels=1, **options)
    (loaded, report), *_ = reports
    inside = f"{loaded.base_model_prefix}."
    head = tuple(key for key in report["missing_keys"] if not key.startswith(inside))
    check_report(source, loaded, report, spare=(*head, f"{inside}pooler."))
    if head:
        notify(f"{config.base} has no head that scores pairs; training starts with a new one.")
    limits.prepare(model, source)
    longest = model.max_seq_length
    limit(model, min(config.max_tokens, longest or config.max_tokens), source)
    model.float()
    if config.gradient_checkpointing:
        model[0].model.gradient_checkpointing_enable()
    model.to(config.device or get_device_name())
    return model, bool(head)


def make_pairs(train: TrainingSet, config: RerankSettings) -> Dataset:
    """The training pairs: each positive with some negatives of its query, drawn at random.

    Raises:
        DataError: If no query has negatives.
    """
    draw = np.random.default_rng(config.seed)
    queries, passages, labels, left_out = [], [], [], 0
    for number, query in enumerate(train.queries):
        negatives = train.negatives[number]
        if not len(negatives):
            left_out += 1
            continue
        for positive in train.positives[number].tolist():
            few = draw.permutation(negatives)[: config.negatives].tolist()
            queries += [query] * (1 + len(few))
            passages += [train.passages[place] for place in (positive, *few)]
            labels += [1.0] + [0.0] * len(few)
    if not labels:
        raise DataError(
            f"{config.data} has no negatives, from which a cross-encoder learns. Mine some first: stzoo mine "
            f"bm25s --data {config.data} --output mined.jsonl"
        )
    if left_out:
        notify(f"Leaving out {counted(left_out, 'query')} without a negative.")
    return Dataset.from_dict({"query": queries, "passage": passages, "label": labels})


def first_stage(judged: RetrievalDataset, config: RerankSettings) -> Ranked:
    """The best passages of the dev queries by BM25 or a model."""
    if config.retriever == bm25.NAME:
        language = bm25.choose_language(None, judged.passages, judged.name)
        return bm25.retrieve_bm25(judged, config.dev_depth, language=language)
    retriever = Retriever(open_model(config.retriever, device=config.device), default_root())
    vectors, documents = retriever.queries(judged), retriever.documents(judged)
    return retriever.top_k(judged, vectors[:], list(judged.queries), documents, config.dev_depth)


class DevRanking(BaseEvaluator):
    """NDCG@10 of a cross-encoder's ranking of the best passages of a first stage.

    Args:
        judged: Dev queries.
        first: The ranking of the first stage.
        depth: Number of its passages per query to rank again.

    Attributes:
        first_score: NDCG@10 of the first stage.
    """

    def __init__(self, judged: RetrievalDataset, first: Ranked, depth: int):
        super().__init__()
        self.judged, self.first, self.depth = judged, first, depth
        self.primary_metric: str = DEV_METRIC
        self.first_score = score(judged.qrels, first).mean[METRIC]

    def __call__(
        self,
        model: Any,
        output_path: str | None = None,  # noqa: ARG002 - the trainer passes it
        epoch: float = -1,  # noqa: ARG002
        steps: int = -1,  # noqa: ARG002
    ) -> dict[str, float]:
        """Returns nDCG@10 (0..1) as `primary_metric`."""
        judged, training = self.judged, model.training
        with preserve_rng_state():
            model.eval()
            scorer = Teacher("the model in training", "the model in training", "", model)
            run = rank_again(self.first, judged.queries, judged, scorer, k=self.depth, depth=self.depth)
            model.train(training)
        return {DEV_METRIC: score(judged.qrels, run).mean[METRIC]}


class RerankTrainer(GuardedTrainer, CrossEncoderTrainer):
    """A CrossEncoderTrainer with checkpoints as those of fine-tuning, which stops when fine-tuning does."""

    def __init__(self, *, callbacks: list[Any], **options: Any):
        super().__init__(callbacks=[EachStep(self._end_step), FindBest(), *callbacks], **options)
        remove_host_progress(self)
        self.add_callback(self.progress)

    def compute_loss(self, *args: Any, **options: Any) -> Any:
        """The host's loss, which must be finite."""
        loss: Any = super().compute_loss(*args, **options)
        self._watch({"loss": loss})
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        self._watch({GRADIENT: norm})
        self._check_finite()
        return norm


def _fit(
    config: RerankSettings, run: runs.Run, model: Any, pairs: Dataset, dev: DevRanking | None
) -> dict[str, Any]:
    """Trains the model in place, from the last checkpoint if there is one."""
    callbacks: list[Any] = []
    warmup = min(config.warmup_ratio, 1 - 1e-9)  # the host takes 1 for a number of steps
    more: dict[str, Any] = {"warmup_steps": warmup}
    if dev:
        more |= dict(eval_strategy="steps", eval_steps=config.eval_steps, load_best_model_at_end=True)
        more |= dict(metric_for_best_model=f"eval_{DEV_METRIC}", greater_is_better=True)
        more |= dict(save_steps=config.eval_steps)
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=config.patience))
    trainer = RerankTrainer(
        settings=config,
        model=model,
        args=arguments(config, run.folder, kind=CrossEncoderTrainingArguments, **more),
        train_dataset=pairs,
        loss=BinaryCrossEntropyLoss(model),
        evaluator=dev,
        callbacks=callbacks,
        record=lambda log: run.record(log=log),
    )
    with silence_hf_logging():
        trainer.train_or_resume(last_checkpoint(run.folder))
    log = [line for line in trainer.state.log_history if "train_runtime" not in line]
    best = {DEV_METRIC: trainer.state.best_metric, "best_step": trainer.state.best_global_step}
    return {"log": log, "steps": trainer.state.global_step, **(best if dev else {})}


def _install(run: runs.Run, model: Any, pairs: Dataset) -> None:
    """Writes the model in transformers' own form, which all versions of CrossEncoder load, and its card."""
    model.to("cpu").eval()
    draft = run.folder / run_files.MODEL_DRAFT
    with silence_hf_logging():
        model[0].model.save_pretrained(draft)
        model.tokenizer.model_max_length = model.max_seq_length
        model.tokenizer.save_pretrained(draft)
    some = pairs.select(range(min(CHECKED, len(pairs))))
    texts = list(some["query"]), list(some["passage"])
    ours = Teacher("", "", "", model).score(*texts)
    theirs = open_teacher(str(draft), device="cpu").score(*texts)
    if not np.allclose(ours, theirs, rtol=0, atol=TOLERANCE):
        raise ExportError(
            f"the saved cross-encoder scores pairs otherwise than the trained one, by up to "
            f"{np.abs(ours - theirs).max():.2g}. Please report this, with the name of the base."
        )
    run.install(draft, also=(README,))
    template = files("stzoo.finetuning").joinpath("reranker.md.j2").read_text(encoding="utf-8")
    recipe = run.metadata["recipe"]
    text = jinja2.Environment(autoescape=False, trim_blocks=True).from_string(template)  # noqa: S701 - Markdown
    with atomic_file(run.folder / README) as path:
        shown = redact.shown({name: str(recipe[name]) for name in ("base", "data", "retriever")}, {})
        about = text.render(
            name=run.folder.resolve().name, run=run.metadata, recipe=recipe, metric=DEV_METRIC, **shown
        )
        path.write_text(about, encoding="utf-8")
