"""A collection of Qdrant, in an embedded folder or on a server.

Points are numbered by row; their payload has id, title, text and metadata. The record (model, similarity,
prompts) is in the collection's metadata, under "stzoo".
"""

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stzoo.errors import OutputError, StzooError, first_line
from stzoo.retrieval.handover.passages import KEY, Passages, compared
from stzoo.utils.optional import import_extra
from stzoo.utils.parts import check_manifest

METRICS = {"cosine": "COSINE", "dot": "DOT", "euclidean": "EUCLID", "manhattan": "MANHATTAN"}
BATCH = 256  # points per request, which a server limits to 32 MB


def client_module() -> Any:
    """The package qdrant_client.

    Raises:
        MissingExtraError: If it is not installed.
    """
    return import_extra("qdrant_client", "qdrant", "qdrant-client")


def check_free(folder: Path) -> None:
    """Refuses a folder that has other things than Qdrant's.

    Raises:
        OutputError: If it has.
    """
    names = sorted(one.name for one in folder.glob("*") if not one.name.startswith("."))
    if names and "meta.json" not in names:
        raise OutputError(
            f"{folder} is not a folder of Qdrant but has other files ({', '.join(names[:5])}); choose an "
            "empty folder."
        )


def write(passages: Passages, output: str, collection: str, *, is_server: bool) -> str:
    """Fills a collection, or completes it, and returns a line of Python that opens it."""
    record = passages.record("qdrant")
    with _opened(output, is_server) as client:
        models = client_module().models
        if not client.collection_exists(collection):
            distance = models.Distance[METRICS[passages.similarity]]
            client.create_collection(
                collection,
                vectors_config=models.VectorParams(size=record["dimension"], distance=distance),
                metadata={KEY: record},
            )
        found = (client.get_collection(collection).config.metadata or {}).get(KEY)
        name = f"the collection {collection} of {output}"
        if not isinstance(found, dict):
            old = ", or the server is older than Qdrant 1.16" if is_server else ""
            raise OutputError(f"{name} was not made by stzoo{old}; choose another --collection.")
        check_manifest(
            name, found, compared(record, passages.store.metadata), advice="Choose another --collection."
        )
        # points are written in order, so only the last batch may have some of its points
        done = client.count(collection, exact=True).count
        if done > len(passages):
            raise OutputError(f"{name} has {done} points, more than the corpus; choose another --collection.")
        start = done if done == len(passages) else done // BATCH * BATCH
        for first, vectors, rows in passages.parts(BATCH, start):
            ids = list(range(first, first + len(rows)))
            points = models.Batch(ids=ids, vectors=vectors.tolist(), payloads=[row._asdict() for row in rows])
            client.upsert(collection, points, wait=True)
    place = f"url={output!r}" if is_server else f"path={output!r}"
    return f"from qdrant_client import QdrantClient; QdrantClient({place}).get_collection({collection!r})"


@contextlib.contextmanager
def _opened(output: str, is_server: bool) -> Iterator[Any]:
    make = client_module().QdrantClient
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Local mode is not recommended")  # the README says so
            warnings.filterwarnings("ignore", message=".*insecure connection")
            if is_server:
                client = make(url=output, api_key=os.environ.get("QDRANT_API_KEY"), timeout=60)
            else:
                client = make(path=output)
            try:
                yield client
            finally:
                client.close()
    except StzooError:
        raise
    except Exception as error:  # of the network, of the server, of SQLite, of another process's lock
        raise OutputError(
            f"Qdrant at {output} failed: {first_line(error)}. What was written is kept; run the same command "
            "again to complete it."
        ) from error
