"""MASTER: five decoders that read one bottleneck, so that one vector must serve five tasks.

The algorithm (Zhou et al., 2022, https://arxiv.org/abs/2212.07841):

1. mask 30 % of the passage's tokens and encode it; with its vector h, three decoders predict masked words:
   the keywords of the passage (the loss `passage`), words of queries that it answers (`query`), and words of
   a continuation by a language model (`continuation`);
2. encode the first half of the passage; with its vector, a decoder predicts the keywords of the second half
   (`neighbour`);
3. mask half of the passage and encode it; with its vector, a decoder predicts the other half (`complement`).

In each pass the encoder also predicts its own masked tokens (`encoder`, `encoder-neighbour`,
`encoder-complement`). TASKS lists the tasks as data; MASTER.losses is one loop over it.

Reading order: TASKS, MASTER.losses, MASTER.make_views. words.py defines keywords; prepare.py makes queries,
continuations and neighbours. The hooks are in plugin.py.

Source: https://github.com/microsoft/SimXNS at 0163380, MASTER/pretrain; tests/parity compares losses and
gradients with that code.

Unlike:
    - Masks and windows are drawn on the device from torch's generator, not in the collator.
    - The joined queries of a passage end in one [SEP]. In the source each query has one and the tokenizer
      adds another, so the last two tokens are [SEP], one of which counts towards the budget of masked tokens.
    - Every view is padded to its longest row; the source pads everything, halves too, to 128 tokens.
    - Passages and continuations longer than `max_tokens` are truncated; the source draws a random window, as
      is done here for the queries.
    - Decoders are initialised like BERT; in the source, by torch's defaults.
    - A corpus may contain real neighbours, as in the paper's figure; the source has the halves only.
    - The bottleneck is the output of the model's pooling, and any masked LM can be the base (see RetroMAE).
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
    """A task of one decoder.

    Attributes:
        name: Name of the decoder and of its loss.
        encoder: Encoder pass whose bottleneck the decoder reads; also the name of that pass's own loss.
        view: Text whose words the decoder predicts.
        hiding: How its tokens are masked: "keywords", "words" (random words), or "complement" (the tokens
            that the encoder saw).
        column: Column of the corpus that the task requires; "" if it needs none.
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


class Text(NamedTuple):
    """A text without masks: ids int64 [B, T], words int64 [B, T] (-1: no word), attention bool [B, T]."""

    ids: Tensor
    words: Tensor
    attention: Tensor


class View(NamedTuple):
    """A masked text: ids int64 [B, T], labels int64 [B, T] (-100: not masked), attention bool [B, T]."""

    ids: Tensor
    labels: Tensor
    attention: Tensor


class MASTER(Objective):
    """Predicts masked words in five tasks, each with its own decoder, from the encoder's vector.

    Args:
        backbone: The encoder with its embeddings, MLM head and pooling.
        tasks: Names of tasks in TASKS; None for all tasks that the corpus has the columns for.
        encoder_rate: Share of the tokens masked for the encoder, 0..1.
        complement_rate: Share of the tokens masked for the encoder in the complement task, 0..1. The decoder
            predicts the others.
        decoder_rate: Share of the tokens masked for the other decoders, 0..1.
        layers: Number of layers of each decoder.
        neighbours: True to predict a random neighbour (column `neighbours`) from the whole passage, and to
            halve only the passages without one. False to halve every passage. None for True if the corpus has
            any neighbours.
        frequencies: Path to a Parquet table of word frequencies, which define the keywords. None for the
            table in the folder of the corpus (`frequencies/words.parquet`), or else to count the words of the
            corpus.

    Raises:
        RecipeError: If a rate is out of range, or no task is left.
        UnknownNameError: If a task is unknown.
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
        self.requested, self.neighbours, self.frequencies = tasks, neighbours, frequencies
        self.encoder_rate, self.decoder_rate = encoder_rate, decoder_rate
        self.complement_rate = complement_rate
        # all words have the same weight until `configure_for`
        self.keywords = WordWeights([], [], backbone.tokenizer)
        names = NAMES if tasks is None else tasks
        self.heads = nn.ModuleDict({name: self.decoder("stacked", layers=layers) for name in names})
        self._keep_tasks(names)
        needed = {task.column for task in self.tasks}
        if "neighbour" in names and neighbours is not False:
            needed.add("neighbours")
        self.columns = {name: kind for name, kind in self.columns.items() if name in needed}

    def _keep_tasks(self, names: list[str]) -> None:
        """Keeps these tasks and the encoder passes that they read, and drops all others."""
        self.tasks = [task for task in TASKS if task.name in names]
        if not self.tasks:
            raise RecipeError(f"no task of MASTER is left; expected at least one of {', '.join(NAMES)}.")
        losses = {task.name for task in self.tasks} | {task.encoder for task in self.tasks}
        self.weights = {name: weight for name, weight in self.weights.items() if name in losses}
        self.heads = nn.ModuleDict({task.name: self.heads[task.name] for task in self.tasks})

    def configure_for(self, corpus: Any) -> list[str]:
        """Drops the tasks whose column the corpus lacks, and reads or counts its word frequencies.

        Raises:
            DataError: If the options ask for a task or for neighbours whose column the corpus lacks, or the
                table of frequencies is invalid.
            RecipeError: If no task is left, or all remaining losses have the weight 0.
        """
        columns = corpus.rows.column_names
        lacking = [task for task in self.tasks if task.column and task.column not in columns]
        missing = [f"task {task.name}: {task.column}" for task in lacking if self.requested is not None]
        if self.neighbours and "neighbours" not in columns:
            missing.append("neighbours=true: neighbours")
        if missing:
            raise DataError(
                f"the options need columns that {', '.join(corpus.sources)} does not have "
                f"({'; '.join(missing)}); its columns are {', '.join(columns)}. Make them with "
                "`stzoo prepare master`, or leave out these options."
            )
        self._keep_tasks([task.name for task in self.tasks if task not in lacking])
        if not any(self.weights.values()):
            raise RecipeError(
                f"all remaining losses have the weight 0: {', '.join(self.weights)}; set one above 0."
            )
        if self.neighbours is None:
            self.neighbours = "neighbours" in columns
        names = {task.name for task in self.tasks}
        notes = [f"No task {task.name}: the corpus has no column {task.column}." for task in lacking]
        if "neighbour" in names:
            source = "those in the corpus" if self.neighbours else "the halves of each passage"
            notes.append(f"Neighbours are {source}.")
        if any(task.hiding == "keywords" for task in self.tasks):
            words, counts, source = frequencies(corpus, self.backbone.tokenizer, self.frequencies)
            self.keywords = WordWeights(words, counts, self.backbone.tokenizer)
            notes.append(f"Keywords are defined by the frequencies of {len(words)} words {source}.")
        return notes

    def texts(self, row: dict[str, Any]) -> dict[str, str | list[str]]:
        """The passage and the other texts that the tasks read.

        Returns:
            The texts of the views "passage"; "query", the queries of a passage joined by the separator;
            "continuation"; and "related", the list of the passage's neighbours. Only the views that the tasks
            read are included.
        """
        names = {task.name for task in self.tasks}
        texts: dict[str, str | list[str]] = {"passage": row["text"]}
        if "query" in names:
            # no space before it: byte-level and Unigram tokenizers would turn that into a word
            texts["query"] = f"{self.backbone.tokenizer.sep_token} ".join(row.get("queries") or ())
        if "continuation" in names:
            texts["continuation"] = row.get("continuation") or row["text"]
        if "neighbour" in names and self.neighbours:
            texts["related"] = row.get("neighbours") or []
        return texts

    def token_limit(self, view: str) -> int:
        """The encoder's limit, and four times as many tokens for the queries, of which a window is drawn."""
        return (4 if view == "query" else 1) * self.backbone.max_tokens

    def make_views(self, batch: dict[str, dict[str, Tensor]]) -> dict[str, View]:
        """Masks the texts of the encoder passes and of the decoders; each view has the name of its loss."""
        texts = {
            name: Text(view["input_ids"], view["words"], view["attention_mask"].bool())
            for name, view in batch.items()
        }
        passage = texts["passage"]
        views = {"encoder": self._mask(passage, self.encoder_rate)}
        masked = hide_words(passage.words, _body(passage.attention), self.complement_rate)
        views["encoder-complement"] = self._view(passage, masked)
        for task in self.tasks:
            if task.column:
                texts[task.view] = self._window(texts[task.view])
            elif task.name == "neighbour":
                source, texts[task.view] = self._neighbours(passage, texts.get("related"))
                views[task.encoder] = self._mask(source, self.encoder_rate)
        for task in self.tasks:
            text = texts[task.view]
            if task.hiding == "complement":
                views[task.name] = self._view(text, (text.words >= 0) & ~masked)
            elif task.hiding == "keywords":
                weights = self.keywords(text.ids, text.words)
                views[task.name] = self._view(text, hide_keywords(text.words, self.decoder_rate, weights))
            else:
                views[task.name] = self._mask(text, self.decoder_rate)
        return views

    def losses(self, **views: View) -> dict[str, Tensor]:
        """Computes up to eight losses, float scalars in nats; losses with the weight 0 are skipped.

        Args:
            views: Views by the name of their loss, as `make_views` returns them.
        """
        labelled, bottlenecks = {}, {}
        tasks = [task for task in self.tasks if self.weights[task.name]]
        needed = {task.encoder for task in tasks}
        for name in ENCODERS:
            if name in needed or self.weights.get(name):
                view = views[name]
                hidden, bottlenecks[name] = self.encode(view.ids, view.attention)
                if self.weights[name]:
                    labelled[name] = hidden, view.labels
        for task in tasks:
            rebuilt = self.rebuild(task.name, bottlenecks[task.encoder], views[task.name])
            labelled[task.name] = rebuilt, views[task.name].labels
        return self.mlm_losses(labelled)

    def rebuild(self, name: str, h: Tensor, view: View) -> Tensor:
        """Decodes [h, e_1+p_1, ..., e_N+p_N] with the decoder of a task: float [B, T, H].

        Args:
            name: Name of the task.
            h: float [B, H], the bottleneck.
            view: The masked text.
        """
        embedded = self.backbone.embed(view.ids)
        sequence = torch.cat([h.unsqueeze(1).to(embedded.dtype), embedded[:, 1:]], dim=1)
        rebuilt: Tensor = self.heads[name](sequence, sequence, view.attention.unsqueeze(1))
        return rebuilt

    def _view(self, text: Text, masked: Tensor) -> View:
        tokenizer = self.backbone.tokenizer
        return View(*corrupt(text.ids, masked, tokenizer.mask_token_id, len(tokenizer)), text.attention)

    def _mask(self, text: Text, rate: float) -> View:
        return self._view(text, hide_words(text.words, _body(text.attention), rate))

    def _window(self, text: Text) -> Text:
        """A random window of a text, as long as the encoder can read."""
        limit = self.backbone.max_tokens
        tokens = text.attention.sum(1) - 2
        length = tokens.clamp(max=limit - 2)
        start = _random_below(tokens - length + 1)
        return self._span(text, start, length, min(text.ids.shape[1], limit))

    def _neighbours(self, passage: Text, related: Text | None) -> tuple[Text, Text]:
        """The text that the encoder reads, and the neighbour that is predicted from it."""
        tokens, width = passage.attention.sum(1) - 2, passage.ids.shape[1]
        half = tokens // 2
        half_width = (width - 2) // 2 + 2
        second = self._span(passage, half, tokens - half, width - half_width + 2)
        if related is None:
            return self._span(passage, torch.zeros_like(half), half, half_width), second
        has_words = (related.words >= 0).any(2)
        has_neighbour = has_words.any(1)
        choice = _random_below(has_words.sum(1).clamp(min=1)).view(-1, 1, 1)
        neighbour = Text(*(part.take_along_dim(choice, 1).squeeze(1) for part in related))
        length = torch.where(has_neighbour, tokens, half)
        source = self._span(passage, torch.zeros_like(half), length, width)
        width = max(neighbour.ids.shape[1], second.ids.shape[1])
        pairs = zip(self._widen(neighbour, width), self._widen(second, width), strict=True)
        return source, Text(*[torch.where(has_neighbour.unsqueeze(1), *pair) for pair in pairs])

    def _widen(self, text: Text, width: int) -> Text:
        padding = (0, width - text.ids.shape[1])
        ids = functional.pad(text.ids, padding, value=self.backbone.tokenizer.pad_token_id)
        words = functional.pad(text.words, padding, value=-1)
        return Text(ids, words, functional.pad(text.attention, padding))

    def _span(self, text: Text, start: Tensor, length: Tensor, width: int) -> Text:
        """Cuts a span out of each row, and keeps the special tokens at both ends.

        Args:
            text: Rows of a special token, n ordinary tokens, a special token and padding.
            start: int64 [B], number of ordinary tokens to skip.
            length: int64 [B], number of ordinary tokens to keep.
            width: Number of columns of the result.
        """
        column = torch.arange(width, device=start.device)
        start, length = start.unsqueeze(1), length.unsqueeze(1)
        last = text.attention.sum(1, keepdim=True) - 1
        index = torch.where(column > length, last, column + start * (column > 0))
        attention = column < length + 2
        ids = text.ids.gather(1, index).masked_fill(~attention, self.backbone.tokenizer.pad_token_id)
        return Text(ids, text.words.gather(1, index).masked_fill(~attention, -1), attention)


def _random_below(limit: Tensor) -> Tensor:
    """Draws integers from 0 to below those of an int64 tensor, as evenly as 2**31 allows."""
    # not rand() * limit, which float32 sometimes rounds up to `limit`
    return torch.randint(2**31 - 1, limit.shape, device=limit.device) % limit


def _body(attention: Tensor) -> Tensor:
    """Attention without two of its tokens, as masking budgets exclude the first and last token of a text."""
    return attention & (torch.arange(attention.shape[1], device=attention.device) > 1)
