"""Trains in several processes, and compares the results with those of one."""

import json
import os
import sys

import pytest
import torch
from safetensors.torch import load_file

from support import processes
from support.helpers import UNVERIFIED

# Masks depend on the batch alone, and passages are grouped for two processes also in one.
RUN = f"""{UNVERIFIED}
import hashlib, os, signal, sys
import torch
from stzoo.pretraining import length_sampler
from stzoo.pretraining.objective import Objective
from stzoo.training.trainer import ObjectiveTrainer
length_sampler.world_size = lambda: 2
forward, end_step = Objective.forward, ObjectiveTrainer._end_step
def masked_alike(self, batch):
    text = repr([tensor.tolist() for view in batch.values() for tensor in view.values()])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(hashlib.sha256(text.encode()).hexdigest()[:8], 16))
        return forward(self, batch)
def stopped(self, control):
    if self.state.global_step == int(os.environ.get("STOP_AFTER", 0)):
        os.kill(os.getpid(), signal.SIGTERM)
    return end_step(self, control)
Objective.forward, ObjectiveTrainer._end_step = masked_alike, stopped
exec(os.environ.get("FIRST", ""))
from stzoo.cli import main
main()
"""


def train(count, *words, output, code=0, to_the_end=False, **env):
    """Runs a command of stzoo in so many processes and returns what they write to stderr.

    Args:
        code: Expected exit code.
        to_the_end: True to wait for all processes after one has failed.
        env: Variables: STOP_AFTER, a step after which to stop, and FIRST, Python that is run first.
    """
    words = [*words, "--device", "cpu", "--learning-rate", "1e-3", "--log-steps", 1, "--output", output]
    command = [sys.executable, "-c", RUN, *map(str, words)]
    env = {**os.environ, **{name: str(value) for name, value in env.items()}}
    if count == 1:
        done = processes.run(command, env=env, capture_output=True, text=True)
    else:
        done = processes.run_ranks(count, command, env=env, to_the_end=to_the_end)
    codes = getattr(done, "codes", [done.returncode])
    assert code in codes if code else not any(codes), done.stderr[-3000:]
    return done.stderr


def result(output):
    tensors = load_file(output / "model.safetensors")
    if (output / "pretraining").exists():
        tensors |= load_file(output / "pretraining" / "objective.safetensors")
    log = json.loads((output / "run.json").read_text())["log"]
    return tensors, [line[name] for line in log for name in ("loss", "grad_norm") if name in line]


def assert_same(one, other):
    (tensors, log), (tensors_2, log_2) = result(one), result(other)
    assert log_2 == pytest.approx(log, rel=1e-6, abs=1e-6)
    assert_close(tensors, tensors_2)


def assert_close(tensors, tensors_2):
    """Equal to 1e-6, but for few weights, for whose gradients AdamW divides one rounding by another."""
    assert tensors.keys() == tensors_2.keys()
    difference = torch.cat([(tensors[name] - tensors_2[name]).abs().flatten() for name in tensors])
    assert (difference > 1e-6).float().mean() < 1e-4
    assert difference.max() < 1e-4


def finetune(still, judged, *more):
    words = ["finetune", still, "--data", judged, "--negatives", 0, "--pooling", "mean"]
    return [*words, "--temperature", 0.1, "--dev-queries", 0, "--max-steps", 5, "--batch-size", 10, *more]


def pretrain(still, corpus, objective, *more):
    words = ["pretrain", "--base", still, "--corpus", corpus, "--objective", objective, "--max-steps", 4]
    return [*words, "--batch-size", 4, "--precision", "fp32", *more]
