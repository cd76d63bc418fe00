"""RetroMAE: rebuild a passage from one vector, so that the vector holds the passage.

The algorithm (Xiao et al., EMNLP 2022, https://arxiv.org/abs/2205.12035):

1. hide 30 % of the passage's tokens and encode it; the sentence vector h is the bottleneck;
2. find the hidden tokens from the encoder's hidden states (the loss `encoder`);
3. rebuild the passage by a decoder of one layer that sees h and little else (the loss `decoder`).

Reading order: RetroMAE (enhanced decoding, section 3.3), RetroMAEBasic (section 3.2), then dupmae.py.
The hooks are in plugin.py.

Source: https://github.com/staoxiao/RetroMAE at ee37587, src/pretrain. Losses and gradients are compared with
its own by tests/parity of stzoo.

Unlike:
    - Masks are drawn on the device from torch's generator, not in the collator (`stzoo.pretraining.masking`).
    - The bottleneck is whatever pooling the model has, not always [CLS].
    - Any masked LM will do. Where it has no absolute positions of hidden width (ModernBERT, small ELECTRA),
      the decoder reads a table of its own.
"""

import torch
from torch import Tensor

from stzoo import Backbone, Objective
from stzoo.pretraining.masking import check_rates, visibility


class RetroMAE(Objective):
    """Enhanced decoding: every token is rebuilt, each from h and a context of its own.

    Args:
        backbone: the encoder taken apart.
        encoder_rate: share of the tokens hidden from the encoder, 0..1.
        decoder_rate: share of the tokens hidden from each row of the decoder, 0..1.
        layers: of the decoder.
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
        """The passage twice: corrupted for the encoder, and as it is for the decoder."""
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
        """The losses `encoder` and `decoder`, float scalars in nats.

        Args:
            encoder_ids: int64 [B, T], corrupted.
            encoder_labels: int64 [B, T], -100 where nothing was hidden.
            attention: bool [B, T], True where there is a token.
            decoder_ids: int64 [B, T], what the decoder may see.
            decoder_labels: int64 [B, T], -100 where nothing is to be rebuilt.
            visible: bool [B, 1, T] or [B, T, T], True where the decoder's row i may look at column j.
        """
        hidden, h = self.encode(encoder_ids, attention)
        return {
            "encoder": self.mlm_loss("encoder", hidden, encoder_labels),
            "decoder": self.mlm_loss("decoder", self.rebuild(h, decoder_ids, visible), decoder_labels),
        }

    def rebuild(self, h: Tensor, ids: Tensor, visible: Tensor) -> Tensor:
        """Decodes: rows H1 = [h+p_0, ..., h+p_N], columns H2 = [h, e_1+p_1, ..., e_N+p_N] (equation 5).

        Args:
            h: float [B, H], the bottleneck.
            ids: int64 [B, T].
            visible: bool [B, 1, T] or [B, T, T].

        Returns:
            float [B, T, H].
        """
        rows = h.unsqueeze(1) + self.backbone.positions(ids.shape[1])
        return self.head(rows, self.decoder_input(h, ids), visible)

    def decoder_input(self, h: Tensor, ids: Tensor) -> Tensor:
        """The embedded passage with h in its first place: float [B, T, H]."""
        embedded = self.backbone.embed(ids)
        return torch.cat([h.unsqueeze(1).to(embedded.dtype), embedded[:, 1:]], dim=1)


class RetroMAEBasic(RetroMAE):
    """Basic decoding: hidden tokens are found from h and the tokens that are left (equations 3 and 4).

    Args:
        backbone: the encoder taken apart.
        encoder_rate: share of the tokens hidden from the encoder, 0..1.
        decoder_rate: share of the tokens hidden from the decoder; 0.7 is the best in the paper's table 6.
        layers: of the decoder.

    Unlike: not in the released code. Tokens are corrupted 80/10/10, as there for the encoder.
    """

    kind = "stacked"

    def __init__(
        self, backbone: Backbone, encoder_rate: float = 0.3, decoder_rate: float = 0.7, layers: int = 1
    ):
        super().__init__(backbone, encoder_rate, decoder_rate, layers)

    def make_views(self, batch: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        """The passage twice, corrupted for the encoder and, more, for the decoder."""
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
