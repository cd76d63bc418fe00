"""The texts that MASTER learns from besides the passage: queries that it answers, and how it may go on.

The algorithm, for both models:

1. cut each passage so that it and the new tokens fit the model, and sort the passages by length;
2. a batch at a time, draw new tokens from the model's k likeliest, until it ends the text;
3. put the texts back into the passages' order.

MASTER (https://arxiv.org/abs/2212.07841, section 3.2; https://github.com/microsoft/SimXNS at 0163380,
MASTER/README.md) names only "DocT5" and "GPT-2"; its example shows ten queries, one of them twice, and a
continuation of 130 word pieces. All other settings are docTTTTTquery's (https://github.com/castorini/docTTTTTquery:
passages of 512 tokens, queries of 64, k = 10, temperature 1) for the queries, and transformers' own defaults
(k = 50) for the continuations.
"""

import math
import os
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

from stzoo.errors import ModelError, RecipeError, first_line
from stzoo.models.loading import check_device
from stzoo.utils.files import fingerprint
from stzoo.utils.logging import silence_hf_logging


class _Sampler:
    """A model that draws texts for passages; what queries and continuations have in common."""

    loader: ClassVar[Any]
    kind: ClassVar[str]  # of model, as an error calls it
    instead: ClassVar[str]  # what a user can do without it
    padding: ClassVar[str]  # the side of a shorter passage that is padded
    cut: ClassVar[str]  # the side of a passage that is cut if it is too long

    def __init__(self, model: str, device: str | None, settings: dict[str, Any]):
        _check(settings)
        check_device(device)
        self.name, self.settings = model, settings
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        with silence_hf_logging():
            config = self._load(AutoConfig)
            if not self.is_kind(config):
                raise ModelError(f"{model} is of type {config.model_type}, no {self.kind}; {self.instead}")
            self.facts, given = self._origin()
            self.tokenizer = self._load(AutoTokenizer, **given)
            if len(set(self.tokenizer.get_vocab().values()) - set(self.tokenizer.all_special_ids)) <= 1:
                # of a folder without its files, transformers makes a tokenizer that knows no word
                raise ModelError(f"{model} has no tokenizer, or an empty one; {self.instead}")
            self.tokenizer.truncation_side = self.cut
            self.window = self._window(config)
            self.model, self.config = self._load_weights(config, **given)
        self.facts |= settings

    @staticmethod
    def is_kind(config: Any) -> bool:
        """True if the config is of a model that this sampler can use."""
        raise NotImplementedError

    def room(self, positions: int) -> int:
        """Tokens that a passage may have in a model of so many positions."""
        raise NotImplementedError

    def _load(self, loader: Any, **options: Any) -> Any:
        try:
            return loader.from_pretrained(self.name, trust_remote_code=False, **options)
        except Exception as error:  # whatever a broken folder or an unreachable Hub makes the loaders raise
            what = (
                "cannot be loaded"
                if Path(self.name).is_dir()
                else "is no folder, and no Hub id that can be loaded"
            )
            reason = first_line(error).rstrip(".")
            raise ModelError(f"the model {self.name} {what}: {reason}; {self.instead}") from error

    def _origin(self) -> tuple[dict[str, Any], dict[str, str]]:
        """What a manifest says of the model, and what pins the Hub's files to the commit that it names."""
        if Path(self.name).is_dir():
            return {"model": Path(self.name).name, "fingerprint": fingerprint(self.name)}, {}
        # .../snapshots/<commit>/config.json; transformers 5 keeps the commit nowhere else
        commit = Path(str(try_to_load_from_cache(self.name, "config.json"))).parent.name
        return {"model": self.name, "revision": commit}, {"revision": commit}

    def _window(self, config: Any) -> int:
        positions = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None) or math.inf
        most = min(positions, self.tokenizer.model_max_length)
        window, new = self.room(most), self.settings["max_tokens"]
        if window < 1 or new > positions:
            raise RecipeError(
                f"max_tokens {new} leaves no room for a passage in the {most} tokens that {self.name} takes; "
                "ask for fewer."
            )
        return int(window)

    def _load_weights(self, config: Any, **options: Any) -> tuple[Any, GenerationConfig]:
        dtype = torch.float32
        if self.device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            dtype = torch.bfloat16 if native else torch.float16
        # Safetensors where there are any. doc2query's models have only a .bin, from which
        # weights_only lets torch read tensors, and nothing that runs. For those, transformers would download
        # a bot's conversion too, another gigabyte, in the background.
        os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
        model, report = self._load(
            self.loader, config=config, dtype=dtype, weights_only=True, output_loading_info=True, **options
        )
        if missing := sorted(report["missing_keys"]):
            raise ModelError(
                f"{self.name} holds no whole {self.kind}: {len(missing)} tensors are missing, e.g. "
                f"{missing[0]}; {self.instead}"
            )
        stored, tokenizer = model.generation_config, self.tokenizer
        eos = tokenizer.eos_token_id if stored.eos_token_id is None else stored.eos_token_id
        pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)  # 0: without eos, only prompts are padded
        ours = GenerationConfig(
            do_sample=True,
            num_beams=1,
            num_return_sequences=self.settings.get("per_passage", 1),
            max_new_tokens=self.settings["max_tokens"],
            **{name: self.settings[name] for name in ("top_k", "top_p", "temperature")},
            # where a text begins and ends is the model's to say; beams, lengths and penalties are not
            eos_token_id=eos,
            pad_token_id=next(pad for pad in pads if pad is not None),
            **{
                name: getattr(stored, name)
                for name in ("bos_token_id", "decoder_start_token_id", "forced_bos_token_id")
            },
        )
        model.generation_config = ours  # generate() fills what it is not told from here
        return model.to(self.device).eval(), ours

    def draw(self, texts: list[str], seed: int) -> list[list[str]]:
        """Draws as many texts for each passage as the settings say; none for a blank one."""
        rows = self.tokenizer(texts, truncation=True, max_length=self.window)["input_ids"] if texts else []
        order = [i for i, row in enumerate(rows) if row and texts[i].strip()]
        order.sort(key=lambda i: len(rows[i]), reverse=True)  # stable, and what needs most memory comes first
        drawn: list[list[str]] = [[] for _ in texts]
        size = self.settings["batch_size"]
        # seeding torch seeds every device's generator, so all are put back
        devices = range(torch.accelerator.device_count())
        with silence_hf_logging(), torch.inference_mode(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            for start in range(0, len(order), size):
                batch = order[start : start + size]
                found = self._generate([torch.tensor(rows[i]) for i in batch])
                each = len(found) // len(batch)
                for place, i in enumerate(batch):
                    drawn[i] = found[place * each : (place + 1) * each]
        return drawn

    def _generate(self, rows: list[torch.Tensor]) -> list[str]:
        def padded(rows: list[torch.Tensor], value: int) -> torch.Tensor:
            return pad_sequence(rows, True, value, self.padding).to(self.device)

        ids = padded(rows, self.config.pad_token_id)
        attention = padded([torch.ones_like(row) for row in rows], 0)
        out = self.model.generate(input_ids=ids, attention_mask=attention, generation_config=self.config)
        new = out if self.model.config.is_encoder_decoder else out[:, ids.shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]


class Queries(_Sampler):
    """Draws queries that a passage may answer, from a sequence-to-sequence model.

    What a call returns hangs on its texts, its seed and the settings alone (and on the machine, as far as its
    rounding goes); torch's generators are left as they were.

    Args:
        model: folder or Hub id; code from it is never run. A passage is cut to 512 tokens, or to fewer if the
            model or its tokenizer takes no more.
        per_passage: queries drawn for each passage.
        max_tokens: new tokens of a query.
        top_k: a token is drawn from so many of the likeliest; 0 takes all.
        top_p: and from the likeliest whose probabilities sum to this, 0..1.
        temperature: logits are divided by it, > 0.
        batch_size: passages at a time; batch_size * per_passage queries are in memory at once. Another size
            draws other queries.
        device: of torch; None takes a CUDA device if there is one. On CUDA the model runs in half precision.

    Attributes:
        facts: for a manifest: the model, its commit (a folder's: fingerprint), and the settings.

    Raises:
        ModelError: if there is no such model, or it is no whole sequence-to-sequence model with a tokenizer.
        RecipeError: if a setting is out of range, or there is no such device.

    Source: docTTTTTquery; MASTER/README.md (see the top of this file).
    Unlike: the released MASTER data repeats a query that was drawn twice, docTTTTTquery too; here repeats are
        left out, so a passage may have fewer than `per_passage`. The card of doc2query/msmarco-t5-base-v1
        cuts passages to 320 tokens and draws with top_p 0.95 and transformers' top_k of 50.
    """

    loader = AutoModelForSeq2SeqLM
    kind = "sequence-to-sequence model"
    instead = "expected e.g. doc2query/msmarco-t5-base-v1, or --queries lexical, which needs no model."
    padding, cut = "right", "right"

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
        sampling = dict(top_k=top_k, top_p=top_p, temperature=temperature)
        settings = dict(per_passage=per_passage, max_tokens=max_tokens, **sampling, batch_size=batch_size)
        super().__init__(model, device, settings)

    def __call__(self, texts: list[str], seed: int) -> list[list[str]]:
        """Draws for each passage its queries, in the order drawn, without blank ones and repeats."""
        return [list(dict.fromkeys(filter(None, drawn))) for drawn in self.draw(texts, seed)]

    @staticmethod
    def is_kind(config: Any) -> bool:
        """True for encoder-decoders from text to text."""
        return config.is_encoder_decoder and type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

    def room(self, positions: int) -> int:
        """All positions, as encoder and decoder have their own, but no more than docTTTTTquery's 512."""
        return min(positions, 512)


class Continuations(_Sampler):
    """Draws a text that a passage may go on with, from a causal language model.

    What a call returns hangs on its texts, its seed and the settings alone (and on the machine, as far as its
    rounding goes); torch's generators are left as they were.

    Args:
        model: folder or Hub id; code from it is never run. Passage and continuation have GPT-2's 1024 tokens
            together, or fewer if the model or its tokenizer takes no more; a longer passage loses its
            beginning, because its end is what is continued.
        max_tokens: new tokens of a continuation.
        top_k: a token is drawn from so many of the likeliest; 0 takes all.
        top_p: and from the likeliest whose probabilities sum to this, 0..1.
        temperature: logits are divided by it, > 0.
        batch_size: passages at a time. Another size draws other texts.
        device: of torch; None takes a CUDA device if there is one. On CUDA the model runs in half precision.

    Attributes:
        facts: for a manifest: the model, its commit (a folder's: fingerprint), and the settings.

    Raises:
        ModelError: if there is no such model, or it is no whole causal language model with a tokenizer.
        RecipeError: if a setting is out of range or leaves no room for a passage, or there is no such device.

    Source: MASTER/README.md (see the top of this file), which gives no settings.
    """

    loader = AutoModelForCausalLM
    kind = "causal language model"
    instead = "expected e.g. gpt2; or leave the continuations out."
    padding, cut = "left", "left"

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
        sampling = dict(top_k=top_k, top_p=top_p, temperature=temperature)
        super().__init__(model, device, dict(max_tokens=max_tokens, **sampling, batch_size=batch_size))

    def __call__(self, texts: list[str], seed: int) -> list[str]:
        """Draws for each passage what follows it; "" if that is nothing, or the passage is blank."""
        return ["".join(drawn) for drawn in self.draw(texts, seed)]

    @staticmethod
    def is_kind(config: Any) -> bool:
        """True for decoders; BERT and its kin have a causal head too, but are causal only if `is_decoder`."""
        encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
        return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not config.is_encoder_decoder and not encoder

    def room(self, positions: int) -> int:
        """What the new tokens leave of the positions, of which no more than GPT-2's 1024 are used."""
        return min(positions, 1024) - self.settings["max_tokens"]


def _check(settings: dict[str, Any]) -> None:
    """Sees that each setting is in its range.

    Raises:
        RecipeError: if one is not.
    """
    for name, value in settings.items():
        if name == "top_p":
            good, expected = 0 < value <= 1, "more than 0, at most 1"
        elif name == "temperature":
            good, expected = 0 < value < math.inf, "more than 0"
        else:
            least = 0 if name == "top_k" else 1
            good, expected = value >= least, f"{least} or more"
        if not good:
            raise RecipeError(f"{name} is {value}; expected {expected}.")
