"""Batches by length: every row once an epoch, in an order that can be had again, with less padding."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from support import processes

from stzoo.errors import RecipeError
from stzoo.pretraining.length_sampler import LengthBatchSampler
from stzoo.pretraining.token_cache import TokenRows
from stzoo.testing import sentences
from stzoo.training.callbacks import SetEpoch


def rows(lengths):
    return Dataset.from_dict(
        {"id": [str(i) for i in range(len(lengths))], "text": ["x" * n for n in lengths]}
    )


@settings(max_examples=60)
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


class Counted(TokenRows):
    """Token rows of which only the lengths are known."""

    def __init__(self, lengths):
        Dataset.__init__(self, Dataset.from_dict({"row": list(range(len(lengths)))}).data)
        self.lengths = np.asarray(lengths, dtype=np.int32)


@settings(max_examples=100)
@given(
    lengths=st.lists(st.integers(1, 600), min_size=1, max_size=400),
    tokens=st.integers(1, 3000),
    devices=st.integers(1, 4),
    epoch=st.integers(0, 3),
)
def test_batches_of_tokens_fit_the_budget_and_are_as_many_in_every_epoch(lengths, tokens, devices, epoch):
    sampler = LengthBatchSampler(Counted(lengths), 1, False, tokens=tokens, seed=3, devices=devices)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(
        len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= tokens for batch in batches
    )
    assert len(batches) == len(sampler)
    assert len(batches) % devices == 0 or len(batches) == len(lengths)
    assert list(sampler) == batches
    first = LengthBatchSampler(Counted(lengths), 1, False, tokens=tokens, seed=3, devices=devices)
    assert sorted(map(len, first)) == sorted(map(len, batches))
    dealt = [list(BatchSamplerShard(sampler, devices, one, even_batches=False)) for one in range(devices)]
    assert sorted(row for one in dealt for batch in one for row in batch) == list(range(len(lengths)))


def test_batches_of_tokens_are_full_and_have_little_padding():
    lengths = np.random.default_rng(0).integers(10, 512, 20_000)
    sampler = LengthBatchSampler(Counted(lengths), 1, False, tokens=8192, seed=1)
    padded = [len(batch) * lengths[batch].max() for batch in sampler]
    assert 1 - lengths.sum() / sum(padded) < 0.01
    assert np.mean(padded) > 0.95 * 8192
    longest = [lengths[batch].max() for batch in sampler]
    assert abs(np.corrcoef(longest[1:], longest[:-1])[0, 1]) < 0.3  # no run of ever longer batches
    first = [frozenset(batch) for batch in sampler]
    sampler.set_epoch(1)
    assert len({*first} & {frozenset(batch) for batch in sampler}) < 0.01 * len(first)


def test_batches_of_rows_are_sorted_by_tokens_if_these_are_known():
    lengths = np.random.default_rng(0).integers(10, 512, 20_000)
    sampler = LengthBatchSampler(Counted(lengths), 32, False, seed=1)
    assert 1 - lengths.sum() / sum(len(batch) * lengths[batch].max() for batch in sampler) < 0.04


def test_a_number_of_tokens_needs_known_tokens():
    with pytest.raises(RecipeError, match=r"tokenises them in a collate\(\) of its own"):
        LengthBatchSampler(rows([1, 2]), 2, False, tokens=100)


def test_two_processes_take_equally_many_batches_of_tokens_within_the_budget(base, tmp_path):
    """Also of three passages over the budget; one passage is not enough for two processes."""
    texts = {"mixed": sentences(37), "one": ["the lift of a wing"], "long": ["lift " * 200] * 3}
    for name, of in texts.items():
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": f"{number} {text}"}) + "\n" for number, text in enumerate(of))
        )
    script = Path(__file__).parents[1] / "support" / "two_processes_tokens.py"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = processes.run_ranks(2, [sys.executable, script, base, tmp_path], env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    for rank in found.pop("one"):
        assert "make 1 whole batch for 2 processes" in rank["error"]
    for name, ranks in found.items():
        one, other = ([tuple(shape) for shape in rank["shapes"]] for rank in ranks)
        assert len(one) == len(other) == ranks[0]["steps"] == ranks[1]["steps"] > 0, name
        assert all(rows * tokens <= 56 or rows == 1 for rows, tokens in one + other), name
        if name == "mixed":
            assert sum(rows for rows, _ in one + other) == 2 * 37
            assert max(rows for rows, _ in one + other) > 1
