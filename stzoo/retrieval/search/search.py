"""search(): find the passages nearest to questions, with a model or an embedding store."""

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
from stzoo.utils.messages import show_progress
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
    """Finds the passages nearest to each question by exact search.

    Args:
        source: A model (folder or Hub id), or an embedding store, which records its model and corpus.
        questions: One or several questions.
        data: The corpus: a BEIR folder or a corpus.jsonl(.gz). None uses the store's corpus.
        k: Number of passages per question.
        max_tokens: Maximum length of a text; longer texts are truncated. None keeps the model's own limit.
        batch_tokens: Maximum number of tokens per batch, padding included; None chooses one for the device.
        device: Torch device, or several separated by commas to encode in parallel; None uses the best
            available.
        threads: Number of CPU threads; None keeps torch's default.
        memory_gib: Memory limit of the search in GiB.
        store: Folder for the embeddings of a model's corpus; None uses stzoo's cache.
        progress: True shows progress bars on stderr; None shows them on a terminal only.

    Returns:
        {"question": str, "found": [{"id": str, "score": float, "text": str}, …]} per question, best first.

    Raises:
        DataError: If the corpus is missing or invalid, or the corpus or model of the store has changed.
        ModelError: If the model cannot be loaded.
        RecipeError: If an option is invalid.
    """
    require_one_process("search")
    questions = [questions] if isinstance(questions, str) else list(questions)
    if not questions:
        raise RecipeError("no question was given; expected at least one.")
    if threads:
        torch.set_num_threads(threads)
    show_bars = show_progress(progress)
    documents: Store | None = None
    options: dict[str, str] = {}  # those of the documents, so that questions are encoded alike
    if (manifest := user_path(source, ModelError) / "manifest.json").is_file():
        documents = open_store(manifest.parent)
        if documents.metadata.get("role") != "document":
            raise DataError(f"{source} contains embeddings of queries; expected those of a corpus.")
        model, max_tokens = documents.data["model"], documents.metadata["max_tokens"]
        options = {
            name: documents.metadata[name] for name in ("dtype", "backend") if name in documents.metadata
        }
        data = data or documents.data["folder"]
    else:
        model = str(source)
        if data is None:
            raise RecipeError(
                "there is no corpus to search; set data (--data) to a BEIR folder or a corpus.jsonl."
            )
    if store:
        store = check_output(store, kind="results", inputs=[model, data])
    opened = open_model(model, max_tokens=max_tokens, device=device, **options)
    if documents and documents.metadata["revision"] != opened.revision:
        raise DataError(f"{model} has changed since it encoded {source}. Run `stzoo bench` again.")
    retriever = Retriever(
        opened, Path(store or default_root()), batch_tokens, memory_gib=memory_gib, progress=show_bars
    )
    judged = _corpus(user_path(data), show_bars)
    retriever.notes(judged)  # shown to the user
    if documents is None:
        documents = retriever.documents(judged)
    elif documents.metadata["texts"] != judged.corpus_fingerprint:
        raise DataError(f"{data} is not the corpus of {source}, or has changed. Run `stzoo bench` again.")
    ids = [str(number) for number in range(len(questions))]
    vectors = encode(retriever.model, questions, role="query", batch_tokens=batch_tokens)
    run = retriever.top_k(judged, vectors, ids, documents, k)
    return [
        {
            "question": question,
            "found": [
                {"id": judged.corpus_ids[place], "score": float(score), "text": judged.passages[place]}
                for place, score in zip(*run.results(number), strict=True)
            ],
        }
        for number, question in zip(ids, questions, strict=True)
    ]


def _corpus(data: Path, progress: bool) -> RetrievalDataset:
    """A corpus without queries."""
    file = find_jsonl(data, "corpus") if data.is_dir() else data
    if not file.is_file():
        raise DataError(f"{data} does not exist; expected a BEIR folder or a corpus.jsonl(.gz).")
    ids, passages, notes = read_corpus(file, progress)
    name = file.resolve().parent.name
    return RetrievalDataset(name=name, folder=file.parent, corpus_ids=ids, passages=passages, notes=notes)
