"""Samples texts from a language model, several for each passage, in batches.

Reading a passage costs more than writing a query of a dozen words. So the part of the prompt that all
passages share is read once per model, each passage once for all its queries, and the style of a query comes
last. Queries that are finished leave the batch.

Unlike `generate` of transformers, which reads the whole prompt again for each of several queries, carries
finished ones to the end of the batch, and draws from one generator for the whole batch. Here each query has
random numbers of its own.
"""

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

COMPACT = 0.75  # share of unfinished texts below which the finished ones leave the batch


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: Divides the logits; 0 takes the most likely token.
        top_k: Number of the most likely tokens to choose from.
        top_p: Probability of the tokens to choose from, among those.
        max_new_tokens: Most tokens of a text.
    """

    temperature: float = 0.7
    top_k: int = 50
    top_p: float = 0.9
    max_new_tokens: int = 32


class Causal:
    """Continues prompts of three pieces: a prefix of all, a passage, and the style of a query.

    Args:
        model: Causal language model of transformers.
        prefix: Token ids that all prompts begin with; at least one.
        stop: Token ids that end a text.
    """

    def __init__(self, model: Any, prefix: Sequence[int], stop: Collection[int]):
        self._model, self._stop = model, sorted(stop)
        self._prefix = len(prefix)
        self._cache = DynamicCache()
        with torch.inference_mode():
            self._run(torch.tensor([prefix], device=model.device), torch.ones(1, len(prefix)), self._cache)

    def sample(
        self,
        passages: Sequence[Sequence[int]],
        styles: Sequence[Sequence[Sequence[int]]],
        seeds: Sequence[int],
        sampling: Sampling,
    ) -> list[list[tuple[list[int], bool]]]:
        """Samples a text for each style of each passage.

        Args:
            passages: Token ids of N passages.
            styles: The token ids of S styles for each passage.
            seeds: A seed for each passage.
            sampling: How tokens are chosen.

        Returns:
            For each passage, S pairs of the token ids and True if the text has ended.
        """
        device, number = self._model.device, len(styles[0])
        with torch.inference_mode():
            cache = copy.deepcopy(self._cache)
            cache.batch_repeat_interleave(len(passages))
            ids, mask = left_padded(passages, device)
            mask = torch.cat([mask.new_ones(len(mask), self._prefix), mask], dim=1)
            self._run(ids, mask, cache)
            cache.batch_repeat_interleave(number)
            ids, last = left_padded([style for row in styles for style in row], device)
            mask = torch.cat([mask.repeat_interleave(number, 0), last], dim=1)
            logits = self._run(ids, mask, cache)

            def step(tokens: Tensor, kept: Tensor | None) -> Tensor:
                nonlocal mask
                if kept is not None:
                    cache.batch_select_indices(kept)
                    mask = mask[kept]
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
                return self._run(tokens[:, None], mask, cache)

            texts = decode(step, logits, draws(seeds, number, sampling), self._stop, sampling)
        return [texts[first : first + number] for first in range(0, len(texts), number)]

    def _run(self, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        """The logits after the last token of each row [B, V]."""
        places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :].long()
        out = self._model(
            input_ids=ids,
            attention_mask=mask.to(ids.device).long(),
            position_ids=places.to(ids.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1]


class Seq2Seq:
    """Writes texts from passages; see `Causal`.

    Args:
        model: Encoder-decoder of transformers.
        start: Token id that a text begins with.
        stop: Token ids that end a text.
    """

    def __init__(self, model: Any, start: int, stop: Collection[int]):
        self._model, self._start, self._stop = model, start, sorted(stop)

    def sample(
        self,
        passages: Sequence[Sequence[int]],
        styles: Sequence[Sequence[Sequence[int]]],
        seeds: Sequence[int],
        sampling: Sampling,
    ) -> list[list[tuple[list[int], bool]]]:
        """Samples a text for each style of each passage; the styles are only counted. See `Causal`."""
        device, number = self._model.device, len(styles[0])
        with torch.inference_mode():
            ids, mask = left_padded(passages, device, right=True)
            states = self._model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
            states, mask = states.repeat_interleave(number, 0), mask.repeat_interleave(number, 0)
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

            def step(tokens: Tensor, kept: Tensor | None) -> Tensor:
                nonlocal states, mask
                if kept is not None:
                    cache.batch_select_indices(kept)
                    states, mask = states[kept], mask[kept]
                out = self._model(
                    encoder_outputs=BaseModelOutput(last_hidden_state=states),
                    attention_mask=mask,
                    decoder_input_ids=tokens[:, None],
                    past_key_values=cache,
                    use_cache=True,
                )
                return out.logits[:, -1]

            logits = step(torch.full((len(states),), self._start, device=device), None)
            texts = decode(step, logits, draws(seeds, number, sampling), self._stop, sampling)
        return [texts[first : first + number] for first in range(0, len(texts), number)]


def draws(seeds: Sequence[int], number: int, sampling: Sampling) -> np.ndarray:
    """The random numbers of each text, float64 [len(seeds) * number, max_new_tokens], in [0, 1)."""
    shape = number, sampling.max_new_tokens
    return np.concatenate([np.random.default_rng(seed).random(shape) for seed in seeds])


def decode(
    step: Callable[[Tensor, Tensor | None], Tensor],
    logits: Tensor,
    random: np.ndarray,
    stop: Sequence[int],
    sampling: Sampling,
) -> list[tuple[list[int], bool]]:
    """Chooses tokens until each text has ended.

    Args:
        step: Gives the next logits [B, V] for the chosen tokens [B]; before that, it keeps only the rows of
            the second argument, if there is one.
        logits: The first logits, [B, V].
        random: Random numbers in [0, 1), float64 [B, max_new_tokens].
        stop: Token ids that end a text. A text does not begin with one.
        sampling: How tokens are chosen.

    Returns:
        For each text, its token ids without the last, stopping one, and True if it has ended.
    """
    texts: list[list[int]] = [[] for _ in range(len(logits))]
    ended = [False] * len(texts)
    rows = list(range(len(texts)))  # of the batch
    uniform = torch.from_numpy(random)
    for place in range(sampling.max_new_tokens):
        if place == 0:
            logits = logits.index_fill(1, torch.tensor(stop, device=logits.device), -torch.inf)
        tokens = choose(logits, uniform[rows, place], sampling)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if token in stop:
                ended[row] = True
            elif not ended[row]:
                texts[row].append(token)
        open_rows = [at for at, row in enumerate(rows) if not ended[row]]
        if not open_rows or place + 1 == sampling.max_new_tokens:
            break
        kept = None
        if len(open_rows) <= COMPACT * len(rows):
            kept = torch.tensor(open_rows, device=tokens.device)
            rows, tokens = [rows[at] for at in open_rows], tokens[kept]
        logits = step(tokens, kept)
    return list(zip(texts, ended, strict=True))


def choose(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """Chooses a token for each row: int64 [B].

    Args:
        logits: [B, V].
        uniform: A number in [0, 1) for each row, float64 [B].
        sampling: How to choose.
    """
    best, ids = logits.topk(min(sampling.top_k, logits.shape[1]), dim=1)  # best first
    if not sampling.temperature:
        return ids[:, 0]
    chances = torch.softmax(best.double() / sampling.temperature, dim=1)
    before = chances.cumsum(1) - chances  # probability of the better tokens
    chances = chances.masked_fill(before >= sampling.top_p, 0)
    reached = chances.cumsum(1)
    at = (reached <= uniform.to(reached.device)[:, None] * reached[:, -1:]).sum(1)
    last = (chances > 0).sum(1) - 1
    return ids.gather(1, torch.minimum(at, last)[:, None])[:, 0]


def left_padded(rows: Sequence[Sequence[int]], device: Any, *, right: bool = False) -> tuple[Tensor, Tensor]:
    """Token ids of equal length, padded with 0, and their mask: int64 [B, L] each."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for at, row in enumerate(rows):
        place = slice(0, len(row)) if right else slice(longest - len(row), longest)
        ids[at, place], mask[at, place] = torch.tensor(row, dtype=torch.long), 1
    return ids.to(device), mask.to(device)
