"""A linear map of a model's query vectors, learnt from the rankings of a better teacher.

The vectors of the passages stay as they are: an index of them stays valid, and nothing that the model knows
of passages is forgotten. The map is a Dense module on the route of the queries, so plain
sentence-transformers runs it.

Source: distillation of a ranking by the divergence of softmax scores, as in the listwise loss of Cao et al.
2007, "Learning to rank: from pairwise to listwise approach".
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Router
from sentence_transformers.sentence_transformer.modules import Dense, Dropout, Pooling, WordWeights
from torch import Tensor, nn

from stzoo.adaptation.lessons import Lessons
from stzoo.adaptation.vectors import unit
from stzoo.errors import ModelError, TrainingError
from stzoo.models.encode.batches import prompt_of

LEAST_WEIGHT = 0.1
TOKENIZED_AT_ONCE = 1024
SHARPNESS = 2.5  # softmax of the student: scores / the deviation of the base's scores * SHARPNESS


def learn_query_map(
    lessons: Lessons,
    documents: np.ndarray,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    temperature: float,
    seed: int,
) -> np.ndarray:
    """Learns the map by which the model ranks the candidates of each query as the teacher does.

    Minimises the Kullback-Leibler divergence of the softmax of the student's similarities from that of the
    teacher's scores, by Adam from the identity; the rate falls linearly to 0.

    Args:
        lessons: Queries with their candidates and the teacher's scores.
        documents: float32 [N, D], unit vectors of the passages that the candidates are numbers of.
        epochs: Number of passes over the lessons.
        learning_rate: First learning rate.
        batch_size: Queries per step.
        temperature: Divides the teacher's scores; lower is sharper.
        seed: Random seed of the order of the lessons.

    Returns:
        float32 [D, D], M, such that the new vector of a query q is M q.

    Raises:
        TrainingError: If it is not finite.
    """
    vectors, passages = torch.from_numpy(lessons.vectors), torch.from_numpy(documents)
    candidates, teacher = torch.from_numpy(lessons.candidates), torch.from_numpy(lessons.scores)
    shift = nn.Linear(vectors.shape[1], vectors.shape[1], bias=False)
    nn.init.zeros_(shift.weight)
    optimizer = torch.optim.Adam(shift.parameters(), lr=learning_rate)
    draw = torch.Generator().manual_seed(seed)
    batches = [
        batch
        for _ in range(epochs)
        for batch in torch.randperm(len(vectors), generator=draw).split(batch_size)
    ]
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / len(batches))
        queries = nn.functional.normalize(vectors[batch] + shift(vectors[batch]), dim=1)
        student = torch.einsum("qd,qcd->qc", queries, passages[candidates[batch]])
        loss = divergence(student * (SHARPNESS / lessons.spread), teacher[batch] / temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if not shift.weight.isfinite().all():
        raise TrainingError("the map of the queries has NaN or infinity; lower --learning-rate.")
    return (torch.eye(vectors.shape[1]) + shift.weight.detach()).numpy()


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean divergence in nats of the student's from the teacher's softmax, of scores float [B, C].

    A candidate whose teacher's score is -inf is left out.
    """
    student = student.masked_fill(teacher == -torch.inf, -torch.inf)
    target = torch.softmax(teacher, dim=1)
    log_ratio = torch.log_softmax(teacher, dim=1) - torch.log_softmax(student, dim=1)
    return (target * log_ratio.masked_fill(target == 0, 0.0)).sum(1).mean()


def part_way(query_map: np.ndarray, share: float) -> np.ndarray:
    """The map part of the way from the identity (share 0) to the learnt one (share 1)."""
    return (np.eye(len(query_map)) * (1 - share) + query_map * share).astype(np.float32)


def apply(query_map: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The mapped vectors, float32 [Q, D], of length 1."""
    return unit(vectors @ query_map.T)


def adapted_model(
    model: Any, *, query_map: np.ndarray | None = None, weights: np.ndarray | None = None
) -> SentenceTransformer:
    """Returns the model with a map on its queries; passages are encoded as before.

    Its modules are those of `model`, from the first that differs on within a Router: `encode_query` weights
    the tokens and applies the map, `encode_document` and plain `encode` do not.

    Args:
        model: A SentenceTransformer; its modules are shared with the result.
        query_map: float32 [D, D], or None for none.
        weights: float32 [V], weights of the tokens in the mean of a query, or None for equal ones. The
            model's second module must be a mean pooling.

    Raises:
        ModelError: If the model already encodes queries by other modules than passages.
    """
    check_adaptable(model)
    modules: list[Any] = list(model)
    unit = isinstance(modules[-1], Normalize)
    last = len(modules) - unit
    first = last if weights is None else 1
    queries, passages = modules[first:last], modules[first:]
    if weights is not None:
        queries = [_word_weights(model.tokenizer, weights), *queries]
    if query_map is not None:
        dense = Dense(len(query_map), len(query_map), bias=False, activation_function=nn.Identity())
        with torch.no_grad():
            dense.linear.weight.copy_(torch.from_numpy(query_map))
        queries = [*queries, dense]
    queries += modules[last:]
    # a route needs a module; without dropout, this one changes nothing
    router = Router({"query": queries, "document": passages or [Dropout(0.0)]}, default_route="document")
    adapted = SentenceTransformer(
        modules=[*modules[:first], router],
        device=str(model.device),
        prompts=dict(model.prompts),
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
    )
    return adapted.eval()


def weighs_tokens(model: Any) -> bool:
    """True if the model takes the mean of a query's tokens, and no prompt, so that tokens can get weights."""
    modules = list(model)
    if len(modules) < 2 or not isinstance(modules[1], Pooling):
        return False
    # the words of a prompt would count as rare
    return modules[1].pooling_mode in ("mean", ("mean",)) and not prompt_of(model, "query")


def rarity(tokenizer: Any, passages: Iterable[str], count: int) -> np.ndarray:
    """The inverse document frequency of each token, ln((N + 1) / (n + 0.5)), at least `LEAST_WEIGHT`.

    A token of every passage hardly says what a query is about. Special tokens are in all and get least.

    Args:
        tokenizer: A fast tokenizer.
        passages: Texts; `count` of them.
        count: N.

    Returns:
        float32 [V].

    Source: the smoothed weights of Arora, Liang and Ma 2017, "A simple but tough-to-beat baseline for
    sentence embeddings", with the idf of Robertson and Spärck Jones 1976 in place of their weights.
    """
    frequencies = np.zeros(len(tokenizer))
    for batch in _batches(passages):
        for one in tokenizer(batch, truncation=True)["input_ids"]:
            frequencies[np.unique(one)] += 1
    return np.maximum(np.log((count + 1) / (frequencies + 0.5)), LEAST_WEIGHT).astype(np.float32)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    texts = iter(texts)
    while batch := list(islice(texts, TOKENIZED_AT_ONCE)):
        yield batch


def _word_weights(tokenizer: Any, weights: np.ndarray) -> WordWeights:
    """The module. It stores weights by token; the largest, of tokens that no passage has, only once."""
    tokens, values = tokenizer.convert_ids_to_tokens(range(len(weights))), weights.tolist()
    unseen = max(values)
    listed = {token: value for token, value in zip(tokens, values, strict=True) if value != unseen}
    # the module looks up a missing token by its lower case
    listed |= {token: unseen for token in tokens if token not in listed and token.lower() in listed}
    return WordWeights(tokens, listed, unseen)


def check_adaptable(model: Any) -> None:
    """Checks that a model's queries can get a map of their own.

    Raises:
        ModelError: If it has a Router, truncates its vectors, or compares them by another similarity than
            cosine or dot product.
    """
    if any(isinstance(module, Router) for module in model.modules()):
        raise ModelError(
            "the model has a Router, which encodes queries and passages by different modules; adapt needs a "
            "model with one encoder for both."
        )
    if model.truncate_dim:
        raise ModelError(
            f"the model truncates its vectors to {model.truncate_dim} dimensions (truncate_dim in its "
            "config_sentence_transformers.json); adapt needs whole ones. Adapt a copy without that setting."
        )
    if model.similarity_fn_name not in ("cosine", "dot"):
        raise ModelError(
            f"the model compares vectors by {model.similarity_fn_name}; adapt needs cosine or dot."
        )
