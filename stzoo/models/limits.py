"""What a model can read: its positions, its word embeddings and its padding, checked when it is loaded.

A limit that can be applied is applied, with a note to the user: texts are cut at the positions that there
are, and are padded on the right where the pooling or the positions need it. What would fail later, in the
middle of training or encoding, is a ModelError.
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

# learned positions, not relative ones (T5, MPNet's bias, DeBERTa) and not those of images
TABLES = re.compile(
    r"(?!.*(vision|visual|image|audio|pixel))(.*\.)?(position_embeddings?|embed_positions|wpe)"
)
DOCUMENT_NAMES = ("document", "passage", "corpus")  # of prompts, in the order of sentence-transformers
SHORT, LONG = ["a"], ["a a a a a a a a a a a a"]
PADDING_READ = 0.05  # of the largest number; bfloat16 rounds to some 0.01
LARGE = 10**9  # "no limit", as tokenizers write it


def prepare(model: Any, name: str) -> None:
    """Applies or checks what a loaded model can read, and adopts its prompt for passages.

    Args:
        model: a SentenceTransformer or CrossEncoder.
        name: folder or Hub id, for messages.

    Raises:
        ModelError: if the tokenizer has ids that have no row in the word embeddings, or no padding token, the
            length leaves no room for text, a prompt is not a text, or the modules do not fit each other.
    """
    for key, prompt in getattr(model, "prompts", {}).items():
        if not isinstance(key, str) or not isinstance(prompt, str):
            raise ModelError(f"{name} has the prompt {prompt!r} under the name {key!r}; expected texts.")
    for module in transformers_of(model):
        _check_vocabulary(name, module.tokenizer, _word_embeddings(module.model))
        if module.tokenizer.pad_token_id is None:
            raise ModelError(
                f"the tokenizer of {name} has no padding token, so its texts cannot be put into batches. Set "
                "pad_token in tokenizer_config.json to a token of its vocabulary."
            )
        limit = module.max_seq_length
        if limit is not None and limit < shortest(module):
            raise ModelError(
                f"{name} has a max_seq_length of {limit}; expected {shortest(module)} or more, so that there "
                "is room for the text between the special tokens."
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
    """The Transformer modules that read texts by a tokenizer of transformers, those in routers included."""
    for module in model.modules():
        if isinstance(module, Transformer) and isinstance(module.tokenizer, PreTrainedTokenizerBase):
            yield module


def positions(encoder: Any) -> int | None:
    """The longest input in tokens for which a transformers model has learned positions; None without any.

    RoBERTa, XLM-R and MPNet leave the rows up to that of the padding token unused, BART and OPT an offset.
    """
    found = []
    for name, table in encoder.named_modules() if isinstance(encoder, torch.nn.Module) else ():
        if isinstance(table, torch.nn.Embedding) and TABLES.fullmatch(name):
            unused = getattr(table, "offset", 0) if table.padding_idx is None else table.padding_idx + 1
            found.append(table.num_embeddings - unused)
    return min(found, default=None)


def longest(module: Any) -> int | None:
    """The longest input in tokens, by a Transformer's positions or its config; None if neither limits it."""
    named = getattr(getattr(module, "config", None), "max_position_embeddings", None)
    table = positions(getattr(module, "model", None))
    return table or (named if isinstance(named, int) and named > 0 else None)


def shortest(module: Any) -> int:
    """The shortest limit in tokens that leaves room for a token of the text."""
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
    said = f" (max_seq_length says {limit})" if limit is not None and limit < LARGE else ""
    notify(f"{name} has positions for {most} tokens{said}; longer texts are cut there.")


def _word_embeddings(encoder: Any) -> Any:
    try:
        return encoder.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # of other backends than torch, and of some image models
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
    """Pads on the right where a text's vector would otherwise depend on the padding of its batch.

    Left padding shifts learned positions that are counted from the left (RoBERTa and MPNet count from the
    first token that is no padding), and puts padding where [CLS] pooling reads.
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
        if part is not model and _is_module(part)
    )
    if shifted or first:
        module.tokenizer.padding_side = "right"
        why = "its positions are counted from the left" if shifted else "its pooling reads the first token"
        notify(f"{name} pads texts on the left, but {why}; they are padded on the right instead.")


def _is_module(part: Any) -> bool:
    return isinstance(part, Module)


def _mask_padding(name: str, module: Any) -> None:
    given = module.tokenizer.model_input_names
    accepted = inspect.signature(module.model.forward).parameters
    if "attention_mask" not in given and "attention_mask" in accepted:
        module.tokenizer.model_input_names = [*given, "attention_mask"]
        notify(
            f"the tokenizer of {name} makes no attention_mask, so padding would be read; now it makes one."
        )


def _try(model: Any, name: str) -> None:
    """Reads a short text alone and next to a long one: all parts fit, and padding is not read."""
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
        except BaseException as error:  # whatever modules that do not fit raise
            if not is_failure(error):
                raise
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise ModelError(f"{name} cannot read a text: {reason}") from error
        stated = model.get_embedding_dimension() if hasattr(model, "encode_query") else None
        if stated is not None and stated != single.shape[-1]:
            raise ModelError(
                f"{name} makes vectors of {single.shape[-1]} numbers; its files state {stated!r}. Correct "
                "the dimension in the config.json of its last module."
            )
        with np.errstate(invalid="ignore"):  # of what is not finite
            far, size = np.abs(single[0] - together[0]).max(), np.abs(single[0]).max()
        if far > PADDING_READ * max(size, floor):
            raise ModelError(
                f"{name} reads padding: what it makes of a text depends on the texts that are in its batch. "
                "See padding_side and model_input_names in its tokenizer_config.json, and how it pools."
            )


def _adopt_prompt(model: Any, name: str) -> None:
    """Gives documents the prompt that is declared as "passage" or "corpus" (as for E5).

    sentence-transformers adds an empty prompt "document" to every model, which its encode_document then takes
    before those names. With the prompt under "document", an export behaves the same there.
    """
    prompts = model.prompts
    declared = next((key for key in DOCUMENT_NAMES if prompts.get(key)), None)
    if declared in (None, "document"):
        return
    model.prompts["document"] = prompts[declared]
    notify(
        f"{name} declares the prompt {prompts[declared]!r} as {declared!r}; documents get it. "
        "sentence-transformers' encode_document would not use it."
    )
