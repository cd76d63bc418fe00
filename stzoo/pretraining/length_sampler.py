"""Batches of passages of similar length, which need little padding."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.compute as pc
from sentence_transformers.base.sampler import DefaultBatchSampler

from stzoo.errors import RecipeError
from stzoo.pretraining.token_cache import TokenRows
from stzoo.utils.distributed import world_size

POOL = 50  # batches that are sorted by length together: enough for similar lengths, few enough to stay random
FINENESS = 64  # lengths that differ by less than a 64th count as equal in batches of a number of tokens


class LengthBatchSampler(DefaultBatchSampler):
    """Random batches of texts of about the same length. The order depends on seed and epoch alone.

    The length of a row is the number of tokens in its first view, or of bytes in its text if the tokens are
    not known.

    Batches of a number of rows: the rows are shuffled and cut into pools of about POOL batches. Each pool is
    sorted by length and cut into batches, and the batches are shuffled.

    Batches of a number of tokens: the rows are shuffled, sorted by length, and cut into batches of as many
    rows as fit, and the batches are shuffled. As the sorted lengths are the same in every epoch, so are the
    number of batches and their sizes; the rows in a batch are those of about equal length, in random order.
    (In pools, the number of steps would vary from epoch to epoch, which the host trainer does not allow.)

    With several devices, groups of neighbouring batches, one for each device, are shuffled instead: at each
    step all devices have texts of about the same length, and none waits for another.

    Args:
        dataset: `TokenRows`, or a `datasets.Dataset` with a column `text`.
        batch_size: Number of rows per batch.
        drop_last: True to leave out the rows of an incomplete last batch.
        tokens: Maximum number of tokens per batch in the first view, padding included, in place of
            batch_size. A longer row is a batch of its own. Nothing is left out.
        seed: Seed of the order.
        devices: Number of devices that take the batches in turn; None for the number of processes.
        unused: Further arguments that the host trainer passes.

    Raises:
        RecipeError: If `tokens` is given but the tokens are not known.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        drop_last: bool,
        *,
        tokens: int | None = None,
        seed: int = 0,
        devices: int | None = None,
        **unused: Any,
    ):
        super().__init__(dataset, batch_size=batch_size, drop_last=drop_last, seed=seed, **unused)
        self.devices = devices or world_size()
        self.starts: np.ndarray | None = None
        if isinstance(dataset, TokenRows):
            self.lengths = dataset.lengths
        elif tokens is not None:
            raise RecipeError(
                "batch_tokens needs the tokens of the passages in advance, but the objective tokenises them "
                "in a collate() of its own. Use batch_size."
            )
        else:
            self.lengths = _bytes(dataset)
        if tokens is not None:
            step = np.maximum(self.lengths // FINENESS, 1)
            self.lengths = np.minimum(-(-self.lengths // step) * step, self.lengths.max(initial=1))
            self.starts = _starts(np.sort(self.lengths), tokens, self.devices)
            self.batch_size = None  # type: ignore[assignment]  # or accelerate skips batches of other sizes

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        rows = rng.permutation(len(self.lengths))
        if self.starts is not None:
            starts, ordered = self.starts, self._sorted(rows)
        else:
            starts, ordered = self._in_pools(rows)
        ends = np.append(starts[1:], len(ordered))
        whole = len(starts) // self.devices * self.devices
        groups = rng.permutation(np.arange(whole).reshape(-1, self.devices))
        for batch in (*groups.ravel(), *range(whole, len(starts))):
            yield ordered[starts[batch] : ends[batch]].tolist()

    def _sorted(self, rows: np.ndarray) -> np.ndarray:
        return rows[np.argsort(self.lengths[rows], kind="stable")]

    def _in_pools(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The starts of batches of rows, and the rows in order."""
        assert self.batch_size is not None
        size, group = self.batch_size, self.devices * self.batch_size
        if self.drop_last:  # random rows are left out, not the longest
            rows = rows[: len(rows) // group * group]
        pool_rows = -(-POOL // self.devices) * group
        pools = [self._sorted(rows[at : at + pool_rows]) for at in range(0, len(rows), pool_rows)]
        return np.arange(0, len(rows), size), np.concatenate([rows[:0], *pools])

    def __len__(self) -> int:
        if self.starts is not None:
            return len(self.starts)
        assert self.batch_size is not None
        if self.drop_last:
            return len(self.lengths) // (self.devices * self.batch_size) * self.devices
        return -(-len(self.lengths) // self.batch_size)


def _bytes(dataset: Any) -> np.ndarray:
    column = dataset.select_columns("text").with_format("arrow")
    tables = column.iter(batch_size=100_000)
    return np.concatenate([pc.binary_length(table["text"]).to_numpy().astype(np.int32) for table in tables])


def _starts(lengths: np.ndarray, tokens: int, devices: int) -> np.ndarray:
    """Cuts rows of ascending lengths into batches, of which the number is a multiple of the devices'.

    Returns:
        int64 [batches], the place of the first row of each.
    """
    starts, at = [], 0
    while at < len(lengths):
        starts.append(at)
        most = max(tokens // int(lengths[at]), 1)
        padded = lengths[at : at + most] * np.arange(1, most + 1)[: len(lengths) - at]
        at += max(int((padded <= tokens).sum()), 1)
    sizes = np.diff([*starts, len(lengths)])
    while -len(starts) % devices and sizes.max() > 1:  # or some devices would have no batch at the last step
        largest = int(sizes.argmax())
        starts.insert(largest + 1, starts[largest] + int(sizes[largest]) // 2)
        sizes = np.diff([*starts, len(lengths)])
    return np.array(starts)
