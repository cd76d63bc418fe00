"""Checks, when a model is loaded, the limits of its positions, word embeddings and padding.

Limits are applied where possible, with a note to the user: texts are truncated to the number of positions,
and padded on the right if the pooling or the positions require it. Whatever would fail later, in the middle
of training or encoding, is a ModelError.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.modules import Module, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch.nn import Identity
from transformers import PreTrainedTokenizerBase

from stzoo.errors import ModelError, first_line, is_failure
from stzoo.utils.messages import notify

# learned positions, but not relative ones (T5, MPNet's bias, DeBERTa) or those of images
TABLES = re.compile(
    r"(?!.*(vision|visual|image|audio|pixel))(.*\.)?(position_embeddings?|embed_positions|wpe)"
)
DOCUMENT_NAMES = ("document", "passage", "corpus")  # names of prompts, in the order of sentence-transformers
SHORT, LONG = ["a"], ["a a a a a a a a a a a a"]
PADDING_READ = 0.05  # tolerance relative to the largest number; bfloat16 rounds to some 0.01
LARGE = 10**9  # from here on, tokenizers mean "no limit"


def prepare(model: Any, name: str) -> None:
    """Applies or checks the limits of a loaded model, and adopts its prompt for passages.

    Args:
        model: A SentenceTransformer or CrossEncoder.
        name: Folder or Hub id of the model, for messages.

    Raises:
        ModelError: If the tokenizer has ids without a word embedding or has no padding token, the maximum
            length leaves no room for text, a prompt is not a text, or the modules do not fit together.
    """
    for key, prompt in getattr(model, "prompts", {}).items():
        if not isinstance(key, str) or not isinstance(prompt, str):
            raise ModelError(
                f"{name} has the prompt {prompt!r} named {key!r}; expected text for both. Correct its "
                "config_sentence_transformers.json."
            )
    for module in transformers_of(model):
        _check_vocabulary(name, module.tokenizer, _word_embeddings(module.model))
        if module.tokenizer.pad_token_id is None:
            raise ModelError(
                f"the tokenizer of {name} has no padding token, which batches need. Set pad_token in "
                "tokenizer_config.json to a token of its vocabulary."
            )
        limit = module.max_seq_length
        if limit is not None and limit < shortest(module):
            raise ModelError(
                f"{name} has a max_seq_length of {limit}; expected {shortest(module)} or more, to leave room "
                "for text between the special tokens."
            )
        _cut(name, module)
        _pad_right(name, model, module)
        _mask_padding(name, module)
    for module in model.modules():
        if type(module).__name__ == "StaticEmbedding":
            _check_vocabulary(name, module.tokenizer, module.embedding)
    if hasattr(model, "encode_document"):
        _adopt_prompt(model, name)
    _try(model, name)


def transformers_of(model: Any) -> Iterator[Any]:
    """The Transformer modules with a transformers tokenizer, including those in routers."""
    for module in model.modules():
        if isinstance(module, Transformer) and isinstance(module.tokenizer, PreTrainedTokenizerBase):
            yield module


def positions(encoder: Any) -> int | None:
    """The number of tokens that a transformers model has learned positions for; None if it has none.

    RoBERTa, XLM-R and MPNet leave the rows up to that of the padding token unused, BART and OPT the first
    ones.
    """
    lengths = []
    for name, table in encoder.named_modules() if isinstance(encoder, torch.nn.Module) else ():
        if isinstance(table, torch.nn.Embedding) and TABLES.fullmatch(name):
            unused = getattr(table, "offset", 0) if table.padding_idx is None else table.padding_idx + 1
            lengths.append(table.num_embeddings - unused)
    return min(lengths, default=None)


def longest(module: Any) -> int | None:
    """The maximum input length in tokens, by a Transformer's positions or config; None if unlimited."""
    stated = getattr(getattr(module, "config", None), "max_position_embeddings", None)
    table = positions(getattr(module, "model", None))
    return table or (stated if isinstance(stated, int) and stated > 0 else None)


def shortest(module: Any) -> int:
    """The smallest limit in tokens that leaves room for one token of text."""
    special = getattr(getattr(module, "tokenizer", None), "num_special_tokens_to_add", None)
    return 1 + (special(False) if special else 0)


def _cut(name: str, module: Any) -> None:
    most, limit = positions(module.model), module.max_seq_length
    if most is None:
        return
    for role in ("query_length", "document_length"):
        if (getattr(module, role, None) or 0) > most:
            setattr(module, role, most)
    if limit is not None and limit <= most:
        return
    module.max_seq_length = most
    stated = f" (its max_seq_length is {limit})" if limit is not None and limit < LARGE else ""
    notify(f"{name} has positions for {most} tokens{stated}; longer texts are truncated.")


def _word_embeddings(encoder: Any) -> Any:
    try:
        return encoder.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # other backends than torch, and some image models
        return None


def _check_vocabulary(name: str, tokenizer: Any, table: Any) -> None:
    rows = getattr(table, "num_embeddings", None)
    vocabulary = tokenizer.get_vocab()
    if rows is None or not vocabulary or max(vocabulary.values()) < rows:
        return
    beyond = sorted((token for token, number in vocabulary.items() if number >= rows), key=vocabulary.get)
    raise ModelError(
        f"the tokenizer of {name} has ids up to {max(vocabulary.values())}, but the word embeddings have "
        f"{rows} rows (0 to {rows - 1}); without a row: {', '.join(map(repr, beyond[:3]))}"
        f"{' …' * (len(beyond) > 3)}. Resize the embeddings (resize_token_embeddings) and train them, or use "
        "the tokenizer that the model was trained with."
    )


def _pad_right(name: str, model: Any, module: Any) -> None:
    """Pads on the right if a text's vector would otherwise depend on the padding of its batch.

    Left padding shifts learned positions that are counted from the left (RoBERTa and MPNet count from the
    first token that is not padding), and puts padding where [CLS] pooling reads.
    """
    if module.tokenizer.padding_side != "left" or module.transformer_task in (
        "text-generation",
        "any-to-any",
    ):
        return
    shifted = any(
        isinstance(table, torch.nn.Embedding) and table.padding_idx is None and TABLES.fullmatch(part)
        for part, table in module.model.named_modules()
    )
    first = module.transformer_task == "sequence-classification" or any(
        "cls" in ([part.pooling_mode] if isinstance(part.pooling_mode, str) else part.pooling_mode)
        if isinstance(part, Pooling)
        else not type(part).__module__.startswith("sentence_transformers.")
        for part in model.modules()
        if part is not model and isinstance(part, Module)
    )
    if shifted or first:
        module.tokenizer.padding_side = "right"
        why = "its positions are counted from the left" if shifted else "its pooling reads the first token"
        notify(f"{name} pads texts on the left, but {why}; texts are padded on the right instead.")


def _mask_padding(name: str, module: Any) -> None:
    names = module.tokenizer.model_input_names
    accepted = inspect.signature(module.model.forward).parameters
    if "attention_mask" not in names and "attention_mask" in accepted:
        module.tokenizer.model_input_names = [*names, "attention_mask"]
        notify(f"the tokenizer of {name} returns no attention_mask, so padding would be read; it was added.")


def _try(model: Any, name: str) -> None:
    """Encodes a short text alone and with a long one, to check that modules fit and padding is ignored."""
    quiet: dict[str, Any] = {"show_progress_bar": False, "convert_to_numpy": True}
    ways: list[Callable[..., Any]]
    if hasattr(model, "encode_query"):
        ways, floor = [model.encode_query, model.encode_document], 0.0
        ways = [partial(way, prompt="", **quiet) for way in ways]
    else:
        ways = [
            lambda texts: model.predict([*zip(texts, texts, strict=True)], activation_fn=Identity(), **quiet)
        ]
        floor = 1.0  # the scores of pairs may be near 0
    for way in ways:
        try:
            single, together = (np.asarray(way(texts), np.float32) for texts in (SHORT, [*SHORT, *LONG]))
        except BaseException as error:  # modules that do not fit together may raise anything
            if not is_failure(error):
                raise
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise ModelError(
                f"{name} cannot encode a text: {reason}. Check its modules and their config.json."
            ) from error
        stated = model.get_embedding_dimension() if hasattr(model, "encode_query") else None
        if stated is not None and stated != single.shape[-1]:
            raise ModelError(
                f"{name} computes vectors of dimension {single.shape[-1]}; its files state {stated!r}. "
                "Correct the dimension in the config.json of its last module."
            )
        with np.errstate(invalid="ignore"):  # values that are not finite
            far, size = np.abs(single[0] - together[0]).max(), np.abs(single[0]).max()
        if far > PADDING_READ * max(size, floor):
            raise ModelError(
                f"{name} reads padding: the vector of a text depends on the other texts in its batch. Check "
                "padding_side and model_input_names in its tokenizer_config.json, and its pooling."
            )


def _adopt_prompt(model: Any, name: str) -> None:
    """Uses the prompt declared as "passage" or "corpus" (as in E5) for documents.

    sentence-transformers adds an empty prompt "document" to every model, which its encode_document prefers to
    those names. With the prompt stored as "document", an export behaves the same in sentence-transformers.
    """
    prompts = model.prompts
    declared = next((key for key in DOCUMENT_NAMES if prompts.get(key)), None)
    if declared in (None, "document"):
        return
    model.prompts["document"] = prompts[declared]
    notify(
        f"{name} declares the prompt {prompts[declared]!r} as {declared!r}; it is used for documents. "
        "sentence-transformers' encode_document would not use it."
    )
