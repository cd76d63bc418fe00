"""Batches of passages of similar length, which need little padding."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.compute as pc
from sentence_transformers.base.sampler import DefaultBatchSampler

from stzoo.utils.distributed import world_size

POOL = 50  # batches that are sorted by length together: enough for similar lengths, few enough to stay random


class LengthBatchSampler(DefaultBatchSampler):
    """Random batches of texts of about the same length. The order depends on seed and epoch alone.

    The rows are shuffled and cut into pools of about POOL batches. Each pool is sorted by length and cut into
    batches, and the batches are shuffled. With several devices, groups of neighbouring batches, one for each
    device, are shuffled instead: at each step all devices have texts of about the same length, and none waits
    for another.

    Args:
        dataset: A `datasets.Dataset` with a column `text`.
        batch_size: Number of rows per batch.
        drop_last: True to leave out the rows of an incomplete last batch.
        seed: Seed of the order.
        devices: Number of devices that take the batches in turn; None for the number of processes.
        unused: Further arguments that the host trainer passes.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        drop_last: bool,
        *,
        seed: int = 0,
        devices: int | None = None,
        **unused: Any,
    ):
        super().__init__(dataset, batch_size=batch_size, drop_last=drop_last, seed=seed, **unused)
        self.devices = devices or world_size()
        column = dataset.select_columns("text").with_format("arrow")
        self.lengths = np.concatenate(
            [
                pc.binary_length(table["text"]).to_numpy().astype(np.int32)
                for table in column.iter(batch_size=100_000)
            ]
        )

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        rows = rng.permutation(len(self.lengths))
        size, group = self.batch_size, self.devices * self.batch_size
        if self.drop_last and self.devices > 1:
            rows = rows[: len(rows) // group * group]  # random rows are left out, not the longest
        pool_rows = -(-POOL // self.devices) * group
        pools = [rows[at : at + pool_rows] for at in range(0, len(rows), pool_rows)]
        pools = [pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools]
        ordered = np.concatenate([rows[:0], *pools])
        starts = np.arange(0, len(ordered), size)
        if self.drop_last:
            starts = starts[starts + size <= len(ordered)]
        whole = len(starts) // self.devices * self.devices
        groups = rng.permutation(starts[:whole].reshape(-1, self.devices))
        for start in (*groups.ravel(), *starts[whole:]):
            yield ordered[start : start + size].tolist()

    def __len__(self) -> int:
        if self.drop_last:
            return len(self.lengths) // (self.devices * self.batch_size) * self.devices
        return -(-len(self.lengths) // self.batch_size)
