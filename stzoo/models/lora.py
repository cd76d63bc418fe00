"""Low-rank adapters (LoRA) of an encoder's linear layers: added before training, folded into them after.

They are peft's, put there by sentence-transformers' own `add_adapter`. peft is imported at first use; it is
the extra `stzoo[lora]`.

Source: Hu et al. 2021, arXiv 2106.09685, section 4.1. Unlike it:
- all linear layers of the encoder have an adapter unless told otherwise, not the attention's only
- alpha grows with the rank (twice the rank unless told otherwise); there it is fixed while ranks are tried
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn

from stzoo.errors import MissingExtraError, ModelError, RecipeError, suggest

BASE, DOWN, UP = ".base_layer", ".lora_A.default", ".lora_B.default"  # peft's names inside an adapted layer
UNUSED = "pooler"  # of BERT and its kin; no module of sentence-transformers reads it


def add(
    model: Any, *, rank: int, alpha: float | None = None, dropout: float = 0.0, targets: Sequence[str] = ()
) -> None:
    """Adds adapters to a model, and freezes the other weights of its encoder.

    What follows the encoder (a trained pooling, Dense) stays as trainable as it is. The adapters change no
    embedding until they are trained. They are float32 whatever the weights are, and their first values are
    drawn from torch's generator.

    Args:
        model: a SentenceTransformer that begins with a Transformer.
        rank: of each adapter, 1 or more.
        alpha: adapters are scaled by alpha / rank; 2 * rank if None.
        dropout: share (0..1) of the adapters' inputs that is dropped in training.
        targets: names of linear layers, or the ends of names behind a dot ("query", "output.dense"); all
            linear layers if empty. The unused pooler of BERT never has one.

    Raises:
        MissingExtraError: if peft is not installed.
        ModelError: if the model begins with no Transformer, has no linear layers, or adapters already.
        RecipeError: if a target is the name of no linear layer, the rank is above the width of
            all layers, or alpha is not a number above 0.
    """
    first = model[0]
    if not isinstance(first, Transformer):
        raise ModelError(
            f"the model begins with {type(first).__name__}; only the layers of a Transformer get adapters."
        )
    if adapted(model):
        raise ModelError(
            "the model has adapters already; fold them into its weights first (stzoo.models.lora.fold)."
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
            f"the rank of the adapters (lora_rank) is {shown}; expected 1 to {widest}, the width of the "
            "widest layer that has one."
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
        if weight.requires_grad:  # an adapter's: small steps are lost in half precision
            weight.data = weight.data.float()


def scale(rank: int, alpha: float | None) -> float:
    """What adapters of this rank are multiplied by: alpha / rank, or 2 if alpha is None."""
    return 2.0 if alpha is None else alpha / rank


def linear_layers(encoder: nn.Module) -> list[str]:
    """Names of the layers that can have an adapter."""
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
            f"no linear layer's name ends in the target {wrong[0]!r}{suggest(wrong[0], ends)} "
            f"Names here end in {', '.join(ends)}; the first in full is {layers[0]}."
        )
    return [name for name in layers if not targets or any(_ends(name, t) for t in targets)]


def _ends(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def adapted(model: Any) -> bool:
    """True if the model's first module has adapters."""
    return hasattr(getattr(model[0], "model", None), "peft_config")


def fold(model: Any) -> Any:
    """Adds adapters to the weights that they adapt, and takes every trace of them away, in place.

    The embeddings stay the same to rounding, the names of the weights are those from before `add`, and all of
    the encoder's weights can be trained again.

    Args:
        model: a SentenceTransformer; one without adapters is left as it is.

    Returns:
        the same model.
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
    """The name that a weight of an adapted model has once it is folded; None for a weight of an adapter."""
    return None if DOWN in stored or UP in stored else stored.replace(BASE, "")


def is_adapted(stored: str) -> bool:
    """True for the name of a weight beside which adapters may lie."""
    return BASE in stored


def read_folded(read: Callable[[str], Tensor], stored: str, factor: float) -> Tensor:
    """A weight as `fold` leaves it.

    Args:
        read: gives a stored tensor by its name: the weight, float [out, in], and its adapters, float
            [rank, in] and [out, rank].
        stored: the weight's name, for which `is_adapted`; of a bias, which has no adapters, nothing changes.
        factor: see `scale`.
    """
    base = read(stored)
    layer, _, kind = stored.partition(f"{BASE}.")
    if kind != "weight":
        return base
    return base + read(f"{layer}{UP}.weight") @ read(f"{layer}{DOWN}.weight") * factor
