"""What a pre-training objective is: how rows become tensors, and tensors become named losses.

Two halves are kept apart on purpose. `make_views` makes the views of a batch: every random choice (what is
hidden, what is corrupted) is made there, on the device, from torch's generator, so that a resumed run draws
the very masks that an uninterrupted one would have drawn. `losses` computes from given views and draws
nothing, so that it can be compared with the authors' numbers.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stzoo.data.corpus import Corpus
from stzoo.errors import PluginError, UnknownNameError
from stzoo.plugins import manager
from stzoo.pretraining.backbone import Backbone
from stzoo.pretraining.decoders import masked_loss
from stzoo.pretraining.masking import corrupt, hide_words, word_numbers


class Objective(nn.Module):
    """The base of all objectives: subclass it, set `weights`, write `make_views` and `losses`.

    Args:
        backbone: the encoder taken apart.

    Attributes:
        weights: of each loss by name. The trainer sums weight * loss and logs each loss as it is.
        columns: what its rows may hold beside `text`, by name: str or list[str]. Of no other column does
            `collate` get anything.
        without_bottleneck: names of losses that are not computed from the bottleneck, through parts of the
            objective's own. `stzoo.testing.check_objective` expects every other loss to train the bottleneck,
            except those of the encoder's token vectors alone.
        frozen: True while the encoder must not learn (the head warm-up); set by the trainer.
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
        """The SentenceTransformer in training; sentence-transformers looks for it under this name."""
        return self.backbone.model

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Changes the weights of some losses.

        Raises:
            UnknownNameError: if a name is not among this objective's losses.
        """
        for name, weight in weights.items():
            if name not in self.weights:
                raise UnknownNameError("loss of this objective", name, self.weights)
            self.weights = {**self.weights, name: float(weight)}

    def configure_for(self, corpus: Corpus) -> list[str]:  # noqa: ARG002 - for objectives that read more than the text
        """Is told of the corpus before training; may drop losses, but add none.

        Returns:
            what is done without, or what the options alone do not tell, in sentences for the user.

        Raises:
            DataError: if something that was asked for cannot be done with this corpus.
        """
        return []

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Tokenises and pads the `text` of each row.

        Returns:
            int64 [B, T] under "passage_input_ids", "passage_attention_mask" (1 where there is a token) and
            "passage_words" (the number of the word that a token belongs to, -1 for special tokens and
            padding).
        """
        return self.tokenise([row["text"] for row in rows], "passage")

    def tokenise(self, texts: list[str], view: str, max_tokens: int | None = None) -> dict[str, Tensor]:
        """The tensors of `collate` for these texts, their names beginning with `view` and an underscore.

        Args:
            texts: of one view; each is cut after `max_tokens` tokens (None: as many as the encoder may read).
            view: its name.
            max_tokens: special tokens counted.
        """
        backbone = self.backbone
        # a text may spell them out ("title [SEP] text")
        special = (backbone.tokenizer.cls_token_id, backbone.tokenizer.sep_token_id)
        encoded = backbone.tokenizer(
            texts,
            truncation=True,
            max_length=max_tokens or backbone.max_tokens,
            padding=True,
            return_tensors="pt",
        )
        return {
            f"{view}_input_ids": encoded["input_ids"],
            f"{view}_attention_mask": encoded["attention_mask"],
            f"{view}_words": word_numbers(encoded, special_ids=special),
        }

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
        """A decoder by the name that it is registered under, in the sizes of this encoder."""
        made: nn.Module = manager.build("decoder", name, self.backbone.config, **options)
        return made

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
        """Hides whole words from a view and corrupts them 80/10/10.

        Args:
            ids: int64 [B, T].
            words: int64 [B, T], word numbers, -1 for special tokens and padding.
            attention: bool [B, T], True where there is a token.
            rate: share of the tokens to hide, 0..1.

        Returns:
            corrupted ids int64 [B, T] and labels int64 [B, T], -100 where nothing is to be found.
        """
        hidden = hide_words(words, attention, rate)
        tokenizer = self.backbone.tokenizer
        return corrupt(ids, hidden, tokenizer.mask_token_id, len(tokenizer))

    def mlm_loss(self, name: str, hidden: Tensor, labels: Tensor) -> Tensor:
        """The loss of finding the labelled tokens; counts the hits for the log under `<name>_accuracy`.

        Args:
            name: of the loss.
            hidden: float [B, T, H].
            labels: int64 [B, T], -100 where nothing is to be found.
        """
        loss, correct, counted = masked_loss(self.backbone.logits, hidden, labels)
        before = self.log_sums.get(name)
        self.log_sums[name] = (
            (correct, counted) if before is None else (before[0] + correct, before[1] + counted)
        )
        return loss

    def accuracies(self) -> dict[str, float]:
        """The share of labelled tokens found (0..1) since the last call, as `<name>_accuracy`."""
        counts, self.log_sums = self.log_sums, {}
        return {f"{name}_accuracy": int(hit) / max(int(of), 1) for name, (hit, of) in counts.items()}
