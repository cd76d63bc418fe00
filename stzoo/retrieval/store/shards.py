"""The files of an embedding store: its manifest and its shards, each written whole and checked when read.

manifest.json             facts, rows, dim, precision, shard_rows, ranges (of int8), seconds_before, data, and
                          a checksum of all this
shard-00000.safetensors   "vectors" [rows, width]; in the metadata the store that it belongs to (a digest of
                          the manifest), its number, the seconds that making it took, and a checksum
"""

import contextlib
import json
import zlib
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from stzoo.errors import DataError, OutputError
from stzoo.retrieval.store.quantize import DTYPES, width
from stzoo.utils.files import atomic_file, write_json

SCHEMA_VERSION = 1


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"shard-{number:05}.safetensors"


def shard_count(manifest: Mapping[str, Any]) -> int:
    """Number of shards of a whole store."""
    return -(-int(manifest["rows"]) // int(manifest["shard_rows"]))


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


def write_shard(
    folder: Path, manifest: Mapping[str, Any], number: int, stored: np.ndarray, seconds: float
) -> None:
    """Writes one shard.

    Raises:
        OutputError: if the disk is full or the folder cannot be written; nothing is left behind.
    """
    about = {"store": _identity(manifest), "number": str(number), "seconds": f"{seconds:.3f}"}
    about["checksum"] = _checksum(stored, about)
    with atomic_file(shard_path(folder, number)) as draft:
        draft.write_bytes(save({"vectors": stored}, about))


def check_shard(folder: Path, manifest: Mapping[str, Any], number: int) -> float | None:
    """The seconds that a shard took, or None if it is missing, damaged or of another store."""
    rows = min(manifest["shard_rows"], manifest["rows"] - number * manifest["shard_rows"])
    path = shard_path(folder, number)
    try:
        if not path.is_file():
            return None
        with safe_open(path, "np") as reader:
            about, vectors = dict(reader.metadata()), reader.get_tensor("vectors")
        holds = (
            about.pop("checksum") == _checksum(vectors, about)
            and (about["store"], about["number"]) == (_identity(manifest), str(number))
            and (vectors.shape, vectors.dtype) == ((rows, width(manifest)), DTYPES[manifest["precision"]])
        )
        return float(about["seconds"]) if holds else None
    except Exception:  # whatever a damaged file makes the reader raise
        return None


def read_rows(folder: Path, manifest: Mapping[str, Any], start: int, stop: int) -> np.ndarray:
    """Stored rows [stop - start, width]; bytes are read, not mapped, and so count as memory only once.

    Raises:
        DataError: if a shard was removed or cut short since it was checked.
    """
    dtype, columns, size = np.dtype(DTYPES[manifest["precision"]]), width(manifest), manifest["shard_rows"]
    found = np.empty((stop - start, columns), dtype)
    row = start
    while row < stop:
        number, first = divmod(row, size)
        rows = min(size - first, stop - row)
        path = shard_path(folder, number)
        try:
            with path.open("rb") as file:
                header = int.from_bytes(file.read(8), "little")  # safetensors: its length comes first
                offset = header + first * columns * dtype.itemsize
                read = np.fromfile(file, dtype, rows * columns, offset=offset)
            found[row - start : row - start + rows] = read.reshape(rows, columns)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} can no longer be read: {error}.") from error
        row += rows
    return found


def _identity(manifest: Mapping[str, Any]) -> str:
    """What a shard must name to belong to the store."""
    return digest({name: value for name, value in manifest.items() if name not in ("data", "seconds_before")})


def _checksum(vectors: np.ndarray, about: Mapping[str, str]) -> str:
    """CRC-32, which finds any damaged byte, at 7 GB/s; SHA-256 would take three times as long."""
    return f"{zlib.crc32(vectors.data, zlib.crc32(digest(dict(about)).encode())):08x}"
