"""Batches for fine-tuning: queries, each with a positive and hard negatives that change in every epoch."""

from hashlib import blake2b
from typing import Any

import numpy as np
import torch

from stzoo.data.training_sets.sets import TrainingSet


class QueryPassageCollator:
    """Makes batches of a training set; an example is a query with one of its positives.

    The content of a batch depends only on the seed, the epoch and the examples in it, so that a resumed run
    makes the same batches as an uninterrupted one.

    Args:
        data: The training set.
        model: SentenceTransformer whose prompts and tokenizer are used.
        negatives: Number of hard negatives per query. Queries with more negatives use different ones in each
            epoch, queries with fewer repeat some, and queries with none are left out.
        max_query_tokens: Maximum length of queries; longer ones are truncated.
        max_passage_tokens: Maximum length of passages; longer ones are truncated.
        seed: Seed of the choice of negatives.
        task: Name of the prompt for queries, if the model has one of this name.
        guide: A SentenceTransformer that also reads the texts, for losses with a guide; None for no guide.

    Attributes:
        pairs: The examples, int64 [E, 2]: index of the query, and index of the positive among the passages.
        left_out: Number of queries that are left out because they have no negatives.
    """

    def __init__(
        self,
        data: TrainingSet,
        model: Any,
        *,
        negatives: int,
        max_query_tokens: int,
        max_passage_tokens: int,
        seed: int,
        task: str = "",
        guide: Any = None,
    ):
        self.guide = guide
        self.data, self.model, self.negatives, self.seed, self.epoch = data, model, negatives, seed, 0
        self.longest = {"query": max_query_tokens, "document": max_passage_tokens}
        self.task = task
        counts = np.diff(data.positives.starts)
        queries = np.repeat(np.arange(len(counts)), counts)
        usable = np.diff(data.negatives.starts)[queries] > 0 if negatives else np.full(len(queries), True)
        self.pairs = np.stack([queries, data.positives.places], 1)[usable]
        self.left_out = len(np.unique(queries[~usable]))

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next batches."""
        self.epoch = epoch

    def __call__(self, rows: list[dict[str, int]]) -> dict[str, Any]:
        """Makes the batch of the examples in `rows`, {"example": index in `pairs`}.

        Returns:
            The features of the queries ("query_…") and of the passages ("passage_…"), each sorted by length,
            those of the guide ("guide_query_…", "guide_passage_…"), if there is one, and the "label", see
            `stzoo.finetuning.ranking_loss.RankingLoss`.
        """
        chosen = np.array([row["example"] for row in rows])
        texts = [self.data.queries[query] for query in self.pairs[chosen, 0].tolist()]
        order = np.argsort([len(text) for text in texts], kind="stable")
        chosen, texts = chosen[order], [texts[place] for place in order.tolist()]
        ids, scores = self._candidates(chosen)
        known = [self.data.positives[query] for query in self.pairs[chosen, 0].tolist()]
        positives = np.full((len(known), max(map(len, known))), -1)
        for row, indices in enumerate(known):
            positives[row, : len(indices)] = indices
        passages = [self.data.passages[place] for place in ids.ravel().tolist()]
        by_length = np.argsort([len(text) for text in passages], kind="stable")
        passages = [passages[place] for place in by_length.tolist()]
        features = self._features("passage", passages, "document")
        label = {
            "ids": ids,
            "positives": positives,
            "places": np.argsort(by_length, kind="stable").reshape(ids.shape),
        } | ({} if scores is None else {"scores": scores})
        if (tokens := _token_keys(features)) is not None:
            label["tokens"] = tokens[label["places"]]
        guide = {}
        if self.guide is not None:
            guide = self._features("guide_query", texts, "query", self.guide)
            guide |= self._features("guide_passage", passages, "document", self.guide)
        return {
            **self._features("query", texts, "query"),
            **features,
            **guide,
            "label": {name: torch.from_numpy(values) for name, values in label.items()},
        }

    def _candidates(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Indices of passages, int64 [B, 1 + negatives], and their scores, float32 of that shape, if any."""
        data, width = self.data, 1 + self.negatives
        ids = np.empty((len(chosen), width), np.int64)
        scores = np.empty((len(chosen), width), np.float32) if data.scored else None
        for row, example in enumerate(chosen.tolist()):
            query, positive = self.pairs[example]
            negatives = data.negatives[query]
            drawn = np.arange(0)
            if self.negatives:
                draw = np.random.default_rng([self.seed, self.epoch, example])
                drawn = np.resize(draw.permutation(len(negatives)), self.negatives)
            ids[row] = [positive, *negatives[drawn]]
            if scores is not None:
                of_positive = data.positives.scored(query)[data.positives[query] == positive]
                scores[row] = [*of_positive, *data.negatives.scored(query)[drawn]]
        return ids, scores

    def _features(self, name: str, texts: list[str], task: str, model: Any = None) -> dict[str, Any]:
        model = model or self.model
        longest = min(self.longest[task], model.max_seq_length or self.longest[task])
        prompt = model.prompts.get(task)
        if task == "query":
            prompt = model.prompts.get(self.task, prompt)
        read = model.preprocess(texts, prompt=prompt, task=task, max_length=longest)
        return {f"{name}_{key}": value for key, value in read.items()} | {f"{name}_task": task}


def _token_keys(features: dict[str, Any]) -> np.ndarray | None:
    """Keys that are equal for passages with the same tokens, int64 [N]; None if there are no tokens."""
    if "passage_attention_mask" not in features:
        return None
    rows = zip(features["passage_input_ids"], features["passage_attention_mask"].bool(), strict=True)
    digests = (blake2b(ids[real].numpy().tobytes(), digest_size=8).digest() for ids, real in rows)
    return np.array([int.from_bytes(digest, signed=True) for digest in digests], np.int64)
