"""The published checkpoint that a model is, or was trained from, as recorded by `stzoo import`."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stzoo.errors import ModelError
from stzoo.plugins import manager
from stzoo.plugins.hookspecs import Checkpoint
from stzoo.utils.outputs import IMPORTED, RECORD

_PATTERNS = {"hub_id": r"[\w.-]+/[\w.-]+", "commit": "[0-9a-f]{40}", "source": r"https?://[^\s()<>\[\]]+"}


@dataclass(frozen=True)
class Origin:
    """A published checkpoint.

    Attributes:
        name: Name in `stzoo list checkpoints`.
        row: The plugin's entry for the checkpoint, if the plugin is installed.
        hub_id: Id of its repository; None if it was imported from a folder.
        commit: Commit of the repository.
        license: Licence by the Hub's names, e.g. "mit"; "" if unknown.
        source: URL of its publisher.
        options: Options of the import.
        max_query_tokens: The authors' limit for queries, if it is not that of passages.
        expected: "measure", "value", "dataset" and "source" of each score that the authors published.
        trained: True if the model was trained further from it.
    """

    name: str
    row: Checkpoint | None
    hub_id: str | None
    commit: str | None
    license: str
    source: str
    options: dict[str, Any]
    max_query_tokens: int | None
    expected: list[dict[str, Any]]
    trained: bool


def read_origin(folder: Path) -> Origin | None:
    """The checkpoint that the model in a folder is, or from which its first training run started, if any.

    Raises:
        ModelError: If the record of the import is invalid.
    """
    path = folder / IMPORTED
    trained = not path.is_file()
    try:
        if trained:
            path = folder / RECORD
            run = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            record = [*run.get("before", ()), run][0].get("imported")
        else:
            record = json.loads(path.read_text(encoding="utf-8"))["imported"]
        return _origin(record, trained) if record else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is not a valid record of an import: {error!r}.") from error


def _origin(record: Mapping[str, Any], trained: bool) -> Origin:
    scores = [{"value": float(score["value"]), **score} for score in record["expected"]]
    for part in (record, *scores):
        for key, pattern in _PATTERNS.items():
            if part.get(key) is not None and not re.fullmatch(pattern, part[key]):
                raise ValueError(f"{key} is {part[key]!r}")
    return Origin(
        name=str(record["checkpoint"]),
        row=manager.all("checkpoint").get(record["checkpoint"]),
        hub_id=record["hub_id"],
        commit=record["commit"],
        license=str(record["license"]),
        source=record["source"],
        options=dict(record["options"]),
        max_query_tokens=record["max_query_tokens"],
        expected=scores,
        trained=trained,
    )
