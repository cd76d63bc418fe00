"""Settings of pretrain and prepare."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from stzoo.data.corpus_names import check_exists
from stzoo.plugins import manager
from stzoo.training.settings import (
    DATA,
    DEVICE_HELP,
    EVALUATION,
    HARDWARE,
    LOGS,
    MODEL,
    OPTIMISER,
    SHARD_HELP,
    THREADS_HELP,
    Device,
    EngineSettings,
    Name,
    Names,
    Training,
    setting,
)
from stzoo.utils.bounds import MAX_THREADS

CORPUS_HELP = (
    "Text files, folders, data sets by name or Hub id; pydocs for the docstrings of Python's library."
)
MIN_WORDS_HELP = "Skip passages with fewer words."
SKIP_BAD_LINES_HELP = "Count invalid lines and skip them instead of stopping."


class PretrainSettings(Training, EngineSettings):
    """Settings of `stzoo pretrain`."""

    command: ClassVar[str] = "pretrain"

    base: Name = setting(
        ...,
        "Masked language model or retriever to start from: folder, Hub id or name from `stzoo zoo`.",
        names="model",
        takes="model",
    )
    corpus: Names = setting(..., CORPUS_HELP, min_length=1, names="data", takes="corpora")
    objective: str = setting(
        "retromae",
        "Pre-training objective; `stzoo list objectives` shows all.",
        names="objective",
        takes="class",
    )
    options: dict[str, Any] = setting({}, "Options of the objective, e.g. decoder_rate.")
    weights: dict[str, float] = setting({}, "Weights of the objective's losses, by name.")
    pooling: str | None = setting(
        None,
        "Pooling that makes the bottleneck; by default the base model's own, or cls if it has none.",
        MODEL,
        names="pooling",
    )
    batch_size: int | None = setting(
        None,
        "Rows per step on each device; 32 by default, unless --batch-tokens is given.",
        OPTIMISER,
        ge=1,
        le=2**20,
    )
    batch_tokens: int | None = setting(
        None,
        "Tokens of passages per step on each device, padding included, in place of --batch-size.",
        OPTIMISER,
        ge=1,
        le=2**30,
    )
    max_tokens: int | None = setting(
        None, "Truncate passages to this many tokens; the base model's limit by default.", DATA, ge=4
    )
    min_words: int = setting(3, MIN_WORDS_HELP, DATA, ge=1)
    skip_bad_lines: bool = setting(False, SKIP_BAD_LINES_HELP, DATA)
    new_learning_rate: float | None = setting(
        None, "Peak learning rate of new heads and decoders; --learning-rate by default.", OPTIMISER, gt=0
    )
    head_warmup_steps: int = setting(
        0, "Freeze the encoder for this many steps and train only the new parts.", OPTIMISER, ge=0
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(  # type: ignore[assignment]  # auto in addition
        "auto",
        "Precision of the forward pass; bf16 and fp16 use autocast. auto chooses bf16 if the device computes "
        "with it, and fp32 otherwise.",
        HARDWARE,
    )
    shard_model: bool = setting(False, SHARD_HELP, HARDWARE)
    probe: Name | None = setting(
        None,
        "Data set (its name or BEIR folder) to evaluate on zero-shot during training.",
        EVALUATION,
        names="data",
        takes="judged",
    )
    probe_split: str = setting("test", "Split of --probe.", EVALUATION)
    probe_steps: int = setting(500, "Steps between evaluations on --probe.", EVALUATION, ge=1)

    @classmethod
    def read(cls, recipe: str | Path | None, changes: Mapping[str, Any]) -> Self:
        """See `Settings`. Of batch_size and batch_tokens, a change to one replaces the other of a recipe."""
        for one, other in (("batch_size", "batch_tokens"), ("batch_tokens", "batch_size")):
            if changes.get(one) is not None and other not in changes:
                changes = {**changes, other: None}
        return super().read(recipe, changes)

    def check_names(self) -> None:
        """See `Settings`."""
        super().check_names()
        manager.find("objective", self.objective)
        if self.pooling:
            manager.find("pooling", self.pooling)
        for source in self.corpus:
            check_exists(source)

    @model_validator(mode="after")
    def _one_measure(self) -> Self:
        if self.batch_size is not None and self.batch_tokens is not None:
            raise PydanticCustomError(
                "batches",
                "batch_size is {rows} and batch_tokens {tokens}; give one of the two",
                {"rows": self.batch_size, "tokens": self.batch_tokens},
            )
        if self.batch_tokens is None and self.batch_size is None:
            self.batch_size = 32
        return self


class PrepareSettings(EngineSettings):
    """Settings of `stzoo prepare`; a preparation adds its own fields in a subclass."""

    command: ClassVar[str] = "prepare"

    preparation: str = setting("", "Name of the preparation; `stzoo list preparations` shows all.")
    corpus: Names = setting(..., CORPUS_HELP, min_length=1, names="data", takes="corpora")
    min_words: int = setting(3, MIN_WORDS_HELP, DATA, ge=1)
    skip_bad_lines: bool = setting(False, SKIP_BAD_LINES_HELP, DATA)
    tokenizer: Name = setting(
        "bert-base-uncased",
        "Base model to be pre-trained (folder or Hub id); its tokenizer determines the words.",
    )
    shard_rows: int = setting(
        500, "Passages per shard; an interrupted run loses at most the unfinished shard.", LOGS, ge=1
    )
    seed: int = setting(42, "Random seed of everything that is drawn.", DATA, ge=0, le=2**32 - 1)
    device: Device | None = setting(None, DEVICE_HELP, HARDWARE)
    threads: int | None = setting(None, THREADS_HELP, HARDWARE, ge=1, le=MAX_THREADS)
