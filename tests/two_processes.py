"""Run by torchrun for test_trainer: how far two processes' weights are apart after three steps."""

import json
import sys
from pathlib import Path

import torch
from test_trainer import make, unmended
from torch import distributed as dist

from stzoo.trainer import ObjectiveTrainer


def spread(trainer) -> dict[str, float]:
    trainer.train()
    found = {"encoder": 0.0, "own": 0.0}
    for name, tensor in trainer.tensors.items():
        mine = tensor.detach().clone()
        theirs = mine.clone()
        dist.broadcast(theirs, 0)
        far = (mine - theirs).abs().max()
        dist.all_reduce(far, op=dist.ReduceOp.MAX)
        part = "own" if name in trainer.own else "encoder"
        found[part] = max(found[part], far.item())
    return found


def differ(trainer):
    """Another start on each process, as when each makes its new parts after drawing its own numbers."""
    with torch.no_grad():
        for tensor in trainer.own.values():
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
if dist.get_rank() == 0:
    (output / "spread.json").write_text(json.dumps(found))
dist.destroy_process_group()
