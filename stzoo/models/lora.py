"""Low-rank adapters (LoRA) for the linear layers of an encoder: added before training, merged afterwards.

They are peft's, added by sentence-transformers' `add_adapter`. peft is imported at first use; install it with
the extra `stzoo[lora]`.

Source: Hu et al. 2021, arXiv 2106.09685, section 4.1. Unlike it:
- by default all linear layers of the encoder have an adapter, not only those of the attention
- alpha grows with the rank (by default it is twice the rank); in the paper it is fixed while ranks are
  compared
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn

from stzoo.errors import MissingExtraError, ModelError, RecipeError, suggest

BASE, DOWN, UP = ".base_layer", ".lora_A.default", ".lora_B.default"  # peft's names inside an adapted layer
UNUSED = "pooler"  # the pooler of BERT-like models, which no module of sentence-transformers reads


def add(
    model: Any, *, rank: int, alpha: float | None = None, dropout: float = 0.0, targets: Sequence[str] = ()
) -> None:
    """Adds adapters to a model, and freezes the other weights of its encoder.

    Modules after the encoder (a trained pooling, Dense) stay trainable. The adapters do not change embeddings
    until they are trained. They are float32, whatever the dtype of the weights, and are initialised from
    torch's generator.

    Args:
        model: A SentenceTransformer that begins with a Transformer.
        rank: Rank of each adapter, 1 or more.
        alpha: Adapters are scaled by alpha / rank; None for 2 * rank.
        dropout: Dropout rate of the adapters' inputs in training, 0..1.
        targets: Names of linear layers, or ends of names after a dot ("query", "output.dense"); all linear
            layers if empty. BERT's unused pooler never gets an adapter.

    Raises:
        MissingExtraError: If peft is not installed.
        ModelError: If the model does not begin with a Transformer, has no linear layers, or already has
            adapters.
        RecipeError: If a target matches no linear layer, the rank is above the width of all layers, or alpha
            is not a number above 0.
    """
    first = model[0]
    if not isinstance(first, Transformer):
        raise ModelError(
            f"the model begins with {type(first).__name__}; expected a Transformer, which can have adapters."
        )
    if adapted(model):
        raise ModelError(
            "the model already has adapters; merge them into its weights first (stzoo.models.lora.fold)."
        )
    try:
        from peft import LoraConfig
    except ImportError:
        raise MissingExtraError("peft, for adapters,", "lora") from None
    layers = linear_layers(first.model)
    if not layers:
        raise ModelError(f"{type(first.model).__name__} has no linear layers that could have adapters.")
    names = _chosen(layers, targets)
    widest = max(max(first.model.get_submodule(name).weight.shape) for name in names)
    if not 1 <= rank <= widest:
        shown = rank if rank < 10**9 else "over 10^9"
        raise RecipeError(
            f"lora_rank is {shown}; expected 1 to {widest}, the width of the widest layer with an adapter."
        )
    if alpha is not None and not (math.isfinite(alpha) and alpha > 0):
        raise RecipeError(f"lora_alpha is {alpha}; expected a number above 0.")
    config = LoraConfig(
        r=rank,
        lora_alpha=rank * scale(rank, alpha),  # type: ignore[arg-type]  # any number will do
        lora_dropout=dropout,
        target_modules=names,
    )
    model.add_adapter(config)
    for weight in first.model.parameters():
        if weight.requires_grad:  # weights of adapters: small steps are lost in half precision
            weight.data = weight.data.float()


def scale(rank: int, alpha: float | None) -> float:
    """The factor of adapters of this rank: alpha / rank, or 2 if alpha is None."""
    return 2.0 if alpha is None else alpha / rank


def linear_layers(encoder: nn.Module) -> list[str]:
    """The names of the layers that can have an adapter."""
    return [
        name
        for name, layer in encoder.named_modules()
        if isinstance(layer, nn.Linear) and name.split(".")[0] != UNUSED
    ]


def _chosen(layers: Sequence[str], targets: Iterable[str]) -> list[str]:
    wrong = [t for t in targets if not any(_ends(name, t) for name in layers)]
    if wrong:
        ends = sorted({name.rpartition(".")[2] for name in layers})
        raise RecipeError(
            f"the name of no linear layer ends in the target {wrong[0]!r}{suggest(wrong[0], ends)} "
            f"Names end in {', '.join(ends)}; the first full name is {layers[0]}."
        )
    return [name for name in layers if not targets or any(_ends(name, t) for t in targets)]


def _ends(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def adapted(model: Any) -> bool:
    """True if the model's first module has adapters."""
    return hasattr(getattr(model[0], "model", None), "peft_config")


def fold(model: Any) -> Any:
    """Merges adapters into the weights and removes them, in place.

    The embeddings stay the same up to rounding, the weights have the names from before `add`, and all weights
    of the encoder are trainable again.

    Args:
        model: A SentenceTransformer; without adapters it is left unchanged.

    Returns:
        The same model.
    """
    if not adapted(model):
        return model
    from peft.tuners.tuners_utils import BaseTunerLayer

    encoder = model[0].model
    layers = [(name, part) for name, part in encoder.named_modules() if isinstance(part, BaseTunerLayer)]
    for name, layer in layers:
        layer.merge()
        above, _, last = name.rpartition(".")
        setattr(encoder.get_submodule(above), last, layer.get_base_layer())
    encoder.delete_adapter(list(encoder.peft_config))
    encoder.requires_grad_(True)
    return model


def plain_name(stored: str) -> str | None:
    """The name of a stored weight after `fold`; None for a weight of an adapter."""
    return None if DOWN in stored or UP in stored else stored.replace(BASE, "")


def is_adapted(stored: str) -> bool:
    """True for the name of a weight that may have adapters."""
    return BASE in stored


def read_folded(read: Callable[[str], Tensor], stored: str, factor: float) -> Tensor:
    """Computes a weight as it is after `fold`.

    Args:
        read: Function that returns a stored tensor by its name: the weight, float [out, in], and its
            adapters, float [rank, in] and [out, rank].
        stored: Name of the weight, for which `is_adapted` is True. A bias has no adapters and stays the same.
        factor: Factor of the adapters, see `scale`.
    """
    base = read(stored)
    layer, _, kind = stored.partition(f"{BASE}.")
    if kind != "weight":
        return base
    return base + read(f"{layer}{UP}.weight") @ read(f"{layer}{DOWN}.weight") * factor
