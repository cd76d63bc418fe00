"""The files of an embedding store: its manifest and its shards, which are parts as of `stzoo.utils.parts`.

manifest.json             facts, rows, dim, precision, shard_rows, ranges (of int8), seconds_before, data, and
                          a checksum of all this; a damaged one is replaced
shard-00000.safetensors   "vectors" [rows, width]; in the metadata the store that it belongs to (a digest of
                          the manifest), its number, the seconds that making it took, and a checksum
"""

import contextlib
import json
import zlib
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from stzoo.errors import DataError, OutputError
from stzoo.retrieval.store.quantize import DTYPES, width
from stzoo.utils.files import write_json
from stzoo.utils.parts import Part, Parts

SCHEMA_VERSION = 1


def digest(value: Any) -> str:
    """SHA-256 (64 hex digits) of what JSON can hold."""
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes a manifest with its schema version and checksum."""
    checked = {"schema_version": SCHEMA_VERSION, **manifest}
    write_json(folder / "manifest.json", checked | {"checksum": digest(checked)})


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What `write_manifest` was given, or None if it is missing, damaged or of another version."""
    path = folder / "manifest.json"
    try:
        if not path.is_file():  # a pipe would be waited for
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        holds = found.pop("checksum") == digest(found) and found.pop("schema_version") == SCHEMA_VERSION
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    return found if holds else None


def check_foreign(folder: Path) -> None:
    """Sees that a folder without a manifest that holds may be filled.

    Raises:
        OutputError: if its manifest.json is another program's. A damaged one is replaced.
    """
    found = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    own = {"schema_version", "facts", "rows", "dim", "precision", "shard_rows", "checksum"}
    if found is not None and not (isinstance(found, dict) and len(own & found.keys()) > 1):
        raise OutputError(f"{folder / 'manifest.json'} is not an embedding store's; choose another folder.")


class Shard(NamedTuple):
    """The content of a shard.

    Attributes:
        vectors: [rows, width] of the precision's dtype.
        seconds: Seconds that computing them took.
    """

    vectors: np.ndarray
    seconds: float


class Shards(Parts[Shard]):
    """The shards of a store.

    Args:
        folder: Folder of the store.
        manifest: Its manifest.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]):
        super().__init__(folder, "shard-{number:05}.safetensors", manifest["rows"], manifest["shard_rows"])
        self.manifest = manifest
        self.dtype, self.width = np.dtype(DTYPES[manifest["precision"]]), width(manifest)

    def load(self, part: Part) -> Shard | None:
        """See `Parts`."""
        try:
            if not part.path.is_file():
                return None
            with safe_open(part.path, "np") as reader:
                about, vectors = dict(reader.metadata()), reader.get_tensor("vectors")
            holds = (
                about.pop("checksum") == _checksum(vectors, about)
                and (about["store"], about["number"]) == (_identity(self.manifest), str(part.number))
                and (vectors.shape, vectors.dtype) == ((len(part), self.width), self.dtype)
            )
            return Shard(vectors, float(about["seconds"])) if holds else None
        except Exception:  # whatever a damaged file makes the reader raise
            return None

    def save(self, draft: Path, part: Part, content: Shard) -> None:
        """See `Parts`."""
        about = {
            "store": _identity(self.manifest),
            "number": str(part.number),
            "seconds": f"{content.seconds:.3f}",
        }
        about["checksum"] = _checksum(content.vectors, about)
        draft.write_bytes(save({"vectors": content.vectors}, about))

    def read_rows(self, start: int, stop: int) -> np.ndarray:
        """Stored rows [stop - start, width]; bytes are read, not mapped, and so count as memory only once.

        Raises:
            DataError: If a shard was removed or cut short since it was checked.
        """
        found = np.empty((stop - start, self.width), self.dtype)
        row = start
        while row < stop:
            part = self[row // self.size]
            first, end = row - part.first, min(part.last, stop)
            try:
                with part.path.open("rb") as file:
                    header = int.from_bytes(file.read(8), "little")  # safetensors: its length comes first
                    offset = header + first * self.width * self.dtype.itemsize
                    read = np.fromfile(file, self.dtype, (end - row) * self.width, offset=offset)
                found[row - start : end - start] = read.reshape(end - row, self.width)
            except (OSError, ValueError) as error:
                raise DataError(f"{part.path} can no longer be read: {error}.") from error
            row = end
        return found


def _identity(manifest: Mapping[str, Any]) -> str:
    """What a shard must name to belong to the store."""
    return digest({name: value for name, value in manifest.items() if name not in ("data", "seconds_before")})


def _checksum(vectors: np.ndarray, about: Mapping[str, str]) -> str:
    """CRC-32, which finds any damaged byte, at 7 GB/s; SHA-256 would take three times as long."""
    return f"{zlib.crc32(vectors.data, zlib.crc32(digest(dict(about)).encode())):08x}"
