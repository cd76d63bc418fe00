"""Settings: one class per command, from which its flags, recipe keys, checks and reference page come.

Here are the base classes; the settings of commands are in `pretrain_settings` and `finetune_settings` next to
this module, and in `stzoo.evaluation.settings`, `stzoo.hub.settings` and `stzoo.cli.settings`. A field's
group is the panel that `stzoo COMMAND --help` shows its flag in; a field without one is shown first.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
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
    model_validator,
)
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from stzoo.data.languages import check_language
from stzoo.errors import RecipeError, StzooError, quoted, suggest
from stzoo.plugins import manager
from stzoo.plugins.hookspecs import Component
from stzoo.training.recipes import SCHEMA_VERSION, load_recipe
from stzoo.training.reports import check_loggers
from stzoo.utils.bounds import MAX_THREADS, check_plausible, plausible
from stzoo.utils.inputs import check_number
from stzoo.utils.workers import check_engine, chosen_engine

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
    ENGINES := "Several machines",
)


# what a setting takes besides paths and names -> the function that returns the path of such an object
OBJECTS = {
    "model": "stzoo.models.objects:model_path",
    "models": "stzoo.models.objects:model_paths",
    "options": "stzoo.models.objects:option_paths",
    "cross-encoder": "stzoo.models.objects:teacher_path",
    "base": "stzoo.models.objects:base_path",
    "corpus": "stzoo.data.objects:corpus_path",
    "corpora": "stzoo.data.objects:corpus_paths",
    "judged": "stzoo.data.objects:judged_path",
    "training": "stzoo.data.objects:training_path",
    "runs": "stzoo.data.objects:run_paths",
    "trainings": "stzoo.data.objects:training_paths",
}


def setting(
    default: Any,
    description: str,
    group: str = "",
    *,
    names: str = "",
    takes: str = "",
    split: str = "",
    **bounds: Any,
) -> Any:
    """A field of a settings class.

    Args:
        default: its value if it is not given; ... if it must be given.
        description: one sentence for help and the reference page.
        group: one of GROUPS, the panel of help that shows its flag; "" for the first panel, which has the
            most important flags.
        names: kind of component ("pooling"), "model", "dataset" (also suites) or "data" (a path, or the name
            of a data set), whose names the shell completes; or "cross-encoder".
        takes: a key of OBJECTS, for settings that also take Python objects; or "class", for those that also
            take a component's class.
        split: the split of judged data that names none.
        bounds: further arguments of `pydantic.Field`, e.g. ge=1, or exclude=True to keep it out of records.
    """
    extra: JsonDict = {"group": group, "names": names, "takes": takes, "split": split}
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


def _is_named(given: Any) -> bool:
    """True for names and paths; False for objects, and for strings that may be texts."""
    if isinstance(given, list | tuple):
        named = [isinstance(one, Path) or (isinstance(one, str) and _is_word(one)) for one in given]
        return bool(named) and all(named)
    return isinstance(given, str | Path)


def _is_word(text: str) -> bool:
    return text.isascii() and len(text.split()) < 2


class CheckedSettings(BaseModel):
    """Settings whose numbers are numbers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    _plausible = plausible
    _plausible_number = field_validator("*")(check_plausible)  # also if it was given as text

    @classmethod
    def with_paths(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values, with the path of its copy in place of each Python object; see `stzoo.data.objects`."""
        paths = dict(values)
        for name, field in cls.model_fields.items():
            given = values.get(name)
            extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
            inner = next(iter(get_args(field.annotation)), None)  # the settings of each of several tasks
            if extra.get("takes") == "class":
                if callable(given) or isinstance(given, Component):
                    paths[name] = manager.register(str(extra["names"]), given)
            elif extra.get("takes") and given is not None and not _is_named(given):
                module, _, function = OBJECTS[str(extra["takes"])].partition(":")
                split = {"split": extra["split"]} if extra.get("split") else {}
                try:
                    paths[name] = getattr(import_module(module), function)(given, **split)
                except StzooError:
                    # another dict, as of a recipe, is reported with other settings
                    if not isinstance(given, dict) or {"corpus", "queries", "qrels"} & given.keys():
                        raise
                    is_nested = any(isinstance(value, Mapping) for value in given.values())
                    if is_nested and extra["takes"] in ("runs", "options"):
                        raise
            elif isinstance(inner, type) and issubclass(inner, CheckedSettings) and isinstance(given, list):
                paths[name] = [inner.with_paths(one) if isinstance(one, dict) else one for one in given]
        return paths

    @field_validator("*", mode="before")
    @classmethod
    def _check_number(cls, value: Any, info: ValidationInfo) -> Any:
        try:
            check_number(cls.model_fields[info.field_name or ""].annotation, value)
        except ValueError as error:
            raise PydanticCustomError("number", "{reason}", {"reason": str(error)}) from None
        return value


class Settings(CheckedSettings):
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
            return cls.model_validate(cls.with_paths(values))
        except ValidationError as error:
            raise cls._explain(error, recipe) from None

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

    def check_names(self) -> None:
        """Finds misspelt names of components and files early, without importing torch.

        Raises:
            StzooError: If a name does not exist.
        """

    @classmethod
    def problems(cls, lines: Sequence[str], recipe: str | Path | None = None) -> RecipeError:
        """The error that lists problems in the settings, or in a recipe."""
        of = f"the recipe {recipe}" if recipe is not None else "the settings"
        return RecipeError("\n  ".join([f"problems in {of} of `stzoo {cls.command}`:", *lines]))

    @classmethod
    def _explain(cls, error: ValidationError, recipe: str | Path | None) -> RecipeError:
        lines = []
        for problem in error.errors():
            key = ".".join(map(str, problem["loc"]))
            if problem["type"] == "extra_forbidden":
                known = cls.model_fields
                if len(problem["loc"]) > 1:  # of one of several tasks
                    known = get_args(known[str(problem["loc"][0])].annotation)[0].model_fields
                guess = suggest(str(problem["loc"][-1]), known)
                listed = f" Settings: {', '.join(known)}." if guess == "." else ""
                lines.append(f"unknown setting {key!r}{guess}{listed}")
            elif problem["type"] == "missing":
                flag = key.upper() if key in cls.positional else f"--{key.replace('_', '-')}"
                taken = cls._taken(key, problem["input"])
                lines.append(f"{key} is missing{taken}; give {flag} or set it in the recipe.")
            elif problem["type"] == "literal_error":
                words = choices(cls.model_fields[str(problem["loc"][0])].annotation)
                guess = suggest(str(problem["input"]), words)
                lines.append(
                    f"{key} is {_shown(problem['input'])}; expected one of {', '.join(words)}{guess}"
                )
            else:
                reason = problem["msg"][:1].lower() + problem["msg"][1:]
                reason = "expected a path" if problem["type"] == "path_type" else reason
                lines.append(f"{key} is {_shown(problem['input'])}: {reason}.")
        return cls.problems(lines, recipe)

    @classmethod
    def _taken(cls, key: str, given: Any) -> str:
        """The end of a sentence on a missing argument: what the argument before it is, if that is given."""
        at = cls.positional.index(key) if key in cls.positional else 0
        before = cls.positional[at - 1] if at else ""
        if not isinstance(given, Mapping) or not isinstance(value := given.get(before), str):
            return ""
        extra = cls.model_fields[before].json_schema_extra
        kind = extra.get("names") if isinstance(extra, dict) else None
        return f" ({quoted(value)} was given as the {kind or before})"

    def dump(self) -> dict[str, Any]:
        """The settings as plain values, with the command and the schema's version."""
        return {"schema_version": SCHEMA_VERSION, "command": self.command, **self.model_dump(mode="json")}


def _shown(value: Any) -> str:
    """A value for a message; of an object (a model, a data frame), its type only."""
    plain = isinstance(value, str | int | float | list | tuple | dict | Path | None)
    return quoted(value) if plain else f"an object of type {type(value).__name__}"


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
Device = Literal["cpu", "cuda", "mps"]
PORTABLE_HELP = "Save built-in modules only; --no-portable also saves the code of other modules."
DEVICE_HELP = "Device to run on; the best available one by default."
SHARD_HELP = (
    "Share the model, its gradients and the optimiser out over the processes of torchrun (FSDP), for a model "
    "that is too large for each to have a copy."
)
THREADS_HELP = "CPU threads; chosen by PyTorch by default."
BATCH_TOKENS_HELP = "Tokens encoded at once, padding included; chosen for the device by default."
MAX_TOKENS_HELP = "Truncate texts to this many tokens; the model's limit by default."
MEMORY_HELP = "Memory for the search in GiB, in addition to queries and results."
RERANK_HELP = "Cross-encoder (folder or Hub id) that ranks the best passages again."
RERANK_DEPTH_HELP = "Passages per query to rank again."
STORE_HELP = "Folder for the embeddings; stzoo's cache by default."
LANGUAGE_HELP = (
    "Language of the passages for BM25's stemmer and stop words (de, german, none); detected by default."
)


class EngineSettings(Settings):
    """Where parts are computed; results do not depend on it, so records leave it out."""

    engine: Literal["local", "ray"] = setting(
        "local", "Compute in this process, or with the workers of a Ray cluster.", ENGINES, exclude=True
    )
    ray_workers: int | None = setting(
        None,
        "Workers of Ray; by default one per GPU of the cluster, or else one per node.",
        ENGINES,
        ge=1,
        le=10**5,
        exclude=True,
    )
    ray_address: str | None = setting(
        None,
        "Address of the Ray cluster; by default RAY_ADDRESS, or else this machine alone.",
        ENGINES,
        exclude=True,
    )

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        check_engine(self.engine, self.ray_workers, self.ray_address)
        return self

    def on_engine(self) -> AbstractContextManager[None]:
        """Makes the chosen engine the current one in a `with` block; see `chosen_engine`."""
        return chosen_engine(self.engine, self.ray_workers, self.ray_address)


class Training(Settings):
    """What pre-training and fine-tuning share."""

    batch_size: int | None = setting(32, "Rows per step on each device.", OPTIMISER, ge=1, le=2**20)
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
    precision: Literal["fp32", "bf16", "fp16"] = setting(
        "fp32", "Precision of the forward pass; bf16 and fp16 use autocast.", HARDWARE
    )
    gradient_checkpointing: bool = setting(
        False,
        "Keep fewer activations and compute the others again: less memory, about a third more time.",
        HARDWARE,
    )
    seed: int = setting(
        42, "Random seed for masks, data order, dropout and new parameters.", OPTIMISER, ge=0, le=2**32 - 1
    )
    save_steps: int = setting(500, "Steps between checkpoints.", LOGS, ge=1)
    save_minutes: float = setting(
        10.0, "Minutes after which a checkpoint is saved even if --save-steps is not reached.", LOGS, gt=0
    )
    keep_checkpoints: int | None = setting(
        None,
        "Keep this many checkpoints when the run has finished; none by default. An unfinished run has two.",
        LOGS,
        ge=2,
    )
    log_steps: int = setting(10, "Steps between log lines.", LOGS, ge=1)
    report_to: Names = setting(
        [],
        "Additional loggers: tensorboard, wandb, mlflow, trackio; they write to the run's logs folder.",
        LOGS,
    )
    workers: int = setting(0, "Processes that prepare batches.", HARDWARE, ge=0, le=256)
    device: Device | None = setting(None, DEVICE_HELP, HARDWARE)
    threads: int | None = setting(None, THREADS_HELP, HARDWARE, ge=1, le=MAX_THREADS)

    def check_names(self) -> None:
        """See `Settings`."""
        check_loggers(self.report_to)
