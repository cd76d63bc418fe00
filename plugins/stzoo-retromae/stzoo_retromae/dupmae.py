"""DupMAE: a passage is rebuilt twice, from its sentence vector and from its tokens' vocabulary scores.

The algorithm (Liu et al., ACL 2023, https://arxiv.org/abs/2305.02564, section 3.3) is RetroMAE's, and:

4. score every word of the vocabulary at every token; a word's best score must name the passage's words, which
   are taken as a bag (the loss `bag`).

Source: https://github.com/staoxiao/RetroMAE at ee37587, src/pretrain/modeling_duplex.py; see tests/parity.
"""

import torch
from torch import Tensor

from stzoo import Backbone
from stzoo_retromae.retromae import RetroMAE


class DupMAE(RetroMAE):
    """RetroMAE with a second rebuilding: the tokens' best vocabulary scores must name the passage's words.

    Args:
        backbone: the encoder taken apart.
        encoder_rate: share of the tokens hidden from the encoder, 0..1.
        decoder_rate: share of the tokens hidden from each row of the decoder, 0..1.
        layers: of the decoder.
        visible_only: True leaves the scores of hidden and of special tokens out, as the paper has it (section
            3.3); False takes all but the first token's, as released.

    Unlike: the paper gives the bag's loss the weight 1 and each word of the passage the same share; released,
        and here, it weighs 0.1 and a word's share is 1 / (number of ordinary tokens), repeats counted.
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
        """RetroMAE's views, and the bag: float [B, V], the share of each word of the vocabulary."""
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
        """RetroMAE's losses and `bag`; bag is float [B, V], the other arguments as there."""
        hidden, h = self.encode(encoder_ids, attention)
        scored = attention
        if self.visible_only:
            scored = (encoder_labels == -100) & (decoder_labels != -100)
        return {
            "encoder": self.mlm_loss("encoder", hidden, encoder_labels),
            "decoder": self.mlm_loss("decoder", self.rebuild(h, decoder_ids, visible), decoder_labels),
            "bag": self.bag_of_words_loss(hidden[:, 1:], scored[:, 1:], bag),
        }

    def rebuild(self, h: Tensor, ids: Tensor, visible: Tensor) -> Tensor:
        """As RetroMAE, but for rows that pass the whole embedding layer: position, type, norm and dropout."""
        rows = self.backbone.embed_vectors(h.unsqueeze(1).expand(-1, ids.shape[1], -1))
        return self.head(rows, self.decoder_input(h, ids), visible)

    def bag_of_words_loss(self, hidden: Tensor, scored: Tensor, bag: Tensor) -> Tensor:
        """Cross-entropy of the bag under the softmax of each word's best score (equations 8 and 9).

        Args:
            hidden: float [B, T, H].
            scored: bool [B, T], True where a token's scores count.
            bag: float [B, V].

        Returns:
            float scalar in nats, the mean over the passages.
        """
        logits = self.backbone.logits(hidden).float()
        best = logits.masked_fill(~scored.unsqueeze(2), torch.finfo(logits.dtype).min).max(1).values
        return -(bag * best.log_softmax(1)).sum(1).mean()
