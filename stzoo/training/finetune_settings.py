"""Settings of finetune and mine."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from stzoo.data.corpus_names import check_exists
from stzoo.errors import RecipeError
from stzoo.plugins import manager
from stzoo.training.settings import (
    BATCH_TOKENS_HELP,
    DATA,
    DEVICE_HELP,
    EVALUATION,
    HARDWARE,
    LANGUAGE_HELP,
    LORA,
    LOSSES,
    MAX_TOKENS_HELP,
    MEMORY_HELP,
    MODEL,
    NEGATIVES,
    OPTIMISER,
    PORTABLE_HELP,
    SHARD_HELP,
    STORE_HELP,
    TASKS,
    THREADS_HELP,
    VECTORS,
    CheckedSettings,
    Device,
    EngineSettings,
    LanguageCode,
    Name,
    Names,
    Settings,
    setting,
)
from stzoo.training.supervised_settings import COLUMNS_HELP, Columns, SupervisedTraining
from stzoo.utils.bounds import MAX_THREADS


class MiningRules(Settings):
    """Which retrieved passages become hard negatives; shared by mining and by episodes in fine-tuning."""

    mined: int = setting(30, "Negatives to keep per query.", NEGATIVES, ge=1)
    depth: int = setting(200, "Sample negatives from the top N retrieved passages.", NEGATIVES, ge=1)
    skip: int = setting(
        0, "Ignore the N highest-ranked candidates (known positives not counted).", NEGATIVES, ge=0
    )
    sampling: Literal["random", "top"] = setting(
        "random", "Take random candidates, or the highest-ranked ones.", NEGATIVES
    )
    absolute_margin: float | None = setting(
        None, "Keep only negatives that score at least this much below the query's best positive.", NEGATIVES
    )
    relative_margin: float | None = setting(
        None,
        "Keep only negatives that score this share below the best positive: 0.05 for at most 95 % of it.",
        NEGATIVES,
        ge=0,
        lt=1,
    )
    language: LanguageCode | None = setting(None, LANGUAGE_HELP, NEGATIVES)
    teacher: Name | None = setting(
        None,
        "Cross-encoder (folder or Hub id) that scores positives and negatives.",
        NEGATIVES,
        takes="cross-encoder",
    )
    teacher_margin: float | None = setting(
        None,
        "Keep only negatives that the teacher scores at least this much below the best positive.",
        NEGATIVES,
    )
    teacher_tokens: int | None = setting(
        None, "Truncate each query and passage together to this many tokens for the teacher.", NEGATIVES, ge=4
    )


class MineSettings(MiningRules, EngineSettings):
    """Settings of `stzoo mine`."""

    command: ClassVar[str] = "mine"
    positional: ClassVar[tuple[str, ...]] = ("model",)

    model: Name = setting(
        ...,
        "Model to search with: folder, Hub id or name from `stzoo zoo`; or bm25s.",
        names="model",
        takes="model",
    )
    data: Name = setting(
        ..., "Training data: a data set (its name or BEIR folder) or a file.", names="data", takes="training"
    )
    split: str = setting("train", "Split of a data set whose queries get negatives.", DATA)
    corpus: Name | None = setting(
        None,
        "Passages to search: a data set (its name or BEIR folder) or a corpus.jsonl; those of --data by "
        "default.",
        DATA,
        names="data",
        takes="corpus",
    )
    columns: Columns = setting(None, COLUMNS_HELP, DATA)
    max_tokens: int | None = setting(None, MAX_TOKENS_HELP, DATA, ge=4)
    batch_tokens: int | None = setting(None, BATCH_TOKENS_HELP, HARDWARE, ge=1)
    memory_gib: float = setting(2.0, MEMORY_HELP, HARDWARE, gt=0, le=2**20)
    store: Name | None = setting(None, STORE_HELP, VECTORS)
    seed: int = setting(42, "Random seed of the sampling.", NEGATIVES, ge=0, le=2**32 - 1)
    device: Device | None = setting(None, DEVICE_HELP, HARDWARE)
    threads: int | None = setting(None, THREADS_HELP, HARDWARE, ge=1, le=MAX_THREADS)


RESERVED = ("query", "document", "passage", "corpus")


class TaskSettings(CheckedSettings):
    """One of several tasks of `stzoo finetune`; settings that are left out are those of the whole recipe."""

    name: str = setting(..., "Name of the task, without dots, slashes and spaces.")
    data: Name = setting(
        ...,
        "Training data of the task: a data set (its name or BEIR folder) or a file.",
        names="data",
        takes="training",
    )
    split: str | None = setting(None, "Split of a data set to train on.")
    corpus: Name | None = setting(
        None,
        "Passages that the data refers to by id, and to mine negatives from.",
        names="data",
        takes="corpus",
    )
    columns: Columns = setting(None, COLUMNS_HELP)
    dev_data: Name | None = setting(
        None,
        "Data set (its name or BEIR folder) for early stopping.",
        names="data",
        takes="judged",
        split="dev",
    )
    dev_split: str | None = setting(None, "Split for early stopping.")
    query_prompt: str | None = setting(
        None, "Prompt put before the task's queries; the model keeps it under the task's name."
    )
    max_query_tokens: int | None = setting(None, "Truncate queries to this many tokens in training.", ge=4)
    max_passage_tokens: int | None = setting(None, "Truncate passages to this many tokens in training.", ge=4)
    negatives: int | None = setting(None, "Hard negatives per query.", ge=0)
    weight: float = setting(1.0, "Multiply the task's size by this when batches are shared out.", gt=0)
    max_queries: int | None = setting(None, "Train on at most this many queries, drawn at random.", ge=1)


class FinetuneSettings(SupervisedTraining, MiningRules, EngineSettings):
    """Settings of `stzoo finetune`."""

    command: ClassVar[str] = "finetune"
    positional: ClassVar[tuple[str, ...]] = ("model",)

    model: Name = setting(
        ..., "Model to fine-tune: folder, Hub id or name from `stzoo zoo`.", names="model", takes="model"
    )
    data: Name = setting(
        "",
        "Training data: a data set (its name or BEIR folder) or a file, such as a mined one.",
        names="data",
        takes="training",
    )
    tasks: list[TaskSettings] = setting([], "Several tasks instead of --data, in a recipe.")
    mixing: Literal["temperature", "proportional", "round-robin"] = setting(
        "temperature",
        "How tasks share a batch: by size flattened by a temperature, by size, or in turn step by step.",
        TASKS,
    )
    mixing_temperature: float = setting(
        4.0, "A task's share is its size ^ (1 / temperature); 1 means proportional.", TASKS, gt=0
    )
    balancer: str = setting(
        "sum",
        "How the tasks' gradients become one update; `stzoo list balancers` shows all.",
        TASKS,
        names="balancer",
        takes="class",
    )
    balancer_options: dict[str, Any] = setting({}, "Options of the balancer, e.g. tau.", TASKS)
    corpus: Name | None = setting(
        None,
        "Passages that the data refers to by id, and to mine negatives from; those of --data by default.",
        DATA,
        names="data",
        takes="corpus",
    )
    dev_passages: int = setting(
        2000,
        "Passages to search for the dev queries: the judged ones and random others; 0 means all.",
        EVALUATION,
        ge=0,
    )
    pooling: str | None = setting(
        None,
        "Pooling of token embeddings; by default the model's own, or cls if it has none.",
        MODEL,
        names="pooling",
    )
    pooling_options: dict[str, Any] = setting({}, "Options of the pooling.", MODEL)
    portable: bool = setting(True, PORTABLE_HELP, MODEL)
    similarity: Literal["cosine", "dot"] | None = setting(
        None,
        "Similarity of embeddings, in training and in the exported model; the model's own by default.",
        MODEL,
    )
    query_prompt: str | None = setting(None, "Prompt put before queries; the model's own by default.", MODEL)
    passage_prompt: str | None = setting(
        None, "Prompt put before passages; the model's own by default.", MODEL
    )
    max_query_tokens: int = setting(64, "Truncate queries to this many tokens in training.", DATA, ge=4)
    max_passage_tokens: int = setting(256, "Truncate passages to this many tokens in training.", DATA, ge=4)
    batch_size: int = setting(
        64,
        "Queries per step on each device; passages of the other queries are in-batch negatives.",
        OPTIMISER,
        ge=2,
        le=2**20,
    )
    mini_batch_size: int = setting(
        32, "Texts encoded at once to save memory; affects only the random draws of dropout.", OPTIMISER, ge=1
    )
    negatives: int | None = setting(
        None, "Hard negatives per query; by default 7, or fewer if the data has fewer.", NEGATIVES, ge=0
    )
    losses: dict[str, float] = setting(
        {"contrastive": 1.0},
        "Weights of the losses, by name; `stzoo list losses` shows all.",
        LOSSES,
        min_length=1,
    )
    loss_options: dict[str, Any] = setting(
        {}, "Options of the losses, e.g. kl.teacher_temperature.", LOSSES, takes="options"
    )
    temperature: float = setting(0.05, "Divide similarities by this in every loss.", LOSSES, gt=0)
    matryoshka: list[int] = setting([], "Also train embeddings truncated to this many dimensions.", LOSSES)
    shard_model: bool = setting(False, SHARD_HELP, HARDWARE)
    cross_device: bool = setting(False, "Use passages on other devices as negatives, too.", LOSSES)
    keep_base: bool = setting(
        True,
        "Keep the base's weights if no step scores higher on the dev queries; --no-keep-base takes the best "
        "step in any case.",
        EVALUATION,
    )
    lora_rank: int = setting(
        0, "Train only low-rank adapters of this rank; 0 trains all weights.", LORA, ge=0, le=2**14
    )
    lora_alpha: float | None = setting(
        None, "Scale adapters by alpha / rank; 2 x rank by default.", LORA, gt=0
    )
    lora_dropout: float = setting(0.0, "Dropout before the adapters.", LORA, ge=0, lt=1)
    lora_targets: Names = setting(
        [], "Modules to adapt, by the end of their name; all linear layers by default.", LORA
    )
    episodes: int = setting(
        0, "Rounds of mining with the current model and training; 0 turns mining off.", NEGATIVES, ge=0
    )
    first_negatives: Literal["model", "bm25s"] = setting(
        "model", "Retriever that mines the negatives of the first episode.", NEGATIVES
    )
    keep_old: float = setting(
        0.0, "Share of an episode's negatives to keep from the previous episode.", NEGATIVES, ge=0, lt=1
    )

    @classmethod
    def read(cls, recipe: str | Path | None, changes: Mapping[str, Any]) -> Self:
        """See `Settings.read`; either `data` or `tasks` must be given."""
        made = super().read(recipe, changes)
        if not made.data and not made.tasks:
            raise RecipeError("data is missing; give --data, or tasks in the recipe.")
        if made.data and made.tasks:
            raise RecipeError(
                "both data and tasks are given; give one of them. Each task has data of its own."
            )
        names = [task.name for task in made.tasks]
        if wrong := [name for name in names if not re.fullmatch(r"[^./\\\s]+", name) or name in RESERVED]:
            raise RecipeError(
                f"a task is named {wrong[0]!r}; expected a name without dots, slashes and spaces, other than "
                f"{', '.join(RESERVED)}, which are prompts of every model."
            )
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise RecipeError(f"two tasks are named {', '.join(twice)}; give each task its own name.")
        alone = sorted(
            {"mixing", "mixing_temperature", "balancer", "balancer_options"} & made.model_fields_set
        )
        if not made.tasks and alone:
            raise RecipeError(f"{alone[0]} has no effect without tasks; add tasks, or drop it.")
        made.losses = _by_name("losses", made.losses)
        made.loss_options = _by_name("loss_options", made.loss_options)
        return made

    def check_names(self) -> None:
        """See `Settings`."""
        super().check_names()
        for name in self.losses:
            manager.find("loss", name)
        if self.pooling:
            manager.find("pooling", self.pooling)
        if self.tasks:
            manager.find("balancer", self.balancer)
        for one in self.each().values():
            check_exists(one.data)

    def each(self) -> "Mapping[str, FinetuneSettings]":
        """See `SupervisedTraining`."""
        if not self.tasks:
            return {"": self}
        own = TaskSettings.model_fields.keys() & FinetuneSettings.model_fields.keys()
        found = {}
        for task in self.tasks:
            given = {name: value for name in own if (value := getattr(task, name)) is not None}
            found[task.name] = self.model_copy(update={**given, "tasks": []})
        return found


def _by_name(setting: str, by_alias: dict[str, Any]) -> dict[str, Any]:
    """The values by the losses' own names in place of their aliases."""
    named = {manager.canonical("loss", name): value for name, value in by_alias.items()}
    if len(named) < len(by_alias):
        raise RecipeError(f"{setting} has {', '.join(by_alias)}, of which two are the same loss; keep one.")
    return named
