"""Importers, which build a SentenceTransformer from a checkpoint's files, and functions to write others."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer, SimilarityFunction
from sentence_transformers.base.modules import Normalize, Router, Transformer
from tokenizers.processors import TemplateProcessing

from stzoo.errors import ModelError
from stzoo.hub.published import Published
from stzoo.hub.weights import ALL, encoder_of, renamed
from stzoo.plugins import manager
from stzoo.plugins.hookspecs import Checkpoint
from stzoo.utils.files import writing


@dataclass
class Imported:
    """The result of an importer.

    Attributes:
        model: The SentenceTransformer.
        masked_lm: The masked LM, if the weights have an MLM head; as in `export`.
        portable: As in `export`.
        write: Function that takes the model's folder and writes more files into it.
    """

    model: Any
    masked_lm: Any = None
    portable: bool = True
    write: Callable[[Path], None] | None = None


def encoder(published: Published) -> Imported:
    """Imports an encoder of transformers, with its MLM head if it has one."""
    where, row = str(published.folder), published.checkpoint
    model = encoder_of(published.config(), renamed(published.tensors(), ALL, where), where)
    modules = tower(model, published.tokenizer(), row, row.max_tokens)
    head = None if model.base_model is model else model
    return Imported(finished(modules, row), head)


def behind_title(published: Published, *, title: str = "-") -> Imported:
    """Imports an encoder that reads a passage as the second segment, after its title.

    Passages have a tower of their own with the same weights, whose tokenizer adds the title. (A prompt cannot
    set the segments.)

    Args:
        published: The checkpoint.
        title: Title of all passages.

    Source: microsoft/unilm @63435c6, simlm/src/inference/encode_main.py: missing titles are "-".
    """
    where, row = str(published.folder), published.checkpoint
    tensors = renamed(published.tensors(), ALL, where)
    towers = [
        tower(encoder_of(published.config(), tensors, where), published.tokenizer(), row, length)
        for length in (row.max_query_tokens, row.max_tokens)
    ]
    _put_title(towers[1][0].tokenizer, title)
    return Imported(finished([routed(*towers)], row))


def tower(
    model: Any, tokenizer: Any, checkpoint: Checkpoint, max_tokens: int | None, head: Any = None
) -> list[Any]:
    """The modules that turn a text into a vector: Transformer, pooling, head and normalisation.

    Args:
        model: A transformers model with all its weights, whose encoder becomes the Transformer.
        tokenizer: Tokenizer of the model.
        checkpoint: Description with the pooling and normalisation.
        max_tokens: Maximum length of a text; longer texts are truncated. None keeps the model's limit.
        head: Module between pooling and normalisation, if any.

    Raises:
        ModelError: If the pooling or the tokenizer does not fit the model, or max_tokens is too large.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if max_tokens and positions and max_tokens > positions:
        raise ModelError(
            f"a checkpoint like {checkpoint.name} reads {max_tokens} tokens, but these weights have only "
            f"{positions} positions."
        )
    if len(tokenizer) > model.config.vocab_size:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} tokens, but the weights have {model.config.vocab_size} word "
            "embeddings; use the model's own tokenizer."
        )
    # the Transformer and some poolings are built from a folder
    with tempfile.TemporaryDirectory() as scratch, writing(scratch):
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        transformer = Transformer(scratch, max_seq_length=max_tokens)
        if isinstance(model.base_model, type(transformer.model)):
            transformer.model = model.base_model  # shares its weights with the head, if any
        pooling = manager.build("pooling", checkpoint.pooling, transformer.get_embedding_dimension())
        if hasattr(pooling, "init_from_base"):
            try:
                pooling.init_from_base(scratch, transformer)
            except ValueError as error:  # poolings may raise no other
                raise ModelError(
                    f"the pooling {checkpoint.pooling!r} does not fit the model: {error}."
                ) from error
    heads = [head] if head is not None else []
    return [transformer, pooling, *heads, *([Normalize()] if checkpoint.normalize else [])]


def routed(query: list[Any], document: list[Any]) -> Any:
    """A Router with a tower for queries and one for passages; texts without a task are refused."""
    routes = {"query": query, "document": document}
    return Router(routes, default_route=None, allow_empty_key=False)


def finished(modules: list[Any], checkpoint: Checkpoint) -> Any:
    """The SentenceTransformer of these modules with the checkpoint's prompts and similarity."""
    return SentenceTransformer(
        modules=modules,
        prompts=dict(checkpoint.prompts),
        similarity_fn_name=SimilarityFunction(checkpoint.similarity),
        device="cpu",
    ).eval()


def _put_title(tokenizer: Any, title: str) -> None:
    """Makes a tokenizer add the title as the first segment before every text."""
    words = tokenizer.tokenize(title)
    cls, sep = tokenizer.cls_token, tokenizer.sep_token
    first = " ".join(f"{word}:0" for word in (cls, *words, sep))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A:1 {sep}:1",
        special_tokens=[(word, tokenizer.convert_tokens_to_ids(word)) for word in {cls, *words, sep}],
    )
