"""What a run learns from and what it stops by: training data, and dev queries of their own or held out."""

import random
from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sentence_transformers.base.evaluation import BaseEvaluator

from stzoo.data.beir import RetrievalDataset, names_beir, read_beir
from stzoo.data.read_once import each_file_once
from stzoo.data.training_sets.read import from_judged, read_judged, read_training
from stzoo.data.training_sets.sets import TrainingSet
from stzoo.errors import DataError, RecipeError
from stzoo.evaluation.scoring import score
from stzoo.retrieval.search.exact import retrieve
from stzoo.training.callbacks import preserve_rng_state
from stzoo.training.settings import FinetuneSettings
from stzoo.utils.messages import notify

METRIC, DEV_METRIC = "nDCG@10", "dev_ndcg_at_10"


class Data(NamedTuple):
    """What a run learns from and stops by.

    Attributes:
        train: the queries to train on.
        dev: the queries to stop early by, if there are any.
        judged: the training queries and the whole corpus to mine from; None where nothing is mined.
        shared: how many held-out queries share an answer with a training query.
    """

    train: TrainingSet
    dev: RetrievalDataset | None
    judged: RetrievalDataset | None
    shared: int


def read_data(wanted: FinetuneSettings) -> dict[str, Data]:
    """Reads the training data and dev queries of each task; a corpus of several is read and held once.

    Args:
        wanted: the settings.

    Returns:
        by the tasks' names; a single task has the name ''.

    Raises:
        DataError: if they do not hold.
        RecipeError: if a dev split is asked for where there is none.
    """
    with each_file_once():
        return {task: _read(one, task) for task, one in wanted.each().items()}


def _read(wanted: FinetuneSettings, task: str) -> Data:
    beir = names_beir(wanted.data)
    judged = None
    if beir or wanted.episodes:
        judged = read_judged(wanted.data, wanted.split, corpus=wanted.corpus, columns=wanted.columns)
        train = from_judged(judged)
    else:
        train = read_training(wanted.data, wanted.split, corpus=wanted.corpus, columns=wanted.columns)
    dev, shared = None, 0
    if wanted.dev_data or wanted.dev_split:
        if not wanted.dev_data and not beir:
            raise RecipeError(
                f"dev_split is {wanted.dev_split!r}, but {wanted.data} is no BEIR folder, which has splits. "
                "Name one by dev_data (--dev-data)."
            )
        if not wanted.dev_data and wanted.dev_split == wanted.split:
            raise RecipeError(
                f"dev_split and split are both {wanted.split!r}: it would stop by what it trains on. Name "
                "another dev_split, or leave it out to hold some of the training queries out."
            )
        dev = read_beir(wanted.dev_data or wanted.data, wanted.dev_split or "dev")
    elif wanted.dev_queries:
        train, held, shared = hold_out(train, wanted.dev_queries, wanted.seed)
        if not held.query_ids:
            raise DataError(
                f"{wanted.data}, split {wanted.split}: too few queries to hold any out. Set dev_queries to 0 "
                "to train without early stopping, or name a dev_split."
            )
        if len(held.query_ids) < wanted.dev_queries:
            notify(
                f"dev_queries is {wanted.dev_queries}; at most a fifth of the queries is held out, here "
                f"{len(held.query_ids)}."
            )
        dev = _part(judged, frozenset(held.query_ids)) if judged else held.judged()
        judged = judged and _part(judged, frozenset(train.query_ids))
    if wanted.max_queries and wanted.max_queries < len(train.query_ids):
        drawn = random.Random(wanted.seed).sample(range(len(train.query_ids)), wanted.max_queries)  # noqa: S311
        train = train.part(np.array(sorted(drawn)))
        judged = judged and _part(judged, frozenset(train.query_ids))
    dev = dev and replace(cut_corpus(dev, wanted.dev_passages, wanted.seed), task=task)
    judged = judged and replace(judged, task=task)
    return Data(train, dev, judged if wanted.episodes else None, shared)


def hold_out(train: TrainingSet, queries: int, seed: int) -> tuple[TrainingSet, TrainingSet, int]:
    """Splits queries at random, and keeps those together that have answers in common.

    A model that was shown the answers of one finds them for the others, too, and dev would praise what it has
    learnt by heart. Where most queries hang together by their answers (less than half of what is asked for
    could be held out), they are split all the same.

    Args:
        train: what is split.
        queries: how many to hold out; at most a fifth of all are.
        seed: of the draw.

    Returns:
        the rest, the held-out queries, and how many of these share an answer with the rest.
    """
    Q, positives = len(train.query_ids), train.positives
    links = np.repeat(np.arange(Q), np.diff(positives.starts)), Q + positives.places
    graph = coo_array((np.ones(len(links[0]), bool), links), shape=(Q + len(train.passages),) * 2)
    groups = connected_components(graph, directed=False)[1][:Q]
    sizes = np.bincount(groups)
    order = sorted(range(Q), key=train.query_ids.__getitem__)
    random.Random(seed).shuffle(order)  # noqa: S311 - no secret
    wanted = left = min(queries, Q // 5)
    taken = []
    for group in dict.fromkeys(groups[order].tolist()):
        if sizes[group] <= left:
            taken.append(group)
            left -= sizes[group]
    out = np.isin(groups, taken)
    if left > wanted // 2:
        out[[query for query in order if not out[query]][:left]] = True
    rest, held = train.part(np.flatnonzero(~out)), train.part(np.flatnonzero(out))
    known = np.isin(held.positives.places, rest.positives.places)
    shared = np.logical_or.reduceat(known, held.positives.starts[:-1]).sum() if known.size else 0
    return rest, held, int(shared)


def _part(judged: RetrievalDataset, queries: Container[str]) -> RetrievalDataset:
    return replace(
        judged,
        queries={query: text for query, text in judged.queries.items() if query in queries},
        qrels={query: grades for query, grades in judged.qrels.items() if query in queries},
    )


def cut_corpus(judged: RetrievalDataset, passages: int, seed: int) -> RetrievalDataset:
    """Keeps the judged passages and fills up to `passages` with others drawn at random; 0 keeps all."""
    if not passages or passages >= len(judged.corpus_ids):
        return judged
    kept = {document for grades in judged.qrels.values() for document in grades}
    others = [document for document in judged.corpus_ids if document not in kept]
    random.Random(seed).shuffle(others)  # noqa: S311 - no secret
    kept |= set(others[: max(passages - len(kept), 0)])
    both = [pair for pair in zip(judged.corpus_ids, judged.passages, strict=True) if pair[0] in kept]
    return replace(judged, corpus_ids=[i for i, _ in both], passages=[p for _, p in both])


class DevScore(BaseEvaluator):
    """nDCG@10 on dev queries, by the very code that the benchmark scores with.

    Args:
        judged: dev queries of each task, by name.
    """

    def __init__(self, judged: Mapping[str, RetrievalDataset]):
        super().__init__()
        self.judged = dict(judged)
        self.primary_metric: str = DEV_METRIC

    def __call__(
        self,
        model: Any,
        output_path: str | None = None,  # noqa: ARG002 - the host passes it
        epoch: float = -1,  # noqa: ARG002
        steps: int = -1,  # noqa: ARG002
    ) -> dict[str, float]:
        """The mean over tasks, 0..1, under the name of `primary_metric`; of several tasks, each as well."""
        found = {}
        for task, judged in self.judged.items():
            with preserve_rng_state():
                run = retrieve(model, judged, k=10, progress=False)
            found[task] = score(judged.qrels, run).mean[METRIC]
        mean = {DEV_METRIC: sum(found.values()) / len(found)}
        return mean | ({f"{DEV_METRIC}_{task}": one for task, one in found.items()} if len(found) > 1 else {})
