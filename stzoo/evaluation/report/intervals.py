"""95 % intervals of means over queries by the percentile bootstrap, for many systems at once."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
Interval = tuple[float, float] | None


def resampled(scores: NDArray[Any], seed: Any) -> NDArray[Any]:
    """Means over queries drawn with replacement.

    Args:
        scores: float64 [S, Q], scores of S systems on Q queries. A draw is the same for all systems.
        seed: Seed of numpy's generator.

    Returns:
        float64 [S, RESAMPLES], the means.

    Unlike scipy.stats.bootstrap, which makes the same draws but gathers the scores of each draw for each
    system; here a matrix product with the counts of the drawn queries gives the means of all systems.
    """
    rng, queries = np.random.default_rng(seed), scores.shape[1]
    batch = max(1, 4_000_000 // queries)  # resamples at once; limits the memory
    means = []
    for start in range(0, RESAMPLES, batch):
        count = min(batch, RESAMPLES - start)
        drawn = rng.integers(0, queries, (count, queries)) + np.arange(count)[:, None] * queries
        counts = np.bincount(drawn.ravel(), minlength=count * queries).reshape(count, queries)
        means.append(scores @ counts.T.astype(float) / queries)
    return np.concatenate(means, axis=1)


def interval(means: NDArray[Any]) -> Interval:
    """The middle 95 % of resampled means, float64 [RESAMPLES]."""
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
