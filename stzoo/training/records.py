"""The records of runs (run.json): reading and checking them, and what they state of the environment."""

import contextlib
import json
import math
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from stzoo.errors import OutputError, first_line
from stzoo.training.recipes import SCHEMA_VERSION
from stzoo.utils.inputs import read_json
from stzoo.utils.outputs import IMPORTED, RECORD

PACKAGES = ("stzoo", "torch", "transformers", "sentence-transformers", "datasets", "tokenizers", "numpy")


def read_run_record(folder: Path) -> dict[str, Any] | None:
    """Reads the record of the run in a folder; None if there is no run.

    Raises:
        OutputError: If run.json is not a record that stzoo wrote.
    """
    path = folder / RECORD
    if not os.path.lexists(path):
        return None
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"{path} cannot be read: {first_line(error)}. Choose another --output.") from None
    if not is_record(metadata):
        raise OutputError(
            f"{path} was not written by stzoo, so {folder} is left unchanged. Choose another --output."
        )
    return dict(metadata)


def is_record(metadata: Any) -> bool:
    """True if the value is the content of a run.json that stzoo wrote."""
    if not isinstance(metadata, dict):
        return False
    recipe, made_by, files = (metadata.get(name) for name in ("recipe", "versions", "files"))
    used = metadata.get("components", [])
    return (
        metadata.get("schema_version") == SCHEMA_VERSION
        and metadata.get("status") in ("running", "failed", "interrupted", "finished")
        and isinstance(recipe, dict)
        and recipe.get("command") in ("pretrain", "finetune", "prepare", "rerank")
        and isinstance(made_by, dict)
        and "stzoo" in made_by
        and (files is None or isinstance(files, dict))
        and type(metadata.get("seconds", 0)) in (int, float)
        and isinstance(used, list)
        and all(isinstance(one, dict) and {"kind", "name", "plugin"} <= one.keys() for one in used)
    )


def earlier(base: str | Path) -> list[dict[str, Any]]:
    """The records, without logs, of the runs that made a model, oldest first; [] if no run made it."""
    metadata = read_json(Path(base) / RECORD)
    if metadata.get("status") != "finished" or "recipe" not in metadata:
        return []
    before = metadata.pop("before", [])
    return [*before, _without_logs(metadata)]


def imported(base: str | Path) -> dict[str, Any] | None:
    """The published checkpoint that `stzoo import` made a model of; None if it was not imported."""
    return read_json(Path(base) / IMPORTED).get("imported")


def _without_logs(metadata: dict[str, Any]) -> dict[str, Any]:
    short = {key: value for key, value in metadata.items() if key not in ("log", "files")}
    if "episodes" in short:
        short["episodes"] = [_without_logs(episode) for episode in short["episodes"]]
    return short


def finite(value: Any) -> Any:
    """Replaces NaN and infinity, which JSON has no form for, by None."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def versions() -> dict[str, str]:
    """The installed versions of Python and of the packages that a model depends on."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed


def hardware() -> dict[str, Any]:
    """The processor and the GPUs."""
    found: dict[str, Any] = {"machine": platform.machine(), "cpus": os.cpu_count()}
    if torch.cuda.is_available():
        found |= {"gpu": torch.cuda.get_device_name(), "gpus": torch.cuda.device_count()}
    return found
