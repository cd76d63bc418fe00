"""Settings: one class per command, from which its flags, recipe keys, checks and reference page come.

Here are the base class and the settings of prepare, pretrain, mine and finetune; those of other commands are
in `stzoo.evaluation.settings`, `stzoo.hub.settings` and `stzoo.cli.search`. A field's group is the panel that
`stzoo COMMAND --help` shows its flag in; a field without one is among the most important, shown first.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from stzoo.data.column_roles import COLUMN_ROLES, IGNORE, parse_columns
from stzoo.data.languages import check_language
from stzoo.errors import RecipeError, quoted, suggest
from stzoo.training.recipes import SCHEMA_VERSION, load_recipe
from stzoo.utils.bounds import MAX_THREADS, check_plausible, plausible
from stzoo.utils.inputs import check_number

__all__ = ["SCHEMA_VERSION"]  # of recipes; what has settings in it is written with it


# groups of flags, in the order in which help shows them; those of plugins come before HARDWARE
GROUPS = (
    DATA := "Data",
    SCORING := "Scoring",
    MODEL := "Model",
    VECTORS := "Vectors and indexes",
    TASKS := "Several tasks",
    LOSSES := "Losses",
    NEGATIVES := "Negatives",
    EVALUATION := "Evaluation during training",
    OPTIMISER := "Optimiser and batches",
    LORA := "LoRA",
    LOGS := "Checkpoints and logs",
    HARDWARE := "Hardware",
)


def setting(default: Any, description: str, group: str = "", *, names: str = "", **bounds: Any) -> Any:
    """A field of a settings class.

    Args:
        default: its value if it is not given; ... if it must be given.
        description: one sentence for help and the reference page.
        group: one of GROUPS, the panel of help that shows its flag; "" for the first panel, which has the
            most important flags.
        names: kind of component ("pooling") or "dataset", whose names the shell completes.
        bounds: as `pydantic.Field` has them, e.g. ge=1.
    """
    extra: JsonDict = {"group": group, "names": names}
    return Field(default, description=description, json_schema_extra=extra, **bounds)


def _text(given: Any) -> Any:
    return str(given) if isinstance(given, Path) else given


def _several(given: Any) -> Any:
    given = [given] if isinstance(given, str | Path) else given
    return [_text(one) for one in given] if isinstance(given, list | tuple) else given


def _split(given: Any) -> Any:
    return [part.strip() for part in given.split(",")] if isinstance(given, str) else _several(given)


Name = Annotated[str, BeforeValidator(_text)]  # of a folder or on the Hub; Python callers may give a Path
Names = Annotated[list[str], BeforeValidator(_several)]  # one or several; the flag can be repeated
COMMAS = BeforeValidator(_split)
CommaList = Annotated[list[str], COMMAS]  # a list, or a text with commas, which is what the flag takes
Columns = Annotated[dict[str, list[str]] | None, BeforeValidator(lambda given: parse_columns(given) or None)]
COLUMNS_HELP = (
    "Roles of a training file's columns whose names do not show them, as in query=question,positive=passage. "
    f"Roles: {', '.join(COLUMN_ROLES)}, {IGNORE}."
)


class _Checked(BaseModel):
    """Settings whose numbers are numbers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    _plausible = plausible
    _plausible_number = field_validator("*")(check_plausible)  # also if it was given as text

    @field_validator("*", mode="before")
    @classmethod
    def _check_number(cls, value: Any, info: ValidationInfo) -> Any:
        try:
            check_number(cls.model_fields[info.field_name or ""].annotation, value)
        except ValueError as error:
            raise PydanticCustomError("number", "{reason}", {"reason": str(error)}) from None
        return value


class Settings(_Checked):
    """What all commands' settings share.

    Attributes:
        command: whose settings they are.
        positional: names of the fields that the command line takes as arguments, not as flags, in this order.
    """

    command: ClassVar[str]
    positional: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def read(cls, recipe: str | Path | None, changes: Mapping[str, Any]) -> Self:
        """Settings from a recipe and changes to it; a change wins.

        Args:
            recipe: a YAML file, the name of an installed recipe, or None.
            changes: settings by name, dotted where they are nested ("options.decoder_rate").

        Raises:
            RecipeError: for an unknown key (with the nearest one), a wrong type, a missing setting, or a
                recipe of another command.
        """
        values = load_recipe(recipe, cls.command) if recipe is not None else {}
        for key, value in changes.items():
            place = values
            *parents, last = key.split(".")
            for parent in parents:
                place = place.setdefault(parent, {})
                if not isinstance(place, dict):
                    raise RecipeError(f"--set {key}: {parent!r} is a single value, without settings in it.")
            place[last] = value
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise RecipeError(cls._explain(error, recipe)) from None

    @classmethod
    def check(cls, arguments: Mapping[str, Any]) -> Self:
        """Settings from the arguments of the command's function; arguments of other names are ignored.

        Raises:
            RecipeError: see `read`.
        """
        return cls.read(None, {name: arguments[name] for name in cls.model_fields})

    def arguments(self) -> dict[str, Any]:
        """The settings as arguments of the command's function."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    @classmethod
    def _explain(cls, error: ValidationError, recipe: str | Path | None) -> str:
        lines = []
        for problem in error.errors():
            key = ".".join(map(str, problem["loc"]))
            if problem["type"] == "extra_forbidden":
                known = TaskSettings.model_fields if "." in key else cls.model_fields
                guess = suggest(str(problem["loc"][-1]), known)
                listed = f" Settings: {', '.join(known)}." if guess == "." else ""
                lines.append(f"unknown setting {key!r}{guess}{listed}")
            elif problem["type"] == "missing":
                flag = key.upper() if key in cls.positional else f"--{key.replace('_', '-')}"
                lines.append(f"{key} is missing; give {flag} or set it in the recipe.")
            elif problem["type"] == "literal_error":
                words = choices(cls.model_fields[str(problem["loc"][0])].annotation)
                guess = suggest(str(problem["input"]), words)
                lines.append(
                    f"{key} is {quoted(problem['input'])}; expected one of {', '.join(words)}{guess}"
                )
            else:
                lines.append(f"{key} is {quoted(problem['input'])}: {problem['msg'].lower()}.")
        of = f"the recipe {recipe}" if recipe is not None else "the settings"
        return f"problems in {of} of `stzoo {cls.command}`:\n  " + "\n  ".join(lines)

    def dump(self) -> dict[str, Any]:
        """The settings as plain values, with the command and the schema's version."""
        return {"schema_version": SCHEMA_VERSION, "command": self.command, **self.model_dump(mode="json")}


def choices(kind: Any) -> tuple[str, ...]:
    """The words that a Literal, or a union or list of one, allows; none for other types."""
    if getattr(kind, "__origin__", None) is Literal:
        return get_args(kind)
    return next(filter(None, map(choices, get_args(kind))), ())


def _language(given: Any) -> Any:
    given = "no" if given is False else given
    return check_language(given) if isinstance(given, str) else given


# A code of data/languages.py, by it or by its English name; YAML reads the code of Norwegian, no, as false.
LanguageCode = Annotated[str, BeforeValidator(_language)]
Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["cpu", "cuda", "mps"]
DEVICE_HELP = "Device to run on; the best available one by default."
THREADS_HELP = "CPU threads; chosen by PyTorch by default."


class Training(Settings):
    """What pre-training and fine-tuning share."""

    batch_size: int = setting(32, "Rows per step on each device.", OPTIMISER, ge=1, le=2**20)
    accumulation: int = setting(
        1, "Batches whose gradients are accumulated in one step.", OPTIMISER, ge=1, le=2**20
    )
    epochs: float = setting(1.0, "Passes over the training data.", OPTIMISER, gt=0, le=10**6)
    max_steps: int | None = setting(
        None, "Number of optimiser steps; replaces --epochs.", OPTIMISER, ge=1, le=10**9
    )
    learning_rate: float = setting(1e-4, "Peak learning rate of AdamW.", OPTIMISER, gt=0)
    warmup_ratio: float = setting(
        0.1,
        "Share of the steps in which the learning rate rises; then it falls to 0.",
        OPTIMISER,
        ge=0,
        le=1,
    )
    weight_decay: float = setting(
        0.01, "Weight decay of AdamW, not applied to biases and norms.", OPTIMISER, ge=0
    )
    max_grad_norm: float = setting(1.0, "Clip the norm of all gradients to this value.", OPTIMISER, gt=0)
    precision: Precision = setting(
        "fp32", "Precision of the forward pass; bf16 and fp16 use autocast.", HARDWARE
    )
    seed: int = setting(
        42, "Random seed for masks, data order, dropout and new parameters.", OPTIMISER, ge=0, le=2**32 - 1
    )
    save_steps: int = setting(500, "Steps between checkpoints.", LOGS, ge=1)
    save_minutes: float = setting(
        10.0, "Minutes after which a checkpoint is saved even if --save-steps is not reached.", LOGS, gt=0
    )
    keep_checkpoints: int = setting(2, "Number of checkpoints to keep.", LOGS, ge=2)
    log_steps: int = setting(10, "Steps between log lines.", LOGS, ge=1)
    report_to: list[str] = setting([], "Additional loggers, e.g. tensorboard.", LOGS)
    workers: int = setting(0, "Processes that tokenise the data.", HARDWARE, ge=0, le=256)
    device: Device | None = setting(None, DEVICE_HELP, HARDWARE)
    threads: int | None = setting(None, THREADS_HELP, HARDWARE, ge=1, le=MAX_THREADS)


CORPUS_HELP = "Text files, folders or Hub data set ids; pydocs for the docstrings of Python's library."
MIN_WORDS_HELP = "Skip passages with fewer words."
SKIP_BAD_LINES_HELP = "Count invalid lines and skip them instead of stopping."


class PretrainSettings(Training):
    """Settings of `stzoo pretrain`."""

    command: ClassVar[str] = "pretrain"

    base: str = setting(
        ..., "Masked language model or sentence-transformers model to start from: folder or Hub id."
    )
    corpus: list[str] = setting(..., CORPUS_HELP, min_length=1)
    objective: str = setting(
        "retromae", "Pre-training objective; `stzoo list objectives` shows all.", names="objective"
    )
    options: dict[str, Any] = setting({}, "Options of the objective, e.g. decoder_rate.")
    weights: dict[str, float] = setting({}, "Weights of the objective's losses, by name.")
    pooling: str | None = setting(
        None,
        "Pooling that makes the bottleneck; by default the base model's own, or cls if it has none.",
        MODEL,
        names="pooling",
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
    probe: str | None = setting(None, "BEIR folder to evaluate on zero-shot during training.", EVALUATION)
    probe_split: str = setting("test", "Split of --probe.", EVALUATION)
    probe_steps: int = setting(500, "Steps between evaluations on --probe.", EVALUATION, ge=1)


class PrepareSettings(Settings):
    """Settings of `stzoo prepare`; a preparation adds its own fields in a subclass."""

    command: ClassVar[str] = "prepare"

    preparation: str = setting("", "Name of the preparation; `stzoo list preparations` shows all.")
    corpus: list[str] = setting(..., CORPUS_HELP, min_length=1)
    min_words: int = setting(3, MIN_WORDS_HELP, DATA, ge=1)
    skip_bad_lines: bool = setting(False, SKIP_BAD_LINES_HELP, DATA)
    tokenizer: str = setting(
        "bert-base-uncased",
        "Base model to be pre-trained (folder or Hub id); its tokenizer determines the words.",
    )
    shard_rows: int = setting(
        500, "Passages per shard; an interrupted run loses at most the unfinished shard.", HARDWARE, ge=1
    )
    seed: int = setting(42, "Random seed.", HARDWARE, ge=0, le=2**32 - 1)
    device: Device | None = setting(None, DEVICE_HELP, HARDWARE)
    threads: int | None = setting(None, THREADS_HELP, HARDWARE, ge=1, le=MAX_THREADS)


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
        "The same margin as a share of the positive's score: 0.05 keeps negatives up to 95 % of it.",
        NEGATIVES,
        ge=0,
        lt=1,
    )
    language: LanguageCode | None = setting(
        None,
        "Language of the passages for BM25's stemmer and stop words (de, german, none); detected by default.",
        NEGATIVES,
    )
    teacher: str | None = setting(
        None, "Cross-encoder (folder or Hub id) that scores positives and negatives.", NEGATIVES
    )
    teacher_margin: float | None = setting(
        None,
        "Keep only negatives that the teacher scores at least this much below the best positive.",
        NEGATIVES,
    )
    teacher_tokens: int | None = setting(
        None, "Truncate each query and passage together to this many tokens for the teacher.", NEGATIVES, ge=4
    )


class MineSettings(MiningRules):
    """Settings of `stzoo mine`."""

    command: ClassVar[str] = "mine"
    positional: ClassVar[tuple[str, ...]] = ("model",)

    model: str = setting(..., "Sentence-transformers model to search with (folder or Hub id), or bm25s.")
    data: str = setting(..., "BEIR folder or file of training data.")
    split: str = setting("train", "Split of a BEIR folder whose queries get negatives.", DATA)
    corpus: str | None = setting(
        None, "Passages to search, as a BEIR folder or corpus.jsonl; those of --data by default.", DATA
    )
    columns: Columns = setting(None, COLUMNS_HELP, DATA)
    max_tokens: int | None = setting(
        None, "Truncate texts to this many tokens; the model's limit by default.", DATA, ge=4
    )
    batch_tokens: int | None = setting(
        None, "Tokens encoded at once; chosen for the device by default.", HARDWARE, ge=1
    )
    memory_gib: float = setting(2.0, "Memory for the search in GiB.", HARDWARE, gt=0, le=2**20)
    store: str | None = setting(None, "Folder for the embeddings; stzoo's cache by default.", HARDWARE)
    seed: int = setting(42, "Random seed of the sampling.", NEGATIVES, ge=0, le=2**32 - 1)
    device: Device | None = setting(None, DEVICE_HELP, HARDWARE)
    threads: int | None = setting(None, THREADS_HELP, HARDWARE, ge=1, le=MAX_THREADS)


RESERVED = ("query", "document", "passage", "corpus")


class TaskSettings(_Checked):
    """One of several tasks of `stzoo finetune`; settings that are left out are those of the whole recipe."""

    name: str = setting(..., "Name of the task, without dots, slashes and spaces.")
    data: str = setting(..., "BEIR folder, mined file or other training data of the task.")
    split: str | None = setting(None, "Split of a BEIR folder to train on.")
    corpus: str | None = setting(None, "Passages that the data refers to by id, and to mine negatives from.")
    columns: Columns = setting(None, COLUMNS_HELP)
    dev_data: str | None = setting(None, "BEIR folder for early stopping.")
    dev_split: str | None = setting(None, "Split for early stopping.")
    query_prompt: str | None = setting(
        None, "Prompt put before the task's queries; the model keeps it under the task's name."
    )
    max_query_tokens: int | None = setting(None, "Truncate queries to this many tokens in training.", ge=4)
    max_passage_tokens: int | None = setting(None, "Truncate passages to this many tokens in training.", ge=4)
    negatives: int | None = setting(None, "Hard negatives per query.", ge=0)
    weight: float = setting(1.0, "Multiply the task's size by this when batches are shared out.", gt=0)
    max_queries: int | None = setting(None, "Train on at most this many queries, drawn at random.", ge=1)


class FinetuneSettings(Training, MiningRules):
    """Settings of `stzoo finetune`."""

    command: ClassVar[str] = "finetune"
    positional: ClassVar[tuple[str, ...]] = ("model",)

    model: str = setting(..., "Sentence-transformers model to fine-tune: folder or Hub id.")
    data: str = setting("", "BEIR folder, mined file or other training data.")
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
    )
    balancer_options: dict[str, Any] = setting({}, "Options of the balancer, e.g. tau.", TASKS)
    split: str = setting("train", "Split of a BEIR folder to train on.", DATA)
    corpus: str | None = setting(
        None,
        "Passages that the data refers to by id, and to mine negatives from; those of --data by default.",
        DATA,
    )
    columns: Columns = setting(None, COLUMNS_HELP, DATA)
    max_queries: int | None = setting(
        None, "Train on at most this many queries, drawn at random.", DATA, ge=1
    )
    dev_data: str | None = setting(None, "BEIR folder for early stopping; --data by default.", EVALUATION)
    dev_split: str | None = setting(
        None, "Split for early stopping; part of the training queries by default.", EVALUATION
    )
    dev_queries: int = setting(
        200,
        "Training queries to hold out if there is no --dev-split; 0 turns early stopping off.",
        EVALUATION,
        ge=0,
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
    portable: bool = setting(
        True, "Export built-in modules only; --no-portable saves the model's own code with it.", MODEL
    )
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
    loss_options: dict[str, Any] = setting({}, "Options of the losses, e.g. kl.teacher_temperature.", LOSSES)
    temperature: float = setting(0.05, "Divide similarities by this in every loss.", LOSSES, gt=0)
    matryoshka: list[int] = setting([], "Also train embeddings truncated to this many dimensions.", LOSSES)
    cross_device: bool = setting(False, "Use passages on other devices as negatives, too.", LOSSES)
    learning_rate: float = setting(2e-5, "Peak learning rate of AdamW.", OPTIMISER, gt=0)
    eval_steps: int = setting(50, "Steps between evaluations on the dev queries.", EVALUATION, ge=1)
    patience: int = setting(
        3, "Stop training after this many evaluations without improvement.", EVALUATION, ge=1
    )
    lora_rank: int = setting(
        0, "Train only low-rank adapters of this rank; 0 trains all weights.", LORA, ge=0, le=2**14
    )
    lora_alpha: float | None = setting(
        None, "Scale adapters by alpha / rank; 2 x rank by default.", LORA, gt=0
    )
    lora_dropout: float = setting(0.0, "Dropout before the adapters.", LORA, ge=0, lt=1)
    lora_targets: list[str] = setting(
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
        return made

    def each(self) -> "dict[str, FinetuneSettings]":
        """The settings of each task by its name; of a single one under ''."""
        if not self.tasks:
            return {"": self}
        own = TaskSettings.model_fields.keys() & FinetuneSettings.model_fields.keys()
        found = {}
        for task in self.tasks:
            given = {name: value for name in own if (value := getattr(task, name)) is not None}
            found[task.name] = self.model_copy(update={**given, "tasks": []})
        return found
