"""Batches of passages of like length, so that little padding is computed on."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.compute as pc
from sentence_transformers.base.sampler import DefaultBatchSampler

POOL = 50  # batches sorted by length together: enough to even them out, few enough to keep them random


class LengthBatchSampler(DefaultBatchSampler):
    """Random batches whose texts are about equally long; the order depends on the seed and the epoch alone.

    The rows are shuffled, cut into pools of POOL batches, each pool is sorted by length and cut into batches,
    and the batches are shuffled.

    Args:
        dataset: a `datasets.Dataset` with a column `text`.
        batch_size: rows a batch.
        drop_last: True leaves out the rows of an incomplete last batch.
        seed: of the order.
        More is accepted, as the host passes it, and unused.
    """

    def __init__(self, dataset: Any, batch_size: int, drop_last: bool, *, seed: int = 0, **unused: Any):
        super().__init__(dataset, batch_size=batch_size, drop_last=drop_last, seed=seed, **unused)
        column = dataset.select_columns("text").with_format("arrow")
        self.lengths = np.concatenate(
            [
                pc.binary_length(table["text"]).to_numpy().astype(np.int32)
                for table in column.iter(batch_size=100_000)
            ]
        )

    def __iter__(self) -> Iterator[list[int]]:
        draw = np.random.default_rng([self.seed, self.epoch])
        rows = draw.permutation(len(self.lengths))
        size = self.batch_size
        pools = (rows[at : at + POOL * size] for at in range(0, len(rows), POOL * size))
        ordered = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        starts = np.arange(0, len(ordered), size)
        if self.drop_last:
            starts = starts[starts + size <= len(ordered)]
        for start in draw.permutation(starts):
            yield ordered[start : start + size].tolist()

    def __len__(self) -> int:
        whole, rest = divmod(len(self.lengths), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)
