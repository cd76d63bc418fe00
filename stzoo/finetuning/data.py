"""The data of a fine-tuning run: training queries, and dev queries from a data set or held out."""

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sentence_transformers.base.evaluation import BaseEvaluator

from stzoo.data.beir import RetrievalDataset, read_beir
from stzoo.data.beir_layout import names_beir
from stzoo.data.find_datasets import locate
from stzoo.data.read_once import each_file_once
from stzoo.data.training_sets.read import from_judged, read_judged, read_training
from stzoo.data.training_sets.sets import TrainingSet
from stzoo.errors import DataError, RecipeError
from stzoo.evaluation.scoring import score
from stzoo.retrieval.search.exact import retrieve
from stzoo.training.callbacks import preserve_rng_state
from stzoo.training.sharding import is_sharded
from stzoo.training.supervised_settings import SupervisedTraining
from stzoo.utils.files import write_json
from stzoo.utils.messages import notify

METRIC, DEV_METRIC = "nDCG@10", "dev_ndcg_at_10"
EVALUATIONS = "checkpoints/eval"  # where the host trainer has evaluators write


class Data(NamedTuple):
    """The data of a run, or of one of its tasks.

    Attributes:
        train: The queries to train on; `origin` has the whole corpus to mine from, if episodes mine.
        dev: The queries for early stopping, or None.
        shared: Number of held-out queries that share an answer with a training query.
    """

    train: TrainingSet
    dev: RetrievalDataset | None
    shared: int


def read_data(
    settings: SupervisedTraining, *, dev_passages: int = 0, mining: bool = False
) -> dict[str, Data]:
    """Reads the training data and dev queries of each task; a corpus that several tasks share is read once.

    Args:
        settings: The settings of the run.
        dev_passages: Number of passages to search for the dev queries; 0 for all.
        mining: True if negatives are mined from the whole corpus.

    Returns:
        The data by task name; a single task has the name "".

    Raises:
        DataError: If the data are invalid, or there are too few queries to hold some out.
        RecipeError: If the dev split does not exist, or is the one to train on.
    """
    with each_file_once():
        return {task: _read(one, task, dev_passages, mining) for task, one in settings.each().items()}


def _read(settings: SupervisedTraining, task: str, dev_passages: int, mining: bool) -> Data:
    split, columns = settings.split, settings.columns
    data = locate(settings.data, on_hub=True)
    corpus = locate(settings.corpus) if settings.corpus else None
    if mining or names_beir(data):
        judged = read_judged(data, split, corpus=corpus, columns=columns)
        whole = replace(from_judged(judged), origin=judged)
    else:
        whole = read_training(data, split, corpus=corpus, columns=columns)
    train, dev, shared = whole, None, 0
    if settings.dev_data or settings.dev_split:
        dev = _read_dev(settings, data)
    elif settings.dev_queries:
        train, held, shared = hold_out(whole, settings.dev_queries, settings.seed)
        if not held.query_ids:
            raise DataError(
                f"{settings.data}, split {split}: too few queries to hold any out. Set dev_queries to 0 to "
                "train without early stopping, or name a dev_split."
            )
        if len(held.query_ids) < settings.dev_queries:
            notify(
                f"dev_queries is {settings.dev_queries}, but at most a fifth of the queries are held out, "
                f"here {len(held.query_ids)}."
            )
        dev = held.judged()
    if settings.max_queries and settings.max_queries < len(train.query_ids):
        every = range(len(train.query_ids))
        chosen = random.Random(settings.seed).sample(every, settings.max_queries)  # noqa: S311
        train = train.part(np.array(sorted(chosen)))
    if dev:
        dev = replace(cut_corpus(dev, dev_passages, settings.seed), task=task)
    origin = replace(train.judged(), task=task) if mining else None
    return Data(replace(train, origin=origin), dev, shared)


def _read_dev(settings: SupervisedTraining, data: Path) -> RetrievalDataset:
    if not settings.dev_data:
        if not names_beir(data):
            raise RecipeError(
                f"dev_split is {settings.dev_split!r}, but {settings.data} is not a BEIR folder and has no "
                "splits. Name a BEIR folder as dev_data (--dev-data)."
            )
        if settings.dev_split == settings.split:
            raise RecipeError(
                f"dev_split and split are both {settings.split!r}; early stopping needs queries that are not "
                "trained on. Name another dev_split, or leave it out to hold out training queries."
            )
    return read_beir(locate(settings.dev_data) if settings.dev_data else data, settings.dev_split or "dev")


def hold_out(train: TrainingSet, queries: int, seed: int) -> tuple[TrainingSet, TrainingSet, int]:
    """Splits queries at random into those to train on and those held out.

    Queries that have answers in common stay together: a model that was trained on the answers of one finds
    them for the others too, and the dev score would reward memorising. If most queries are connected by their
    answers, so that less than half of the number asked for could be held out, they are split all the same.

    Args:
        train: The queries to split.
        queries: Number to hold out; at most a fifth of all queries are.
        seed: Seed of the random choice.

    Returns:
        The remaining queries, the held-out queries, and the number of held-out queries that share an answer
        with a remaining one.
    """
    Q, positives = len(train.query_ids), train.positives
    links = np.repeat(np.arange(Q), np.diff(positives.starts)), Q + positives.places
    graph = coo_array((np.ones(len(links[0]), bool), links), shape=(Q + len(train.passages),) * 2)
    groups = connected_components(graph, directed=False)[1][:Q]
    sizes = np.bincount(groups)
    order = sorted(range(Q), key=train.query_ids.__getitem__)
    random.Random(seed).shuffle(order)  # noqa: S311 - not for security
    most = left = min(queries, Q // 5)
    taken = []
    for group in dict.fromkeys(groups[order].tolist()):
        if sizes[group] <= left:
            taken.append(group)
            left -= sizes[group]
    out = np.isin(groups, taken)
    if left > most // 2:
        out[[query for query in order if not out[query]][:left]] = True
    rest, held = train.part(np.flatnonzero(~out)), train.part(np.flatnonzero(out))
    known = np.isin(held.positives.places, rest.positives.places)
    shared = np.logical_or.reduceat(known, held.positives.starts[:-1]).sum() if known.size else 0
    return rest, held, int(shared)


def cut_corpus(judged: RetrievalDataset, passages: int, seed: int) -> RetrievalDataset:
    """Cuts the corpus to the judged passages and others drawn at random, `passages` in all; 0 keeps all."""
    if not passages or passages >= len(judged.corpus_ids):
        return judged
    kept = {document for grades in judged.qrels.values() for document in grades}
    others = [document for document in judged.corpus_ids if document not in kept]
    random.Random(seed).shuffle(others)  # noqa: S311 - not for security
    kept |= set(others[: max(passages - len(kept), 0)])
    both = [pair for pair in zip(judged.corpus_ids, judged.passages, strict=True) if pair[0] in kept]
    return replace(judged, corpus_ids=[i for i, _ in both], passages=[p for _, p in both])


class DevScore(BaseEvaluator):
    """nDCG@10 on dev queries, computed by the benchmark's own code.

    All processes of a training call it together, and each encodes a part of the texts. With a sharded model,
    each encodes all of them, as its layers run on all processes at the same time.

    Args:
        judged: Dev queries by task name.
    """

    def __init__(self, judged: Mapping[str, RetrievalDataset]):
        super().__init__()
        self.judged = dict(judged)
        self.primary_metric: str = DEV_METRIC

    def __call__(
        self,
        model: Any,
        output_path: str | None = None,
        epoch: float = -1,  # noqa: ARG002 - the trainer passes it
        steps: int = -1,
    ) -> dict[str, float]:
        """Scores a model, and writes the scores of each query to OUTPUT_PATH/step-STEPS.json.

        Returns:
            nDCG@10 (0..1): the mean over tasks as `primary_metric`, and each of several tasks.
        """
        scores = {}
        for task, judged in self.judged.items():
            with preserve_rng_state():
                run = retrieve(model, judged, k=10, progress=False, share=not is_sharded(model))
            scores[task] = score(judged.qrels, run)
        if output_path is not None:
            per_query = {task: one.per_query[METRIC] for task, one in scores.items()}
            write_json(Path(output_path) / f"step-{steps}.json", per_query)
        means = {task: one.mean[METRIC] for task, one in scores.items()}
        mean = {DEV_METRIC: sum(means.values()) / len(means)}
        return mean | ({f"{DEV_METRIC}_{task}": one for task, one in means.items()} if len(means) > 1 else {})
