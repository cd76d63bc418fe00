"""Batches for a model: texts tokenised in windows, and padded in batches of similar length."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers.sentence_transformer.modules import Router, Transformer
from transformers import PreTrainedTokenizerBase

from stzoo.models.limits import DOCUMENT_NAMES

Batch = tuple[list[int], dict[str, Any]]  # row numbers, and the model's input

WINDOW_TEXTS, WINDOW_TOKENS = 16384, 2**22  # whichever is reached first; 50 MB of int32 in three columns
TOKENISED_AT_ONCE = 256
PROMPTS = {"query": ("query",), "document": DOCUMENT_NAMES}  # the first that a model has is used
# size of a sample, to check whether the tokenizer knows the words
NOTED_TEXTS, NOTED_CHARACTERS = 256, 10_000
# names of prompts that do not belong to a task
USUAL = {name for names in PROMPTS.values() for name in names}


def prompt_of(model: Any, role: str | None, task: str = "") -> str | None:
    """The prompt that a model puts before texts of a role, chosen as in sentence-transformers.

    For queries it is the prompt named `task`, if the model has one. When a model is loaded, a prompt declared
    as "passage" or "corpus" is stored as "document" (`limits.prepare`).
    """
    if role == "query" and task in model.prompts:
        return model.prompts[task]
    names = PROMPTS[role] if role else ()
    name = next((name for name in names if name in model.prompts), model.default_prompt_name)
    return model.prompts.get(name)


def reader(model: Any, role: str | None) -> Any:
    """The Transformer that reads the texts, if these can be tokenised without padding; else None."""
    first = model[0]
    if isinstance(first, Router):
        if role is None or first.route_mappings or role not in first.sub_modules:
            return None
        first = next(iter(first.sub_modules[role].children()))
    plain = (
        isinstance(first, Transformer)
        and isinstance(first.processor, PreTrainedTokenizerBase)
        and "message" not in first.modality_config  # chat templates
        and not first.can_flatten_inputs
        and not first.processing_kwargs
        and first.processor.pad_token_id is not None
        and (role != "query" or first.query_expansion is None)
    )
    return first if plain else None


def reading_notes(
    model: Any,
    texts: Sequence[str],
    what: str,
    *,
    prompt: str | None = None,
    max_tokens: float | None = None,
) -> list[str]:
    """Notes for the user on texts that the model cannot distinguish.

    Args:
        model: A SentenceTransformer; without a transformers tokenizer there are no notes.
        texts: Texts, a sample of which is tokenised.
        what: Name of the texts in the notes, e.g. "queries".
        prompt: Prompt before each text.
        max_tokens: Number of tokens, including the prompt and special tokens, to which texts are truncated;
            None for no limit.
    """
    tokenizer = getattr(model, "tokenizer", None)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return []
    notes = []
    prompt = prompt or ""
    length = len(tokenizer(prompt, verbose=False)["input_ids"]) if prompt else 0
    if max_tokens is not None and length >= max_tokens:
        shown = prompt if len(prompt) <= 60 else f"{prompt[:57]}..."
        notes.append(
            f"The prompt {shown!r} has {length} tokens, special tokens included, and the {what} are "
            f"truncated to {max_tokens}, so their texts are not read. Use a shorter prompt or a higher limit."
        )
    sample = [texts[place] for place in range(0, len(texts), max(1, len(texts) // NOTED_TEXTS))]
    starts = [text[:NOTED_CHARACTERS] for text in sample]
    rows = tokenizer(starts, add_special_tokens=False, verbose=False)["input_ids"] if starts else []
    total = sum(map(len, rows))
    unknown = sum(row.count(tokenizer.unk_token_id) for row in rows)
    if 2 * unknown > total:
        notes.append(
            f"{unknown / total:.0%} of the tokens of the {what} are {tokenizer.unk_token}: their words or "
            "script are not in the vocabulary, so the model cannot distinguish the texts. Use a model for "
            "their language."
        )
    return notes


def batches_of(
    model: Any, transformer: Any, texts: Sequence[Any], role: str | None, batch_tokens: int, task: str = ""
) -> Iterator[Batch]:
    """Yields row numbers with the padded input of the model, the longest texts of each window first.

    Texts are strings, or pairs of strings without a role.
    """
    options = {"text": {"padding": False}, "common": {"return_tensors": None}}
    prompt = prompt_of(model, role, task)
    columns: dict[str, list[np.ndarray]] = {}
    first = tokens = 0
    for start in range(0, len(texts), TOKENISED_AT_ONCE):
        chunk = list(texts[start : start + TOKENISED_AT_ONCE])
        features = model.preprocess(chunk, prompt=prompt, task=role, processing_kwargs=options)
        names = [name for name, value in features.items() if isinstance(value, list)]
        for name in names:  # a Python list takes nine times the memory
            columns.setdefault(name, []).extend(np.array(row, np.int32) for row in features[name])
        tokens += sum(map(len, features["input_ids"]))
        end = start + len(chunk)
        if end == len(texts) or end - first >= WINDOW_TEXTS or tokens >= WINDOW_TOKENS:
            extras = {name: value for name, value in features.items() if name not in names}
            for rows in _cut([len(ids) for ids in columns["input_ids"]], batch_tokens):
                padded = _pad(columns, rows, transformer.tokenizer)
                yield [first + row for row in rows], {**padded, **extras}
            columns, first, tokens = {}, end, 0


def _pad(columns: dict[str, list[Any]], rows: list[int], tokenizer: Any) -> dict[str, Any]:
    """Pads to int64 [rows, longest], some fifty times faster than the tokenizer's own pad."""
    # Tokenizers without [CLS] return no token for an empty text, but models need a batch of width 1 or more.
    width = max(1, *(len(columns["input_ids"][row]) for row in rows))
    fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    padded = {name: np.full((len(rows), width), fill.get(name, 0)) for name in columns}
    for name, column in columns.items():
        for line, row in zip(padded[name], rows, strict=True):
            values = column[row]
            start = width - len(values) if tokenizer.padding_side == "left" else 0
            line[start : start + len(values)] = values
    return {name: torch.from_numpy(block) for name, block in padded.items()}


def _cut(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Cuts rows into batches of at most `batch_tokens` (or one row), longest first."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    start = 0
    while start < len(order):
        rows = max(1, batch_tokens // max(1, lengths[order[start]]))
        yield order[start : start + rows]
        start += rows
