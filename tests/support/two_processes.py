"""Run in two processes for test_trainer: how two processes train together, stop together and continue."""

import json
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from test_trainer import Signals, log_of, make, same, spoil, unmended
from torch import distributed as dist
from transformers import TrainerCallback

import stzoo
from stzoo.training import checkpoint_trainer
from stzoo.training.callbacks import preserve_rng_state
from stzoo.training.checkpoints import last_checkpoint
from stzoo.training.trainer import ObjectiveTrainer


def spread(trainer) -> dict[str, float]:
    trainer.train()
    found = {"encoder": 0.0, "own": 0.0}
    for name, tensor in trainer.tensors.items():
        mine = tensor.detach().clone()
        theirs = mine.clone()
        dist.broadcast(theirs, 0)
        far = (mine - theirs).abs().max()
        dist.all_reduce(far, op=dist.ReduceOp.MAX)
        part = "own" if name in trainer.loss_tensors else "encoder"
        found[part] = max(found[part], far.item())
    return found


def differ(trainer):
    """Another start on each process, as when each makes its new parts after drawing its own numbers."""
    with torch.no_grad():
        for tensor in trainer.loss_tensors.values():
            tensor += 0.01 * dist.get_rank()
    return trainer


base, output = Path(sys.argv[1]), Path(sys.argv[2])
kinds = {
    "mended": (ObjectiveTrainer, {}),
    "frozen first": (ObjectiveTrainer, {"head_warmup_steps": 1}),
    "_inner_training_loop": (unmended("_inner_training_loop"), {}),
    "_clip_grad_norm": (unmended("_clip_grad_norm"), {}),
}
found = {}
for label, (kind, changes) in kinds.items():
    found[label] = spread(differ(make(kind, base, output / label, device="cpu", **changes)))


class Draw(TrainerCallback):
    """Notes what a process would draw next as each step begins."""

    def __init__(self):
        self.drawn = []

    def on_step_begin(self, *_, **__):
        with preserve_rng_state():
            self.drawn.append(torch.rand(()).item())


def gathered(value):
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, value)
    return every


def train(label, checkpoint=None, *callbacks, prepare=lambda trainer: trainer, **changes):
    """A trainer of three steps after its training, and how that ended."""
    given = dict(device="cpu", save_steps=100, log_steps=3) | changes
    trainer = prepare(make(ObjectiveTrainer, base, output / label, callbacks=callbacks, **given))
    try:
        trainer.train_or_resume(checkpoint)
    except (SystemExit, stzoo.StzooError) as error:
        return trainer, str(error)
    return trainer, ""


draw = Draw()
straight, _ = train("straight", None, draw)
found["drawn"] = gathered(draw.drawn)
# the signal reaches one process only
_, ended = train("stopped", None, *([Signals(1, signal.SIGTERM)] if dist.get_rank() else []))
found["ended"] = gathered(ended)
checkpoint = last_checkpoint(output / "stopped")
draw = Draw()
resumed, _ = train("stopped", checkpoint, draw)
same_log = log_of(straight) == log_of(resumed)  # one line, of steps before and after the stop
found["resumed"] = gathered(
    [checkpoint.name, same(straight.tensors, resumed.tensors) and same_log, draw.drawn]
)
# one process finds a loss that is not finite, and its gradients are as they were
nan = (
    (lambda trainer: spoil(trainer, "decoder", 3, float("nan")))
    if dist.get_rank()
    else (lambda trainer: trainer)
)
_, ended = train("nan", None, prepare=nan, save_steps=1)
found["nan"] = gathered(ended)
_, _ = train("timed", None, save_minutes=1e-9 if dist.get_rank() == 0 else 1e9)
found["timed"] = sorted(folder.name for folder in (output / "timed/checkpoints").iterdir())
# the first process removes the checkpoint as soon as it has read it, while the other still reads
train("removed", None, save_steps=3)
if dist.get_rank():
    read = checkpoint_trainer.load_file
    checkpoint_trainer.load_file = lambda file: time.sleep(1) or read(file)
removed, _ = train("removed", last_checkpoint(output / "removed"))
if dist.get_rank() == 0:
    shutil.rmtree(output / "removed")
found["removed"] = gathered(same(straight.tensors, removed.tensors))
if dist.get_rank() == 0:
    (output / "spread.json").write_text(json.dumps(found))
dist.destroy_process_group()
