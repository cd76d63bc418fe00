"""Recipes: the settings of a command, checked. A key of the YAML file is a flag of the command."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from stzoo.data.column_roles import COLUMN_ROLES, IGNORE, parse_columns
from stzoo.data.languages import check_language
from stzoo.errors import RecipeError, quoted, suggest
from stzoo.plugins import manager
from stzoo.utils.bounds import MAX_THREADS, plausible
from stzoo.utils.inputs import check_is_file, check_number, parse_yaml, user_path

SCHEMA_VERSION = 1


Columns = Annotated[dict[str, list[str]] | None, BeforeValidator(lambda given: parse_columns(given) or None)]
COLUMNS_HELP = (
    "what columns of training files are, where their names do not say it: query=question,positive=passage; "
    f"roles: {', '.join(COLUMN_ROLES)}, {IGNORE}"
)


class _Checked(BaseModel):
    """Settings whose numbers are numbers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    _plausible = plausible

    @field_validator("*", mode="before")
    @classmethod
    def _check_number(cls, value: Any, info: ValidationInfo) -> Any:
        try:
            check_number(cls.model_fields[info.field_name or ""].annotation, value)
        except ValueError as error:
            raise PydanticCustomError("number", "{reason}", {"reason": str(error)}) from None
        return value


class Settings(_Checked):
    """What all commands' settings share."""

    command: ClassVar[str]

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
        values = _load(recipe, cls.command) if recipe is not None else {}
        for key, value in changes.items():
            place = values
            *parents, last = key.split(".")
            for parent in parents:
                place = place.setdefault(parent, {})
                if not isinstance(place, dict):
                    raise RecipeError(f"--set {key}: {parent!r} holds no settings of its own.")
            place[last] = value
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise RecipeError(cls._explain(error, recipe)) from None

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
                lines.append(f"{key} is missing; give --{key.replace('_', '-')} or set it in the recipe.")
            else:
                lines.append(f"{key} is {quoted(problem['input'])}: {problem['msg'].lower()}.")
        of = f"the recipe {recipe}" if recipe is not None else "the settings"
        return f"problems in {of} of `stzoo {cls.command}`:\n  " + "\n  ".join(lines)

    def dump(self) -> dict[str, Any]:
        """The settings as plain values, with the command and the schema's version."""
        return {"schema_version": SCHEMA_VERSION, "command": self.command, **self.model_dump(mode="json")}


def _load(recipe: str | Path, command: str) -> dict[str, Any]:
    path = user_path(recipe, RecipeError)
    looks_like_path = path.suffix in (".yaml", ".yml") or path.exists()
    if looks_like_path and not path.exists():
        raise RecipeError(f"there is no recipe file {recipe}.")
    try:
        if looks_like_path:
            check_is_file(path, RecipeError)
            text = path.read_text(encoding="utf-8")
        else:
            text = manager.recipe_text(str(recipe))
        values = parse_yaml(text)
    except (ValueError, OSError) as error:
        raise RecipeError(f"the recipe {recipe} cannot be read as YAML: {error}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"the recipe {recipe} holds no settings; expected `key: value` lines.")
    version = values.pop("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise RecipeError(
            f"the recipe {recipe} has schema_version {version!r}; this stzoo reads {SCHEMA_VERSION}."
        )
    of = values.pop("command", command)
    if of != command:
        raise RecipeError(f"the recipe {recipe} is for `stzoo {of}`, not for `stzoo {command}`.")
    return values


def parse_changes(pairs: Sequence[str]) -> dict[str, Any]:
    """Settings from `key=value` words; a value is read as YAML ("1e-4" as a number, "[a, b]" as a list)."""
    changes = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise RecipeError(f"--set takes key=value, not {quoted(pair)}.")
        if key in changes:
            raise RecipeError(f"--set {key} is given twice; keep one of the two.")
        try:
            changes[key] = parse_yaml(value)
        except ValueError as error:
            raise RecipeError(f"--set {key}: {quoted(value)} cannot be read as YAML: {error}") from None
    return changes


def _language(given: Any) -> Any:
    given = "no" if given is False else given
    return check_language(given) if isinstance(given, str) else given


# A code of data/languages.py, by it or by its English name; YAML reads the code of Norwegian, no, as false.
LanguageCode = Annotated[str, BeforeValidator(_language)]
Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["cpu", "cuda", "mps"]


class Training(Settings):
    """What pre-training and fine-tuning share."""

    batch_size: int = Field(32, ge=1, le=2**20, description="rows a step and device")
    accumulation: int = Field(1, ge=1, le=2**20, description="batches a step")
    epochs: float = Field(1.0, gt=0, le=10**6, description="passes over the data")
    max_steps: int | None = Field(None, ge=1, le=10**9, description="optimiser steps; instead of epochs")
    learning_rate: float = Field(1e-4, gt=0, description="peak, of AdamW")
    warmup_ratio: float = Field(
        0.1, ge=0, le=1, description="share of the steps in which the rate rises; then it falls to 0"
    )
    weight_decay: float = Field(0.01, ge=0, description="of AdamW; not on biases and norms")
    max_grad_norm: float = Field(
        1.0, gt=0, description="gradients are clipped to this norm, over all parameters"
    )
    precision: Precision = Field("fp32", description="fp32, bf16 or fp16; the latter two by autocast")
    seed: int = Field(42, ge=0, le=2**32 - 1, description="of masks, order, dropout and new parts")
    save_steps: int = Field(500, ge=1, description="steps between checkpoints")
    save_minutes: float = Field(10.0, gt=0, description="minutes between further checkpoints")
    keep_checkpoints: int = Field(2, ge=2, description="how many checkpoints to keep")
    log_steps: int = Field(10, ge=1, description="steps between lines of the log")
    report_to: list[str] = Field([], description="where else to log, e.g. tensorboard")
    workers: int = Field(0, ge=0, le=256, description="processes that tokenise")
    device: Device | None = Field(None, description="cpu, cuda or mps; the best there is if left out")
    threads: int | None = Field(None, ge=1, le=MAX_THREADS, description="threads on the CPU")


class PretrainSettings(Training):
    """Settings of `stzoo pretrain`."""

    command: ClassVar[str] = "pretrain"

    base: str = Field(description="a masked LM or a sentence-transformers model: folder or Hub id")
    corpus: list[str] = Field(min_length=1, description="files, folders, Hub data set ids, or pydocs")
    objective: str = Field("retromae", description="see `stzoo list objectives`")
    options: dict[str, Any] = Field({}, description="of the objective, e.g. decoder_rate")
    weights: dict[str, float] = Field({}, description="of its losses, by name")
    pooling: str | None = Field(
        None, description="the bottleneck; the base's own if left out, cls for a bare masked LM"
    )
    max_tokens: int | None = Field(
        None, ge=4, description="passages are cut here; the base's own limit if left out"
    )
    min_words: int = Field(3, ge=1, description="shorter passages are left out")
    skip_bad_lines: bool = Field(False, description="count bad lines and go on")
    new_learning_rate: float | None = Field(
        None, gt=0, description="peak for new heads and decoders; learning_rate if left out"
    )
    head_warmup_steps: int = Field(0, ge=0, description="first steps, with the encoder frozen")
    probe: str | None = Field(None, description="a BEIR folder, scored zero-shot as training goes")
    probe_split: str = Field("test", description="split of the probe")
    probe_steps: int = Field(500, ge=1, description="steps between probes")


class PrepareSettings(Settings):
    """Settings of `stzoo prepare`; what is prepared has settings of its own beside these."""

    command: ClassVar[str] = "prepare"

    preparation: str = Field("", description="see `stzoo list preparations`")
    corpus: list[str] = Field(min_length=1, description="files, folders, Hub data set ids, or pydocs")
    min_words: int = Field(3, ge=1, description="shorter passages are left out")
    skip_bad_lines: bool = Field(False, description="count bad lines and go on")
    tokenizer: str = Field(
        "bert-base-uncased",
        description="the base to be pre-trained (folder or Hub id), whose tokenizer tells words",
    )
    shard_rows: int = Field(500, ge=1, description="passages at a time; a kill loses no more than those")
    seed: int = Field(42, ge=0, le=2**32 - 1, description="of all that is drawn")
    device: Device | None = Field(None, description="cpu, cuda or mps; the best there is if left out")
    threads: int | None = Field(None, ge=1, le=MAX_THREADS, description="threads on the CPU")


class MiningRules(Settings):
    """Which of a model's answers become hard negatives: what mining and its episodes in fine-tuning share."""

    mined: int = Field(30, ge=1, description="negatives kept a query")
    depth: int = Field(200, ge=1, description="they are taken from so many of the best passages")
    skip: int = Field(0, ge=0, description="so many of the best are left out; positives do not count")
    sampling: Literal["random", "top"] = Field(
        "random", description="which of them: random ones, or those on top"
    )
    absolute_margin: float | None = Field(
        None, description="a negative scores at least this much less than the query's best positive"
    )
    relative_margin: float | None = Field(
        None, ge=0, lt=1, description="likewise, as a share of the positive's score: 0.05 allows 95 % of it"
    )
    language: LanguageCode | None = Field(
        None,
        description="language of the passages, for the stemmer and stop words of bm25s: de, german, none; "
        "detected if left out",
    )
    teacher: str | None = Field(
        None, description="a cross-encoder (folder or Hub id) that scores positives and negatives"
    )
    teacher_margin: float | None = Field(
        None, description="with a teacher: a negative scores at least this much less than the best positive"
    )
    teacher_tokens: int | None = Field(None, ge=4, description="query and passage are cut here together")


class MineSettings(MiningRules):
    """Settings of `stzoo mine`."""

    command: ClassVar[str] = "mine"

    model: str = Field(description="a sentence-transformers model: folder or Hub id; or bm25s")
    data: str = Field(description="a BEIR folder, or a file of training data; see the README")
    split: str = Field("train", description="qrels of a BEIR folder whose queries get negatives")
    corpus: str | None = Field(
        None, description="passages to search, a BEIR folder or corpus.jsonl; the data's own if left out"
    )
    columns: Columns = Field(None, description=COLUMNS_HELP)
    max_tokens: int | None = Field(None, ge=4, description="texts are cut here; the model's own limit")
    batch_tokens: int | None = Field(None, ge=1, description="tokens encoded at once; suits the device")
    memory_gib: float = Field(2.0, gt=0, le=2**20, description="bound on what the search holds")
    store: str | None = Field(None, description="where embeddings are kept; stzoo's cache if left out")
    seed: int = Field(42, ge=0, le=2**32 - 1, description="of random negatives")
    device: Device | None = Field(None, description="cpu, cuda or mps; the best there is if left out")
    threads: int | None = Field(None, ge=1, le=MAX_THREADS, description="threads on the CPU")


RESERVED = ("query", "document", "passage", "corpus")


class TaskSettings(_Checked):
    """One of several tasks of `stzoo finetune`; what is left out is as for all of them."""

    name: str = Field(description="its name, without dots, slashes and spaces")
    data: str = Field(description="as `data` of a single task")
    split: str | None = Field(None, description="qrels of a BEIR folder to train on")
    corpus: str | None = Field(None, description="passages that the data names by id, and to mine from")
    columns: Columns = Field(None, description="as `columns` of a single task")
    dev_data: str | None = Field(None, description="a BEIR folder to stop early by")
    dev_split: str | None = Field(None, description="qrels to stop early by")
    query_prompt: str | None = Field(
        None, description="put before its queries, and kept in the model under the task's name"
    )
    max_query_tokens: int | None = Field(None, ge=4, description="queries are cut here in training")
    max_passage_tokens: int | None = Field(None, ge=4, description="passages are cut here in training")
    negatives: int | None = Field(None, ge=0, description="hard negatives beside each query")
    weight: float = Field(1.0, gt=0, description="its size counts so many times when batches are shared out")
    max_queries: int | None = Field(None, ge=1, description="at most so many of its queries, drawn at random")


class FinetuneSettings(Training, MiningRules):
    """Settings of `stzoo finetune`."""

    command: ClassVar[str] = "finetune"

    model: str = Field(description="a sentence-transformers model: folder or Hub id")
    data: str = Field("", description="a BEIR folder, a mined file, or training data of another form")
    tasks: list[TaskSettings] = Field([], description="several tasks instead of data, each with its own")
    mixing: Literal["temperature", "proportional", "round-robin"] = Field(
        "temperature",
        description="of a step, each task has a share by its size, flattened or not; or steps take turns",
    )
    mixing_temperature: float = Field(
        4.0, gt=0, description="shares go with size ^ (1 / this); 1 is proportional"
    )
    balancer: str = Field("sum", description="makes one update of the tasks'; see `stzoo list balancers`")
    balancer_options: dict[str, Any] = Field({}, description="of the balancer, e.g. tau")
    split: str = Field("train", description="qrels of a BEIR folder to train on")
    corpus: str | None = Field(
        None, description="passages that the data names by id, and to mine from; the data's own if left out"
    )
    columns: Columns = Field(None, description=COLUMNS_HELP)
    max_queries: int | None = Field(None, ge=1, description="train on at most so many, drawn at random")
    dev_data: str | None = Field(None, description="a BEIR folder to stop early by; data if left out")
    dev_split: str | None = Field(
        None, description="qrels to stop early by; part of the training queries if left out"
    )
    dev_queries: int = Field(
        200, ge=0, description="training queries held out where there is no dev_split; 0: no early stop"
    )
    dev_passages: int = Field(
        2000, ge=0, description="passages searched for them: the judged ones, and others at random; 0: all"
    )
    pooling: str | None = Field(None, description="the model's own if left out, cls for a bare transformer")
    pooling_options: dict[str, Any] = Field({}, description="of the pooling")
    portable: bool = Field(
        True, description="export built-in modules only; without, the model's own code beside it"
    )
    similarity: Literal["cosine", "dot"] | None = Field(
        None, description="how vectors are compared, in training and ever after; the model's own if left out"
    )
    query_prompt: str | None = Field(None, description="put before queries; the model's own if left out")
    passage_prompt: str | None = Field(None, description="put before passages; the model's own if left out")
    max_query_tokens: int = Field(64, ge=4, description="queries are cut here in training")
    max_passage_tokens: int = Field(256, ge=4, description="passages are cut here in training")
    batch_size: int = Field(
        64, ge=2, le=2**20, description="queries a step and device; the others' passages are negatives"
    )
    mini_batch_size: int = Field(
        32, ge=1, description="texts at a time in memory; changes no loss, but what dropout draws"
    )
    negatives: int | None = Field(
        None, ge=0, description="hard negatives beside each query; if left out 7, or as many as there are"
    )
    losses: dict[str, float] = Field(
        {"contrastive": 1.0}, min_length=1, description="weights by name; see `stzoo list losses`"
    )
    loss_options: dict[str, Any] = Field({}, description="of the losses, e.g. kl.teacher_temperature")
    temperature: float = Field(0.05, gt=0, description="similarities are divided by this, in each loss")
    matryoshka: list[int] = Field([], description="also train vectors cut to so many dimensions")
    cross_device: bool = Field(False, description="passages on the other devices are negatives, too")
    learning_rate: float = Field(2e-5, gt=0, description="peak, of AdamW")
    eval_steps: int = Field(50, ge=1, description="steps between scores on the dev queries")
    patience: int = Field(3, ge=1, description="scores without a gain before training stops")
    lora_rank: int = Field(
        0, ge=0, le=2**14, description="train low-rank adapters of this rank only; 0: all weights"
    )
    lora_alpha: float | None = Field(
        None, gt=0, description="adapters are scaled by alpha / rank; 2 x rank if left out"
    )
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="before the adapters")
    lora_targets: list[str] = Field(
        [], description="modules with adapters, by the end of their name; all linear layers if left out"
    )
    episodes: int = Field(
        0, ge=0, description="rounds of mining with the model as it is, then training; 0 mines nothing"
    )
    first_negatives: Literal["model", "bm25s"] = Field("model", description="who mines for the first episode")
    keep_old: float = Field(
        0.0, ge=0, lt=1, description="share of an episode's negatives that are the last episode's"
    )

    @classmethod
    def read(cls, recipe: str | Path | None, changes: Mapping[str, Any]) -> Self:
        """See `Settings.read`; either `data` or `tasks` must be there."""
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
                f"a task is named {wrong[0]!r}; expected a name without dots, slashes and spaces, and none "
                f"of {', '.join(RESERVED)}, which are prompts of every model."
            )
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise RecipeError(f"two tasks are named {', '.join(twice)}; a name must be of one task.")
        alone = sorted(
            {"mixing", "mixing_temperature", "balancer", "balancer_options"} & made.model_fields_set
        )
        if not made.tasks and alone:
            raise RecipeError(f"{alone[0]} says something of several tasks, and no tasks are given.")
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
