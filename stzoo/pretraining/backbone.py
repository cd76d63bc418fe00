"""The parts of any `AutoModelForMaskedLM` that pre-training objectives need.

A backbone joins two models that share one encoder: a SentenceTransformer (encoder and pooling, which the
objective trains) and the masked LM that the encoder came with (encoder and MLM head). As the parameters are
shared, training one trains the other, and either can be saved.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from stzoo.errors import BackboneError

FAMILIES = ("BERT", "RoBERTa", "XLM-R", "DistilBERT", "MPNet", "ELECTRA", "ModernBERT")


class _GivenHidden(nn.Module):
    """Takes the place of the encoder and returns the given hidden states."""

    def __init__(self, hidden: Tensor):
        super().__init__()
        self.hidden = hidden

    def forward(self, *_: Any, **__: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.hidden)


def _with_part(module: nn.Module, path: str, part: nn.Module) -> Any:
    """A copy of a module that shares all its parts but the one at a dotted path."""
    name, _, rest = path.partition(".")
    changed = copy.copy(module)
    changed._modules = dict(module._modules)
    inner = changed._modules[name]
    changed._modules[name] = _with_part(inner, rest, part) if rest and inner is not None else part
    return changed


def _first(positions: nn.Embedding) -> int:
    """The row of the first token's position. RoBERTa and MPNet reserve the rows before it for padding."""
    return 0 if positions.padding_idx is None else positions.padding_idx + 1


class Backbone(nn.Module):
    """An encoder with its word embeddings, positions, MLM head and sentence vector.

    Args:
        model: A SentenceTransformer of a Transformer and a pooling whose output is as wide as the hidden
            states. Its encoder is `masked_lm.base_model`.
        masked_lm: A transformers `…ForMaskedLM`.
        tokenizer: A fast tokenizer with a mask token.
        max_tokens: Maximum length of a passage in tokens, special tokens included; None for the limit of the
            base model.
        new: Names of the parameters of `masked_lm` that are untrained (an MLM head that the base lacked).

    Raises:
        BackboneError: If the masked LM cannot be split into embeddings, encoder and MLM head, or has fewer
            positions than `max_tokens`.
    """

    def __init__(
        self,
        model: Any,
        masked_lm: Any,
        tokenizer: Any,
        max_tokens: int | None,
        new: frozenset[str] = frozenset(),
    ):
        super().__init__()
        self.model = model
        self.masked_lm = masked_lm
        self.tokenizer = tokenizer
        self.new = new
        self.config = masked_lm.config
        self.width: int = self.config.hidden_size
        table = self._position_table()
        longest = None if table is None else table.num_embeddings - _first(table)
        limits = (longest, model.max_seq_length, getattr(self.config, "max_position_embeddings", None))
        most = longest or limits[2]
        if max_tokens and most and max_tokens > most:
            raise BackboneError(
                f"max_tokens is {max_tokens}; expected at most {most}, the number of positions of the base."
            )
        self.max_tokens: int = max_tokens or min([n for n in limits if n] or [512])
        self.own_positions: nn.Embedding | None = None
        if table is None:
            self.own_positions = nn.Embedding(self.max_tokens, self.width)
            nn.init.normal_(self.own_positions.weight, std=getattr(self.config, "initializer_range", 0.02))
        table = masked_lm.get_output_embeddings()
        paths = [path for path, part in masked_lm.named_modules() if part is table and path]
        self._vocabulary_path = paths[0] if paths else ""
        self._try()

    @property
    def vocabulary(self) -> nn.Linear:
        """The last layer of the MLM head, whose weights [V, H] are often those of the word embeddings."""
        layer: nn.Linear = self.masked_lm.get_submodule(self._vocabulary_path)
        return layer

    def _try(self) -> None:
        if self.tokenizer.mask_token_id is None:
            raise BackboneError("the base's tokenizer has no mask token; expected a masked LM as base.")
        ids = torch.full((1, 2), self.tokenizer.mask_token_id, device=self.masked_lm.device)
        family = getattr(self.config, "model_type", type(self.masked_lm).__name__)
        try:
            with torch.no_grad():
                shapes = (self.embed(ids).shape, self.logits(self.embed(ids)).shape[:-1])
            problem = "" if shapes == ((1, 2, self.width), (1, 2)) else f"got shapes {shapes}"
        except (AttributeError, TypeError, RuntimeError, ValueError, IndexError, KeyError) as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            raise BackboneError(
                f"a masked LM of type {family!r} cannot be split into embeddings, encoder and MLM head "
                f"({problem}). Supported families: {', '.join(FAMILIES)}."
            )

    @property
    def encoder(self) -> Any:
        """The transformers model without its MLM head."""
        return self.masked_lm.base_model

    def _position_table(self) -> nn.Embedding | None:
        """The encoder's absolute position embeddings, if they are as wide as its hidden states."""
        table = getattr(getattr(self.encoder, "embeddings", None), "position_embeddings", None)
        fits = isinstance(table, nn.Embedding) and table.embedding_dim == self.width
        return table if fits else None

    def positions(self, length: int) -> Tensor:
        """Position vectors as they are added to the word embeddings, before any layer norm.

        They are the encoder's own if it has absolute positions of hidden width. Otherwise they come from a
        new table that is trained with the decoder and exported with it.

        Args:
            length: Number of positions.

        Returns:
            float [length, H].
        """
        table = self._position_table()
        if table is None:
            assert self.own_positions is not None
            return self.own_positions.weight[:length]
        return table.weight[_first(table) :][:length]

    def embed(self, ids: Tensor) -> Tensor:
        """Embeds tokens as the encoder's first layer reads them: words with their positions.

        Args:
            ids: int64 [B, T].

        Returns:
            float [B, T, H].
        """
        embedded = self.encoder.embeddings(input_ids=ids)
        project = getattr(self.encoder, "embeddings_project", None)  # ELECTRA's narrow embeddings
        embedded = embedded if project is None else project(embedded)
        return embedded if self.own_positions is None else embedded + self.positions(ids.shape[1])

    def embed_vectors(self, vectors: Tensor) -> Tensor:
        """Passes vectors through the embedding layer (position, type, norm, dropout) in place of words.

        Args:
            vectors: float [B, T, H].

        Returns:
            float [B, T, H].
        """
        if self._position_table() is None:
            return vectors + self.positions(vectors.shape[1])
        return self.encoder.embeddings(input_ids=None, inputs_embeds=vectors)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores every word of the vocabulary with the MLM head.

        Args:
            hidden: float [..., H].

        Returns:
            float [..., V].
        """
        return self._run_head(hidden)

    def vocabulary_input(self, hidden: Tensor) -> Tensor:
        """Applies the MLM head but its last product, with `vocabulary`: float [..., H] to float [..., H].

        `logits(hidden)` equals `vocabulary(vocabulary_input(hidden))`.
        """
        return self._run_head(hidden, {self._vocabulary_path: nn.Identity()})

    def _run_head(self, hidden: Tensor, parts: Mapping[str, nn.Module] | None = None) -> Tensor:
        """Runs the masked LM with hidden states in place of its encoder, and other parts replaced too."""
        given = _GivenHidden(hidden.reshape(1, -1, self.width))
        head = self.masked_lm
        for path, part in {self.masked_lm.base_model_prefix: given, **(parts or {})}.items():
            head = _with_part(head, path, part)
        nothing = torch.zeros(1, 1, dtype=torch.long, device=hidden.device)
        scores = head(input_ids=nothing).logits
        # not -1: without any hidden states, reshape cannot infer it
        return scores.reshape(*hidden.shape[:-1], scores.shape[-1])

    def encode(self, ids: Tensor, attention: Tensor, layers: Sequence[int] = ()) -> tuple[Tensor, ...]:
        """Runs the encoder and its pooling.

        Args:
            ids: int64 [B, T].
            attention: bool [B, T], True where there is a token, False where there is padding.
            layers: Numbers of the layers whose hidden states are returned as well; 0 is the embeddings.

        Returns:
            The last hidden states float [B, T, H], the bottleneck float [B, H], and the hidden states float
            [B, T, H] of each layer asked for.

        Raises:
            BackboneError: If the encoder has no layer of that number.
        """
        config = self.encoder.config
        before, config.output_hidden_states = config.output_hidden_states, bool(layers)
        try:
            # no token types: BERT ignores keys that it does not know, other encoders refuse them
            features = self.model({"input_ids": ids, "attention_mask": attention.long()})
        finally:
            config.output_hidden_states = before
        states = features.get("all_layer_embeddings", ())
        if unknown := [layer for layer in layers if not 0 <= layer < len(states)]:
            raise BackboneError(
                f"the encoder has no layer {unknown[0]}; expected 0 (the embeddings) to {len(states) - 1}."
            )
        return (
            features["token_embeddings"],
            features["sentence_embedding"],
            *(states[layer] for layer in layers),
        )
