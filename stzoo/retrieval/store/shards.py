"""The files of an embedding store: its manifest and its shards, which are `stzoo.utils.parts`.

manifest.json             facts, rows, dim, precision, shard_rows, ranges (for int8), seconds_before, data,
                          and a checksum of these; a damaged manifest is replaced
shard-00000.safetensors   "vectors" [rows, width]; its metadata has the store that it belongs to (a digest of
                          the manifest), its number, the seconds spent on it, and a checksum
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
    """SHA-256 of a JSON value, 64 hex digits."""
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes a manifest with its schema version and checksum."""
    checked = {"schema_version": SCHEMA_VERSION, **manifest}
    write_json(folder / "manifest.json", checked | {"checksum": digest(checked)})


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Reads what `write_manifest` wrote; None if it is missing, damaged or of another schema version."""
    path = folder / "manifest.json"
    try:
        if not path.is_file():  # opening a pipe would block
            return None
        manifest = json.loads(path.read_text(encoding="utf-8"))
        valid = (
            manifest.pop("checksum") == digest(manifest) and manifest.pop("schema_version") == SCHEMA_VERSION
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    return manifest if valid else None


def check_foreign(folder: Path) -> None:
    """Checks that a folder without a valid manifest may be filled. A damaged manifest is replaced.

    Raises:
        OutputError: If its manifest.json belongs to another program.
    """
    content = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    keys = {"schema_version", "facts", "rows", "dim", "precision", "shard_rows", "checksum"}
    if content is not None and not (isinstance(content, dict) and len(keys & content.keys()) > 1):
        raise OutputError(
            f"{folder / 'manifest.json'} does not belong to an embedding store; choose another folder."
        )


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
        manifest: Manifest of the store.
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
                metadata, vectors = dict(reader.metadata()), reader.get_tensor("vectors")
            valid = (
                metadata.pop("checksum") == _checksum(vectors, metadata)
                and (metadata["store"], metadata["number"]) == (_identity(self.manifest), str(part.number))
                and (vectors.shape, vectors.dtype) == ((len(part), self.width), self.dtype)
            )
            return Shard(vectors, float(metadata["seconds"])) if valid else None
        except Exception:  # a damaged file may raise anything
            return None

    def save(self, draft: Path, part: Part, content: Shard) -> None:
        """See `Parts`."""
        metadata = {
            "store": _identity(self.manifest),
            "number": str(part.number),
            "seconds": f"{content.seconds:.3f}",
        }
        metadata["checksum"] = _checksum(content.vectors, metadata)
        draft.write_bytes(save({"vectors": content.vectors}, metadata))

    def read_rows(self, start: int, stop: int) -> np.ndarray:
        """Reads stored rows, [stop - start, width]; files are not mapped, so memory is counted only once.

        Raises:
            DataError: If a shard was removed or cut short since it was checked.
        """
        rows = np.empty((stop - start, self.width), self.dtype)
        row = start
        while row < stop:
            part = self[row // self.size]
            first, end = row - part.first, min(part.last, stop)
            try:
                with part.path.open("rb") as file:
                    # A safetensors file starts with the length of its header; the offset counts from there.
                    header = int.from_bytes(file.read(8), "little")
                    offset = header + first * self.width * self.dtype.itemsize
                    read = np.fromfile(file, self.dtype, (end - row) * self.width, offset=offset)
                rows[row - start : end - start] = read.reshape(end - row, self.width)
            except (OSError, ValueError) as error:
                raise DataError(f"{part.path} can no longer be read: {error}.") from error
            row = end
        return rows


def _identity(manifest: Mapping[str, Any]) -> str:
    """Digest that the shards of a store carry."""
    return digest({name: value for name, value in manifest.items() if name not in ("data", "seconds_before")})


def _checksum(vectors: np.ndarray, metadata: Mapping[str, str]) -> str:
    """CRC-32, which detects any damaged byte at 7 GB/s; SHA-256 would take three times as long."""
    return f"{zlib.crc32(vectors.data, zlib.crc32(digest(dict(metadata)).encode())):08x}"
