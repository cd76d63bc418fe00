"""A table of LanceDB, in a folder or at a URI.

Columns: id, title, text, metadata (JSON, or null), vector. The record (model, similarity, prompts) is in the
schema's metadata, under "stzoo". LanceDB chooses the metric when it searches, or makes an index.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stzoo.errors import OutputError, StzooError, first_line
from stzoo.retrieval.handover.parquet import as_table, schema
from stzoo.retrieval.handover.passages import KEY, Passages, compared
from stzoo.utils.files import lock_folder
from stzoo.utils.inputs import is_url
from stzoo.utils.optional import import_extra
from stzoo.utils.parts import check_manifest

METRICS = {"cosine": "cosine", "dot": "dot", "euclidean": "l2"}


def client_module() -> Any:
    """The package lancedb.

    Raises:
        MissingExtraError: If it is not installed.
    """
    return import_extra("lancedb", "lancedb")


def check_free(folder: Path) -> None:
    """Refuses a folder that has other things than tables.

    Raises:
        OutputError: If it has.
    """
    names = sorted(one.name for one in folder.glob("*") if not one.name.startswith("."))
    if others := [name for name in names if not name.endswith(".lance")]:
        raise OutputError(
            f"{folder} is not a folder of LanceDB, as it has other files ({', '.join(others[:5])}); choose "
            "an empty folder."
        )


def write(passages: Passages, output: str, collection: str) -> str:
    """Fills a table, or completes it, and returns a line of Python that searches it."""
    record = passages.record("lancedb")
    name = f"the table {collection} of {output}"
    # two processes would both append the same rows
    lock = contextlib.nullcontext() if is_url(output) else lock_folder(output, wait=True)
    with lock, _errors(name):
        base = client_module().connect(output)
        kind = schema(record["dimension"], record)
        try:
            table = base.open_table(collection)
        except ValueError:  # there is none
            table = base.create_table(collection, schema=kind)
        try:
            found = json.loads(table.schema.metadata[KEY.encode()])
        except (TypeError, KeyError, ValueError):
            raise OutputError(f"{name} was not made by stzoo; choose another --collection.") from None
        check_manifest(
            name, found, compared(record, passages.store.metadata), advice="Choose another --collection."
        )
        if (done := table.count_rows()) > len(passages):
            raise OutputError(
                f"{name} has {done} rows, more than the corpus; drop it, or choose another name."
            )
        for _, vectors, rows in passages.parts(found["shard_rows"], done):
            table.add(as_table(vectors, rows, found))  # is committed whole
    metric = METRICS[passages.similarity]
    return (
        f"import lancedb; lancedb.connect({output!r}).open_table({collection!r})"
        f".search(vector).distance_type({metric!r}).to_list()"
    )


@contextlib.contextmanager
def _errors(name: str) -> Iterator[None]:
    try:
        yield
    except StzooError:
        raise
    except Exception as error:  # of LanceDB, of the disk, of the storage
        raise OutputError(
            f"{name} could not be written: {first_line(error)}. What was written is kept; run the same "
            "command again to complete it."
        ) from error
