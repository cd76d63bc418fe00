"""DupMAE: reconstruct a passage from its sentence vector, and its words from its tokens' vocabulary scores.

The algorithm (Liu et al., ACL 2023, https://arxiv.org/abs/2305.02564, section 3.3) is RetroMAE's with one
more step:

4. score every word of the vocabulary at every token; the best scores must predict the passage's bag of words
   (the loss `bag`).

Source: https://github.com/staoxiao/RetroMAE at ee37587, src/pretrain/modeling_duplex.py; see tests/parity.
"""

import torch
from torch import Tensor

from stzoo import Backbone
from stzoo_retromae.bag_of_words import bag_of_words_loss
from stzoo_retromae.retromae import RetroMAE


class DupMAE(RetroMAE):
    """RetroMAE with a second task: predict the passage's bag of words from the best vocabulary scores.

    Args:
        backbone: The encoder with its embeddings, MLM head and pooling.
        encoder_rate: Share of the tokens masked for the encoder, 0..1.
        decoder_rate: Share of the tokens hidden from each row of the decoder, 0..1.
        layers: Number of layers of the decoder.
        visible_only: True to ignore the scores at masked and special tokens, as in the paper (section 3.3);
            False to use those of all but the first token, as in the released code.

    Unlike: the paper, where the loss `bag` has the weight 1 and each word of the passage the same share. In
        the released code and here, its weight is 0.1, and a word's share is its count / the number of
        ordinary tokens.
    """

    weights = {"encoder": 1.0, "decoder": 1.0, "bag": 0.1}

    def __init__(
        self,
        backbone: Backbone,
        encoder_rate: float = 0.3,
        decoder_rate: float = 0.5,
        layers: int = 1,
        visible_only: bool = False,
    ):
        super().__init__(backbone, encoder_rate, decoder_rate, layers)
        self.visible_only = visible_only

    def make_views(self, batch: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        """Returns RetroMAE's views and `bag`, float [B, V], the share of each word of the vocabulary."""
        ids, ordinary = batch["passage"]["input_ids"], batch["passage"]["words"] >= 0
        share = ordinary / ordinary.sum(1, keepdim=True).clamp(min=1)
        bag = torch.zeros(len(ids), self.backbone.config.vocab_size, device=ids.device)
        return super().make_views(batch) | {"bag": bag.scatter_(1, ids, share)}

    def losses(  # type: ignore[override]  # one view more
        self,
        encoder_ids: Tensor,
        encoder_labels: Tensor,
        attention: Tensor,
        decoder_ids: Tensor,
        decoder_labels: Tensor,
        visible: Tensor,
        bag: Tensor,
    ) -> dict[str, Tensor]:
        """Computes RetroMAE's losses and `bag`; `bag` is float [B, V], the other arguments are RetroMAE's."""
        hidden, h = self.encode(encoder_ids, attention)
        scored = attention
        if self.visible_only:
            scored = (encoder_labels == -100) & (decoder_labels != -100)
        read = {}
        if self.weights["encoder"]:
            read["encoder"] = (hidden, encoder_labels)
        if self.weights["decoder"]:
            read["decoder"] = (self.rebuild(h, decoder_ids, visible), decoder_labels)
        losses = self.mlm_losses(read)
        if self.weights["bag"]:
            head = self.backbone.vocabulary
            head_input = self.backbone.vocabulary_input(hidden[:, 1:])
            losses["bag"] = bag_of_words_loss(head_input, scored[:, 1:], bag, head.weight, head.bias)
        return losses

    def rebuild(self, h: Tensor, ids: Tensor, visible: Tensor) -> Tensor:
        """Decodes like RetroMAE, with queries that pass the whole embedding layer (position, norm, …)."""
        rows = self.backbone.embed_vectors(h.unsqueeze(1).expand(-1, ids.shape[1], -1))
        return self.head(rows, self.decoder_input(h, ids), visible)
