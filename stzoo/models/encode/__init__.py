"""Encodes texts with the same result as the model's encode_query and encode_document, but faster.

`score_pairs` does the same for a cross-encoder's predict.

1. Texts are tokenised in windows by the model's own preprocess, without padding.
2. A window is sorted by length and cut into batches of at most `batch_tokens` = rows x longest row, so there
   is hardly any padding, and memory is bounded whatever the lengths.
3. Each batch passes through the model as in its encode: prompt, Router, pooling, truncate_dim.

Unlike sentence-transformers (sentence_transformer/model.py, `_inference`), which sorts by characters, puts a
fixed number of texts into a batch, tokenises batch by batch, and on the CPU splits each operation of a batch
between the cores; here each core has its own batch and does not wait for others. Further measurements, on two
cores of an AMD CPU with all-MiniLM-L6-v2: batches of 1,000 tokens stay in a core's cache, and batches of
8,000 take a quarter longer; `models/onednn.py` nearly halves the time again; `memory.disable_malloc_trim`
makes no difference with such small batches.
"""

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from sentence_transformers.util import batch_to_device, get_device_name, truncate_embeddings

from stzoo.errors import ModelError, RecipeError
from stzoo.models.encode.batches import PROMPTS, WINDOW_TEXTS, Batch, batches_of, prompt_of, reader
from stzoo.models.loading import check_device
from stzoo.models.onednn import fast_linear
from stzoo.utils.progress import advance, progress_bar

CPU_TOKENS = 1024  # MiniLM's activations then fill a core's second-level cache
GPU_TOKENS = 32768
WORKERS = 16  # at most: Python needs some 2 % of a worker's time, and runs one worker at a time


def encode(
    model: Any,
    texts: Sequence[str],
    *,
    role: str,
    task: str = "",
    batch_tokens: int | None = None,
    progress: bool = False,
    desc: str = "Encoding",
) -> np.ndarray:
    """Encodes texts as the model's own encode_query or encode_document does.

    If a model (or the route of a Router) does not begin with a Transformer of sentence-transformers and a
    plain tokenizer, or flash attention packs its inputs without padding, its own encode is called for one
    window of texts at a time, and batch_tokens has no effect.

    Args:
        model: A SentenceTransformer, or a list of copies of one (see `copies_on`), which encode in parallel.
        texts: The N texts; only one window of them is copied at a time.
        role: "query" or "document".
        task: Name of a prompt of the model, used for queries if the model has it.
        batch_tokens: Number of tokens per batch, padding included; a longer text is a batch by itself. None
            for 1,024 on the CPU, where each thread of torch has its own batch, and 32,768 on a GPU.
        progress: True to show a progress bar on stderr.
        desc: Label of the progress bar.

    Returns:
        float32 [N, D], whatever the dtype of the model.

    Raises:
        ModelError: If the model returns no sentence embedding, or one that is not finite.
        RecipeError: If the role is unknown, or batch_tokens is below 1.
    """
    if role not in PROMPTS:
        raise RecipeError(f"role is {role!r}; expected query or document.")
    replicas = model if isinstance(model, list) else [model]
    batch_tokens = _batch_tokens(replicas[0], batch_tokens)
    vectors = np.empty((len(texts), replicas[0].get_embedding_dimension() or 0), np.float32)
    with progress_bar(total=len(texts), desc=desc, unit=" texts", disable=not progress, leave=False) as bar:
        for rows, encoded in _encoded(replicas, texts, role, batch_tokens, task):
            if encoded.shape[1] != vectors.shape[1]:
                vectors = np.empty((len(texts), encoded.shape[1]), np.float32)
            if not np.isfinite(encoded).all():
                row = rows[int(np.flatnonzero(~np.isfinite(encoded).all(1))[0])]
                raise ModelError(
                    f"the vector of the text {texts[row][:60]!r} contains NaN or infinity. The weights are "
                    f"damaged, or the dtype ({replicas[0].dtype}) has too small a range; try float32."
                )
            vectors[rows] = encoded
            bar.update(len(rows))
            advance(len(rows))
    return vectors


def score_pairs(
    model: Any, pairs: Sequence[tuple[str, str]], *, batch_tokens: int | None = None
) -> Iterator[tuple[Sequence[int], np.ndarray]]:
    """Scores pairs of texts as the model's predict does without an activation, but batched as in `encode`.

    Args:
        model: A CrossEncoder with one label.
        pairs: The N pairs of texts.
        batch_tokens: Number of tokens per batch, as in `encode`.

    Yields:
        Indices of some pairs and their scores, float32 [n]; each index once.
    """
    tokens = _batch_tokens(model, batch_tokens)
    for rows, scores in _encoded([model], pairs, None, tokens):
        yield rows, scores.reshape(len(rows))


def moved(model: Any, device: str | None) -> Any:
    """A model on a device (None for the best one), which may be the model itself; it is not moved.

    Args:
        model: A SentenceTransformer or CrossEncoder.
        device: Device of torch.
    """
    target = torch.device(device or get_device_name())
    if model.device == target or model.device.type == target.type == "cpu":
        return model
    return copy.deepcopy(model).to(target)


def copies_on(model: Any, devices: Sequence[str]) -> list[Any]:
    """Copies a model for `encode`, once per device; the model itself is moved to the first device.

    Args:
        model: A SentenceTransformer.
        devices: One or more devices of torch; a device named twice gets two copies.

    Returns:
        The model and its copies.

    Raises:
        RecipeError: If a device is not available.

    Unlike: sentence-transformers, which uses processes for several devices and sends them the model, texts
        and vectors. Threads share these, need no `if __name__ == "__main__"`, and run in parallel, as torch
        releases the lock while it computes.
    """
    for device in devices:
        check_device(device)
    copies = [copy.deepcopy(model) for _ in devices[1:]]
    return [one.to(device) for one, device in zip([model, *copies], devices, strict=True)]


def _batch_tokens(model: Any, batch_tokens: int | None) -> int:
    if batch_tokens is None:
        return CPU_TOKENS if model.device.type == "cpu" else GPU_TOKENS
    if batch_tokens < 1:
        raise RecipeError(f"batch_tokens is {batch_tokens}; expected at least 1.")
    return batch_tokens


def _encoded(
    replicas: list[Any], texts: Sequence[Any], role: str | None, batch_tokens: int, task: str = ""
) -> Iterator[tuple[Any, np.ndarray]]:
    """Yields row numbers and vectors, batch by batch; without a role, pair numbers and scores."""
    model, threads = replicas[0], torch.get_num_threads()
    on_cpu = model.device.type == "cpu"
    for replica in replicas:
        replica.eval()
    transformer = reader(model, role)
    if transformer is None:
        work: Callable[[Any, Any], tuple[Any, np.ndarray]] = _own_encode(role, task)
        batches: Iterator[Any] = _windows(texts)
    else:
        work = _forward(role)
        batches = batches_of(model, transformer, texts, role, batch_tokens, task)
        # other backends have their own threads, and a sharded model runs in the same order on all processes
        if on_cpu and len(replicas) == 1 and transformer.backend == "torch" and not _is_sharded(model):
            replicas = [_twin(model, {}) for _ in range(min(threads, WORKERS))]
    if len(replicas) == 1 and (on_cpu or _is_sharded(model)):  # FSDP2 works on the thread's own device
        yield from (work(model, batch) for batch in batches)
        return
    try:
        yield from _side_by_side(
            replicas, work, batches, max(1, threads // len(replicas)) if on_cpu else threads
        )
    finally:
        torch.set_num_threads(threads)


def _side_by_side(
    replicas: list[Any], work: Callable[[Any, Any], Any], batches: Iterator[Any], threads: int
) -> Iterator[Any]:
    """Yields the results of `work` in order; further batches are prepared while the replicas work."""
    from concurrent.futures import ThreadPoolExecutor
    from queue import SimpleQueue

    free: SimpleQueue[Any] = SimpleQueue()
    for replica in replicas:
        free.put(replica)

    def on_a_free_one(batch: Any) -> Any:
        replica = free.get()
        try:
            return work(replica, batch)
        finally:
            free.put(replica)

    waiting: deque[Any] = deque()
    with ThreadPoolExecutor(len(replicas), "encode", torch.set_num_threads, (threads,)) as workers:
        for batch in batches:
            waiting.append(workers.submit(on_a_free_one, batch))
            if len(waiting) > 16 * len(replicas):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _is_sharded(model: Any) -> bool:
    """True if processes have a part of the weights each, as in a training with `--shard-model`."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def _twin(module: Any, seen: dict[Any, Any]) -> Any:
    """A module with the same weights for another thread, as some modules keep state between calls."""
    if module not in seen:
        seen[module] = twin = copy.copy(module)
        twin._buffers = dict(module._buffers)
        twin._modules = {name: part and _twin(part, seen) for name, part in module._modules.items()}
    return seen[module]


def _windows(texts: Sequence[Any]) -> Iterator[tuple[range, list[Any]]]:
    for start in range(0, len(texts), WINDOW_TEXTS):
        window = list(texts[start : start + WINDOW_TEXTS])
        yield range(start, start + len(window)), window


def _own_encode(role: str | None, task: str) -> Callable[[Any, Any], tuple[range, np.ndarray]]:
    def work(model: Any, window: tuple[range, list[Any]]) -> tuple[range, np.ndarray]:
        rows, texts = window
        if role is None:
            run = partial(model.predict, activation_fn=torch.nn.Identity())
        else:
            run = model.encode_query if role == "query" else model.encode_document
            run = partial(run, prompt=prompt_of(model, role, task))
        return rows, np.asarray(run(texts, show_progress_bar=False), dtype=np.float32)

    return work


def _forward(role: str | None) -> Callable[[Any, Batch], tuple[list[int], np.ndarray]]:
    def vectors(model: Any, features: dict[str, Any]) -> torch.Tensor:
        rows = len(features["input_ids"])
        try:
            # a copy, because modules write into it, and it may be needed again
            out = model(batch_to_device(dict(features), model.device), task=role)
        except torch.cuda.OutOfMemoryError:
            if rows == 1 or _is_sharded(model):  # the other processes would go on with the next layer
                raise
        else:
            if role is None:
                return out["scores"]
            if "sentence_embedding" not in out:
                raise ModelError(f"the model returns {', '.join(out)}; expected a sentence_embedding.")
            embedding = out["sentence_embedding"]
            dim = model.truncate_dim
            return embedding if dim is None else truncate_embeddings(embedding, dim)
        torch.cuda.empty_cache()  # not in the handler: the error keeps the memory in use
        halves = (
            {name: value[part] if torch.is_tensor(value) else value for name, value in features.items()}
            for part in (slice(rows // 2), slice(rows // 2, None))
        )
        return torch.cat([vectors(model, half) for half in halves])

    def work(model: Any, batch: Batch) -> tuple[list[int], np.ndarray]:
        rows, features = batch
        # weights that are gathered in inference mode could not be trained any more
        without_gradient = torch.no_grad if _is_sharded(model) else torch.inference_mode
        with without_gradient(), fast_linear(model.device):
            return rows, vectors(model, features).float().cpu().numpy()

    return work
