"""zoo(): the published checkpoints, and what is known of each; it imports nothing heavy."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from stzoo.plugins import manager
from stzoo.plugins.hookspecs import Checkpoint
from stzoo.utils.cache import cache_folder
from stzoo.utils.outputs import IMPORTED
from stzoo.utils.public import public
from stzoo.utils.tables import Tabular

BYTES = 4  # per parameter in float32


@dataclass(frozen=True)
class Entry:
    """A published checkpoint.

    Attributes:
        name: Name for `stzoo.load` and wherever a model is named.
        checkpoint: Its description.
        plugin: Name of the plugin that provides it.
        distribution: Name of the plugin's distribution.
        folder: Folder of the imported model in stzoo's cache.
    """

    name: str
    checkpoint: Checkpoint
    plugin: str
    distribution: str
    folder: Path

    @property
    def method(self) -> str:
        """The method, the first part of the name."""
        return self.checkpoint.name.partition(".")[0].rpartition("-")[0]

    @property
    def imported(self) -> bool:
        """True if the model is in the cache, so that it can be used without network."""
        return (self.folder / IMPORTED).is_file()

    @property
    def published(self) -> str:
        """The scores that its authors published."""
        by_data: dict[str, list[str]] = {}
        for data, measure, value, _ in self.checkpoint.expected:
            by_data.setdefault(data, []).append(f"{measure} {value:.3f}")
        return "; ".join(f"{data}: {', '.join(scores)}" for data, scores in by_data.items())

    def as_json(self) -> dict[str, Any]:
        """Everything that is known of it."""
        fields = asdict(self.checkpoint)
        scores = [
            dict(zip(("dataset", "measure", "value", "source"), score, strict=True))
            for score in fields.pop("expected")
        ]
        for name in ("importer", "files", "citation"):
            fields.pop(name)
        return fields | {
            "name": self.name,
            "method": self.method,
            "published": scores,
            "plugin": self.plugin,
            "distribution": self.distribution,
            "download_bytes": BYTES * self.checkpoint.parameters or None,
            "imported": self.imported,
            "folder": str(self.folder) if self.imported else None,
        }


class Zoo(Sequence[Entry], Tabular):
    """The published checkpoints, by name."""

    def __init__(self, entries: Sequence[Entry]):
        self._entries = list(entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, at: Any) -> Any:
        return self._entries[at]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def rows(self) -> list[dict[str, Any]]:
        """See `Tabular`."""
        return [
            {
                "name": entry.name,
                "method": entry.method,
                "base": entry.checkpoint.base.rpartition("/")[2],
                "licence": entry.checkpoint.license or "unknown",
                "published": entry.published,
                "plugin": entry.plugin,
                "download": _download(entry),
            }
            for entry in self
        ]

    def table(self) -> Table:
        """See `Tabular`."""
        table = super().table()
        if table.columns:
            table.columns[0].no_wrap = True  # a name to copy
        return table


@public()
def zoo() -> Zoo:
    """The published checkpoints that the installed plugins describe.

    `stzoo.load(NAME)` loads one, and every command takes its name for a model.

    Returns:
        A sequence of entries, which prints as a table and has `to_pandas()`.
    """
    entries = []
    for name, checkpoint in manager.all("checkpoint").items():
        origin = manager.origin("checkpoint", name)
        folder = imported_folder(checkpoint)
        entries.append(Entry(name, checkpoint, origin["plugin"], origin["distribution"], folder))
    return Zoo(entries)


def imported_folder(checkpoint: Checkpoint, revision: str | None = None) -> Path:
    """The folder for an imported checkpoint in stzoo's cache, zoo/NAME-REVISION, whether it exists or not."""
    revision = revision or checkpoint.revision
    if re.fullmatch("[0-9a-f]{40}", revision):
        revision = revision[:12]
    return cache_folder() / "zoo" / re.sub(r"[^\w.-]+", "-", f"{checkpoint.name}-{revision}")


def _download(entry: Entry) -> str:
    """The size of the download, or why there is none."""
    if entry.imported:
        return "imported"
    if not entry.checkpoint.hub_id:
        return "not on the Hub"
    size = BYTES * entry.checkpoint.parameters
    return f"{size / 1e6:,.0f} MB" if size else "unknown size"
