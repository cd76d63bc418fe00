"""Small decoders that reconstruct a passage from its bottleneck.

Both decoders are made of BERT's own layer (transformers' BertAttention, BertIntermediate, BertOutput), so
that the parameters have the names of the released code, and the weights of a BERT layer can be loaded.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertAttention, BertIntermediate, BertOutput

from stzoo.errors import RecipeError, ShapeError


def bert_config(config: Any) -> BertConfig:
    """Translates the sizes in any transformers config to BERT's names."""

    def first(*names: str, default: Any = None) -> Any:
        return next((v for n in names if (v := getattr(config, n, None)) is not None), default)

    width = config.hidden_size
    sizes = BertConfig(
        hidden_size=width,
        num_attention_heads=config.num_attention_heads,
        # ModernBERT's gated layers are narrower than the plain layer of equal cost
        intermediate_size=first("intermediate_size", "hidden_dim", default=4 * width),
        hidden_act=first("hidden_act", "hidden_activation", "activation", default="gelu"),
        hidden_dropout_prob=first("hidden_dropout_prob", "dropout", default=0.0),
        attention_probs_dropout_prob=first("attention_probs_dropout_prob", "attention_dropout", default=0.0),
        layer_norm_eps=first("layer_norm_eps", "norm_eps", default=1e-12),
        initializer_range=first("initializer_range", default=0.02),
    )
    sizes._attn_implementation = "sdpa"
    return sizes


class CrossLayer(nn.Module):
    """One BERT layer whose queries and keys may differ.

    Unlike: transformers' BertLayer reads queries, keys and values from one tensor.
    """

    def __init__(self, config: BertConfig):
        super().__init__()
        self.attention = BertAttention(config, is_cross_attention=True)
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config)

    def forward(self, query: Tensor, keys: Tensor, blocked: Tensor) -> Tensor:
        """Float [B, T, H] from query float [B, T, H], keys float [B, S, H] and blocked float [B, 1, 1|T, S].

        `blocked` is 0 where a key may be attended to and the most negative number of its dtype elsewhere.
        """
        attended = self.attention(query, None, keys, blocked)[0]
        return self.output(self.intermediate(attended), attended)


class _Decoder(nn.Module):
    def __init__(self, config: Any, layers: int = 1):
        super().__init__()
        if layers < 1:
            raise RecipeError(f"layers is {layers}; expected at least 1 layer.")
        sizes = bert_config(config)
        self.layers = nn.ModuleList(CrossLayer(sizes) for _ in range(layers))
        self.apply(lambda part: _initialise(part, sizes.initializer_range))

    @staticmethod
    def _blocked(query: Tensor, keys: Tensor, visible: Tensor) -> Tensor:
        rows, columns = query.shape[1], keys.shape[1]
        if visible.shape[-1] != columns or visible.shape[-2] not in (1, rows):
            raise ShapeError(
                f"visible has the shape {list(visible.shape)}; expected [B, 1, {columns}] or [B, {rows}, "
                f"{columns}] for query {list(query.shape)} and keys {list(keys.shape)}."
            )
        _refuse_blind_rows(visible)
        # Only a float mask is read correctly by both eager attention and SDPA. It has the finite minimum, not
        # -inf, so that a row of padding, which sees nothing, gives no NaN; and as autocast will narrow the
        # mask, the minimum of the narrower type.
        kind = query.device.type
        narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
        blocked = torch.zeros(visible.shape, dtype=query.dtype, device=query.device)
        return blocked.masked_fill(~visible, torch.finfo(narrow).min).unsqueeze(1)


def _refuse_blind_rows(visible: Tensor) -> None:
    """Refuses a row that sees nothing, because the gradient of its attention would be wrong.

    With all its keys blocked, a row attends to all of them equally, and SDPA differentiates scores that had
    no effect. Rows of padding, which no other row sees, are allowed: no token is predicted from them.

    Raises:
        ShapeError: On the CPU. Other devices stop with an assertion, so that the CPU need not wait for them.
    """
    blind = ~visible.any(-1)  # [B, 1] or [B, T]
    padding = ~visible.any(-2) if visible.shape[-2] == visible.shape[-1] > 1 else torch.zeros_like(blind)
    fine = ~(blind & ~padding).any() & visible.flatten(1).any(1).all()
    text = (
        "a row of `visible` sees nothing; expected at least one visible column, or padding that no row sees."
    )
    if visible.device.type != "cpu":
        torch._assert_async(fine, text)
    elif not fine:
        raise ShapeError(text)


class EnhancedDecoder(_Decoder):
    """Predicts each token from the bottleneck and a context of its own (RetroMAE, section 3.3).

    Args:
        config: Configuration of the encoder, from which the sizes are taken.
        layers: Number of layers, 1 in the paper. All layers read the same keys: if a layer read the output of
            the one before, a row would see its own token through its neighbours.
    """

    def forward(self, query: Tensor, keys: Tensor, visible: Tensor) -> Tensor:
        """Decodes with queries that differ from keys.

        Args:
            query: float [B, T, H], the sum of position and bottleneck.
            keys: float [B, T, H], the bottleneck at position 0, followed by the embedded passage.
            visible: bool [B, 1, T] or [B, T, T], True where row i may attend to column j.

        Returns:
            float [B, T, H].

        Raises:
            ShapeError: If the lengths do not agree, or a row that is not padding sees nothing.
        """
        blocked = self._blocked(query, keys, visible)
        for layer in self.layers:
            query = layer(query, keys, blocked)
        return query


class StackedDecoder(_Decoder):
    """Plain Transformer layers over the bottleneck and a corrupted passage (RetroMAE section 3.2; MASTER).

    Args:
        config: Configuration of the encoder, from which the sizes are taken.
        layers: Number of layers, 1 in RetroMAE and 2 in MASTER.
    """

    def forward(self, query: Tensor, keys: Tensor, visible: Tensor) -> Tensor:
        """Decodes by self-attention. The first layer reads `keys`, each further layer the one before it.

        Args:
            query: float [B, T, H], usually the same tensor as keys.
            keys: float [B, T, H].
            visible: bool [B, 1, T] or [B, T, T], True where row i may attend to column j.

        Returns:
            float [B, T, H].

        Raises:
            ShapeError: If the lengths do not agree, or a row that is not padding sees nothing.
        """
        blocked = self._blocked(query, keys, visible)
        for layer in self.layers:
            query = keys = layer(query, keys, blocked)
        return query


def _initialise(part: nn.Module, std: float) -> None:
    """Initialises a layer as BERT does, and as the released RetroMAE code does its decoder."""
    if isinstance(part, nn.Linear):
        nn.init.normal_(part.weight, std=std)
        if part.bias is not None:
            nn.init.zeros_(part.bias)
