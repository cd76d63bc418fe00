"""An embedding store: a folder of vectors that is filled shard by shard and found again.

shards.py     the files
quantize.py   smaller vectors
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from stzoo.errors import DataError, ModelError, RecipeError
from stzoo.models.names import slug
from stzoo.retrieval.store.quantize import (
    DTYPES,
    PRECISIONS,
    check_precision,
    loosened,
    ranges_of,
    tightened,
    width,
)
from stzoo.retrieval.store.shards import Shard, Shards, check_foreign, digest, read_manifest, write_manifest
from stzoo.utils.files import lock_folder
from stzoo.utils.parts import Part, check_manifest

__all__ = ["PRECISIONS", "SHARD_ROWS", "Store", "fill", "open_store", "place", "quantise"]

SHARD_ROWS = 8192  # a kill costs the work of one shard at most: a minute of MiniLM on two CPU cores


@dataclass(frozen=True)
class Store:
    """Vectors on disk: `store[a:b]` is float32 [b - a, D], read when asked for.

    Attributes:
        folder: where it lies.
        manifest: see `shards.py`.
        seconds: that making the vectors took, over all runs; of a quantised store with those of its source.
    """

    folder: Path
    manifest: Mapping[str, Any]
    seconds: float

    @property
    def shape(self) -> tuple[int, int]:
        """Number and width of the vectors."""
        return self.manifest["rows"], self.manifest["dim"]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def precision(self) -> str:
        """One of PRECISIONS."""
        return str(self.manifest["precision"])

    @property
    def facts(self) -> dict[str, Any]:
        """What the vectors depend on, as `fill` was given it."""
        return dict(self.manifest["facts"])

    @property
    def data(self) -> dict[str, str]:
        """Where the texts can be found again, as `fill` was given it."""
        return dict(self.manifest["data"] or {})

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors on disk."""
        return len(self) * width(self.manifest) * np.dtype(DTYPES[self.precision]).itemsize

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError("a store gives consecutive rows only")
        return loosened(Shards(self.folder, self.manifest).read_rows(start, max(start, stop)), self.manifest)

    def packed(self, start: int, stop: int) -> np.ndarray:
        """The bits of a binary store, for Hamming distances.

        Args:
            start: first row.
            stop: row behind the last, at most N.

        Returns:
            uint8 [stop - start, ceil(D / 8)]: the highest bit comes first, and bits behind the last dimension
            are 0, as of numpy.packbits.

        Raises:
            RecipeError: if the store is of another precision.
        """
        if self.precision != "binary":
            raise RecipeError(f"{self.folder} holds {self.precision}; only a binary store has packed bits.")
        return Shards(self.folder, self.manifest).read_rows(start, min(stop, len(self)))


def place(root: str | Path, model: str, label: str, facts: Mapping[str, Any]) -> Path:
    """The folder of a store: ROOT/<model>/<label>-<12 hex digits of the facts>.

    Args:
        root: of all stores.
        model: its name.
        label: for people, e.g. "scifact-document".
        facts: all that the vectors depend on.
    """
    return Path(root) / slug(model) / f"{slug(label)}-{digest(facts)[:12]}"


def fill(
    folder: str | Path,
    texts: Any,
    facts: Mapping[str, Any],
    encode: Callable[[Any], np.ndarray],
    *,
    precision: str = "float32",
    ranges: np.ndarray | None = None,
    shard_rows: int = SHARD_ROWS,
    data: Mapping[str, str] | None = None,
    seconds_before: float = 0.0,
    progress: bool = False,
) -> Store:
    """Encodes what a store has not yet, and opens it.

    Args:
        folder: of the store; made if it is not there.
        texts: a sequence of N, of which a slice is taken for each shard that is missing.
        facts: all that the vectors depend on, as JSON: the model's name and revision, prompt, max_tokens,
            dtype …, and a fingerprint of the texts.
        encode: from a slice of the texts to float32 [n, D].
        precision: of the stored vectors, one of PRECISIONS.
        ranges: float32 [2, D], least and greatest value of each dimension for int8; what lies outside is cut.
            None takes those of the first shard.
        shard_rows: vectors a file; a store that is there keeps its own.
        data: where the texts can be found again, e.g. {"folder": …, "name": …}; no vector depends on it.
        seconds_before: that went into the vectors before encode gets them.
        progress: True for a progress bar on stderr.

    Raises:
        DataError: if there is no text.
        ModelError: if encode gives no finite vectors of one width, or such as float16 cannot hold.
        OutputError: if the folder holds another store or is in use, or the disk is full; finished shards
            stay.
        RecipeError: if the precision is unknown, or shard_rows below 1.
    """
    check_precision(precision)
    if shard_rows < 1:
        raise RecipeError(f"shard_rows is {shard_rows}; expected at least 1.")
    if not len(texts):
        raise DataError(f"there is no text to fill {folder} with.")
    settings = {"facts": json.loads(json.dumps(facts)), "rows": len(texts), "precision": precision}
    bar = tqdm(total=len(texts), desc="Embeddings", unit=" texts", delay=2, leave=False, disable=not progress)
    with lock_folder(folder) as home, bar:
        manifest, made = read_manifest(home), None
        if manifest is not None:
            check_manifest(home, manifest, settings)
        else:
            check_foreign(home)
            made = _encoded(texts, 0, min(shard_rows, len(texts)), encode)
            if precision == "int8" and ranges is None:
                ranges = ranges_of([made.vectors])
            manifest = {
                **settings,
                "dim": made.vectors.shape[1],
                "shard_rows": shard_rows,
                "ranges": ranges.tolist() if precision == "int8" and ranges is not None else None,
                "seconds_before": seconds_before,
                "data": None,
            }
        if made or (data and manifest["data"] != data):  # new, or the texts have moved
            manifest["data"] = data and dict(data)
            write_manifest(home, manifest)
        shards = Shards(home, manifest)

        def make(part: Part) -> Shard:
            shard = made or _encoded(texts, part.first, part.last, encode)
            if (dim := shard.vectors.shape[1]) != manifest["dim"]:
                raise ModelError(f"vectors are {dim} wide; those in {home} are {manifest['dim']} wide.")
            return Shard(tightened(shard.vectors, manifest), shard.seconds)

        seconds = manifest["seconds_before"]
        for part in shards:
            seconds += shards.get(part, make).seconds
            made = None
            bar.update(len(part))
    return Store(home, manifest, seconds)


def quantise(source: Store, folder: str | Path, precision: str, *, progress: bool = False) -> Store:
    """Makes a store of a smaller precision from a float32 one, without encoding anything.

    Args:
        source: of float32.
        folder: of the new store.
        precision: one of PRECISIONS; the ranges of int8 are those of all vectors.
        progress: True for a progress bar on stderr.

    Raises:
        OutputError: if the folder holds another store or is in use, or the disk is full.
        RecipeError: if the source is not float32, or the precision unknown.
    """
    if source.precision != "float32":
        raise RecipeError(f"{source.folder} holds {source.precision}; quantise the float32 store it came of.")
    size = source.manifest["shard_rows"]
    ranges = None
    if precision == "int8" and read_manifest(Path(folder)) is None:
        ranges = ranges_of(source[start : start + size] for start in range(0, len(source), size))
    return fill(
        folder,
        source,
        source.facts,
        lambda vectors: vectors,
        precision=precision,
        ranges=ranges,
        shard_rows=size,
        data=source.data,
        seconds_before=source.seconds,
        progress=progress,
    )


def open_store(folder: str | Path) -> Store:
    """Opens a whole store, once each of its shards has been checked.

    Raises:
        DataError: if it is no store, or a shard is missing or damaged.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise DataError(f"{folder} is not an embedding store (manifest.json is missing or damaged).")
    shards = Shards(folder, manifest)
    return Store(
        folder, manifest, manifest["seconds_before"] + sum(shards.read(part).seconds for part in shards)
    )


def _encoded(texts: Any, start: int, stop: int, encode: Callable[[Any], np.ndarray]) -> Shard:
    """The vectors of some texts, as float32 [n, D]."""
    begun = time.monotonic()
    vectors = encode(texts[start:stop])
    seconds = time.monotonic() - begun
    if vectors.ndim != 2 or len(vectors) != stop - start:
        raise ModelError(f"{stop - start} texts were encoded as {list(vectors.shape)}, not a vector each.")
    if not np.isfinite(vectors).all():
        raise ModelError(f"vectors of the texts {start} to {stop - 1} hold NaN or infinity.")
    return Shard(vectors, seconds)
