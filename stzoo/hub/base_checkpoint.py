"""The published checkpoint that a model is, or began from, as `stzoo import` recorded it."""

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

_FORMS = {"hub_id": r"[\w.-]+/[\w.-]+", "commit": "[0-9a-f]{40}", "source": r"https?://[^\s()<>\[\]]+"}


@dataclass(frozen=True)
class Origin:
    """A published checkpoint.

    Attributes:
        name: of `stzoo list checkpoints`.
        row: of data that says what it is, if the plugin that has it is installed.
        hub_id: of its repository; None if it came from a folder.
        commit: of that repository.
        license: by the Hub's names; "" where none is known.
        source: URL of who published it.
        options: of its import.
        max_query_tokens: where its authors cut queries apart from passages.
        expected: "measure", "value", "dataset" and "source" of each score that its authors published.
        trained: True if a run went on from it.
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
    """The checkpoint that the model in a folder is, or that the first of its runs began from, if any.

    Raises:
        ModelError: if the record does not hold.
    """
    place = folder / IMPORTED
    trained = not place.is_file()
    try:
        if trained:
            place = folder / RECORD
            run = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
            found = [*run.get("before", ()), run][0].get("imported")
        else:
            found = json.loads(place.read_text(encoding="utf-8"))["imported"]
        return _origin(found, trained) if found else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{place} is no record of an import: {error!r}.") from error


def _origin(found: Mapping[str, Any], trained: bool) -> Origin:
    scores = [{"value": float(one["value"]), **one} for one in found["expected"]]
    for one in (found, *scores):
        for key, form in _FORMS.items():
            if one.get(key) is not None and not re.fullmatch(form, one[key]):
                raise ValueError(f"{key} is {one[key]!r}")
    return Origin(
        name=str(found["checkpoint"]),
        row=manager.all("checkpoint").get(found["checkpoint"]),
        hub_id=found["hub_id"],
        commit=found["commit"],
        license=str(found["license"]),
        source=found["source"],
        options=dict(found["options"]),
        max_query_tokens=found["max_query_tokens"],
        expected=scores,
        trained=trained,
    )
