"""Generates queries by a language model that runs here: doc2query T5s, and causal models by a prompt.

A causal model gets three passages with queries as examples, in the turns of its chat template, or as plain
text if it has none or is small: of the answers of SmolLM2-135M-Instruct about Cranfield's passages 44% were
usable after turns, and 79% after plain text. In a corpus that is not English, the examples are the corpus'
own titles.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
)

from stzoo.adaptation.questions.decoding import Causal, Sampling, Seq2Seq
from stzoo.adaptation.questions.generator import STYLES, Answer, Passage
from stzoo.data.words import words
from stzoo.errors import MissingExtraError, ModelError
from stzoo.models.loaded import folder_revision
from stzoo.models.loading import check_device, loading_errors
from stzoo.models.onednn import fast_linear
from stzoo.utils.files import sha256
from stzoo.utils.inputs import user_path

CHAT = 10**9  # parameters from which a model with a chat template is asked by it
WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
MOST_TOKENS = 2048  # of a passage
ECHOED = 0.6  # share of words of an example from which an answer is a copy of it
BATCH_TOKENS = 16384  # of prompts and queries in a batch; 0.4 GB of keys and values for 135 M parameters
LABELS = {"question": "Question", "keywords": "Keywords", "statement": "Statement", "title": "Title"}

# Passages with a query of each style, as examples for causal models.
EXAMPLES = (
    (
        "Green tea contains caffeine and the amino acid theanine. In a trial with 40 adults, a cup before a "
        "test of attention shortened reaction times, while caffeine alone raised blood pressure.",
        {
            "question": "does green tea improve attention",
            "keywords": "theanine caffeine reaction time trial",
            "statement": "Drinking green tea before a task makes people react faster.",
        },
    ),
    (
        "To roll back a failed deployment, run the release command with the number of the last healthy "
        "version. Traffic moves over within a minute; database migrations are not undone.",
        {
            "statement": "Rolling back a release leaves the database schema as it is.",
            "question": "how can I return to an earlier version after a bad deployment",
            "keywords": "undo deployment last healthy version",
        },
    ),
    (
        "The lighthouse was built in 1874 of local granite. Ships had been lost on the reef in most winters, "
        "and the keeper's log counts no wreck in the following thirty years.",
        {
            "keywords": "granite lighthouse reef shipwrecks 1874",
            "statement": "No ship was lost on the reef for three decades after the lighthouse was built.",
            "question": "why was a lighthouse needed on the reef",
        },
    ),
)
_SENTENCE = re.compile(r".{12,}?[.?!](?= )")  # the first one
SYSTEM = "You write short search queries for passages, in the language of the passage."


class LocalModel:
    """A language model of transformers. Code from its folder or repository is never run.

    Args:
        name: Folder, Hub id, or path of a GGUF file.
        gguf_file: Name of a GGUF file in the folder or repository.
        device: Device of torch; None for the CPU, or CUDA if there is one.
        precision: "fp32" or "bf16".
        passage_words: Words of a passage to read.
        sampling: How tokens are chosen.
        examples: Pairs of a passage and its title for a corpus that is not English.

    Raises:
        MissingExtraError: If gguf is not installed and the model is a GGUF file.
        ModelError: If it is not a language model with all its weights.
        RecipeError: If the device does not exist.
    """

    copies = False
    stored_at_once = 24  # about one batch of the example prompt

    def __init__(
        self,
        name: str,
        gguf_file: str | None = None,
        *,
        device: str | None = None,
        precision: str = "fp32",
        passage_words: int = 120,
        sampling: Sampling | None = None,
        examples: Sequence[tuple[str, str]] = (),
    ):
        check_device(device)
        self._sampling, self._words = sampling or Sampling(), passage_words
        self.usage: Counter[str] = Counter()
        self.name = gguf_file or name
        path = user_path(name, ModelError)
        if path.is_file():
            name, gguf_file = str(path.parent), path.name
            self.name = gguf_file
        elif path.is_dir():
            self.name = gguf_file or path.resolve().name
        self._load(name, gguf_file, device, precision)
        self._titles, self._examples = list(examples), _shown(examples)
        self._prompts()
        self.metadata = {
            "model": self.name,
            "revision": _revision(Path(name), gguf_file),
            "precision": precision,
            "passage_words": passage_words,
            "sampling": asdict(self._sampling),
            "prompt": [self._prefix, self._suffixes],
        }

    def _load(self, name: str, gguf_file: str | None, device: str | None, precision: str) -> None:
        options: dict[str, Any] = dict(trust_remote_code=False)
        if gguf_file:
            try:
                import gguf  # noqa: F401 - transformers needs it
            except ImportError:
                raise MissingExtraError("gguf", "queries") from None
            options["gguf_file"] = gguf_file
        elif Path(name).is_dir() and not (Path(name) / "config.json").is_file():
            raise ModelError(
                f"{name} is not a model; expected config.json in it, or the path of a GGUF file."
            )
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        once = _reading_once() if gguf_file else contextlib.nullcontext()
        with loading_errors("language model", name), once:
            config = AutoConfig.from_pretrained(name, **options)
            kinds = config.architectures or [WRITERS[0]]  # a GGUF file names none
            if not any(kind.endswith(WRITERS) for kind in kinds):
                raise ModelError(
                    f"{name} is a {', '.join(kinds)}, which writes no text; expected a language model."
                )
            self.is_seq2seq = bool(config.is_encoder_decoder)
            options["config"] = config
            kind = AutoModelForSeq2SeqLM if self.is_seq2seq else AutoModelForCausalLM
            self._tokenizer = AutoTokenizer.from_pretrained(name, **options)
            weights = {} if gguf_file else {"use_safetensors": True}
            loaded: Any = kind.from_pretrained(
                name, dtype=dtype, output_loading_info=True, **options, **weights
            )
            self._model, report = loaded
        if missing := sorted(report["missing_keys"]):
            raise ModelError(
                f"{name} lacks {len(missing)} weights of a {type(self._model).__name__} ({missing[0]}, …); "
                "expected a language model that writes text."
            )
        self._model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def _prompts(self) -> None:
        tokenizer, config = self._tokenizer, self._model.config
        generation: GenerationConfig = self._model.generation_config
        ends = [tokenizer.eos_token_id, generation.eos_token_id, config.eos_token_id]
        stop = {one for end in ends for one in (end if isinstance(end, list) else [end]) if one is not None}
        self._prefix = ""
        self._suffixes: dict[str, str] = {}
        if self.is_seq2seq:
            self._fixed, self._room = self._sampling.max_new_tokens, MOST_TOKENS
            start = generation.decoder_start_token_id
            start = config.decoder_start_token_id if start is None else start
            self._sampler: Any = Seq2Seq(self._model, start, stop)
            return
        pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        stop |= {at for at, piece in enumerate(pieces) if piece and _breaks(piece)}
        large = self._model.num_parameters() >= CHAT
        turns = _chat(tokenizer, self._titles) if large else None
        self._prefix, self._suffixes = turns or _plain(tokenizer, self._titles)
        ids = tokenizer(self._prefix, add_special_tokens=False).input_ids
        self._fixed = len(ids) + self._sampling.max_new_tokens + 32  # the style's tokens among them
        limit = getattr(config, "max_position_embeddings", None) or MOST_TOKENS + self._fixed
        self._room = min(limit - self._fixed, MOST_TOKENS)
        if self._room < 32:
            raise ModelError(
                f"{self.name} reads at most {limit} tokens; expected {self._fixed + 32} or more, as the "
                "examples and a passage need them."
            )
        with fast_linear(self._model.device):
            self._sampler = Causal(self._model, ids, stop)
        self._style_ids = {
            style: tokenizer(text, add_special_tokens=False).input_ids
            for style, text in self._suffixes.items()
        }

    def styles(self, passage: Passage) -> Sequence[str]:  # noqa: ARG002 - see Generator
        """See `Generator`."""
        return ("question",) if self.is_seq2seq else tuple(self._suffixes)

    def estimate(self, passages: Sequence[Passage], visits: int, per_passage: int) -> str:  # noqa: ARG002
        """See `Generator`."""
        return ""

    def generate(
        self, passages: Sequence[Passage], styles: Sequence[Sequence[str]], seeds: Sequence[int]
    ) -> Iterator[tuple[int, list[Answer]]]:
        """See `Generator`."""
        texts = [passage.shortened(self._words) for passage in passages]
        ids = self._tokenizer(texts, add_special_tokens=self.is_seq2seq).input_ids
        ids = [row[: self._room] for row in ids]
        order = sorted(range(len(ids)), key=lambda at: (len(styles[at]), len(ids[at]), at), reverse=True)
        for batch in self._batches(order, ids, styles):
            asked = [[self._style_ids[one] if self._suffixes else [] for one in styles[at]] for at in batch]
            with fast_linear(self._model.device):
                found = self._sampler.sample(
                    [ids[at] for at in batch], asked, [seeds[at] for at in batch], self._sampling
                )
            for at, answers in zip(batch, found, strict=True):
                self.usage["tokens_in"] += len(ids[at])
                self.usage["tokens_out"] += sum(len(tokens) for tokens, _ in answers)
                yield (
                    at,
                    [self._answer(style, *answer) for style, answer in zip(styles[at], answers, strict=True)],
                )

    def _answer(self, style: str, tokens: list[int], ended: bool) -> Answer:
        text = str(self._tokenizer.decode(tokens, skip_special_tokens=True)).strip()
        if style == "keywords" and "," in text:  # small models go on for ever
            parts = [one.strip() for one in text.split(",")]
            text, ended = " ".join(list(dict.fromkeys(parts if ended else parts[:-1]))[:5]), True
        elif not ended and (sentence := _SENTENCE.match(text)):
            text, ended = sentence[0], True
        if not ended:
            return Answer(text, "not finished")
        return Answer(text, "an echo of the prompt" if self._is_example(text) else "")

    def _is_example(self, text: str) -> bool:
        """True if most words of a text are those of an example."""
        found = set(words(text))
        return any(len(found & set(words(example))) > ECHOED * len(found) for _, _, example in self._examples)

    def _batches(
        self, order: Sequence[int], ids: Sequence[Sequence[int]], styles: Sequence[Sequence[str]]
    ) -> Iterator[list[int]]:
        """Passages with as many styles each, whose prompts and queries are within BATCH_TOKENS."""
        batch: list[int] = []
        for at in order:
            if batch:
                size = (len(ids[batch[0]]) + self._fixed) * len(styles[at]) * (len(batch) + 1)
                if len(styles[at]) != len(styles[batch[0]]) or size > BATCH_TOKENS:
                    yield batch
                    batch = []
            batch.append(at)
        if batch:
            yield batch


@contextlib.contextmanager
def _reading_once() -> Iterator[None]:
    """Parses a GGUF file once. transformers does it for the settings, the tokenizer and the weights.

    With a vocabulary of 262,144 pieces, that takes 12 seconds each time.
    """
    import gguf

    reader = gguf.GGUFReader
    gguf.GGUFReader = cache(reader)  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        gguf.GGUFReader = reader  # type: ignore[misc]


def _breaks(piece: str) -> bool:
    """True for a token with a line break, in the alphabets of byte-level BPE and sentencepiece."""
    return "\n" in piece or "Ċ" in piece or piece == "<0x0A>"


def _shown(titles: Sequence[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """The examples, as a passage, a style and a query each."""
    if titles:
        return [(passage, "title", title) for passage, title in titles]
    return [(passage, style, text) for passage, queries in EXAMPLES for style, text in queries.items()]


def _styles(titles: Sequence[tuple[str, str]]) -> Sequence[str]:
    return ("title",) if titles else tuple(STYLES)


def _plain(tokenizer: Any, titles: Sequence[tuple[str, str]]) -> tuple[str, dict[str, str]]:
    """A prompt without turns: the prefix of all passages, and what follows one for each style."""
    blocks: dict[str, list[str]] = {}
    for passage, style, text in _shown(titles):
        blocks.setdefault(passage, []).append(f"{LABELS[style]}: {text}")
    examples = "\n\n".join("\n".join([f"Passage: {passage}", *lines]) for passage, lines in blocks.items())
    prefix = f"{tokenizer.bos_token or ''}{examples}\n\nPassage:"
    return prefix, {style: f"\n{LABELS[style]}:" for style in _styles(titles)}


def _chat(tokenizer: Any, titles: Sequence[tuple[str, str]]) -> tuple[str, dict[str, str]] | None:
    """The same by the turns of a chat template; None if there is none, or it changes what it is given."""
    if not tokenizer.chat_template:
        return None
    examples: list[tuple[str, str, str]] = []
    for at, style in enumerate(_styles(titles) if not titles else ["title"] * len(titles)):
        of_style = [one for one in _shown(titles) if one[1] == style]
        examples.append(of_style[at % len(of_style)])
    turns = [{"role": "system", "content": SYSTEM}]
    for passage, style, text in examples:
        turns.append({"role": "user", "content": f"{passage}\n\n{LABELS[style]}:"})
        turns.append({"role": "assistant", "content": text})
    mark = "\u2603passage\u2603"
    suffixes, prefixes = {}, set()
    for style in _styles(titles):
        asked = [*turns, {"role": "user", "content": f"{mark}\n\n{LABELS[style]}:"}]
        try:
            text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        except Exception:  # a template may raise anything, e.g. because it knows no system turn
            asked[0:2] = [{"role": "user", "content": f"{SYSTEM}\n\n{asked[1]['content']}"}]
            try:
                text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
            except Exception:
                return None
        prefix, found, suffixes[style] = text.partition(mark)
        prefixes.add(prefix)
        if not found:
            return None
    return (prefixes.pop(), suffixes) if len(prefixes) == 1 else None


def _revision(folder: Path, gguf_file: str | None) -> str:
    """The first 12 hex digits of a fingerprint of the weights; "" for a model of the Hub."""
    if gguf_file and (folder / gguf_file).is_file():
        return sha256(folder / gguf_file)[:12]
    return folder_revision(folder) if folder.is_dir() else ""
