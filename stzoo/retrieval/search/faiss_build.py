"""Building FAISS indexes from factory strings, in bounded memory, with errors that people can read."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np
import torch
from tqdm import tqdm

from stzoo.errors import RecipeError
from stzoo.retrieval.search.exact import Vectors
from stzoo.retrieval.search.exact_kernels import SHORTEST, Side, checked, divided


def empty(factory: str, width: int, similarity: str) -> Any:
    """A FAISS index without vectors.

    Raises:
        RecipeError: if FAISS cannot make it, or not for this similarity.
    """
    if similarity not in ("cosine", "dot", "euclidean"):
        raise RecipeError(
            f"FAISS indexes are searched by cosine, dot or euclidean; got {similarity!r}. "
            "Search exactly instead."
        )
    trouble = f"the FAISS index {factory!r} cannot be made of vectors [{width}]"
    # FAISS ends the process, or never comes back, over these.
    if re.search(r"(?<!\d)0+(?!\d)|(HNSW|NSG)0*[1-3](?!\d)", factory):
        raise RecipeError(f"{trouble}: a number in it is too small.")
    metric = faiss.METRIC_L2 if similarity == "euclidean" else faiss.METRIC_INNER_PRODUCT
    with faiss_errors(trouble):
        index = faiss.index_factory(width, factory, metric)
    if index.metric_type != metric:
        raise RecipeError(f"{trouble}: it does not compare by {similarity}.")
    return index


def set_parameters(index: Any, factory: str, search_params: str) -> None:
    """Sets the search parameters of a FAISS index, which need not hold vectors.

    Raises:
        RecipeError: if they cannot be read, or the index does not have them.
    """
    if not re.fullmatch(r"\w+=[1-9][0-9]{0,8}(,\w+=[1-9][0-9]{0,8})*", search_params):
        raise RecipeError(
            f"the search parameters {search_params!r} cannot be read; expected name=whole number from 1, "
            'with commas between, e.g. "nprobe=16" or "efSearch=64".'
        )
    with faiss_errors(f"an index {factory!r} does not have the parameters {search_params!r}"):
        space: Any = faiss.ParameterSpace()
        space.set_index_parameters(index, search_params)


def built(
    vectors: Vectors, factory: str, similarity: str, seed: int, memory_gib: float, progress: bool
) -> Any:
    """A FAISS index of the vectors; the arguments are those of `open_index`.

    Raises:
        RecipeError: if FAISS cannot make it.
        ModelError: if a vector holds NaN or infinity.
    """
    (N, D), room = vectors.shape, int(memory_gib * 2**30)
    trouble = f"the FAISS index {factory!r} cannot be made of {N} vectors [{D}]"
    index = empty(factory, D, similarity)
    with (
        tqdm(total=N, desc="Index", unit_scale=True, leave=False, disable=not progress) as bar,
        faiss_errors(trouble),
    ):
        if not index.is_trained:
            index.train(lengthened(_sample(vectors, _wanted(index, factory), seed, room), similarity))
        rows = max(1, room // (16 * D))
        for start in range(0, N, rows):
            side = checked(vectors[start : start + rows], "passage", start)
            index.add(lengthened(side, similarity))
            bar.update(len(side.norms))
    return index


def _wanted(index: Any, factory: str) -> int:
    """How many vectors FAISS trains on at most: 256 a centroid, of a list or of a code of 8 bits or xBITS."""
    lists = faiss.try_extract_index_ivf(index)
    bits = max([8, *map(int, re.findall(r"x(\d+)", factory))])
    return 256 * max(2 ** min(bits, 24), lists.nlist if lists else 0)


def _sample(vectors: Vectors, wanted: int, seed: int, room: int) -> Side:
    N, D = vectors.shape
    most = max(1, room // (16 * D))
    rows = np.arange(N)
    if min(wanted, most) < N:
        rows = np.sort(np.random.default_rng(seed).choice(N, min(wanted, most), replace=False))
    sample = np.empty((len(rows), D), np.float32)
    for start in range(0, N, most):
        first, last = np.searchsorted(rows, (start, start + most))
        if first < last:
            sample[first:last] = vectors[start : start + most][rows[first:last] - start]
    return checked(sample, "passage")


def lengthened(side: Side, similarity: str) -> np.ndarray:
    """float32 [n, D] that FAISS takes: one long where the similarity is cosine."""
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
        said = re.split(r"\.(?:cpp|h):\d+: ", str(error))[-1].strip().removeprefix("Error: ")
        raise RecipeError(f"{trouble}: {said}.") from error
    finally:
        faiss.omp_set_num_threads(before)
