"""Generated texts for MASTER: queries that a passage answers, and continuations of it.

The algorithm, for both models:

1. truncate each passage so that it and the new tokens fit the model, and sort the passages by length;
2. for each batch, sample new tokens from the k most likely ones until the model ends the text;
3. restore the order of the passages.

MASTER (https://arxiv.org/abs/2212.07841, section 3.2; https://github.com/microsoft/SimXNS at 0163380,
MASTER/README.md) names only "DocT5" and "GPT-2"; its example shows ten queries, one of them twice, and a
continuation of 130 word pieces. All other settings are those of docTTTTTquery for the queries
(https://github.com/castorini/docTTTTTquery: passages of 512 tokens, queries of 64, k = 10, temperature 1),
and transformers' defaults (k = 50) for the continuations.
"""

import math
import os
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import try_to_load_from_cache
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
)

from stzoo.errors import ModelError, RecipeError
from stzoo.models.loading import check_device, loading_errors
from stzoo.utils.files import fingerprint
from stzoo.utils.logging import silence_hf_logging
from stzoo.utils.messages import counted


class _Sampler:
    """A model that samples texts for passages: the common part of queries and continuations."""

    loader: ClassVar[Any]
    kind: ClassVar[str]  # kind of model, for messages
    advice: ClassVar[str]  # what to do if the model cannot be used, for messages
    padding_side: ClassVar[str]
    truncation_side: ClassVar[str]

    def __init__(self, model: str, device: str | None, settings: dict[str, Any]):
        _check(settings)
        check_device(device)
        self.name, self.settings = model, settings
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        with silence_hf_logging():
            config = self._load(AutoConfig)
            if not self.is_kind(config):
                raise ModelError(
                    f"{model} is of type {config.model_type}; expected a {self.kind}. {self.advice}"
                )
            self.metadata, pinned = self._origin()
            self.tokenizer = self._load(AutoTokenizer, **pinned)
            if len(set(self.tokenizer.get_vocab().values()) - set(self.tokenizer.all_special_ids)) <= 1:
                # for a folder without tokenizer files, transformers makes an empty tokenizer
                raise ModelError(f"{model} has no tokenizer, or an empty one. {self.advice}")
            self.tokenizer.truncation_side = self.truncation_side
            self.max_length = self._max_length(config)
            self.model, self.config = self._load_weights(config, **pinned)
        self.metadata |= settings

    @staticmethod
    def is_kind(config: Any) -> bool:
        """True if this sampler can use a model of this configuration."""
        raise NotImplementedError

    def passage_length(self, positions: int) -> int:
        """The maximum length of a passage, in tokens, for a model with this number of positions."""
        raise NotImplementedError

    def _load(self, loader: Any, **options: Any) -> Any:
        try:
            with loading_errors("model", self.name):
                return loader.from_pretrained(self.name, trust_remote_code=False, **options)
        except ModelError as error:
            raise ModelError(f"{str(error).rstrip('.')}. {self.advice}") from error

    def _origin(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The model's entry in a manifest, and the options that pin the Hub's files to the same commit."""
        if Path(self.name).is_dir():
            return {"model": Path(self.name).name, "fingerprint": fingerprint(self.name)}, {}
        # .../snapshots/<commit>/config.json; transformers 5 keeps the commit nowhere else
        commit = Path(str(try_to_load_from_cache(self.name, "config.json"))).parent.name
        return {"model": self.name, "revision": commit}, {"revision": commit}

    def _max_length(self, config: Any) -> int:
        positions = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None) or math.inf
        limit = min(positions, self.tokenizer.model_max_length)
        length, new_tokens = self.passage_length(limit), self.settings["max_tokens"]
        if length < 1 or new_tokens > positions:
            raise RecipeError(
                f"max_tokens is {new_tokens}, which leaves no room for a passage: {self.name} reads {limit} "
                "tokens. Choose a smaller number."
            )
        return int(length)

    def _load_weights(self, config: Any, **options: Any) -> tuple[Any, GenerationConfig]:
        dtype = torch.float32
        if self.device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            dtype = torch.bfloat16 if native else torch.float16
        # Safetensors if there are any. doc2query's models have only a .bin file, from which weights_only lets
        # torch read tensors but no code. For these, transformers would also download a converted copy,
        # another gigabyte, in the background.
        os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
        model, report = self._load(
            self.loader, config=config, dtype=dtype, weights_only=True, output_loading_info=True, **options
        )
        if missing := sorted(report["missing_keys"]):
            raise ModelError(
                f"{self.name} is not a complete {self.kind}: it lacks "
                f"{counted(len(missing), 'tensor')}, e.g. {missing[0]}. {self.advice}"
            )
        stored, tokenizer = model.generation_config, self.tokenizer
        eos = tokenizer.eos_token_id if stored.eos_token_id is None else stored.eos_token_id
        # 0 if there is no eos either: then only prompts are padded
        pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        settings = GenerationConfig(
            do_sample=True,
            num_beams=1,
            num_return_sequences=self.settings.get("per_passage", 1),
            max_new_tokens=self.settings["max_tokens"],
            **{name: self.settings[name] for name in ("top_k", "top_p", "temperature")},
            # the model decides where a text begins and ends, but not on beams, lengths and penalties
            eos_token_id=eos,
            pad_token_id=next(pad for pad in pads if pad is not None),
            **{
                name: getattr(stored, name)
                for name in ("bos_token_id", "decoder_start_token_id", "forced_bos_token_id")
            },
        )
        model.generation_config = settings  # generate() takes its defaults from here
        return model.to(self.device).eval(), settings

    def draw(self, texts: list[str], seed: int) -> list[list[str]]:
        """Samples texts for each passage, as many as the settings say; none for a blank passage."""
        rows = (
            self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"] if texts else []
        )
        order = [i for i, row in enumerate(rows) if row and texts[i].strip()]
        order.sort(key=lambda i: len(rows[i]), reverse=True)  # batches that need most memory come first
        size, per_passage = self.settings["batch_size"], self.config.num_return_sequences
        batches = (order[start : start + size] for start in range(0, len(order), size))
        samples = chain.from_iterable(self._generate([torch.tensor(rows[i]) for i in b]) for b in batches)
        results: list[list[str]] = [[] for _ in texts]
        # torch.manual_seed seeds the generators of all devices, so all are restored
        devices = range(torch.accelerator.device_count())
        with silence_hf_logging(), torch.inference_mode(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            for i in order:
                results[i] = list(islice(samples, per_passage))
        return results

    def _generate(self, rows: list[torch.Tensor]) -> list[str]:
        def pad(rows: list[torch.Tensor], value: int) -> torch.Tensor:
            return pad_sequence(rows, True, value, self.padding_side).to(self.device)

        ids = pad(rows, self.config.pad_token_id)
        attention = pad([torch.ones_like(row) for row in rows], 0)
        tokens = self.model.generate(input_ids=ids, attention_mask=attention, generation_config=self.config)
        if not self.model.config.is_encoder_decoder:
            tokens = tokens[:, ids.shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]


class Queries(_Sampler):
    """Samples queries that a passage may answer, from a sequence-to-sequence model.

    The result of a call depends on its texts, its seed and the settings alone (and on the rounding of the
    hardware). The state of torch's generators is restored.

    Args:
        model: Folder or Hub id of the model; code in it is never run. A passage is truncated to 512 tokens,
            or to the limit of the model or its tokenizer if that is lower.
        per_passage: Number of queries sampled for each passage.
        max_tokens: Maximum number of new tokens of a query.
        top_k: Sample each token from the k most likely ones; 0 for all.
        top_p: Sample from the most likely tokens whose probabilities sum to this, 0..1.
        temperature: Divisor of the logits, > 0.
        batch_size: Number of passages at a time; batch_size * per_passage queries are in memory at once.
            Another size gives other queries.
        device: Device of torch; None for a CUDA device if there is one. On CUDA the model runs in half
            precision.

    Attributes:
        metadata: Entry for a manifest: the model, its commit (or a folder's fingerprint), and the settings.

    Raises:
        ModelError: If the model does not exist, or is not a complete sequence-to-sequence model with a
            tokenizer.
        RecipeError: If a setting is out of range, or the device does not exist.

    Source: docTTTTTquery; MASTER/README.md (see the top of this file).
    Unlike: the released MASTER data and docTTTTTquery, which repeat a query that was sampled twice; here
        repeats are removed, so a passage may have fewer than `per_passage` queries. The card of
        doc2query/msmarco-t5-base-v1 truncates passages to 320 tokens and samples with top_p 0.95 and
        transformers' top_k of 50.
    """

    loader = AutoModelForSeq2SeqLM
    kind = "sequence-to-sequence model"
    advice = "Choose e.g. doc2query/msmarco-t5-base-v1, or --queries lexical, which needs no model."
    padding_side = truncation_side = "right"

    def __init__(
        self,
        model: str,
        *,
        per_passage: int = 10,
        max_tokens: int = 64,
        top_k: int = 10,
        top_p: float = 1.0,
        temperature: float = 1.0,
        batch_size: int = 32,
        device: str | None = None,
    ):
        sampling = dict(top_k=top_k, top_p=top_p, temperature=temperature, batch_size=batch_size)
        super().__init__(model, device, dict(per_passage=per_passage, max_tokens=max_tokens, **sampling))

    def __call__(self, texts: list[str], seed: int) -> list[list[str]]:
        """Samples queries for each passage; blank ones and repeats are removed."""
        return [list(dict.fromkeys(filter(None, queries))) for queries in self.draw(texts, seed)]

    @staticmethod
    def is_kind(config: Any) -> bool:
        """True for text-to-text encoder-decoders."""
        return config.is_encoder_decoder and type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

    def passage_length(self, positions: int) -> int:
        """All positions, as encoder and decoder have separate ones, but at most docTTTTTquery's 512."""
        return min(positions, 512)


class Continuations(_Sampler):
    """Samples a continuation of a passage from a causal language model.

    The result of a call depends on its texts, its seed and the settings alone (and on the rounding of the
    hardware). The state of torch's generators is restored.

    Args:
        model: Folder or Hub id of the model; code in it is never run. Passage and continuation together have
            GPT-2's 1024 tokens, or the limit of the model or its tokenizer if that is lower. A longer passage
            loses its beginning, as its end is what is continued.
        max_tokens: Maximum number of new tokens of a continuation.
        top_k: Sample each token from the k most likely ones; 0 for all.
        top_p: Sample from the most likely tokens whose probabilities sum to this, 0..1.
        temperature: Divisor of the logits, > 0.
        batch_size: Number of passages at a time. Another size gives other texts.
        device: Device of torch; None for a CUDA device if there is one. On CUDA the model runs in half
            precision.

    Attributes:
        metadata: Entry for a manifest: the model, its commit (or a folder's fingerprint), and the settings.

    Raises:
        ModelError: If the model does not exist, or is not a complete causal language model with a tokenizer.
        RecipeError: If a setting is out of range or leaves no room for a passage, or the device does not
            exist.

    Source: MASTER/README.md (see the top of this file), which gives no settings.
    """

    loader = AutoModelForCausalLM
    kind = "causal language model"
    advice = "Choose e.g. gpt2, or leave out the continuations."
    padding_side = truncation_side = "left"

    def __init__(
        self,
        model: str,
        *,
        max_tokens: int = 128,
        top_k: int = 50,
        top_p: float = 1.0,
        temperature: float = 1.0,
        batch_size: int = 32,
        device: str | None = None,
    ):
        sampling = dict(top_k=top_k, top_p=top_p, temperature=temperature, batch_size=batch_size)
        super().__init__(model, device, dict(max_tokens=max_tokens, **sampling))

    def __call__(self, texts: list[str], seed: int) -> list[str]:
        """Samples a continuation of each passage; "" if the model gives none, or the passage is blank."""
        return ["".join(samples) for samples in self.draw(texts, seed)]

    @staticmethod
    def is_kind(config: Any) -> bool:
        """True for decoders; encoders like BERT have a causal head but are causal only if `is_decoder`."""
        encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
        return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not config.is_encoder_decoder and not encoder

    def passage_length(self, positions: int) -> int:
        """The positions that the new tokens leave; at most GPT-2's 1024 are used in all."""
        return min(positions, 1024) - self.settings["max_tokens"]


def _check(settings: dict[str, Any]) -> None:
    """Checks that each setting is in its range.

    Raises:
        RecipeError: If a setting is out of range.
    """
    for name, value in settings.items():
        if name == "top_p":
            valid, expected = 0 < value <= 1, "more than 0, at most 1"
        elif name == "temperature":
            valid, expected = 0 < value < math.inf, "more than 0"
        else:
            minimum = 0 if name == "top_k" else 1
            valid, expected = value >= minimum, f"{minimum} or more"
        if not valid:
            raise RecipeError(f"{name} is {value}; expected {expected}.")
