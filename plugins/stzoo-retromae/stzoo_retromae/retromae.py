"""RetroMAE: reconstruct a passage from one vector, so that the vector represents the whole passage.

The algorithm (Xiao et al., EMNLP 2022, https://arxiv.org/abs/2205.12035):

1. mask 30 % of the passage's tokens and encode it; the sentence vector h is the bottleneck;
2. predict the masked tokens from the encoder's hidden states (the loss `encoder`);
3. reconstruct the passage with a one-layer decoder that sees h and little else (the loss `decoder`).

Reading order: RetroMAE (enhanced decoding, section 3.3), RetroMAEBasic (section 3.2), then dupmae.py.
The hooks are in plugin.py.

Source: https://github.com/staoxiao/RetroMAE at ee37587, src/pretrain; tests/parity compares losses and
gradients with that code.

Unlike:
    - Masks are drawn on the device from torch's generator, not in the collator (`stzoo.pretraining.masking`).
    - The bottleneck is the output of the model's pooling, not always [CLS].
    - Any masked LM can be the base. If it has no absolute positions of hidden width (ModernBERT, small
      ELECTRA), the decoder uses its own position embeddings.
"""

import torch
from torch import Tensor

from stzoo import Backbone, Objective
from stzoo.pretraining.masking import check_rates, visibility


class RetroMAE(Objective):
    """Enhanced decoding: every token is predicted from h and a context of its own.

    Args:
        backbone: The encoder with its embeddings, MLM head and pooling.
        encoder_rate: Share of the tokens masked for the encoder, 0..1.
        decoder_rate: Share of the tokens hidden from each row of the decoder, 0..1.
        layers: Number of layers of the decoder.
    """

    weights = {"encoder": 1.0, "decoder": 1.0}
    kind = "enhanced"

    def __init__(
        self, backbone: Backbone, encoder_rate: float = 0.3, decoder_rate: float = 0.5, layers: int = 1
    ):
        super().__init__(backbone)
        check_rates(encoder_rate=encoder_rate, decoder_rate=decoder_rate)
        self.encoder_rate, self.decoder_rate = encoder_rate, decoder_rate
        self.head = self.decoder(self.kind, layers=layers)

    def make_views(self, batch: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        """Returns the passage twice: masked for the encoder, and unchanged for the decoder."""
        ids, words, attention = (batch["passage"][name] for name in ("input_ids", "words", "attention_mask"))
        encoder_ids, encoder_labels = self.mask_words(ids, words, attention.bool(), self.encoder_rate)
        return {
            "encoder_ids": encoder_ids,
            "encoder_labels": encoder_labels,
            "attention": attention.bool(),
            "decoder_ids": ids,
            "decoder_labels": ids.masked_fill(words < 0, -100),  # every ordinary token
            "visible": visibility(words, attention.bool(), self.decoder_rate),
        }

    def losses(
        self,
        encoder_ids: Tensor,
        encoder_labels: Tensor,
        attention: Tensor,
        decoder_ids: Tensor,
        decoder_labels: Tensor,
        visible: Tensor,
    ) -> dict[str, Tensor]:
        """Computes the losses `encoder` and `decoder`, float scalars in nats; not one of weight 0.

        Args:
            encoder_ids: int64 [B, T], masked tokens replaced.
            encoder_labels: int64 [B, T], -100 where no token was masked.
            attention: bool [B, T], True where there is a token.
            decoder_ids: int64 [B, T], the tokens that the decoder reads.
            decoder_labels: int64 [B, T], -100 where no token is to be predicted.
            visible: bool [B, 1, T] or [B, T, T], True where the decoder's row i may attend to column j.
        """
        hidden, h = self.encode(encoder_ids, attention)
        read = {}
        if self.weights["encoder"]:
            read["encoder"] = (hidden, encoder_labels)
        if self.weights["decoder"]:
            read["decoder"] = (self.rebuild(h, decoder_ids, visible), decoder_labels)
        return self.mlm_losses(read)

    def rebuild(self, h: Tensor, ids: Tensor, visible: Tensor) -> Tensor:
        """Decodes with queries [h+p_0, ..., h+p_N] and keys [h, e_1+p_1, ..., e_N+p_N] (equation 5).

        Args:
            h: float [B, H], the bottleneck.
            ids: int64 [B, T], the tokens that the decoder reads.
            visible: bool [B, 1, T] or [B, T, T], True where row i may attend to column j.

        Returns:
            float [B, T, H].
        """
        rows = h.unsqueeze(1) + self.backbone.positions(ids.shape[1])
        return self.head(rows, self.decoder_input(h, ids), visible)

    def decoder_input(self, h: Tensor, ids: Tensor) -> Tensor:
        """Embeds the passage and replaces its first token by h: float [B, T, H]."""
        embedded = self.backbone.embed(ids)
        return torch.cat([h.unsqueeze(1).to(embedded.dtype), embedded[:, 1:]], dim=1)


class RetroMAEBasic(RetroMAE):
    """Basic decoding: masked tokens are predicted from h and the remaining tokens (equations 3 and 4).

    Args:
        backbone: The encoder with its embeddings, MLM head and pooling.
        encoder_rate: Share of the tokens masked for the encoder, 0..1.
        decoder_rate: Share of the tokens masked for the decoder; 0.7 is the best in the paper's table 6.
        layers: Number of layers of the decoder.

    Unlike: the released code, which lacks basic decoding. Tokens are masked 80/10/10, as in its encoder.
    """

    kind = "stacked"

    def __init__(
        self, backbone: Backbone, encoder_rate: float = 0.3, decoder_rate: float = 0.7, layers: int = 1
    ):
        super().__init__(backbone, encoder_rate, decoder_rate, layers)

    def make_views(self, batch: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        """Returns the passage masked for the encoder, and masked more heavily for the decoder."""
        ids, words, attention = (batch["passage"][name] for name in ("input_ids", "words", "attention_mask"))
        encoder_ids, encoder_labels = self.mask_words(ids, words, attention.bool(), self.encoder_rate)
        decoder_ids, decoder_labels = self.mask_words(ids, words, attention.bool(), self.decoder_rate)
        return {
            "encoder_ids": encoder_ids,
            "encoder_labels": encoder_labels,
            "attention": attention.bool(),
            "decoder_ids": decoder_ids,
            "decoder_labels": decoder_labels,
            "visible": attention.bool().unsqueeze(1),
        }

    def rebuild(self, h: Tensor, ids: Tensor, visible: Tensor) -> Tensor:
        """Decodes [h, e_1+p_1, ..., e_N+p_N] by self-attention; shapes as in RetroMAE."""
        sequence = self.decoder_input(h, ids)
        return self.head(sequence, sequence, visible)
