"""search(): questions to a model, and the passages it finds."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from stzoo.data.beir import RetrievalDataset, read_corpus
from stzoo.data.beir_layout import find_jsonl
from stzoo.errors import DataError, ModelError, RecipeError
from stzoo.models.encode import encode
from stzoo.models.loaded import open_model
from stzoo.retrieval.search.retriever import Retriever, default_root
from stzoo.retrieval.store import Store, open_store
from stzoo.utils.distributed import require_one_process
from stzoo.utils.inputs import user_path
from stzoo.utils.outputs import check_output


def search(
    source: str | Path,
    questions: str | Sequence[str],
    *,
    data: str | Path | None = None,
    k: int = 5,
    max_tokens: int | None = None,
    batch_tokens: int | None = None,
    device: str | None = None,
    threads: int | None = None,
    memory_gib: float = 2.0,
    store: str | Path | None = None,
    progress: bool | None = None,
) -> list[dict[str, Any]]:
    """Finds the passages nearest to each question, exactly.

    Args:
        source: a model (folder or Hub id), or an embedding store, which knows its model and corpus.
        questions: one or several.
        data: the corpus: a BEIR folder or a corpus.jsonl(.gz); a store has its own.
        k: passages a question.
        max_tokens: longer texts are cut there; None keeps the model's own limit.
        batch_tokens: tokens encoded at once, padding included; None suits the device.
        device: of torch, several with commas between; None takes the best there is.
        threads: on the CPU; None leaves it to torch.
        memory_gib: bound on what search holds.
        store: where the embeddings of a model's corpus are kept; None for stzoo's cache.
        progress: True for progress bars on stderr; None shows them on a terminal only.

    Returns:
        {"question": str, "found": [{"id": str, "score": float, "text": str}, …]} a question, best first.

    Raises:
        DataError: if the corpus is not there or does not hold, or is not the store's any more.
        ModelError: if the model cannot be loaded, or is not the store's any more.
        RecipeError: if an option does not hold.
    """
    require_one_process("search")
    questions = [questions] if isinstance(questions, str) else list(questions)
    if not questions:
        raise RecipeError("there is no question.")
    if threads:
        torch.set_num_threads(threads)
    bars = sys.stderr.isatty() if progress is None else progress
    documents: Store | None = None
    how: dict[str, str] = {}  # the documents' own, so that questions are encoded alike
    if (place := user_path(source, ModelError) / "manifest.json").is_file():
        documents = open_store(place.parent)
        if documents.facts.get("role") != "document":
            raise DataError(f"{source} holds the embeddings of queries; expected those of a corpus.")
        model, max_tokens = documents.data["model"], documents.facts["max_tokens"]
        how = {name: documents.facts[name] for name in ("dtype", "backend") if name in documents.facts}
        data = data or documents.data["folder"]
    else:
        model = str(source)
        if data is None:
            raise RecipeError(
                "there is nothing to search; name a BEIR folder or a corpus.jsonl by data (--data)."
            )
    if store:
        store = check_output(store, kind="results", inputs=[model, data])
    opened = open_model(model, max_tokens=max_tokens, device=device, **how)
    if documents and documents.facts["revision"] != opened.revision:
        raise DataError(f"{model} is not the model any more that {source} was made with. Run bench again.")
    retriever = Retriever(
        opened, Path(store or default_root()), batch_tokens, memory_gib=memory_gib, progress=bars
    )
    judged = _corpus(user_path(data), bars)
    retriever.notes(judged)  # shown to the user
    if documents is None:
        documents = retriever.documents(judged)
    elif documents.facts["texts"] != judged.corpus_fingerprint:
        raise DataError(f"{data} is not the corpus any more that {source} was made of. Run bench again.")
    ids = [str(number) for number in range(len(questions))]
    vectors = encode(retriever.model, questions, role="query", batch_tokens=batch_tokens)
    run = retriever.top_k(judged, vectors, ids, documents, k)
    wanted = {document for found in run.values() for document in found}
    places = {document: place for place, document in enumerate(judged.corpus_ids) if document in wanted}
    return [
        {
            "question": question,
            "found": [
                {"id": document, "score": score, "text": judged.passages[places[document]]}
                for document, score in run[number].items()
            ],
        }
        for number, question in zip(ids, questions, strict=True)
    ]


def _corpus(data: Path, progress: bool) -> RetrievalDataset:
    """A corpus alone, without queries."""
    file = find_jsonl(data, "corpus") if data.is_dir() else data
    if not file.is_file():
        raise DataError(f"{data} is not there; expected a BEIR folder or a corpus.jsonl(.gz).")
    ids, passages, notes = read_corpus(file, progress)
    return RetrievalDataset(file.resolve().parent.name, "", ids, passages, {}, {}, file.parent, notes)
