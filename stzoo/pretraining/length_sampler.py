"""Batches of passages of like length, so that little padding is computed on."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.compute as pc
from sentence_transformers.base.sampler import DefaultBatchSampler

from stzoo.utils.distributed import world_size

POOL = 50  # batches sorted by length together: enough to even them out, few enough to keep them random


class LengthBatchSampler(DefaultBatchSampler):
    """Random batches whose texts are about equally long; the order depends on the seed and the epoch alone.

    The rows are shuffled, cut into pools of about POOL batches, each pool is sorted by length and cut into
    batches, and the batches are shuffled. For several devices, groups of neighbouring batches are shuffled
    instead, one batch for each device, so that at each step all devices have texts of about one length and
    none waits for another.

    Args:
        dataset: a `datasets.Dataset` with a column `text`.
        batch_size: rows a batch.
        drop_last: True leaves out the rows of an incomplete last batch.
        seed: of the order.
        devices: among which the batches are dealt out in turn; as many as there are processes if None.
        More is accepted, as the host passes it, and unused.
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
        draw = np.random.default_rng([self.seed, self.epoch])
        rows = draw.permutation(len(self.lengths))
        size, group = self.batch_size, self.devices * self.batch_size
        if self.drop_last and self.devices > 1:
            rows = rows[: len(rows) // group * group]  # any rows are left out, not the longest
        pool_rows = -(-POOL // self.devices) * group
        pools = [rows[at : at + pool_rows] for at in range(0, len(rows), pool_rows)]
        pools = [pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools]
        ordered = np.concatenate([rows[:0], *pools])
        starts = np.arange(0, len(ordered), size)
        if self.drop_last:
            starts = starts[starts + size <= len(ordered)]
        whole = len(starts) // self.devices * self.devices
        groups = draw.permutation(starts[:whole].reshape(-1, self.devices))
        for start in (*groups.ravel(), *starts[whole:]):
            yield ordered[start : start + size].tolist()

    def __len__(self) -> int:
        if self.drop_last:
            return len(self.lengths) // (self.devices * self.batch_size) * self.devices
        return -(-len(self.lengths) // self.batch_size)
