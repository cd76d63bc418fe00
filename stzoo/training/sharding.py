"""Shards a model over the processes by torch's FSDP2 (`--shard-model`): each keeps a part of every tensor.

Transformers' and accelerate's own FSDP shard the encoder only. An objective also owns a decoder, and its MLM
head shares the word embeddings with the encoder, so the whole loss is sharded here.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from stzoo.errors import RecipeError
from stzoo.training.settings import Training
from stzoo.utils.distributed import world_size
from stzoo.utils.messages import notify


def shards(settings: Training) -> bool:
    """True if the settings ask for a sharded model and there are processes to share it."""
    return getattr(settings, "shard_model", False) and world_size() > 1


def check_sharding(settings: Training) -> None:
    """Refuses settings that a sharded model cannot be trained with.

    Raises:
        RecipeError: If there is such a setting.
    """
    if not getattr(settings, "shard_model", False):
        return
    reasons = {
        "precision": (settings.precision == "fp16", "scales the loss by a factor of each process; use bf16"),
        "probe": (
            getattr(settings, "probe", None),
            "searches with modules that are not sharded; score the finished model by `stzoo bench`",
        ),
        "tasks": (getattr(settings, "tasks", None), "needs the whole gradient of each task"),
    }
    for name, (is_set, reason) in reasons.items():
        if is_set:
            raise RecipeError(f"{name} does not work with shard_model (--shard-model), as it {reason}.")
    if world_size() == 1:
        notify("--shard-model has no effect in one process; start the command with torchrun.")


def check_loss(settings: Training, loss: Any) -> None:
    """Refuses a loss, or its model, that cannot be sharded, if the settings ask for it.

    Raises:
        RecipeError: If the layers of the encoder cannot be found, or a loss of fine-tuning has parameters.
    """
    if not shards(settings):
        return
    if not _layers(loss):
        raise RecipeError(
            "the encoder's layers cannot be found, so it cannot be sharded. Drop --shard-model, or use a "
            "model of an architecture whose layers transformers can checkpoint."
        )
    inside = {id(one) for one in loss.model.parameters()}
    more = [name for name, one in loss.named_parameters() if id(one) not in inside]
    if more and not _is_objective(loss):  # the gradient cache calls the model outside of the forward pass
        raise RecipeError(
            f"the loss has parameters of its own ({', '.join(more[:3])}), which --shard-model does not "
            "support in fine-tuning. Drop --shard-model, or use another loss."
        )


def _layers(loss: Any) -> list[nn.Module]:
    return [part for part in loss.model.modules() if isinstance(part, GradientCheckpointingLayer)]


def _is_objective(loss: Any) -> bool:
    return hasattr(loss, "weights")


def shard(loss: Any, device: torch.device) -> Any:
    """A sharded copy of a loss module and its model; all processes have the weights of the first one.

    The layers of the encoder are gathered one at a time, as they run. The rest is gathered when an objective
    is called or, in fine-tuning, when the model is.

    Args:
        loss: A module with an attribute `model` that passes `check_loss`; it is moved to the CPU and
            otherwise left as it is.
        device: Device that trains.
    """
    loss.to("cpu")
    sharded = copy.deepcopy(loss)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in _layers(sharded):
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded if _is_objective(sharded) else sharded.model, mesh=mesh)
    return sharded


def is_sharded(module: nn.Module) -> bool:
    """True if each process has a part of the module's parameters only."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor, which all processes must ask for together if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process has."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def put(tensor: Tensor, value: Tensor) -> None:
    """Copies a whole tensor into one that may be sharded."""
    tensor.copy_(_like(tensor, value))


def _like(tensor: Tensor, value: Tensor) -> Tensor:
    """A whole tensor, sharded as another one is."""
    if not isinstance(tensor, DTensor):
        return value
    value = value.to(tensor.device)
    return distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)


def gathered_state(optimizer: Any) -> dict[str, Any]:
    """The state of an optimizer as it is without sharding, in the first process; that of the others is empty.

    All processes must ask for it together.
    """
    state, whole = optimizer.state_dict(), {}
    for number, values in state["state"].items():
        every = {name: full(one) if isinstance(one, Tensor) else one for name, one in values.items()}
        if dist.get_rank() == 0:  # only it writes them
            whole[number] = {
                name: one.cpu() if isinstance(one, Tensor) else one for name, one in every.items()
            }
    return {**state, "state": whole}


def sharded_state(optimizer: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `gathered_state`."""
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    parts = {
        number: {
            name: _like(parameters[number], one) if getattr(one, "ndim", 0) else one
            for name, one in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": parts}
