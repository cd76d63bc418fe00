"""The base class of pre-training objectives: from rows to tensors, and from tensors to named losses.

Two halves are kept apart on purpose. `make_views` makes the views of a batch: every random choice (which
tokens are masked, and how) is made there, on the device, from torch's generator, so that a resumed run draws
the same masks as an uninterrupted one. `losses` computes from these views and draws nothing, so that its
results can be compared with those of the authors' code.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stzoo.data.corpus import Corpus
from stzoo.errors import PluginError, UnknownNameError
from stzoo.plugins import manager
from stzoo.pretraining.backbone import Backbone
from stzoo.pretraining.masking import corrupt, hide_words
from stzoo.pretraining.tokens import Tokens, flatten, pad_tokens, tokenize
from stzoo.pretraining.vocabulary_loss import vocabulary_losses


class Objective(nn.Module):
    """A pre-training objective. Subclasses set `weights` and define `make_views` and `losses`.

    Args:
        backbone: The encoder with its embeddings, MLM head and pooling.

    Attributes:
        weights: Weight of each loss by name. The trainer minimises the sum of weight * loss and logs each
            loss unweighted.
        columns: Columns that the objective reads besides `text`, by name, each str or list[str]. `texts`
            and `collate` get no other column.
        without_bottleneck: Names of the losses that parts of the objective compute without the bottleneck.
            `stzoo.testing.check_objective` expects every other loss to train the bottleneck, except those
            computed from the encoder's token vectors alone.
        frozen: True while the encoder must not be trained (during the head warm-up). The trainer sets it, and
            `encode` respects it.

    Example:
        Masked language modelling, without a decoder::

            class MaskedLM(Objective):
                weights = {"mlm": 1.0}

                def make_views(self, batch):
                    passage = batch["passage"]
                    attention = passage["attention_mask"].bool()
                    ids, labels = self.mask_words(passage["input_ids"], passage["words"], attention, rate=0.3)
                    return {"ids": ids, "labels": labels, "attention": attention}

                def losses(self, ids, labels, attention):
                    hidden, _ = self.encode(ids, attention)
                    return {"mlm": self.mlm_loss("mlm", hidden, labels)}
    """

    weights: Mapping[str, float] = {}
    columns: Mapping[str, Any] = {}
    without_bottleneck: Collection[str] = ()

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone
        self.weights = dict(self.weights)
        self.frozen = False
        self.log_sums: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def model(self) -> Any:
        """The SentenceTransformer that is trained; sentence-transformers expects it under this name."""
        return self.backbone.model

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Changes the weights of some losses.

        Args:
            weights: New weights by the name of the loss; the other losses keep theirs.

        Raises:
            UnknownNameError: If the objective has no loss of that name.
        """
        for name, weight in weights.items():
            if name not in self.weights:
                raise UnknownNameError("loss of this objective", name, self.weights)
            self.weights = {**self.weights, name: float(weight)}

    def configure_for(self, corpus: Corpus) -> list[str]:  # noqa: ARG002 - for objectives that read more than the text
        """Adapts the objective to the corpus before training. It may drop losses, but must not add any.

        Args:
            corpus: The corpus that it is about to be trained on.

        Returns:
            Notes for the user, in whole sentences: which losses were dropped and why, and which choices were
            made for options that were left open.

        Raises:
            DataError: If the corpus lacks something that the options require.
        """
        return []

    def texts(self, row: dict[str, Any]) -> dict[str, str | list[str]]:
        """Says which texts of a row are tokenised, by the name of their view. Draws nothing.

        The tokens are made once and cached for later runs. They are made again if the code of the objective
        changes, or the texts that a sample of rows gives; so the result may depend only on the row, the
        options and the columns of the corpus.

        Args:
            row: A row of the corpus with `text` and the declared `columns`, where a missing value is None.

        Returns:
            A text per view, or a list of texts that may be empty. Every row must have the same views. The
            first is the one that the encoder reads: batches are made of rows in which it has similar lengths.
        """
        return {"passage": row["text"]}

    def token_limit(self, view: str) -> int:  # noqa: ARG002 - for objectives with several views
        """The number of tokens, special tokens included, to which texts of a view are truncated."""
        return self.backbone.max_tokens

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Tokenises and pads the texts of rows. Draws nothing.

        Most objectives define `texts` and leave this method as it is. One that overrides it gets rows of text
        in training: its tokens are not cached, its batches are sorted by the number of bytes of `text`, and
        `--batch-tokens` is refused.

        Args:
            rows: Rows of the corpus with `text` and the declared `columns`.

        Returns:
            For each view, int64 [B, T] tensors VIEW_input_ids, VIEW_attention_mask (1 where there is a token)
            and VIEW_words (the number of the word that a token belongs to, -1 for special tokens and
            padding). For a view of lists of texts they are [B, K, T], with empty texts after a row's own.
        """
        batch: dict[str, Tensor] = {}
        for view, values in self.texts_by_view(rows).items():
            texts, size = flatten(values, "")
            batch |= _unflattened(self.tokenise(texts, view, self.token_limit(view)), size)
        return batch

    def pad(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Pads rows of cached tokens to the tensors of `collate`.

        Args:
            rows: `Tokens`, or a list of them, by view.
        """
        batch: dict[str, Tensor] = {}
        for view in rows[0]:
            values = [row[view] for row in rows]
            empty = self._empty(view) if isinstance(values[0], list) else None
            texts, size = flatten(values, empty)
            batch |= _unflattened(self._padded(view, texts), size)
        return batch

    def _empty(self, view: str) -> Tokens:
        return tokenize(self.backbone.tokenizer, [""], self.token_limit(view))[0]

    def texts_by_view(self, rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
        """The texts of each view, one item of the list per row.

        Raises:
            PluginError: If rows differ in their views, or a view in one text or a list of texts.
        """
        read = [self.texts(row) for row in rows]
        kinds = [{view: isinstance(texts, list) for view, texts in one.items()} for one in read]
        if odd := [one for one in kinds if one != kinds[0]]:
            raise PluginError(
                f"{type(self).__module__}.{type(self).__name__}.texts() returns the views {_shown(kinds[0])} "
                f"of one row and {_shown(odd[0])} of another; expected the same views of every row."
            )
        return {view: [one[view] for one in read] for view in kinds[0]}

    def tokenise(self, texts: list[str], view: str, max_tokens: int | None = None) -> dict[str, Tensor]:
        """Tokenises and pads the texts of one view.

        Args:
            texts: Texts of the view, one per row.
            view: Name of the view, which the names of the tensors begin with.
            max_tokens: Number of tokens, special tokens included, to which each text is truncated; None for
                the encoder's limit.

        Returns:
            int64 [B, T] tensors VIEW_input_ids, VIEW_attention_mask and VIEW_words, as in `collate`.

        Raises:
            ModelError: If the tokenizer is not a fast one.
        """
        backbone = self.backbone
        return self._padded(view, tokenize(backbone.tokenizer, texts, max_tokens or backbone.max_tokens))

    def _padded(self, view: str, texts: list[Tokens]) -> dict[str, Tensor]:
        padded = pad_tokens(self.backbone.tokenizer, texts)
        return {f"{view}_{name}": tensor for name, tensor in padded.items()}

    def forward(self, batch: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        """Computes the losses of a batch: named scalars in nats, unweighted.

        Args:
            batch: The tensors of `collate` by view, as `make_views` takes them.

        Raises:
            PluginError: If `losses` returns a loss that `weights` does not name.
        """
        losses = self.losses(**self.make_views(batch))
        if unknown := sorted(losses.keys() - self.weights.keys()):
            raise PluginError(
                f"{type(self).__module__}.{type(self).__name__} returns the losses {', '.join(unknown)}, "
                f"which have no weight; `weights` names {', '.join(self.weights) or 'no loss'}."
            )
        return losses

    def make_views(self, batch: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
        """Makes every random choice, on the device, from torch's generator.

        Args:
            batch: The tensors of `collate` by view, without their prefix: "passage_input_ids" is
                `batch["passage"]["input_ids"]`.

        Returns:
            The keyword arguments of `losses`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define make_views(batch)")

    def losses(self, *_: Any, **views: Any) -> dict[str, Tensor]:
        """Computes the named losses of views that `make_views` made. Draws nothing."""
        raise NotImplementedError(f"{type(self).__name__} must define losses(**views)")

    def decoder(self, name: str, **options: Any) -> nn.Module:
        """Builds a registered decoder in the sizes of this encoder.

        Args:
            name: Name of the decoder, e.g. "enhanced" or "stacked".
            options: Options of the decoder, e.g. `layers=2`.
        """
        decoder: nn.Module = manager.build("decoder", name, self.backbone.config, **options)
        return decoder

    def encode(self, ids: Tensor, attention: Tensor, layers: Sequence[int] = ()) -> tuple[Tensor, ...]:
        """Runs the encoder and its pooling, without a gradient while `frozen`.

        Args:
            ids: int64 [B, T].
            attention: bool [B, T], True where there is a token.
            layers: Numbers of the layers whose hidden states are returned as well; 0 is the embeddings.

        Returns:
            The last hidden states float [B, T, H], the bottleneck float [B, H], and the hidden states float
            [B, T, H] of each layer asked for: `hidden, h, middle = self.encode(ids, attention, layers=[6])`.

        Raises:
            BackboneError: If the encoder has no layer of that number.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.backbone.encode(ids, attention, layers)

    def mask_words(self, ids: Tensor, words: Tensor, attention: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """Masks whole words of a text, 80/10/10 as in BERT.

        Args:
            ids: int64 [B, T].
            words: int64 [B, T], word numbers, -1 for special tokens and padding.
            attention: bool [B, T], True where there is a token.
            rate: Share of the tokens to mask, 0..1.

        Returns:
            The corrupted ids int64 [B, T], and labels int64 [B, T], -100 where a token was not masked.
        """
        hidden = hide_words(words, attention, rate)
        tokenizer = self.backbone.tokenizer
        return corrupt(ids, hidden, tokenizer.mask_token_id, len(tokenizer))

    def mlm_loss(self, name: str, hidden: Tensor, labels: Tensor) -> Tensor:
        """Computes the masked-LM loss of the labelled tokens; hits are logged as `<name>_accuracy`.

        Args:
            name: Name of the loss.
            hidden: float [B, T, H].
            labels: int64 [B, T], the token to predict, -100 where there is none.

        Returns:
            float scalar in nats, the mean over the labelled tokens.
        """
        return self.mlm_losses({name: (hidden, labels)})[name]

    def mlm_losses(self, read: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Computes several masked-LM losses together, which is faster than one by one.

        Args:
            read: The `hidden` and `labels` of `mlm_loss`, by the name of the loss.

        Returns:
            The loss of each name, as `mlm_loss` returns it.
        """
        if not read:
            return {}
        labelled = {name: labels != -100 for name, (_, labels) in read.items()}
        hidden = [states[labelled[name]] for name, (states, _) in read.items()]
        losses, hits = vocabulary_losses(
            self.backbone.vocabulary_input(torch.cat(hidden)),
            torch.cat([labels[labelled[name]] for name, (_, labels) in read.items()]),
            [len(states) for states in hidden],
            self.backbone.vocabulary.weight,
            self.backbone.vocabulary.bias,
            scales=[self.weights.get(name) or 1.0 for name in read],
        )
        for name, hit in zip(read, hits, strict=True):
            correct, counted = self.log_sums.get(name, (0, 0))
            self.log_sums[name] = (correct + hit, counted + labelled[name].sum())
        return dict(zip(read, losses, strict=True))

    def accuracies(self) -> dict[str, float]:
        """`<name>_accuracy`, the share (0..1) of labelled tokens predicted since the last call, per loss."""
        sums, self.log_sums = self.log_sums, {}
        return {f"{name}_accuracy": int(hits) / max(int(of), 1) for name, (hits, of) in sums.items()}


def _unflattened(tensors: dict[str, Tensor], size: int | None) -> dict[str, Tensor]:
    if size is None:
        return tensors
    return {name: tensor.unflatten(0, (-1, size)) for name, tensor in tensors.items()}


def _shown(kinds: Mapping[str, bool]) -> str:
    return ", ".join(f"{view} (a list)" if is_list else view for view, is_list in kinds.items()) or "(none)"
