"""Converts vectors to fewer bytes and back.

The precisions are float32, float16, int8 (256 steps per dimension between the minimum and the maximum) and
binary (one bit per dimension, set for values above 0). They are those of sentence-transformers'
quantize_embeddings, which calls binary "ubinary".

Converted back to float32, an int8 value is the middle of its step, so that values within the range are at
most half a step off. A bit is +1 or -1: the dot product with a float query is the sum of the query's
components with the signs of the document, and cosine gives the same ranking since all documents have the same
length.

Unlike sentence-transformers, which converts int8 to the lower edge of its step.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from stzoo.errors import ModelError

DTYPES = {"float32": "float32", "float16": "float16", "int8": "int8", "binary": "uint8"}
PRECISIONS = tuple(DTYPES)


def width(manifest: Mapping[str, Any]) -> int:
    """Number of stored values per vector."""
    return -(-manifest["dim"] // 8) if manifest["precision"] == "binary" else int(manifest["dim"])


def ranges_of(parts: Iterable[np.ndarray]) -> np.ndarray:
    """Minimum and maximum of each dimension, float32 [2, D], over parts that are float32 [n, D]."""
    extremes = [np.stack([part.min(0), part.max(0)]) for part in parts]
    return np.stack([np.min(extremes, 0)[0], np.max(extremes, 0)[1]])


def tightened(vectors: np.ndarray, manifest: Mapping[str, Any]) -> np.ndarray:
    """Converts vectors to the precision of a store.

    Args:
        vectors: Vectors, float32 [n, D].
        manifest: Manifest of the store, with the precision and, for int8, the ranges.

    Returns:
        The stored values, [n, width] of the precision's dtype.

    Raises:
        ModelError: If the values overflow float16.
    """
    if manifest["precision"] in ("float32", "float16"):
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(vectors, manifest["precision"])
        if not np.isfinite(stored).all():
            raise ModelError("vectors exceed float16's maximum of 65504; store them as float32 or int8.")
        return stored

    # here, as the import takes seconds and few stores need it
    from sentence_transformers.util.quantization import quantize_embeddings

    if manifest["precision"] == "binary":
        return np.asarray(quantize_embeddings(vectors, "ubinary"))
    return np.asarray(quantize_embeddings(vectors, "int8", np.array(manifest["ranges"], np.float32)))


def loosened(stored: np.ndarray, manifest: Mapping[str, Any]) -> np.ndarray:
    """Converts stored values from `tightened` back to vectors, float32 [n, D]."""
    if manifest["precision"] == "binary":
        return np.unpackbits(stored, axis=1, count=manifest["dim"]) * np.float32(2) - np.float32(1)
    if manifest["precision"] == "int8":
        low, high = np.array(manifest["ranges"], np.float32)
        return low + (stored + np.float32(128.5)) * ((high - low) / 255)
    return stored.astype(np.float32, copy=False)
