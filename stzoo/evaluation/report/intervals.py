"""95 % intervals of means over queries, by the percentile bootstrap, for many systems at once."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
Interval = tuple[float, float] | None


def resampled(scores: NDArray[Any], seed: Any) -> NDArray[Any]:
    """Means over queries drawn with replacement.

    Args:
        scores: float64 [S, Q], of S systems on Q queries; each draw takes the same queries of all systems.
        seed: of numpy's generator.

    Returns:
        float64 [S, RESAMPLES].

    Unlike scipy.stats.bootstrap, which makes the same draws: it picks each draw's scores out for each system;
    here the draws are counted once, and one product gives the means of all systems.
    """
    draw, queries = np.random.default_rng(seed), scores.shape[1]
    at_once = max(1, 4_000_000 // queries)  # resamples; bounds the memory
    means = []
    for begin in range(0, RESAMPLES, at_once):
        count = min(at_once, RESAMPLES - begin)
        picked = draw.integers(0, queries, (count, queries)) + np.arange(count)[:, None] * queries
        counts = np.bincount(picked.ravel(), minlength=count * queries).reshape(count, queries)
        means.append(scores @ counts.T.astype(float) / queries)
    return np.concatenate(means, axis=1)


def interval(means: NDArray[Any]) -> Interval:
    """The middle 95 % of resampled means, float64 [RESAMPLES]."""
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
