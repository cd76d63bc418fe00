"""Tiny checkpoints in the form that authors publish."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast

from stzoo.testing import tiny_tokenizer


def bert_tokenizer():
    """A tiny one that tells segments apart, as BERT's does."""
    tokenizer = tiny_tokenizer("bert")
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        model_max_length=512,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **tokenizer.special_tokens_map,
    )


def published(folder, *, head=True, safe=False, seed=0, **changes):
    """A BERT with 512 positions as the authors' transformers wrote it, and its tokenizer."""
    tokenizer = bert_tokenizer()
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    config = BertConfig(vocab_size=len(tokenizer), initializer_range=0.2, **sizes)
    torch.manual_seed(seed)
    model = (BertForMaskedLM if head else BertModel)(config)
    tokenizer.save_pretrained(folder)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if safe:
        tensors.pop("cls.predictions.decoder.weight", None)  # tied ones stand there once
    else:
        tensors["bert.embeddings.position_ids" if head else "embeddings.position_ids"] = torch.arange(512)[
            None
        ]
    store(
        folder,
        {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None},
        safe=safe,
    )
    return Path(folder)


def store(folder, tensors, *, safe=False):
    if safe:
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
    else:
        torch.save(tensors, Path(folder) / "pytorch_model.bin")
