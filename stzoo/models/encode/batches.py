"""What a model reads: texts tokenised once, a window at a time, and padded in batches of like length."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers.sentence_transformer.modules import Router, Transformer
from transformers import PreTrainedTokenizerBase

from stzoo.models.limits import DOCUMENT_NAMES

Batch = tuple[list[int], dict[str, Any]]  # rows, and what the model takes

WINDOW_TEXTS, WINDOW_TOKENS = 16384, 2**22  # whichever is reached first; 50 MB of int32 in three columns
TOKENISED_AT_ONCE = 256
PROMPTS = {"query": ("query",), "document": DOCUMENT_NAMES}  # the first that a model has
NOTED_TEXTS, NOTED_CHARACTERS = 256, 10_000  # of a sample, to see whether the tokenizer knows its words
USUAL = {name for names in PROMPTS.values() for name in names}  # names of prompts that are no task's


def prompt_of(model: Any, role: str | None, task: str = "") -> str | None:
    """The prompt that the model puts before texts of that role, as sentence-transformers chooses it.

    Of queries it is the prompt named `task`, if the model has one of that name. Loading a model puts a prompt
    that it declares as "passage" or "corpus" under "document" (`limits.prepare`).
    """
    if role == "query" and task in model.prompts:
        return model.prompts[task]
    names = PROMPTS[role] if role else ()
    name = next((name for name in names if name in model.prompts), model.default_prompt_name)
    return model.prompts.get(name)


def reader(model: Any, role: str | None) -> Any:
    """The Transformer that reads the texts, if they can be tokenised ahead of padding; else None."""
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
    """What keeps a model from telling texts apart, in sentences for the user.

    Args:
        model: a SentenceTransformer; one without a tokenizer of transformers gives no notes.
        texts: of which a sample is tokenized.
        what: they are called, e.g. "queries".
        prompt: put before each text.
        max_tokens: texts are cut there, with their prompt and special tokens; None for no limit.
    """
    tokenizer = getattr(model, "tokenizer", None)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return []
    notes = []
    prompt = prompt or ""
    taken = len(tokenizer(prompt, verbose=False)["input_ids"]) if prompt else 0
    if max_tokens is not None and taken >= max_tokens:
        shown = prompt if len(prompt) <= 60 else f"{prompt[:57]}..."
        notes.append(
            f"The prompt {shown!r} has {taken} tokens with the special ones, and the {what} are cut at "
            f"{max_tokens}: nothing of their texts is read. Use a shorter prompt or a higher limit."
        )
    sample = [texts[place] for place in range(0, len(texts), max(1, len(texts) // NOTED_TEXTS))]
    kept = [text[:NOTED_CHARACTERS] for text in sample]
    rows = tokenizer(kept, add_special_tokens=False, verbose=False)["input_ids"] if kept else []
    total = sum(map(len, rows))
    unknown = sum(row.count(tokenizer.unk_token_id) for row in rows)
    if 2 * unknown > total:
        notes.append(
            f"{unknown / total:.0%} of the tokens of the {what} are {tokenizer.unk_token}: their words or "
            "script are not in the vocabulary, so the model cannot tell such texts apart. Use a model "
            "of their language."
        )
    return notes


def batches_of(
    model: Any, transformer: Any, texts: Sequence[Any], role: str | None, batch_tokens: int, task: str = ""
) -> Iterator[Batch]:
    """Padded inputs of the model and the rows they belong to, each window's longest first.

    The texts are strings, or pairs of them, which have no role.
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
    """int64 [rows, longest] tensors, as the tokenizer's own pad gives them some fifty times slower."""
    # Tokenizers without [CLS] give an empty text no token, but no model takes a batch of width 0.
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
    """Rows in batches of at most `batch_tokens` (or one row), the longest first."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    start = 0
    while start < len(order):
        rows = max(1, batch_tokens // max(1, lengths[order[start]]))
        yield order[start : start + rows]
        start += rows
