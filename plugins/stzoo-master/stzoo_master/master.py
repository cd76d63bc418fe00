"""MASTER: five decoders behind one bottleneck, so that one vector must serve five ways of reading a passage.

The algorithm (Zhou et al., 2022, https://arxiv.org/abs/2212.07841):

1. hide 30 % of the passage's tokens and encode it; its vector h helps three decoders to find what is hidden
   from them: the passage's own keywords (the loss `passage`), words of queries that it answers (`query`),
   words of the text that a language model wrote after it (`continuation`);
2. encode the passage's first half; its vector helps to find the keywords of the second (`neighbour`);
3. hide half of the passage and encode it; its vector helps to find the other half (`complement`).

In each pass the encoder also finds what was hidden from itself (`encoder`, `encoder-neighbour`,
`encoder-complement`). TASKS says all of this as data; MASTER.losses is one loop over it.

Reading order: TASKS, MASTER.losses, MASTER.make_views. How a word becomes a keyword is in words.py;
how queries, continuations and neighbours are made, in prepare.py. The hooks are in
plugin.py.

Source: https://github.com/microsoft/SimXNS at 0163380, MASTER/pretrain. Losses and gradients are compared
with its own by tests/parity of stzoo.

Unlike:
    - Masks and windows are drawn on the device from torch's generator, not in the collator.
    - The joined queries of a passage end in one [SEP]. There each query brings one and the tokenizer adds
      another, so that the last two tokens are [SEP], one of which counts into the budget of hidden tokens.
    - Every view is as long as its longest row; there everything is padded to 128 tokens, halves too.
    - Passages and continuations too long for `max_tokens` lose their ends; there, as here for the queries, a
      window is drawn at random.
    - Decoders begin with BERT's initialisation; there with that of torch's layers.
    - A corpus may bring real neighbours, as the paper's figure has it; there the halves are all there is.
    - The bottleneck is whatever pooling the model has, and any masked LM will do (see stzoo_retromae.py).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from stzoo import Backbone, DataError, Objective, RecipeError, UnknownNameError
from stzoo.pretraining.masking import check_rates, corrupt, hide_keywords, hide_words
from stzoo_master.prepare import frequencies
from stzoo_master.words import WordWeights


class Task(NamedTuple):
    """What one decoder does.

    Attributes:
        name: of the decoder and of its loss.
        encoder: the pass whose bottleneck it reads; also the name of that pass's own loss.
        view: the text that it rebuilds.
        hiding: how tokens of it are hidden: "keywords", "words" (at random), or "complement" (just those that
            the encoder saw).
        column: of the corpus, without which there is no such task.
    """

    name: str
    encoder: str
    view: str
    hiding: str
    column: str = ""


TASKS = (
    Task("passage", "encoder", "passage", "keywords"),
    Task("query", "encoder", "query", "words", column="queries"),
    Task("continuation", "encoder", "continuation", "words", column="continuation"),
    Task("neighbour", "encoder-neighbour", "neighbour", "keywords"),
    Task("complement", "encoder-complement", "passage", "complement"),
)
NAMES = [task.name for task in TASKS]
ENCODERS = ("encoder", "encoder-neighbour", "encoder-complement")


class Read(NamedTuple):
    """A text as it is: ids int64 [B, T], words int64 [B, T] (-1: no word), attention bool [B, T]."""

    ids: Tensor
    words: Tensor
    attention: Tensor


class View(NamedTuple):
    """A corrupted text: ids int64 [B, T], labels int64 [B, T] (-100: not hidden), attention bool [B, T]."""

    ids: Tensor
    labels: Tensor
    attention: Tensor


class MASTER(Objective):
    """Finds five kinds of hidden words, each by a decoder of its own, from the encoder's vector.

    Args:
        backbone: the encoder taken apart.
        tasks: names of TASKS; None is every one that the corpus has the columns for.
        encoder_rate: share of the tokens hidden from the encoder, 0..1.
        complement_rate: the same in the pass whose complement is rebuilt; the decoder lacks the rest.
        decoder_rate: share of the tokens hidden from the other decoders, 0..1.
        layers: of each decoder.
        neighbours: True rebuilds a neighbour that the corpus brings (column `neighbours`), drawn anew each
            time, from the whole passage; a passage without one is halved. False halves every passage. None
            is True if the corpus brings any.
        frequencies: the Parquet file of word frequencies that tells keywords; None is the one in the folder
            of the corpus (`frequencies/words.parquet`), or else the words of the corpus are counted.

    Raises:
        RecipeError: if a task is unknown, or none is left, or a rate is out of range.
    """

    weights = {
        "encoder": 1.0,
        "encoder-neighbour": 1.0,
        "encoder-complement": 1.0,
        **{task.name: 1.0 for task in TASKS},
    }
    columns = {"queries": list[str], "continuation": str, "neighbours": list[str]}

    def __init__(
        self,
        backbone: Backbone,
        tasks: list[str] | None = None,
        encoder_rate: float = 0.3,
        complement_rate: float = 0.5,
        decoder_rate: float = 0.5,
        layers: int = 2,
        neighbours: bool | None = None,
        frequencies: str | None = None,
    ):
        super().__init__(backbone)
        for name in tasks or ():
            if name not in NAMES:
                raise UnknownNameError("task of MASTER", name, NAMES)
        check_rates(encoder_rate=encoder_rate, complement_rate=complement_rate, decoder_rate=decoder_rate)
        self.asked, self.neighbours, self.frequencies = tasks, neighbours, frequencies
        self.encoder_rate, self.complement_rate, self.decoder_rate = (
            encoder_rate,
            complement_rate,
            decoder_rate,
        )
        self.keywords = WordWeights(
            [], [], backbone.tokenizer
        )  # every word weighs the same, until `configure_for`
        names = NAMES if tasks is None else tasks
        self.heads = nn.ModuleDict({name: self.decoder("stacked", layers=layers) for name in names})
        self._keep(names)
        read = {task.column for task in self.tasks}
        if "neighbour" in names and neighbours is not False:
            read.add("neighbours")
        self.columns = {name: kind for name, kind in self.columns.items() if name in read}

    def _keep(self, names: list[str]) -> None:
        """Leaves all but these tasks, and the encoder passes that no task of them reads."""
        self.tasks = [task for task in TASKS if task.name in names]
        if not self.tasks:
            raise RecipeError(f"no task of MASTER is left; expected some of {', '.join(NAMES)}.")
        kept = {task.name for task in self.tasks} | {task.encoder for task in self.tasks}
        self.weights = {name: weight for name, weight in self.weights.items() if name in kept}
        self.heads = nn.ModuleDict({task.name: self.heads[task.name] for task in self.tasks})

    def configure_for(self, corpus: Any) -> list[str]:
        """Drops the tasks that the corpus has no column for, and finds or counts its word frequencies.

        Raises:
            DataError: if a task or neighbours were asked for and the column is not there, or the table of
                frequencies does not hold.
            RecipeError: if no task is left, or no loss that weighs anything.
        """
        brought = corpus.rows.column_names
        lacking = [task for task in self.tasks if task.column and task.column not in brought]
        wanting = [f"task {task.name}: {task.column}" for task in lacking if self.asked is not None]
        if self.neighbours and "neighbours" not in brought:
            wanting.append("neighbours=true: neighbours")
        if wanting:
            raise DataError(
                f"What was asked for reads columns that no row of {', '.join(corpus.sources)} fills "
                f"({'; '.join(wanting)}); it has {', '.join(brought)}. Make them by `stzoo prepare master`, "
                "or leave that out of the options."
            )
        self._keep([task.name for task in self.tasks if task not in lacking])
        if not any(self.weights.values()):
            raise RecipeError(f"all losses that are left weigh 0: {', '.join(self.weights)}.")
        if self.neighbours is None:
            self.neighbours = "neighbours" in brought
        kept = {task.name for task in self.tasks}
        notes = [f"No task {task.name}: the corpus brings no {task.column}." for task in lacking]
        if "neighbour" in kept:
            whose = "those that the corpus brings" if self.neighbours else "the halves of each passage"
            notes.append(f"Neighbours are {whose}.")
        if any(task.hiding == "keywords" for task in self.tasks):
            words, counts, whence = frequencies(corpus, self.backbone.tokenizer, self.frequencies)
            self.keywords = WordWeights(words, counts, self.backbone.tokenizer)
            notes.append(f"Keywords are told by {len(words)} words {whence}.")
        return notes

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Tokenises passages and what they bring; tensors as `Objective.collate` has them.

        Returns:
            "passage_…" [B, T]; "query_…" [B, T], the queries of a passage joined by the separator, up to four
            times `max_tokens` of them; "continuation_…" [B, T]; "related_…" [B, K, T], the neighbours of each
            passage first and then empty texts. Only what the tasks read.
        """
        names = {task.name for task in self.tasks}
        # without a space before it, which byte-level and Unigram tokenizers would make a word of
        separator = f"{self.backbone.tokenizer.sep_token} "
        batch = self.tokenise([row["text"] for row in rows], "passage")
        if "query" in names:
            texts = [separator.join(row.get("queries") or ()) for row in rows]
            batch |= self.tokenise(texts, "query", 4 * self.backbone.max_tokens)
        if "continuation" in names:
            batch |= self.tokenise([row.get("continuation") or row["text"] for row in rows], "continuation")
        if "neighbour" in names and self.neighbours:
            lists = [row.get("neighbours") or [] for row in rows]
            most = max(1, *map(len, lists))
            flat = self.tokenise(
                [text for texts in lists for text in texts + [""] * (most - len(texts))], "related"
            )
            batch |= {name: tensor.unflatten(0, (len(rows), most)) for name, tensor in flat.items()}
        return batch

    def make_views(self, batch: dict[str, dict[str, Tensor]]) -> dict[str, View]:
        """The views of the three encoder passes, by the names of their losses, and those of the decoders."""
        read = {
            name: Read(view["input_ids"], view["words"], view["attention_mask"].bool())
            for name, view in batch.items()
        }
        passage = read["passage"]
        drawn = {"encoder": self._hide(passage, self.encoder_rate)}
        hidden = hide_words(passage.words, _body(passage.attention), self.complement_rate)
        drawn["encoder-complement"] = self._view(passage, hidden)
        texts = {"passage": passage}
        for task in self.tasks:
            if task.column:
                texts[task.view] = self._window(read[task.view])
            elif task.name == "neighbour":
                source, texts[task.view] = self._neighbours(passage, read.get("related"))
                drawn[task.encoder] = self._hide(source, self.encoder_rate)
        for task in self.tasks:
            text = texts[task.view]
            if task.hiding == "complement":
                drawn[task.name] = self._view(text, (text.words >= 0) & ~hidden)
            elif task.hiding == "keywords":
                weights = self.keywords(text.ids, text.words)
                drawn[task.name] = self._view(text, hide_keywords(text.words, self.decoder_rate, weights))
            else:
                drawn[task.name] = self._hide(text, self.decoder_rate)
        return drawn

    def losses(self, **views: View) -> dict[str, Tensor]:
        """The eight losses or those that are left, float scalars in nats; one of weight 0 is not computed.

        Args:
            views: as `make_views` returns them.
        """
        found, bottlenecks = {}, {}
        tasks = [task for task in self.tasks if self.weights[task.name]]
        read = {task.encoder for task in tasks}
        for name in ENCODERS:
            if name in read or self.weights.get(name):
                view = views[name]
                hidden, bottlenecks[name] = self.encode(view.ids, view.attention)
                if self.weights[name]:
                    found[name] = self.mlm_loss(name, hidden, view.labels)
        for task in tasks:
            rebuilt = self.rebuild(task.name, bottlenecks[task.encoder], views[task.name])
            found[task.name] = self.mlm_loss(task.name, rebuilt, views[task.name].labels)
        return found

    def rebuild(self, name: str, h: Tensor, view: View) -> Tensor:
        """Decodes [h, e_1+p_1, ..., e_N+p_N] by the decoder of that name: float [B, T, H].

        Args:
            name: of the task.
            h: float [B, H], the bottleneck.
            view: what is left of the text.
        """
        embedded = self.backbone.embed(view.ids)
        sequence = torch.cat([h.unsqueeze(1).to(embedded.dtype), embedded[:, 1:]], dim=1)
        rebuilt: Tensor = self.heads[name](sequence, sequence, view.attention.unsqueeze(1))
        return rebuilt

    def _view(self, text: Read, hidden: Tensor) -> View:
        tokenizer = self.backbone.tokenizer
        return View(*corrupt(text.ids, hidden, tokenizer.mask_token_id, len(tokenizer)), text.attention)

    def _hide(self, text: Read, rate: float) -> View:
        return self._view(text, hide_words(text.words, _body(text.attention), rate))

    def _window(self, text: Read) -> Read:
        """As much of a text as the encoder may read, from a random place on."""
        most = self.backbone.max_tokens
        tokens = text.attention.sum(1) - 2
        length = tokens.clamp(max=most - 2)
        start = _below(tokens - length + 1)
        return self._span(text, start, length, min(text.ids.shape[1], most))

    def _neighbours(self, passage: Read, related: Read | None) -> tuple[Read, Read]:
        """What the encoder reads, and what is rebuilt from it."""
        tokens, width = passage.attention.sum(1) - 2, passage.ids.shape[1]
        half = tokens // 2
        narrow = (width - 2) // 2 + 2
        second = self._span(passage, half, tokens - half, width - narrow + 2)
        if related is None:
            return self._span(passage, torch.zeros_like(half), half, narrow), second
        filled = (related.words >= 0).any(2)
        some = filled.any(1)
        choice = _below(filled.sum(1).clamp(min=1)).view(-1, 1, 1)
        chosen = Read(*(part.take_along_dim(choice, 1).squeeze(1) for part in related))
        source = self._span(passage, torch.zeros_like(half), torch.where(some, tokens, half), width)
        wide = max(chosen.ids.shape[1], second.ids.shape[1])
        both = zip(self._widen(chosen, wide), self._widen(second, wide), strict=True)
        return source, Read(*[torch.where(some.unsqueeze(1), theirs, own) for theirs, own in both])

    def _widen(self, text: Read, width: int) -> Read:
        more = (0, width - text.ids.shape[1])
        ids = functional.pad(text.ids, more, value=self.backbone.tokenizer.pad_token_id)
        return Read(ids, functional.pad(text.words, more, value=-1), functional.pad(text.attention, more))

    def _span(self, text: Read, start: Tensor, length: Tensor, width: int) -> Read:
        """Some tokens of each row between its first and last, which are special ones.

        Args:
            text: each row a special token, n ordinary ones, a special token, padding.
            start: int64 [B], how many of the n to leave out at the front.
            length: int64 [B], how many to take.
            width: tokens of the result.
        """
        at = torch.arange(width, device=start.device)
        start, length = start.unsqueeze(1), length.unsqueeze(1)
        last = text.attention.sum(1, keepdim=True) - 1
        place = torch.where(at > length, last, at + start * (at > 0))
        attention = at < length + 2
        ids = text.ids.gather(1, place).masked_fill(~attention, self.backbone.tokenizer.pad_token_id)
        return Read(ids, text.words.gather(1, place).masked_fill(~attention, -1), attention)


def _below(most: Tensor) -> Tensor:
    """Whole numbers from 0 to below those of an int64 tensor, drawn as evenly as 2**31 allows."""
    # not rand() * most, which float32 rounds up to `most` now and then
    return torch.randint(2**31 - 1, most.shape, device=most.device) % most


def _body(attention: Tensor) -> Tensor:
    """Attention without two of its tokens: budgets here are of a text without its first and last token."""
    body = attention.clone()
    body[:, :2] = False
    return body
