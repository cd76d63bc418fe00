"""Builds FAISS indexes from factory strings, with limited memory and readable errors."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np
import torch

from stzoo.errors import RecipeError
from stzoo.retrieval.search.exact import Vectors
from stzoo.retrieval.search.exact_kernels import SHORTEST, Side, checked, divided
from stzoo.utils.progress import progress_bar


def empty(factory: str, width: int, similarity: str) -> Any:
    """Makes a FAISS index without vectors.

    Raises:
        RecipeError: If FAISS cannot make it, or does not support the similarity with it.
    """
    if similarity not in ("cosine", "dot", "euclidean"):
        raise RecipeError(
            f"FAISS indexes support cosine, dot and euclidean; got {similarity!r}. Use exact search instead."
        )
    trouble = f"the FAISS index {factory!r} cannot be built for vectors of dimension {width}"
    # These make FAISS end the process or hang.
    if re.search(r"(?<!\d)0+(?!\d)|(HNSW|NSG)0*[1-3](?!\d)", factory):
        raise RecipeError(f"{trouble}: one of its numbers is too small.")
    metric = faiss.METRIC_L2 if similarity == "euclidean" else faiss.METRIC_INNER_PRODUCT
    with faiss_errors(trouble):
        index = faiss.index_factory(width, factory, metric)
    if index.metric_type != metric:
        raise RecipeError(f"{trouble}: it does not support {similarity}.")
    return index


def set_parameters(index: Any, factory: str, search_params: str) -> None:
    """Sets the search parameters of a FAISS index, with or without vectors.

    Raises:
        RecipeError: If they are malformed, or the index does not have them.
    """
    if not re.fullmatch(r"\w+=[1-9][0-9]{0,8}(,\w+=[1-9][0-9]{0,8})*", search_params):
        raise RecipeError(
            f"the search parameters {search_params!r} are invalid; expected NAME=NUMBER with whole numbers "
            'from 1, separated by commas, e.g. "nprobe=16" or "efSearch=64".'
        )
    with faiss_errors(f"an index {factory!r} does not have the parameters {search_params!r}"):
        space: Any = faiss.ParameterSpace()
        space.set_index_parameters(index, search_params)


def built(
    vectors: Vectors, factory: str, similarity: str, seed: int, memory_gib: float, progress: bool
) -> Any:
    """Builds a FAISS index of the vectors; the arguments are those of `open_index`.

    Raises:
        RecipeError: If FAISS cannot build it.
        ModelError: If a vector has NaN or infinity.
    """
    (N, D), memory = vectors.shape, int(memory_gib * 2**30)
    trouble = f"the FAISS index {factory!r} cannot be built for {N} vectors of dimension {D}"
    index = empty(factory, D, similarity)
    with (
        progress_bar(total=N, desc="Index", unit=" vectors", unit_scale=True, disable=not progress) as bar,
        faiss_errors(trouble),
    ):
        if not index.is_trained:
            sample = _sample(vectors, _sample_size(index, factory), seed, memory)
            index.train(normalized(sample, similarity))
        rows = max(1, memory // (16 * D))
        for start in range(0, N, rows):
            side = checked(vectors[start : start + rows], "passage", start)
            index.add(normalized(side, similarity))
            bar.update(len(side.norms))
    return index


def _sample_size(index: Any, factory: str) -> int:
    """The most vectors that FAISS trains on: 256 per centroid of lists, or of codes of 8 or xBITS bits."""
    lists = faiss.try_extract_index_ivf(index)
    bits = max([8, *map(int, re.findall(r"x(\d+)", factory))])
    return 256 * max(2 ** min(bits, 24), lists.nlist if lists else 0)


def _sample(vectors: Vectors, size: int, seed: int, memory: int) -> Side:
    N, D = vectors.shape
    chunk = max(1, memory // (16 * D))
    rows = np.arange(N)
    if min(size, chunk) < N:
        rows = np.sort(np.random.default_rng(seed).choice(N, min(size, chunk), replace=False))
    sample = np.empty((len(rows), D), np.float32)
    for start in range(0, N, chunk):
        first, last = np.searchsorted(rows, (start, start + chunk))
        if first < last:
            sample[first:last] = vectors[start : start + chunk][rows[first:last] - start]
    return checked(sample, "passage")


def normalized(side: Side, similarity: str) -> np.ndarray:
    """The vectors for FAISS, float32 [n, D], of length 1 if the similarity is cosine."""
    if similarity == "cosine":
        return divided(side.vectors, np.maximum(side.norms, SHORTEST)[:, None])
    return np.ascontiguousarray(side.vectors)


@contextmanager
def faiss_errors(trouble: str) -> Iterator[None]:
    """Turns FAISS's errors into a RecipeError, and gives FAISS as many threads as torch has."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield
    except (RuntimeError, MemoryError, AssertionError) as error:
        reason = re.split(r"\.(?:cpp|h):\d+: ", str(error))[-1].strip().removeprefix("Error: ")
        raise RecipeError(f"{trouble}: {reason}.") from error
    finally:
        faiss.omp_set_num_threads(before)
