"""Trains ten steps of several tasks and leaves each process's weights; run in two processes."""

import os
import sys

from safetensors.torch import save_file

from stzoo.finetuning import finetune as _  # noqa: F401 - the module below is behind the function of the same name
from stzoo.finetuning import multitask

base, recipe, output = sys.argv[1:]
kept = {}
train = multitask.MultiTaskTrainer.train_or_resume


def go_on(self, checkpoint):
    train(self, checkpoint)
    state = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
    save_file(state, f"{output}.{os.environ['RANK']}.safetensors")


multitask.MultiTaskTrainer.train_or_resume = go_on

import stzoo  # noqa: E402

stzoo.finetune(
    base, recipe, output=output, dev_queries=0, batch_size=6, mini_batch_size=4, max_steps=10, device="cpu",
    learning_rate=1e-3,
)  # fmt: skip
