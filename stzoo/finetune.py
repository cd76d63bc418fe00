"""Fine-tuning on judged queries: each query's passage against the other passages of the batch."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from sentence_transformers.util import cos_sim, dot_score
from transformers import EarlyStoppingCallback, set_seed

from . import runs
from .callbacks import own_numbers
from .calls import callable_module
from .errors import DataError, ModelError
from .files import fingerprint
from .hub.export import export
from .judged import JudgedSet, read_beir
from .metrics import score
from .models import like, load_model
from .quiet import quietly
from .recipe import FinetuneSettings
from .search import retrieve
from .trainer import ObjectiveTrainer, arguments, last_checkpoint

METRIC = "nDCG@10"
DEV_METRIC = "dev_ndcg_at_10"
SIMILARITIES = {"cosine": cos_sim, "dot": dot_score}


class DevScore(BaseEvaluator):
    """nDCG@10 on the dev queries, by the very code that the benchmark scores with."""

    def __init__(self, judged: JudgedSet):
        super().__init__()
        self.judged = judged
        self.primary_metric: str = DEV_METRIC

    def __call__(
        self,
        model: Any,
        output_path: str | None = None,  # noqa: ARG002 - the host passes it
        epoch: float = -1,  # noqa: ARG002
        steps: int = -1,  # noqa: ARG002
    ) -> dict[str, float]:
        """The score, 0..1, under the name of `primary_metric`."""
        with own_numbers():
            run = retrieve(model, self.judged, k=10, progress=False)
        return {DEV_METRIC: score(self.judged.qrels, run).mean[METRIC]}


def pairs(judged: JudgedSet) -> Dataset:
    """One row for each relevant passage of each query: columns `anchor` and `positive`.

    Raises:
        DataError: if no passage is relevant.
    """
    judged_ids = {document for grades in judged.qrels.values() for document in grades}
    texts = zip(judged.corpus_ids, judged.passages, strict=True)
    passages = {document: text for document, text in texts if document in judged_ids}
    rows = [
        {"anchor": judged.queries[query], "positive": passages[document]}
        for query, grades in judged.qrels.items()
        for document, grade in grades.items()
        if grade > 0 and document in passages  # ArguAna's corpus lacks some
    ]
    if not rows:
        raise DataError(
            f"{judged.folder}, split {judged.split}: no judgement is above 0, nothing to train on."
        )
    return Dataset.from_list(rows)


def hold_out(judged: JudgedSet, queries: int, seed: int) -> tuple[JudgedSet, JudgedSet]:
    """Splits judged queries at random: the rest, and as many as asked for, at most a fifth of all."""
    chosen = sorted(judged.qrels)
    random.Random(seed).shuffle(chosen)  # noqa: S311 - no secret
    dev = set(chosen[: min(queries, len(chosen) // 5)])
    return _part(judged, set(chosen) - dev), _part(judged, dev)


def _part(judged: JudgedSet, queries: set[str]) -> JudgedSet:
    return replace(
        judged,
        queries={query: text for query, text in judged.queries.items() if query in queries},
        qrels={query: grades for query, grades in judged.qrels.items() if query in queries},
    )


def cut_corpus(judged: JudgedSet, passages: int, seed: int) -> JudgedSet:
    """Keeps the judged passages and fills up to `passages` with others drawn at random; 0 keeps all."""
    if not passages or passages >= len(judged.corpus_ids):
        return judged
    kept = {document for grades in judged.qrels.values() for document in grades}
    others = [document for document in judged.corpus_ids if document not in kept]
    random.Random(seed).shuffle(others)  # noqa: S311 - no secret
    kept |= set(others[: max(passages - len(kept), 0)])
    both = [pair for pair in zip(judged.corpus_ids, judged.passages, strict=True) if pair[0] in kept]
    return replace(judged, corpus_ids=[i for i, _ in both], passages=[p for _, p in both])


def finetune(
    model: str | None = None,
    recipe: str | Path | None = None,
    *,
    output: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> Path:
    """Fine-tunes a retriever on a BEIR folder's judged queries and exports it.

    Args:
        model: folder or Hub id; may stand in the recipe.
        recipe: a YAML file or the name of an installed recipe.
        output: the folder for checkpoints, run.json and, at the end, the model.
        resume: go on with the unfinished run in `output`.
        overwrite: remove the run that is in `output`.
        settings: fields of `stzoo.recipe.FinetuneSettings`; they win over the recipe's.

    Returns:
        the output folder, which plain `SentenceTransformer(...)` loads: of all scored steps the best on the
        dev queries, or the last where there are none.

    Raises:
        StzooError: for a user's mistake; see stzoo.errors.
    """
    if model is not None:
        settings["model"] = model
    wanted = FinetuneSettings.read(recipe, settings)
    if wanted.threads:
        torch.set_num_threads(wanted.threads)
    with runs.start(output, wanted, resume=resume, overwrite=overwrite) as run:
        if run.facts["status"] == "finished":
            return run.folder
        train, dev = _data(wanted)
        set_seed(wanted.seed)
        student = load_model(wanted.model, pooling=wanted.pooling, device=wanted.device)
        _set_prompts(student, wanted)
        rows = pairs(train)
        local = Path(wanted.model).is_dir()
        run.record_inputs(
            base={"fingerprint": fingerprint(wanted.model)} if local else {"id": wanted.model},
            data={"fingerprint": train.fingerprint, "queries": len(train.queries), "pairs": len(rows)},
            dev={"fingerprint": dev.fingerprint, "queries": len(dev.queries)} if dev else None,
        )
        trainer = _trainer(wanted, run, student, rows, DevScore(dev) if dev else None)
        checkpoint = last_checkpoint(run.folder) if run.goes_on else None
        with quietly():
            trainer.go_on(checkpoint)
        if trainer.is_world_process_zero():
            history = [line for line in trainer.state.log_history if "train_runtime" not in line]
            best = {DEV_METRIC: trainer.state.best_metric, "best_step": trainer.state.best_global_step}
            run.record(log=history, steps=trainer.state.global_step, **(best if dev else {}))
            draft = run.folder / ".model.part"
            student.to("cpu").eval()
            export(like(student, list(student)), draft)  # without the autocast that training put around it
            run.install(draft)
            run.record(status="finished")
        return run.folder


def _data(wanted: FinetuneSettings) -> tuple[JudgedSet, JudgedSet | None]:
    train = read_beir(wanted.data, wanted.split)
    if wanted.dev_split:
        dev: JudgedSet | None = read_beir(wanted.data, wanted.dev_split)
    elif wanted.dev_queries:
        train, dev = hold_out(train, wanted.dev_queries, wanted.seed)
    else:
        return train, None
    if not dev or not dev.queries:
        raise DataError(
            f"{wanted.data}, split {wanted.split}: too few queries to hold any out. Set dev_queries to 0 to "
            "train without early stopping, or name a dev_split."
        )
    return train, cut_corpus(dev, wanted.dev_passages, wanted.seed)


def _set_prompts(model: Any, wanted: FinetuneSettings) -> None:
    """Keeps the prompts in the model, so that its encode_query and encode_document use them."""
    given = {"query": wanted.query_prompt, "document": wanted.passage_prompt}
    model.prompts.update({name: prompt for name, prompt in given.items() if prompt is not None})


def _trainer(
    wanted: FinetuneSettings, run: runs.Run, model: Any, rows: Dataset, evaluator: DevScore | None
) -> ObjectiveTrainer:
    if len(rows) < 2:
        raise DataError(f"{wanted.data}, split {wanted.split}: one pair is too few; a batch needs two.")
    similarity = model.similarity_fn_name
    if similarity not in SIMILARITIES:
        raise ModelError(f"{wanted.model} compares by {similarity}; expected {' or '.join(SIMILARITIES)}.")
    stages = (
        ("anchor", "query", wanted.max_query_tokens),
        ("positive", "document", wanted.max_passage_tokens),
    )

    most = model.max_seq_length or max(wanted.max_query_tokens, wanted.max_passage_tokens)

    def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for column, task, longest in stages:
            texts = [row[column] for row in batch]
            read = model.preprocess(
                texts, prompt=model.prompts.get(task), task=task, max_length=min(longest, most)
            )
            made |= {f"{column}_{name}": value for name, value in read.items()}
            made[f"{column}_task"] = task
        return made

    more: dict[str, Any] = {"batch_sampler": "no_duplicates"}
    callbacks = []
    if evaluator is not None:
        more |= dict(eval_strategy="steps", eval_steps=wanted.eval_steps, load_best_model_at_end=True)
        more |= dict(metric_for_best_model=f"eval_{DEV_METRIC}", greater_is_better=True)
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=wanted.patience))
        wanted = wanted.model_copy(update={"save_steps": wanted.eval_steps})
    return ObjectiveTrainer(
        model=model,
        args=arguments(wanted, run.folder, **more),
        train_dataset=rows,
        loss=CachedMultipleNegativesRankingLoss(
            model,
            scale=1 / wanted.temperature,
            similarity_fct=SIMILARITIES[similarity],
            mini_batch_size=wanted.mini_batch_size,
        ),
        evaluator=evaluator,
        settings=wanted,
        collate=collate,
        callbacks=callbacks,
        record=lambda log: run.record(log=log),
    )


callable_module(__name__)
