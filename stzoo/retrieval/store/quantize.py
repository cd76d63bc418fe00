"""Vectors in fewer bytes, and back.

float32; float16; int8, 256 steps a dimension between the least and the greatest value; binary, one bit a
dimension, set above 0: as quantize_embeddings of sentence-transformers makes them (binary is its "ubinary").

Back in float32, int8 is the middle of its step, so at most half a step off within the range, and binary is +1
or -1: a float query's dot product with it is the sum of the query's components, each with the sign that the
document has there, and cosine ranks the same, as all documents are of one length.

Unlike sentence-transformers, whose int8 comes back as the lower edge of its step.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from sentence_transformers.util.quantization import quantize_embeddings

from stzoo.errors import ModelError, check_known

DTYPES = {"float32": "float32", "float16": "float16", "int8": "int8", "binary": "uint8"}
PRECISIONS = tuple(DTYPES)


def check_precision(precision: str) -> None:
    """Sees that there is such a precision.

    Raises:
        RecipeError: if there is none.
    """
    check_known("precision", precision, PRECISIONS)


def width(manifest: Mapping[str, Any]) -> int:
    """Numbers stored a vector."""
    return -(-manifest["dim"] // 8) if manifest["precision"] == "binary" else int(manifest["dim"])


def ranges_of(parts: Iterable[np.ndarray]) -> np.ndarray:
    """float32 [2, D], the least and the greatest value of each dimension of float32 [n, D] parts."""
    extremes = [np.stack([part.min(0), part.max(0)]) for part in parts]
    return np.stack([np.min(extremes, 0)[0], np.max(extremes, 0)[1]])


def tightened(vectors: np.ndarray, manifest: Mapping[str, Any]) -> np.ndarray:
    """Vectors as they are stored.

    Args:
        vectors: float32 [n, D].
        manifest: with the precision, and for int8 the ranges.

    Returns:
        [n, width] of the precision's dtype.

    Raises:
        ModelError: if float16 cannot hold them.
    """
    if manifest["precision"] in ("float32", "float16"):
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(vectors, manifest["precision"])
        if not np.isfinite(stored).all():
            raise ModelError("vectors hold numbers beyond float16's 65504; store them as float32 or int8.")
        return stored

    if manifest["precision"] == "binary":
        return np.asarray(quantize_embeddings(vectors, "ubinary"))
    return np.asarray(quantize_embeddings(vectors, "int8", np.array(manifest["ranges"], np.float32)))


def loosened(stored: np.ndarray, manifest: Mapping[str, Any]) -> np.ndarray:
    """float32 [n, D] of what `tightened` gave."""
    if manifest["precision"] == "binary":
        return np.unpackbits(stored, axis=1, count=manifest["dim"]) * np.float32(2) - np.float32(1)
    if manifest["precision"] == "int8":
        low, high = np.array(manifest["ranges"], np.float32)
        return low + (stored + np.float32(128.5)) * ((high - low) / 255)
    return stored.astype(np.float32, copy=False)
