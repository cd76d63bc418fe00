"""Batches by length: every row once an epoch, in an order that can be had again, with less padding."""

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from stzoo.pretraining.length_sampler import LengthBatchSampler
from stzoo.training.callbacks import SetEpoch


def rows(lengths):
    return Dataset.from_dict(
        {"id": [str(i) for i in range(len(lengths))], "text": ["x" * n for n in lengths]}
    )


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=700),
    size=st.integers(1, 9),
    drop=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_every_row_comes_once_and_the_same_epoch_comes_in_the_same_order(lengths, size, drop, epoch):
    sampler = LengthBatchSampler(rows(lengths), size, drop, seed=3)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    seen = [row for batch in batches for row in batch]
    left_out = len(lengths) % size if drop else 0
    assert len(seen) == len(set(seen)) == len(lengths) - left_out
    assert all(len(batch) <= size for batch in batches)
    assert list(sampler) == batches
    other = LengthBatchSampler(rows(lengths), size, drop, seed=3)
    other.set_epoch(epoch)
    assert list(other) == batches


def test_the_epoch_reaches_the_sampler_behind_whatever_wraps_it():
    from types import SimpleNamespace

    sampler = LengthBatchSampler(rows([1] * 9), 2, False, seed=1)
    callback = SetEpoch()
    callback.sampler = sampler
    callback.on_epoch_begin(None, SimpleNamespace(epoch=2.5), None)
    assert sampler.epoch == 2


def test_epochs_and_seeds_differ():
    lengths = np.random.default_rng(0).integers(1, 500, 400).tolist()
    one = LengthBatchSampler(rows(lengths), 8, False, seed=1)
    first = list(one)
    one.set_epoch(1)
    assert list(one) != first
    assert list(LengthBatchSampler(rows(lengths), 8, False, seed=2)) != first


def test_padding_is_less_than_a_third_of_that_of_random_batches():
    lengths = np.random.default_rng(0).integers(1, 500, 4000)
    sampler = LengthBatchSampler(rows(lengths.tolist()), 16, False, seed=1)
    padded = sum(len(batch) * lengths[batch].max() for batch in sampler) - lengths.sum()
    random = lengths.reshape(-1, 16)
    assert padded < (random.max(1) * 16).sum() / 3 - lengths.sum() / 3
    longest = [lengths[batch].max() for batch in sampler]
    assert abs(np.corrcoef(longest[1:], longest[:-1])[0, 1]) < 0.3  # no run of ever longer batches


@pytest.mark.parametrize("devices", [2, 8])
def test_devices_get_batches_of_about_one_length_at_each_step(devices):
    lengths = np.random.default_rng(0).integers(1, 500, 9999)
    sampler = LengthBatchSampler(rows(lengths.tolist()), 4, True, seed=1, devices=devices)
    dealt = [list(BatchSamplerShard(sampler, devices, one)) for one in range(devices)]
    assert {len(one) for one in dealt} == {len(sampler) // devices} == {9999 // (4 * devices)}
    seen = [row for one in dealt for batch in one for row in batch]
    assert len(seen) == len(set(seen)) == 9999 // (4 * devices) * 4 * devices
    longest = np.array([[lengths[batch].max() for batch in one] for one in dealt])  # [devices, steps]
    assert np.ptp(longest, axis=0).mean() < 80  # in any order over 160
    assert np.corrcoef(longest[0, 1:], longest[0, :-1])[0, 1] < 0.3
