"""Less memory for the activations of an encoder (`--gradient-checkpointing`)."""

from contextlib import nullcontext

from torch import nn
from transformers import PreTrainedModel

from stzoo.errors import RecipeError
from stzoo.models.onednn import fast_linear


def checkpoint_layers(model: nn.Module) -> None:
    """Makes the encoder compute the activations of its layers again in the backward pass.

    Raises:
        RecipeError: If the encoder's architecture cannot.
    """
    # not the host's argument, which calls a deprecated method
    encoders = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    if not encoders or not encoders[0].supports_gradient_checkpointing:
        raise RecipeError("this model cannot recompute activations; drop --gradient-checkpointing.")
    device = encoders[0].device
    # a mode of the forward pass is not in force in the backward pass
    contexts = {"context_fn": lambda: (nullcontext(), fast_linear(device))}
    encoders[0].activation_checkpointing_enable({"use_reentrant": False, **contexts})
