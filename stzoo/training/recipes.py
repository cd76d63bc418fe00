"""Reading recipes: YAML files with the settings of a command, and `--set key=value`."""

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stzoo.errors import RecipeError, quoted
from stzoo.plugins import manager
from stzoo.utils.inputs import check_is_file, parse_yaml, user_path
from stzoo.utils.messages import notify

SCHEMA_VERSION = 1


def load_recipe(recipe: str | Path, command: str) -> dict[str, Any]:
    """The settings in a recipe of a command.

    Args:
        recipe: a YAML file, or the name of an installed recipe.
        command: e.g. "pretrain".

    Raises:
        RecipeError: if it cannot be read, or is for another command.
    """
    if not isinstance(recipe, str | os.PathLike):
        raise RecipeError(
            f"an object of type {type(recipe).__name__} was given as recipe; expected the path of a YAML "
            "file, or the name of an installed recipe. Give data and other settings by name, as in data=rows."
        )
    path = user_path(recipe, RecipeError)
    looks_like_path = path.suffix in (".yaml", ".yml") or path.exists()
    if looks_like_path and not path.exists():
        raise RecipeError(f"there is no recipe file {recipe}.")
    try:
        if looks_like_path:
            check_is_file(path, RecipeError)
            text = path.read_text(encoding="utf-8")
        else:
            _note_name(str(recipe), manager.canonical("recipe", str(recipe)))
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


@functools.cache  # once, as a command reads its recipe several times
def _note_name(given: str, name: str) -> None:
    if name != given:
        notify(f"{given} stands for the recipe {name}.")


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


MINING = ("mined", "depth", "skip", "sampling", "absolute_margin", "relative_margin", "language")
# settings that change nothing in the model
SWITCHES = ("gradient_checkpointing", "cross_device", "skip_bad_lines")  # that do nothing while they are off
LOGGING = ("log_steps", "save_steps", "save_minutes", "keep_checkpoints", "report_to", "workers", "threads")


def with_effect(recipe: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a training that had an effect on its model.

    Args:
        recipe: All settings.
        run: The record of the run.
    """
    used = {name: value for name, value in recipe.items() if value not in (None, [], {}, "")}

    def drop(*names: str) -> None:
        for name in names:
            used.pop(name, None)

    drop(*LOGGING)
    drop(*(name for name in SWITCHES if recipe.get(name) is False))
    if recipe.get("max_steps"):
        drop("epochs")
    if not recipe.get("probe"):
        drop("probe_split", "probe_steps")
    if not recipe.get("head_warmup_steps"):
        drop("head_warmup_steps")
    if recipe.get("command") != "finetune":
        return used
    if not recipe.get("tasks"):
        drop("mixing", "mixing_temperature", "balancer", "balancer_options")
    elif recipe.get("mixing") != "temperature":
        drop("mixing_temperature")
    if not recipe.get("episodes"):
        drop("episodes", "first_negatives", "keep_old", *MINING)
    if not recipe.get("episodes") or not recipe.get("teacher"):
        drop("teacher_margin")
    if not recipe.get("teacher"):
        drop("teacher_tokens")
    if not recipe.get("lora_rank"):
        drop("lora_rank", "lora_alpha", "lora_dropout", "lora_targets")
    if not run.get("dev"):
        drop("dev_passages", "dev_split", "eval_steps", "patience", "keep_base")
    elif recipe.get("dev_data") or recipe.get("dev_split"):
        drop("dev_queries")
    return used
