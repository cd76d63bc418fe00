"""Hand-over of vectors from a store to what people serve with.

passages.py   what is handed over
folder.py     output folders, on disk or at a URL
npy.py, parquet.py, faiss.py, qdrant.py, lancedb.py   one module per format

What was written whole is kept, so an interrupted hand-over is completed by the same call. An output that
stzoo did not make, or that has the vectors of another model or corpus, is refused.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stzoo.errors import OutputError, RecipeError, check_known, quoted
from stzoo.models.names import slug
from stzoo.retrieval.handover import faiss, lancedb, npy, parquet, qdrant
from stzoo.retrieval.handover.folder import Folder
from stzoo.retrieval.handover.passages import Passages
from stzoo.retrieval.search.faiss_build import empty
from stzoo.utils.inputs import is_url
from stzoo.utils.outputs import check_output

__all__ = ["FORMATS", "HandedOver", "Passages", "Target", "check_target", "hand_over"]

FORMATS = ("npy", "parquet", "faiss", "qdrant", "lancedb")
DATABASES = {"qdrant": qdrant, "lancedb": lancedb}


@dataclass(frozen=True)
class Target:
    """Where vectors go, as checked by `check_target`.

    Attributes:
        to: One of FORMATS.
        output: Folder or URL.
        index: Factory string of the FAISS index.
        collection: Name of the collection or table; None for that of the corpus.
        is_server: True if the output is the address of a server of Qdrant.
    """

    to: str
    output: str
    index: str = "Flat"
    collection: str | None = None
    is_server: bool = False

    def check_similarity(self, similarity: str, dimension: int) -> None:
        """Refuses a similarity that the engine lacks, before anything is encoded.

        Raises:
            RecipeError: If it lacks it, or FAISS cannot make the index.
        """
        if self.to == "faiss":
            empty(self.index, dimension, similarity)
        elif self.to in DATABASES and similarity not in DATABASES[self.to].METRICS:
            raise RecipeError(
                f"{self.to} has no metric for {similarity}, the similarity of the model; it has "
                f"{', '.join(DATABASES[self.to].METRICS)}. Use another --to, e.g. npy."
            )


@dataclass(frozen=True)
class HandedOver:
    """Vectors that were handed over.

    Attributes:
        to: One of FORMATS.
        output: Folder or URL.
        load: A line of Python that loads them.
        collection: Name of the collection or table, if there is one.
    """

    to: str
    output: str
    load: str
    collection: str | None = None


def check_target(
    to: str,
    output: str | Path | None,
    *,
    index: str | None = None,
    collection: str | None = None,
    url: str | None = None,
    inputs: Iterable[object] = (),
) -> Target:
    """Checks where vectors are to go, before anything is encoded.

    Args:
        to: One of FORMATS.
        output: Folder, or URL of one.
        index: Factory string of FAISS.
        collection: Name of a collection or table.
        url: Address of a server of Qdrant, in place of an output.
        inputs: Inputs of the command, which are not to be written to.

    Raises:
        RecipeError: If the format is unknown, or an option does not go with it.
        OutputError: If the output has files of others.
        MissingExtraError: If the engine is not installed.
    """
    check_known("format", to, FORMATS)
    for option, given, formats in (
        ("index", index, ("faiss",)),
        ("collection", collection, tuple(DATABASES)),
        ("url", url, ("qdrant",)),
    ):
        if given is not None and to not in formats:
            raise RecipeError(f"--{option} has no effect with --to {to}; it is for {' and '.join(formats)}.")
    if (output is None) == (url is None):
        choice = "--output FOLDER or --url ADDRESS" if to == "qdrant" else "--output FOLDER"
        raise RecipeError(f"--to {to} needs {choice}{', not both' if output else ''}.")
    if collection is not None and not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}", collection):
        raise RecipeError(
            f"the collection {quoted(collection)} is invalid; use letters, digits, _, - and dots."
        )
    if to in DATABASES:
        DATABASES[to].client_module()
    if url is not None:
        return Target(to, url, collection=collection, is_server=True)
    if is_url(output):
        place = str(output)
        if to == "qdrant":
            raise OutputError(f"Qdrant's folders must be local, not {place}; use --url for a server.")
    else:
        place = str(check_output(str(output), kind="results", inputs=inputs))
        if to in DATABASES:
            DATABASES[to].check_free(Path(place))
    if to not in DATABASES:
        _folder(to, place)
    return Target(to, place, index or "Flat", collection)


def hand_over(passages: Passages, target: Target, corpus: str) -> HandedOver:
    """Writes vectors with ids and texts in the form of a target, or completes what an earlier call wrote.

    Args:
        passages: The vectors.
        target: Where they go.
        corpus: Name of the corpus, for the collection if the target has no name for it.

    Raises:
        OutputError: If the output was not made by stzoo, has other vectors, or cannot be written.
        DataError: If the corpus has changed since it was encoded.
    """
    to, output = target.to, target.output
    collection = target.collection or re.sub(r"[^A-Za-z0-9_.-]+", "-", slug(corpus)).strip(".-") or "corpus"
    if to == "qdrant":
        load = qdrant.write(passages, output, collection, is_server=target.is_server)
    elif to == "lancedb":
        load = lancedb.write(passages, output, collection)
    elif to == "faiss":
        load = faiss.write(passages, _folder(to, output), target.index)
    else:
        load = {"npy": npy, "parquet": parquet}[to].write(passages, _folder(to, output))
    return HandedOver(to, output, load, collection if to in DATABASES else None)


def _folder(to: str, output: str) -> Folder:
    # readers of Parquet folders skip names that begin with "_"
    return Folder(output, record="_stzoo.json" if to == "parquet" else "stzoo.json")
