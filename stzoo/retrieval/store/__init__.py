"""Embedding stores: folders of vectors that are filled shard by shard and reused.

shards.py     the files of a store
quantize.py   vectors in fewer bytes
"""

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stzoo.errors import DataError, ModelError, RecipeError, check_known, quoted
from stzoo.models.names import slug
from stzoo.retrieval.store.quantize import (
    DTYPES,
    PRECISIONS,
    loosened,
    ranges_of,
    tightened,
    width,
)
from stzoo.retrieval.store.shards import (
    Shard,
    Shards,
    check_foreign,
    digest,
    read_manifest,
    write_manifest,
)
from stzoo.utils.files import lock_folder
from stzoo.utils.messages import counted, note_if_slow
from stzoo.utils.parts import Part, check_manifest
from stzoo.utils.progress import advancing, progress_bar
from stzoo.utils.workers import ThisProcess, on_device, started

__all__ = ["PRECISIONS", "SHARD_ROWS", "Store", "fill", "open_store", "place", "quantise"]

SHARD_ROWS = 8192  # an interrupted run loses at most one shard: a minute for MiniLM on two CPU cores


@dataclass(frozen=True)
class Store:
    """Vectors on disk; `store[a:b]` reads float32 [b - a, D].

    Attributes:
        folder: Folder of the store.
        manifest: Content of the manifest; see `shards.py`.
        seconds: Seconds that computing the vectors took over all runs; for a quantised store, including
            those of its source.
    """

    folder: Path
    manifest: Mapping[str, Any]
    seconds: float

    @property
    def shape(self) -> tuple[int, int]:
        """Number and dimension of the vectors."""
        return self.manifest["rows"], self.manifest["dim"]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def precision(self) -> str:
        """Precision of the stored vectors, one of PRECISIONS."""
        return str(self.manifest["precision"])

    @property
    def metadata(self) -> dict[str, Any]:
        """Everything that the vectors depend on, as passed to `fill`."""
        return dict(self.manifest["facts"])

    @property
    def data(self) -> dict[str, str]:
        """Where the texts come from, as passed to `fill`."""
        return dict(self.manifest["data"] or {})

    @property
    def nbytes(self) -> int:
        """Size of the vectors on disk in bytes."""
        return len(self) * width(self.manifest) * np.dtype(DTYPES[self.precision]).itemsize

    def has(self, start: int, stop: int) -> bool:
        """True if this machine has these rows, under the same path and undamaged; reads them once."""
        shards = Shards(self.folder, self.manifest)
        size = shards.size
        return all(
            shards.load(shards[number]) is not None for number in range(start // size, -(-stop // size))
        )

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError("a store can only be sliced into consecutive rows")
        return loosened(Shards(self.folder, self.manifest).read_rows(start, max(start, stop)), self.manifest)


def place(root: str | Path, model: str, name: str, kind: str, metadata: Mapping[str, Any]) -> Path:
    """Returns the folder of a store: ROOT/<model>/<name>-<kind>-<12 hex digits of the metadata's SHA-256>.

    One that has the same under another name is returned in its place, as data sets may share their texts.

    Args:
        root: Folder of all stores.
        model: Name of the model.
        name: Name of the texts, e.g. "scifact".
        kind: What is stored, e.g. "document".
        metadata: Everything that the vectors depend on, as JSON.
    """
    folder, end = Path(root) / slug(model), f"{kind}-{digest(metadata)[:12]}"
    new = folder / f"{slug(name)}-{end}"
    return new if new.exists() else next(iter(sorted(folder.glob(f"*-{end}"))), new)


def fill(
    folder: str | Path,
    texts: Any,
    metadata: Mapping[str, Any],
    encode: Callable[[Any], np.ndarray],
    *,
    precision: str = "float32",
    ranges: np.ndarray | None = None,
    shard_rows: int = SHARD_ROWS,
    data: Mapping[str, str] | None = None,
    seconds_before: float = 0.0,
    remote: bool = False,
    progress: bool = False,
    note: str = "",
) -> Store:
    """Encodes the missing shards of a store, and opens it. Several processes can fill one store together.

    Args:
        folder: Folder of the store; created if it does not exist.
        texts: Sequence of N texts, from which a slice is taken for each missing shard.
        metadata: Everything that the vectors depend on, as JSON: the model's name and revision, prompt,
            max_tokens, dtype and so on, and a fingerprint of the texts.
        encode: Function from a slice of the texts to vectors, float32 [n, D].
        precision: Precision of the stored vectors, one of PRECISIONS.
        ranges: Minimum and maximum of each dimension for int8, float32 [2, D]; values outside are clipped.
            None uses those of the first shard.
        shard_rows: Number of vectors per file; an existing store keeps its own.
        data: Where the texts come from, e.g. {"folder": …, "name": …}; the vectors do not depend on it.
        seconds_before: Seconds spent on the vectors before `encode` is called.
        remote: True if the workers of an engine may call `encode`, which must be picklable.
        progress: True for a progress bar on stderr.
        note: What is shown without a progress bar if shards are missing and it takes longer than a moment.

    Raises:
        DataError: If there are no texts.
        ModelError: If `encode` does not return finite vectors of one dimension, or they overflow float16.
        OutputError: If the folder contains another store, or the disk is full; finished shards are kept.
        RecipeError: If the precision is unknown, or `shard_rows` is below 1.
    """
    check_known("precision", precision, PRECISIONS)
    if shard_rows < 1:
        raise RecipeError(f"shard_rows is {shard_rows}; expected at least 1.")
    if not len(texts):
        raise DataError(f"there is no text to encode into {folder}.")
    settings = {"facts": json.loads(json.dumps(metadata)), "rows": len(texts), "precision": precision}
    bar = progress_bar(total=len(texts), desc="Embeddings", unit=" texts", delay=2, disable=not progress)
    compute = _Encoder(encode)
    announced = contextlib.ExitStack()

    def missing(start: int, stop: int) -> Any:
        nonlocal note
        if note and not progress:
            announced.enter_context(note_if_slow(note))
        note = ""  # once
        return texts[start:stop]

    processes = started(compute) if remote else contextlib.nullcontext(ThisProcess(compute))
    with bar, announced, processes as workers:
        with lock_folder(folder, wait=True) as home:  # one process encodes the first shard
            manifest = read_manifest(home)
            if manifest is None:
                check_foreign(home)
                workers.submit(0, missing(0, min(shard_rows, len(texts))))
                with advancing(bar):
                    _, first = workers.next()
                if precision == "int8" and ranges is None:
                    ranges = ranges_of([first.vectors])
                manifest = {
                    **settings,
                    "dim": first.vectors.shape[1],
                    "shard_rows": shard_rows,
                    "ranges": ranges.tolist() if precision == "int8" and ranges is not None else None,
                    "seconds_before": seconds_before,
                    "data": data and dict(data),
                }
                stored = Shard(tightened(first.vectors, manifest), first.seconds)
                write_manifest(home, manifest)
                shards = Shards(home, manifest)
                shards.get(shards[0], lambda _: stored)
            check_manifest(home, manifest, settings)
            old = manifest["data"] or {}
            same_model = data is not None and old.get("model") == data.get("model")
            if data and old != data and not (same_model and Path(old.get("folder", "")).is_dir()):
                # the texts or the model have moved
                manifest["data"] = dict(data)
                write_manifest(home, manifest)

        shards, seconds = Shards(home, manifest), manifest["seconds_before"]

        def pack(_: Part, shard: Shard) -> Shard:
            if (dim := shard.vectors.shape[1]) != manifest["dim"]:
                raise ModelError(f"vectors have dimension {dim}; those in {home} have {manifest['dim']}.")
            return Shard(tightened(shard.vectors, manifest), shard.seconds)

        def add(_: Part, shard: Shard) -> None:
            nonlocal seconds
            seconds += shard.seconds

        shards.complete(workers, lambda part: missing(part.first, part.last), pack=pack, each=add, bar=bar)
    return Store(home, manifest, seconds)


def quantise(source: Store, folder: str | Path, precision: str) -> Store:
    """Makes a store of a lower precision from a float32 store, without encoding anything.

    Args:
        source: The float32 store.
        folder: Folder of the new store.
        precision: Precision of the new store, one of PRECISIONS; the ranges of int8 are those of all vectors.

    Raises:
        OutputError: If the folder contains another store, or the disk is full.
        RecipeError: If the source is not float32, or the precision is unknown.
    """
    if source.precision != "float32":
        raise RecipeError(f"{source.folder} is a {source.precision} store; expected a float32 store.")
    size = source.manifest["shard_rows"]
    ranges = None
    if precision == "int8" and read_manifest(Path(folder)) is None:
        ranges = ranges_of(source[start : start + size] for start in range(0, len(source), size))
    return fill(
        folder,
        source,
        source.metadata,
        lambda vectors: vectors,
        precision=precision,
        ranges=ranges,
        shard_rows=size,
        data=source.data,
        seconds_before=source.seconds,
    )


def open_store(folder: str | Path) -> Store:
    """Opens a complete store after checking each of its shards.

    Raises:
        DataError: If the folder is not a store, or a shard is missing or damaged.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise DataError(f"{folder} is not an embedding store (manifest.json is missing or damaged).")
    shards = Shards(folder, manifest)
    return Store(
        folder, manifest, manifest["seconds_before"] + sum(shards.read(part).seconds for part in shards)
    )


@dataclass(frozen=True)
class _Encoder:
    """Encodes texts as float32 [n, D], and measures the time."""

    encode: Callable[[Any], np.ndarray]

    def __call__(self, texts: Any) -> Shard:
        begun = time.monotonic()
        vectors = self.encode(texts)
        seconds = time.monotonic() - begun
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise ModelError(
                f"{counted(len(texts), 'text')} encoded as {list(vectors.shape)}; expected one vector each."
            )
        if len(wrong := np.flatnonzero(~np.isfinite(vectors).all(1))):
            text = quoted(str(texts[wrong[0]]))
            raise ModelError(f"the vector of the text {text} contains NaN or infinity.")
        return Shard(vectors, seconds)

    def on(self, device: str | None) -> "_Encoder":
        """See `stzoo.utils.workers.on_device`."""
        return replace(self, encode=on_device(self.encode, device))
