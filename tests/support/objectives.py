"""Small objectives for the tests of `check_objective`: sound ones, and one for each fault."""

# ruff: noqa: ARG002 - `losses` is given all views, whether it uses them or not

import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from stzoo import Objective

# --- sound


class Autoencoder(Objective):
    """Finds hidden words by the encoder, and others by a decoder that reads the bottleneck."""

    weights = {"encoder": 1.0, "decoder": 1.0}

    def __init__(self, backbone, rate: float = 0.5):
        super().__init__(backbone)
        self.rate = rate
        self.head = self.decoder("stacked")

    def make_views(self, batch):
        ids, words, attention = (batch["passage"][name] for name in ("input_ids", "words", "attention_mask"))
        attention = attention.bool()
        read, labels = self.mask_words(ids, words, attention, 0.3)
        left, wanted = self.mask_words(ids, words, attention, self.rate)
        return {"clean": ids, "attention": attention, "encoder": (read, labels), "decoder": (left, wanted)}

    def losses(self, clean, attention, encoder, decoder):
        hidden, h = self.encode(encoder[0], attention)
        rebuilt = self.rebuild(h, decoder[0], attention)
        return {
            "encoder": self.mlm_loss("encoder", hidden, encoder[1]),
            "decoder": self.mlm_loss("decoder", rebuilt, decoder[1]),
        }

    def rebuild(self, h, ids, attention):
        keys = torch.cat([h.unsqueeze(1), self.backbone.embed(ids)[:, 1:]], 1)
        return self.head(keys, keys, attention.unsqueeze(1))


class Contriever(Objective):
    """Contrasts two crops of each text, without any vocabulary."""

    weights = {"contrastive": 1.0}

    def make_views(self, batch):
        ids, attention = batch["passage"]["input_ids"], batch["passage"]["attention_mask"].bool()
        at, length = torch.arange(ids.shape[1], device=ids.device), attention.sum(1, keepdim=True)
        crops = []
        for _ in range(2):
            first = (torch.rand(len(ids), 1, device=ids.device) * length / 2).long()
            crops.append(attention & ((at == 0) | ((at >= first) & (at < first + length // 2 + 1))))
        return {"ids": ids, "crops": crops}

    def losses(self, ids, crops):
        one, other = (functional.normalize(self.encode(ids, crop)[1], dim=1) for crop in crops)
        return {"contrastive": functional.cross_entropy(one @ other.T / 0.1, torch.arange(len(ids)))}


class Momentum(Contriever):
    """Contrasts with a queue of vectors, kept in a buffer, of a slow copy of the encoder (MoCo)."""

    def __init__(self, backbone):
        super().__init__(backbone)
        self.projection = nn.Linear(backbone.width, backbone.width)
        self.slow = nn.Linear(backbone.width, backbone.width).requires_grad_(False)
        self.register_buffer("queue", functional.normalize(torch.randn(12, backbone.width), dim=1))

    def losses(self, ids, crops):
        one = functional.normalize(
            self.projection(functional.dropout(self.encode(ids, crops[0])[1], 0.1)), dim=1
        )
        with torch.no_grad():
            for slow, fast in zip(self.slow.parameters(), self.projection.parameters(), strict=True):
                slow.lerp_(fast, 0.01)
            other = functional.normalize(self.slow(self.encode(ids, crops[1])[1]), dim=1)
        scores = one @ torch.cat([other, self.queue]).T / 0.1
        self.remember(other)
        return {"contrastive": functional.cross_entropy(scores, torch.arange(len(ids)))}

    def remember(self, vectors):
        self.queue.copy_(torch.cat([vectors, self.queue])[: len(self.queue)])


class Both(Contriever):
    """A contrast of crops, and words to find from the encoder's own token vectors."""

    weights = {"contrastive": 1.0, "mlm": 1.0}

    def make_views(self, batch):
        one = batch["passage"]
        masked = self.mask_words(one["input_ids"], one["words"], one["attention_mask"].bool(), 0.3)
        return super().make_views(batch) | {"masked": masked}

    def losses(self, ids, crops, masked):
        hidden, _ = self.encode(masked[0], crops[0])
        labels = masked[1].masked_fill(~crops[0], -100)
        return super().losses(ids, crops) | {"mlm": self.mlm_loss("mlm", hidden, labels)}


class Head(Autoencoder):
    """Its decoder reads the token vectors, by intent; it asks for words that the encoder does not know."""

    without_bottleneck = ("decoder",)

    def losses(self, clean, attention, encoder, decoder):
        hidden, _ = self.encode(encoder[0], attention)
        rebuilt = self.head(hidden, hidden, attention.unsqueeze(1))
        return {
            "encoder": self.mlm_loss("encoder", hidden, encoder[1]),
            "decoder": self.mlm_loss("decoder", rebuilt, encoder[1]),
        }


class Annealed(Autoencoder):
    """Hides more with time, counted in a buffer."""

    def __init__(self, backbone):
        super().__init__(backbone)
        self.register_buffer("steps", torch.tensor(0))

    def make_views(self, batch):
        self.rate = min(0.7, 0.3 + 0.01 * int(self.steps))
        self.steps += 1
        return super().make_views(batch)


class Titled(Autoencoder):
    """Reads a declared column."""

    columns = {"title": str}

    def collate(self, rows):
        return self.tokenise([f"{row['title']} {row.get('text')}" for row in rows], "passage")


SOUND = (Autoencoder, Contriever, Momentum, Both, Head, Annealed, Titled)

# --- labels, or text that should be hidden, are seen


class EncoderReadsCleanText(Autoencoder):
    fault = "the loss 'encoder' sees"

    def make_views(self, batch):
        drawn = super().make_views(batch)
        return drawn | {"encoder": (drawn["clean"], drawn["encoder"][1])}


class EncoderReadsHalfOfWhatIsHidden(Autoencoder):
    fault = "the loss 'encoder' sees"

    def make_views(self, batch):
        drawn = super().make_views(batch)
        ids, labels = drawn["encoder"]
        return drawn | {"encoder": (torch.where(torch.rand(ids.shape) < 0.5, drawn["clean"], ids), labels)}


class EncoderIsAskedForWhatIsNotHidden(Autoencoder):
    fault = "the loss 'encoder' sees"

    def make_views(self, batch):
        drawn = super().make_views(batch)
        labels = drawn["clean"].masked_fill(batch["passage"]["words"] < 0, -100)
        return drawn | {"encoder": (drawn["encoder"][0], labels)}


class DecoderReadsCleanText(Autoencoder):
    fault = "the loss 'decoder' sees"

    def rebuild(self, h, ids, attention):
        return super().rebuild(h, self.clean, attention)

    def losses(self, clean, **views):
        self.clean = clean
        return super().losses(clean=clean, **views)


class DecoderReadsLabels(Autoencoder):
    fault = "the loss 'decoder' sees"

    def losses(self, clean, attention, encoder, decoder):
        hidden, h = self.encode(encoder[0], attention)
        asked = self.backbone.embed(decoder[1].clamp(min=0)) * (decoder[1] >= 0).unsqueeze(2)
        rebuilt = self.rebuild(h, decoder[0], attention) + asked
        return {
            "encoder": self.mlm_loss("encoder", hidden, encoder[1]),
            "decoder": self.mlm_loss("decoder", rebuilt, decoder[1]),
        }


class DecoderReadsTheEncodersTokens(Autoencoder):
    fault = "the loss 'decoder' sees"

    def losses(self, clean, attention, encoder, decoder):
        hidden, h = self.encode(encoder[0], attention)
        keys = torch.cat([h.unsqueeze(1), (self.backbone.embed(decoder[0]) + hidden)[:, 1:]], 1)
        rebuilt = self.head(keys, keys, attention.unsqueeze(1))
        return {
            "encoder": self.mlm_loss("encoder", hidden, encoder[1]),
            "decoder": self.mlm_loss("decoder", rebuilt, decoder[1]),
        }


class RowsSeeThemselves(Autoencoder):
    """As in enhanced decoding, but each row's own token is among those that it sees."""

    fault = "the loss 'decoder' sees"

    def __init__(self, backbone):
        super().__init__(backbone)
        self.head = self.decoder("enhanced")

    def losses(self, clean, attention, encoder, decoder):
        hidden, h = self.encode(encoder[0], attention)
        rows = h.unsqueeze(1) + self.backbone.positions(clean.shape[1])
        keys = torch.cat([h.unsqueeze(1), self.backbone.embed(clean)[:, 1:]], 1)
        rebuilt = self.head(rows, keys, attention.unsqueeze(1))
        return {
            "encoder": self.mlm_loss("encoder", hidden, encoder[1]),
            "decoder": self.mlm_loss("decoder", rebuilt, clean.masked_fill(~attention, -100)),
        }


class RowsSeeThemselvesNotTheNext(RowsSeeThemselves):
    """Meant to hide each row's own token, the mask hides the one after it."""

    fault = "the loss 'decoder' sees"

    def losses(self, clean, attention, encoder, decoder):
        hidden, h = self.encode(encoder[0], attention)
        rows = h.unsqueeze(1) + self.backbone.positions(clean.shape[1])
        keys = torch.cat([h.unsqueeze(1), self.backbone.embed(clean)[:, 1:]], 1)
        own = torch.eye(clean.shape[1], dtype=torch.bool).roll(1, dims=1)
        own[:, 0] = False
        rebuilt = self.head(rows, keys, attention.unsqueeze(1) & ~own)
        return {
            "encoder": self.mlm_loss("encoder", hidden, encoder[1]),
            "decoder": self.mlm_loss("decoder", rebuilt, clean.masked_fill(~attention, -100)),
        }


class DecoderAttendsToTheEncodersTokens(RowsSeeThemselves):
    """Hidden words of the decoder are in the encoder's text, and attention learns only slowly where."""

    fault = "the loss 'decoder' sees"

    def losses(self, clean, attention, encoder, decoder):
        hidden, h = self.encode(encoder[0], attention)
        rows = h.unsqueeze(1) + self.backbone.positions(clean.shape[1])
        rebuilt = self.head(rows, hidden, attention.unsqueeze(1))
        return {
            "encoder": self.mlm_loss("encoder", hidden, encoder[1]),
            "decoder": self.mlm_loss("decoder", rebuilt, decoder[1]),
        }


class DecoderReadsLabelsByARouteOfItsOwn(Autoencoder):
    """No module embeds these labels, so only training shows that they are read."""

    fault = "the loss 'decoder' predicts"

    def losses(self, clean, attention, encoder, decoder):
        hidden, h = self.encode(encoder[0], attention)
        words = self.backbone.model[0].auto_model.get_input_embeddings().weight
        asked = words[decoder[1].clamp(min=0)] * (decoder[1] >= 0).unsqueeze(2)
        return {
            "encoder": self.mlm_loss("encoder", hidden, encoder[1]),
            "decoder": self.mlm_loss("decoder", self.rebuild(h, decoder[0], attention) + asked, decoder[1]),
        }


class OwnCrossEntropyReadsCleanText(Contriever):
    fault = r"the cross-entropy at .*objectives\.py:\d+ sees"

    weights = {"contrastive": 1.0, "words": 1.0}

    def losses(self, ids, crops):
        hidden, _ = self.encode(ids, crops[0])
        words = functional.cross_entropy(self.backbone.logits(hidden)[crops[0]], ids[crops[0]])
        return super().losses(ids, crops) | {"words": words}


# --- the bottleneck is not trained


class DetachedBottleneck(Autoencoder):
    fault = "the loss 'decoder' sends no gradient to the bottleneck"

    def rebuild(self, h, ids, attention):
        return super().rebuild(h.detach(), ids, attention)


class IgnoredBottleneck(Autoencoder):
    fault = "the loss 'decoder' sends no gradient to the bottleneck"

    def rebuild(self, h, ids, attention):
        keys = self.backbone.embed(ids)
        return self.head(keys, keys, attention.unsqueeze(1))


class BottleneckThatNoRowSees(Autoencoder):
    fault = "the loss 'decoder' sends no gradient to the bottleneck"

    def rebuild(self, h, ids, attention):
        keys = torch.cat([h.unsqueeze(1), self.backbone.embed(ids)[:, 1:]], 1)
        visible = attention.clone()
        visible[:, 0] = False
        return self.head(keys, keys, visible.unsqueeze(1))


class DecoderReadsTheMeanOfTokens(Autoencoder):
    fault = "the loss 'decoder' sends no gradient to the bottleneck"

    def losses(self, clean, attention, encoder, decoder):
        hidden, _ = self.encode(encoder[0], attention)
        mean = (hidden * attention.unsqueeze(2)).sum(1) / attention.sum(1, keepdim=True)
        rebuilt = self.rebuild(mean, decoder[0], attention)
        return {
            "encoder": self.mlm_loss("encoder", hidden, encoder[1]),
            "decoder": self.mlm_loss("decoder", rebuilt, decoder[1]),
        }


class ContrastsItsOwnMean(Contriever):
    fault = "no loss sends a gradient to the bottleneck"

    def encode(self, ids, attention):
        hidden, _ = super().encode(ids, attention)
        return hidden, (hidden * attention.unsqueeze(2)).sum(1) / attention.sum(1, keepdim=True)


# --- random choices that a resumed run makes otherwise


class DrawsInLosses(Autoencoder):
    fault = r"losses\(\) draws from torch's generator"

    def rebuild(self, h, ids, attention):
        return super().rebuild(h + 0.1 * torch.randn_like(h), ids, attention)


class DrawsByNumpy(Autoencoder):
    fault = r"make_views\(\) draws from numpy's random"

    def make_views(self, batch):
        self.rate = float(np.random.uniform(0.3, 0.5))
        return super().make_views(batch)


class DrawsByNumpyInLosses(Autoencoder):
    fault = r"losses\(\) draws from numpy's random"

    def rebuild(self, h, ids, attention):
        return super().rebuild(h * float(np.random.rand()), ids, attention)


class DrawsByPythonsRandomInCollate(Autoencoder):
    fault = r"collate\(\) draws from Python's random"

    def collate(self, rows):
        return super().collate(random.sample(rows, len(rows)))


class DrawsByTorchInCollate(Autoencoder):
    fault = r"collate\(\) draws from torch's generator"

    def collate(self, rows):
        return super().collate([rows[n] for n in torch.randperm(len(rows))])


class DrawsByAGeneratorOfItsOwn(Autoencoder):
    fault = r"make_views\(\) returns other views for the same seed"

    def __init__(self, backbone):
        super().__init__(backbone)
        self.generator = np.random.default_rng(0)

    def make_views(self, batch):
        self.rate = float(self.generator.uniform(0.1, 0.9))
        return super().make_views(batch)


class DrawsByAnUnseededGeneratorInLosses(Autoencoder):
    fault = (
        r"losses\(\) returns other values of decoder for the same seed of torch's generator: "
        r"it draws from another"
    )

    def rebuild(self, h, ids, attention):
        return super().rebuild(h * float(np.random.default_rng().uniform()), ids, attention)


# --- padding


class EncoderAttendsToPadding(Autoencoder):
    fault = "padding changes the loss encoder and the bottleneck"

    def encode(self, ids, attention):
        return super().encode(ids, torch.ones_like(attention))


class DecoderAttendsToPadding(Autoencoder):
    fault = "padding changes the loss decoder;"

    def rebuild(self, h, ids, attention):
        return super().rebuild(h, ids, torch.ones_like(attention))


class AveragesOverPadding(Contriever):
    fault = "padding changes the loss contrastive"

    def encode(self, ids, attention):
        hidden, h = super().encode(ids, attention)
        return hidden, h + hidden.mean(1)


class AsksForPadding(Autoencoder):
    fault = "padding changes the loss decoder;"

    def make_views(self, batch):
        drawn = super().make_views(batch)
        ids, labels = drawn["decoder"]
        return drawn | {"decoder": (ids, torch.where(drawn["attention"], labels, ids))}


# --- state that a checkpoint does not keep


class AnnealedByAnAttribute(Autoencoder):
    fault = r"a resumed run would have other losses.* self\.steps must be a registered buffer"

    def __init__(self, backbone):
        super().__init__(backbone)
        self.steps = 0

    def make_views(self, batch):
        self.rate = min(0.7, 0.3 + self.steps / 100_000)
        self.steps += 1
        return super().make_views(batch)


class QueueInAnAttribute(Momentum):
    fault = (
        r"losses\(\) returns other values of contrastive .* state that checkpoints do not keep "
        r"\(it changed self\.queue\)"
    )

    def __init__(self, backbone):
        super().__init__(backbone)
        queue = self.queue
        del self.queue
        self.queue = queue

    def remember(self, vectors):
        self.queue = torch.cat([vectors, self.queue])[: len(self.queue)]


class QueueInABufferThatIsNotKept(Momentum):
    fault = (
        r"losses\(\) returns other values of contrastive .* state that checkpoints do not keep "
        r"\(it changed self\.queue\)"
    )

    def __init__(self, backbone):
        super().__init__(backbone)
        self.register_buffer("queue", self.queue, persistent=False)


class WarmsUpByAnAttribute(Autoencoder):
    fault = r"a resumed run would have other losses.* self\.steps must be a registered buffer"

    def __init__(self, backbone):
        super().__init__(backbone)
        self.steps = 0

    def losses(self, **views):
        found = super().losses(**views)
        self.steps += self.training and torch.is_grad_enabled()
        return {name: loss * (2 if self.steps < 1000 else 1) for name, loss in found.items()}


# --- the rest of the contract


class ReadsAnUndeclaredColumn(Titled):
    fault = r"collate\(\) reads the column 'title', which the objective does not declare"
    columns = {}


class MayReadAnUndeclaredColumn(Autoencoder):
    fault = r"collate\(\) reads the column 'title', which the objective does not declare"

    def collate(self, rows):
        return self.tokenise([row.get("title") or row["text"] for row in rows], "passage")


class HasAPartThatNothingUses(Autoencoder):
    fault = r"parameters without a gradient: spare\.bias, spare\.weight"

    def __init__(self, backbone):
        super().__init__(backbone)
        self.spare = nn.Linear(3, 3)


class LosesALoss(Autoencoder):
    fault = r"losses\(\) returns \['encoder'\]; `weights` has \['decoder', 'encoder'\]"

    def losses(self, **views):
        return {"encoder": super().losses(**views)["encoder"]}


class IsNotFinite(Autoencoder):
    fault = "the loss encoder is nan"

    def losses(self, **views):
        return {name: loss * float("nan") for name, loss in super().losses(**views).items()}


class DoesNotLearn(Contriever):
    fault = "30 steps on one batch changed the sum of the losses from"

    def losses(self, ids, crops):
        return {name: loss * 1e-9 + 1 for name, loss in super().losses(ids, crops).items()}


class NoObjective(nn.Module):
    fault = "build returned NoObjective; expected a subclass of stzoo.Objective"

    def __init__(self, backbone):
        super().__init__()


FAULTY = [kind for kind in list(vars().values()) if isinstance(kind, type) and "fault" in vars(kind)]
