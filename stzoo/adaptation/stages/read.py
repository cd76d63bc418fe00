"""Stage 1: the passages."""

import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stzoo.adaptation.hold_out import documents_of
from stzoo.adaptation.read import read_documents
from stzoo.adaptation.stages.run import CORPUS, Run
from stzoo.data.beir import RetrievalDataset, read_corpus
from stzoo.data.beir_layout import corpus_file
from stzoo.errors import DataError, OutputError, quoted
from stzoo.evaluation.adapt_record import HELD_OUT
from stzoo.utils.files import NEW, draft_folder, sha256
from stzoo.utils.messages import notify


@dataclass(frozen=True)
class Passages:
    """The passages.

    Attributes:
        file: Their corpus.jsonl.
        data: The same as the corpus of the held-out queries, which are still missing.
        documents: int64 [N], numbers of their documents.
    """

    file: Path
    data: RetrievalDataset
    documents: np.ndarray

    def __len__(self) -> int:
        return len(self.data.passages)


def read_passages(run: Run, corpus: Any) -> Passages:
    """Reads documents, or the passages of a BEIR folder.

    Raises:
        DataError: If an id has white space.
        OutputError: If the documents have changed since an earlier call.
    """
    file = corpus_file(Path(corpus).expanduser()) if isinstance(corpus, str | Path) else None
    if file is None:
        file = run.folder / CORPUS / "corpus.jsonl"
        if file.is_file():
            _check_same_documents(corpus, file, progress=run.progress)
        else:
            read_documents(corpus, file.parent, progress=run.progress)
    ids, passages, _ = read_corpus(file, run.progress)
    documents = documents_of(file, ids)
    if spaced := next((one for one in ids if set(one) & set(string.whitespace)), None):
        raise DataError(
            f"{file}: the id {quoted(spaced)} contains white space, which the files of rankings cannot "
            "represent. Change the ids."
        )
    if 2 * (different := len({hash(text) for text in passages})) < len(ids):
        notify(
            f"only {different:,} of the {len(ids):,} passages are different; `stzoo read` leaves copies out."
        )
    # embeddings have the name of the folder, and all systems are to share them
    data = RetrievalDataset(name=HELD_OUT, folder=run.folder / HELD_OUT, corpus_ids=ids, passages=passages)
    run.retriever.notes(data)  # shown to the user
    return Passages(file, data, documents)


def _check_same_documents(corpus: Any, earlier: Path, *, progress: bool) -> None:
    """Checks that the documents are those of an earlier call.

    Raises:
        OutputError: If not.
    """
    with draft_folder(earlier.parent) as box:
        read_documents(corpus, box / NEW, progress=progress)
        same = sha256(box / NEW / earlier.name) == sha256(earlier)
    if not same:
        raise OutputError(
            f"{earlier} was made from other documents, or from other versions of them. Choose another "
            "--output."
        )
