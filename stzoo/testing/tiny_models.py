"""Tiny models made at run time, with random weights and two layers."""

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

FAMILIES = ("bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "electra", "modernbert")

TEXTS = [
    "The lift of a wing in a slipstream grows with the velocity of the propeller.",
    "Mitochondria release cytochrome during apoptosis of the cell.",
    "Remove a directory tree, and ignore the errors that may be raised.",
    "Interest rates rose while unemployment fell in most countries.",
    "Photosynthesis converts sunlight, water and carbon dioxide into sugar.",
    "A recursive function calls itself until the base case is reached.",
    "The treaty was signed by twelve kingdoms after a long and costly war.",
    "Boundary layers separate where the pressure gradient becomes adverse.",
]


def sentences(count: int, seed: int = 0) -> list[str]:
    """Texts of 5 to 40 words that the tiny tokenizers know; equal seeds give equal texts."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    words = " ".join(TEXTS).split()
    return [" ".join(rng.choices(words, k=rng.randint(5, 40))) for _ in range(count)]


def tiny_tokenizer(family: str, texts: list[str] | None = None) -> Any:
    """Trains a fast tokenizer of a family's kind, with about 300 entries, on a few sentences.

    The result is always the same, although the trainers of `tokenizers` break ties differently in each
    process.

    Args:
        family: Family of FAMILIES: WordPiece for most, byte-level BPE for roberta and modernbert, Unigram for
            xlm-roberta.
        texts: Sentences to train on; None for TEXTS.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    texts = texts or TEXTS
    kind: Any
    pre: Any
    trainer: Any
    decoder: Any
    if family in ("roberta", "modernbert"):
        special = dict(cls="<s>", pad="<pad>", sep="</s>", unk="<unk>", mask="<mask>")
        kind, pre = models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=list(special.values()),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    elif family == "xlm-roberta":
        special = dict(cls="<s>", pad="<pad>", sep="</s>", unk="<unk>", mask="<mask>")
        kind, pre = models.Unigram(), pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=300,
            special_tokens=list(special.values()),
            unk_token="<unk>",
            show_progress=False,
        )
    else:
        special = dict(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")
        if family == "mpnet":  # its positions assume the padding id 1
            special = dict(cls="[CLS]", pad="[PAD]", unk="[UNK]", sep="[SEP]", mask="[MASK]")
        kind, pre = models.WordPiece(unk_token="[UNK]"), pre_tokenizers.BertPreTokenizer()
        inner = [f"##{letter}" for letter in sorted(set("".join(texts).lower()) - {" "})]
        trainer = trainers.WordPieceTrainer(
            vocab_size=300, special_tokens=[*special.values(), *inner], show_progress=False
        )
    learner = Tokenizer(kind)
    learner.pre_tokenizer = pre
    if isinstance(kind, models.WordPiece):
        learner.normalizer = normalizers.BertNormalizer(lowercase=True)
    learner.train_from_iterator(texts, trainer)
    if family == "xlm-roberta":
        order = [*special.values(), *sorted(learner.get_vocab().keys() - special.values())]
        ranked = [
            (piece, 0.0 if rank < len(special) else -1 - rank / 1000) for rank, piece in enumerate(order)
        ]
        kind, decoder = models.Unigram(ranked, unk_id=order.index("<unk>")), decoders.Metaspace()
    elif isinstance(kind, models.WordPiece):
        kind, decoder = models.WordPiece(learner.get_vocab(), unk_token="[UNK]"), decoders.WordPiece()
    else:
        kind, decoder = learner.model, decoders.ByteLevel()
    tokenizer = Tokenizer(kind)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoder
    if learner.normalizer is not None:
        tokenizer.normalizer = learner.normalizer
    cls, sep = special["cls"], special["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B {sep}",
        special_tokens=[(cls, tokenizer.token_to_id(cls)), (sep, tokenizer.token_to_id(sep))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        **{f"{role}_token": token for role, token in special.items()},
    )


def tiny_masked_lm(family: str, folder: str | Path, *, seed: int = 0, width: int = 32) -> Path:
    """Writes a two-layer masked LM with random weights and its tokenizer, and returns the folder.

    Args:
        family: Family of the model, one of FAMILIES.
        folder: Folder to write to, which is created if needed.
        seed: Seed of the weights.
        width: Hidden size, a multiple of 4.

    Raises:
        UnknownNameError: If the family is not one of FAMILIES.
    """
    from transformers import AutoConfig, AutoModelForMaskedLM

    from stzoo.errors import UnknownNameError

    if family not in FAMILIES:
        raise UnknownNameError("backbone family", family, FAMILIES)
    tokenizer = tiny_tokenizer(family)
    common = dict(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    if family == "distilbert":
        sizes: dict[str, Any] = dict(dim=width, n_layers=2, n_heads=4, hidden_dim=2 * width)
    else:
        sizes = dict(
            hidden_size=width, num_hidden_layers=2, num_attention_heads=4, intermediate_size=2 * width
        )
    sizes["max_position_embeddings"] = 66 if family in ("roberta", "xlm-roberta", "mpnet") else 64
    if family == "modernbert":
        sizes |= dict(cls_token_id=tokenizer.cls_token_id, sep_token_id=tokenizer.sep_token_id)
        sizes |= dict(global_attn_every_n_layers=2, local_attention=16)
    if family == "electra":
        sizes |= dict(embedding_size=width)
    config = AutoConfig.for_model(family, **common, **sizes)
    return _write(lambda: AutoModelForMaskedLM.from_config(config), tokenizer, folder, seed)


def _write(build: Callable[[], Any], tokenizer: Any, folder: str | Path, seed: int) -> Path:
    """Builds a model with random weights of a seed, and writes it with its tokenizer."""
    import torch

    from stzoo.utils.logging import silence_hf_logging

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build()
    with silence_hf_logging():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return Path(folder)


def tiny_t5(folder: str | Path, *, seed: int = 0, width: int = 32) -> Path:
    """Writes a T5 with random weights and two layers per stack and its tokenizer, and returns the folder.

    Args:
        folder: Folder to write to, which is created if needed.
        seed: Seed of the weights.
        width: Hidden size, a multiple of 4.
    """
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = tiny_tokenizer("xlm-roberta")
    config = T5Config(  # type: ignore[call-arg]
        vocab_size=len(tokenizer), d_model=width, d_kv=width // 4, d_ff=2 * width, num_layers=2, num_heads=4,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.sep_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return _write(lambda: T5ForConditionalGeneration(config), tokenizer, folder, seed)


def tiny_causal_lm(folder: str | Path, *, seed: int = 0, width: int = 32) -> Path:
    """Writes a Llama with random weights and two layers and its tokenizer, and returns the folder.

    Args:
        folder: Folder to write to, which is created if needed.
        seed: Seed of the weights.
        width: Hidden size, a multiple of 4.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer("roberta")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=2 * width, max_position_embeddings=2048, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id, eos_token_id=tokenizer.sep_token_id, initializer_range=0.5,
    )  # fmt: skip
    return _write(lambda: LlamaForCausalLM(config), tokenizer, folder, seed)


def tiny_cross_encoder(folder: str | Path, *, seed: int = 0, width: int = 32, labels: int = 1) -> Path:
    """Writes a two-layer cross-encoder with random weights and its tokenizer, and returns the folder.

    The scores of pairs differ by some tenths, so that tests can distinguish them.

    Args:
        folder: Folder to write to, which is created if needed.
        seed: Seed of the weights.
        width: Hidden size, a multiple of 4.
        labels: Number of scores per pair.
    """
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    tokenizer = tiny_tokenizer("bert")
    special = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **tokenizer.special_tokens_map,
    )
    config = BertConfig(  # type: ignore[call-arg]
        vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=2 * width, max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id,
        num_labels=labels, initializer_range=0.2,
    )  # fmt: skip
    return _write(lambda: BertForSequenceClassification(config), tokenizer, folder, seed)


def tiny_backbone(family: str = "bert") -> Any:
    """A `Backbone` of a tiny masked LM, in memory."""
    from stzoo.pretraining.pretrain import load_base

    with tempfile.TemporaryDirectory() as folder:
        return load_base(str(tiny_masked_lm(family, folder))).backbone
