"""Texts to vectors, as the model's own encode_query and encode_document give them, but faster.

`score_pairs` does the same for a cross-encoder's predict.

1. Texts are tokenised a window at a time, by the model's own preprocess, without padding.
2. A window is sorted by tokens and cut into batches of at most `batch_tokens` = rows x longest row, so that
   next to nothing is padding, long texts come few at a time, and the memory is bounded whatever the lengths.
3. Each batch goes through the model as its encode would send it: prompt, Router, pooling, truncate_dim.

Unlike sentence-transformers (sentence_transformer/model.py, `_inference`), which sorts by characters, puts a
fixed number of texts into a batch, tokenises batch by batch, and on the CPU splits each operation of a batch
between the cores; here each core has a batch of its own, and waits for none. What else was measured, on two
cores of an AMD CPU with all-MiniLM-L6-v2: batches of 1,000 tokens stay in a core's cache, those of 8,000 take
a quarter longer; `onednn.py` nearly halves the time again; `memory.disable_malloc_trim` gains nothing with
batches so small.
"""

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from sentence_transformers.util import batch_to_device, truncate_embeddings
from tqdm import tqdm

from stzoo.errors import ModelError, RecipeError
from stzoo.models.encode.batches import PROMPTS, WINDOW_TEXTS, Batch, batches_of, prompt_of, reader
from stzoo.models.encode.onednn import fast_linear
from stzoo.models.loading import check_device

CPU_TOKENS = 1024  # with MiniLM's activations they fill a core's second-level cache
GPU_TOKENS = 32768
WORKERS = 16  # at most: Python is at work for some 2 % of a worker's time, and works for one at a time


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

    A model that does not begin with a Transformer of sentence-transformers and a plain tokenizer (a Router's
    route counts by its own first module), or whose inputs are packed without padding by flash attention,
    runs its own encode, a window of texts at a time; batch_tokens does not touch it.

    Args:
        model: a SentenceTransformer, or a list of copies of one (`copies_on`), which encode side by side.
        texts: N texts; only a window of them is ever copied.
        role: what the texts are to the model.
        task: queries get the model's prompt of this name, if it has one.
        batch_tokens: tokens of a batch, padding included; a longer text goes alone. None takes 1,024 on the
            CPU, where each thread of torch has a batch of its own, and 32,768 on a GPU.
        progress: True for a progress bar on stderr.
        desc: what the bar says.

    Returns:
        float32 [N, D], whatever the dtype of the model.

    Raises:
        ModelError: if the model gives no sentence embedding, or one that is not finite.
        RecipeError: if the role is unknown or batch_tokens below 1.
    """
    if role not in PROMPTS:
        raise RecipeError(f"the role is {role!r}; expected query or document.")
    replicas = model if isinstance(model, list) else [model]
    batch_tokens = _batch_tokens(replicas[0], batch_tokens)
    vectors = np.empty((len(texts), replicas[0].get_embedding_dimension() or 0), np.float32)
    with tqdm(total=len(texts), desc=desc, unit=" texts", disable=not progress, leave=False) as bar:
        for rows, found in _encoded(replicas, texts, role, batch_tokens, task):
            if found.shape[1] != vectors.shape[1]:
                vectors = np.empty((len(texts), found.shape[1]), np.float32)
            if not np.isfinite(found).all():
                row = rows[int(np.flatnonzero(~np.isfinite(found).all(1))[0])]
                raise ModelError(
                    f"the model gives NaN or infinity for the text {texts[row][:60]!r}. Its weights are "
                    f"broken, or its dtype ({replicas[0].dtype}) is too small for it; try float32."
                )
            vectors[rows] = found
            bar.update(len(rows))
    return vectors


def score_pairs(
    model: Any, pairs: Sequence[tuple[str, str]], *, batch_tokens: int | None = None
) -> Iterator[tuple[Sequence[int], np.ndarray]]:
    """Scores pairs of texts as the model's own predict does without an activation, but in batches as above.

    Args:
        model: a CrossEncoder with one label.
        pairs: N pairs of texts.
        batch_tokens: as of `encode`.

    Yields:
        Places of some pairs and their scores, float32 [n]; each place once.
    """
    tokens = _batch_tokens(model, batch_tokens)
    for rows, found in _encoded([model], pairs, None, tokens):
        yield rows, found.reshape(len(rows))


def copies_on(model: Any, devices: Sequence[str]) -> list[Any]:
    """Copies of a model for `encode`, one a device; the model itself is moved to the first.

    Args:
        model: a SentenceTransformer.
        devices: one or more of torch; one that is named twice gets two copies.

    Raises:
        RecipeError: if a device is not there.

    Unlike: sentence-transformers encodes on several devices by processes, to which it sends the model, texts
        and vectors. Threads share them, need no `if __name__ == "__main__"`, and wait for the devices, not
        for each other, as torch holds no lock while it computes.
    """
    for device in devices:
        check_device(device)
    copies = [copy.deepcopy(model) for _ in devices[1:]]
    return [one.to(device) for one, device in zip([model, *copies], devices, strict=True)]


def _batch_tokens(model: Any, given: int | None) -> int:
    if given is None:
        return CPU_TOKENS if model.device.type == "cpu" else GPU_TOKENS
    if given < 1:
        raise RecipeError(f"batch_tokens is {given}; expected at least 1.")
    return given


def _encoded(
    replicas: list[Any], texts: Sequence[Any], role: str | None, batch_tokens: int, task: str = ""
) -> Iterator[tuple[Any, np.ndarray]]:
    """Rows and their vectors, batch by batch; without a role, pairs and their scores."""
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
        if (
            on_cpu and len(replicas) == 1 and transformer.backend == "torch"
        ):  # others have threads of their own
            replicas = [_twin(model, {}) for _ in range(min(threads, WORKERS))]
    if on_cpu and len(replicas) == 1:
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
    """What work makes of each batch, in order; the next batches are made while the replicas are at work."""
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


def _twin(module: Any, seen: dict[Any, Any]) -> Any:
    """A module of the same weights for another thread, as some keep what they need from call to call."""
    if module not in seen:
        seen[module] = twin = copy.copy(module)
        twin._buffers = dict(module._buffers)
        twin._modules = {name: part and _twin(part, seen) for name, part in module._modules.items()}
    return seen[module]


def _windows(texts: Sequence[Any]) -> Iterator[tuple[range, list[Any]]]:
    for start in range(0, len(texts), WINDOW_TEXTS):
        found = list(texts[start : start + WINDOW_TEXTS])
        yield range(start, start + len(found)), found


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
            # a copy, since modules write into it, and it may be needed again
            out = model(batch_to_device(dict(features), model.device), task=role)
        except torch.cuda.OutOfMemoryError:
            if rows == 1:
                raise
        else:
            if role is None:
                return out["scores"]
            if "sentence_embedding" not in out:
                raise ModelError(f"the model gives {', '.join(out)}; expected a sentence_embedding.")
            found = out["sentence_embedding"]
            return found if model.truncate_dim is None else truncate_embeddings(found, model.truncate_dim)
        torch.cuda.empty_cache()  # not above: while the error lives, so does what filled the memory
        halves = (
            {name: value[part] if torch.is_tensor(value) else value for name, value in features.items()}
            for part in (slice(rows // 2), slice(rows // 2, None))
        )
        return torch.cat([vectors(model, half) for half in halves])

    def work(model: Any, batch: Batch) -> tuple[list[int], np.ndarray]:
        rows, features = batch
        with torch.inference_mode(), fast_linear(model.device):
            return rows, vectors(model, features).float().cpu().numpy()

    return work
