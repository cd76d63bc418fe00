"""search(): find the passages nearest to questions, with a model or an embedding store."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stzoo.data.objects import corpus_path
from stzoo.errors import DataError, ModelError, RecipeError
from stzoo.models.cross_encoder import open_teacher
from stzoo.models.encode import encode
from stzoo.models.loaded import open_model
from stzoo.models.objects import teacher_path
from stzoo.retrieval.bm25 import Lexical, choose_language
from stzoo.retrieval.encode import read_plain_corpus
from stzoo.retrieval.fusion import DEPTH, WEIGHT, fuse_bm25
from stzoo.retrieval.rerank import DEPTH as DEPTH_TO_RERANK
from stzoo.retrieval.rerank import rerank as rank_again
from stzoo.retrieval.search.exact import top_k
from stzoo.retrieval.search.retriever import Retriever, default_root
from stzoo.retrieval.store import Store, open_store
from stzoo.utils.distributed import require_one_process
from stzoo.utils.inputs import user_path
from stzoo.utils.messages import show_progress
from stzoo.utils.outputs import check_output
from stzoo.utils.public import public
from stzoo.utils.tables import Tabular
from stzoo.utils.workers import check_engine, chosen_engine


@public()
def search(
    source: Any,
    questions: str | Sequence[str],
    *,
    data: Any = None,
    k: int = 5,
    hybrid: bool = False,
    fuse_weight: float = WEIGHT,
    language: str | None = None,
    rerank: Any = None,
    rerank_depth: int = DEPTH_TO_RERANK,
    max_tokens: int | None = None,
    batch_tokens: int | None = None,
    device: str | None = None,
    threads: int | None = None,
    memory_gib: float = 2.0,
    store: str | Path | None = None,
    engine: str = "local",
    ray_workers: int | None = None,
    ray_address: str | None = None,
    progress: bool | None = None,
) -> "Answers":
    """Finds the passages nearest to each question by exact search, alone or fused with BM25.

    Args:
        source: A model (folder, Hub id or SentenceTransformer), or an embedding store, which records its
            model and corpus.
        questions: One or several questions.
        data: The corpus: a BEIR folder, a file, a list of texts or dicts, a data frame, an Arrow table, or a
            datasets.Dataset. None uses the store's corpus.
        k: Number of passages per question.
        hybrid: True ranks by the fusion of BM25 and the model (see `stzoo.retrieval.fusion`).
        fuse_weight: Weight of BM25 in the fusion, from 0 to 1.
        language: Language of the passages for BM25's stemmer and stop words: a code or an English name, or
            "none". None detects it.
        rerank: Cross-encoder (folder, Hub id or CrossEncoder) that ranks the best passages of the model, or
            of the fusion, again.
        rerank_depth: Number of passages per question to rank again, at least k.
        max_tokens: Maximum length of a text; longer texts are truncated. None keeps the model's own limit.
        batch_tokens: Maximum number of tokens per batch, padding included; None chooses one for the device.
        device: Torch device, or several separated by commas to encode in parallel; None uses the best
            available.
        threads: Number of CPU threads; None keeps torch's default.
        memory_gib: Memory limit of the search in GiB.
        store: Folder for the embeddings of a model's corpus; None uses stzoo's cache.
        engine: "local", or "ray" to encode and search the corpus on a Ray cluster.
        ray_workers: Number of Ray's workers; None for one per GPU, or else one per node.
        ray_address: Address of the Ray cluster; None for that in RAY_ADDRESS, or else this machine.
        progress: True shows progress bars on stderr; None shows them on a terminal only.

    Returns:
        {"question": str, "found": [{"id": str, "score": float, "text": str}, …]} per question, best first. If
        `hybrid`, a passage also has its scores by "bm25" and by the "model", and "score" is the fused one. If
        `rerank`, "score" is the cross-encoder's logit, and "first" the score before. The whole is a list that
        prints as a table.

    Raises:
        DataError: If the corpus is missing or invalid, or the corpus or model of the store has changed.
        ModelError: If the model cannot be loaded.
        RecipeError: If an option is invalid.
    """
    require_one_process("search")
    check_engine(engine, ray_workers, ray_address)
    if data is not None:
        data = corpus_path(data)
    questions = [questions] if isinstance(questions, str) else list(questions)
    if not questions:
        raise RecipeError("no question was given; expected at least one.")
    if not hybrid and (fuse_weight != WEIGHT or language is not None):
        option = "--language" if fuse_weight == WEIGHT else "--fuse-weight"
        raise RecipeError(f"{option} is for the fusion with BM25; add --hybrid, or drop it.")
    if not 0 <= fuse_weight <= 1:
        raise RecipeError(f"fuse_weight is {fuse_weight}; expected a number from 0 to 1.")
    if not rerank and rerank_depth != DEPTH_TO_RERANK:
        raise RecipeError("--rerank-depth has no effect without --rerank; name a cross-encoder by it.")
    if threads:
        torch.set_num_threads(threads)
    show_bars = show_progress(progress)
    documents: Store | None = None
    options: dict[str, str] = {}  # those of the documents, so that questions are encoded alike
    named = isinstance(source, str | os.PathLike)
    if named and (manifest := user_path(source, ModelError) / "manifest.json").is_file():
        documents = open_store(manifest.parent)
        if documents.metadata.get("role") != "document":
            raise DataError(f"{source} contains embeddings of queries; expected those of a corpus.")
        model, max_tokens = documents.data["model"], documents.metadata["max_tokens"]
        if not model:
            raise DataError(
                f"the model of {source} was a SentenceTransformer object, which the store does not contain. "
                "Give that object or its folder, and the corpus: stzoo.search(model, questions, data=…)."
            )
        options = {
            name: documents.metadata[name] for name in ("dtype", "backend") if name in documents.metadata
        }
        data = data or documents.data["folder"]
    else:
        model = os.fspath(source) if named else source
        if data is None:
            raise RecipeError(
                "there is no corpus to search; set data (--data) to a BEIR folder or a corpus.jsonl."
            )
    reranker = open_teacher(teacher_path(rerank), device=device and device.split(",")[0]) if rerank else None
    if store:
        store = check_output(store, kind="results", inputs=[model, data])
    opened = open_model(model, max_tokens=max_tokens, device=device, **options)
    if documents and documents.metadata["revision"] != opened.revision:
        raise DataError(f"{model} has changed since it encoded {source}. Run `stzoo bench` again.")
    retriever = Retriever(
        opened, Path(store or default_root()), batch_tokens, memory_gib=memory_gib, progress=show_bars
    )
    judged = read_plain_corpus(user_path(data), show_bars)
    bm25 = None
    if hybrid:
        code = choose_language(language, judged.passages, judged.name)
        bm25 = Lexical(judged.corpus_ids, judged.passages, language=code, progress=show_bars)
    retriever.notes(judged)  # shown to the user
    if documents and documents.metadata["texts"] != judged.corpus_fingerprint:
        raise DataError(f"{data} is not the corpus of {source}, or has changed. Run `stzoo bench` again.")
    ids = [str(number) for number in range(len(questions))]
    vectors = encode(retriever.model, questions, role="query", batch_tokens=batch_tokens)
    asked = dict(zip(ids, questions, strict=True))
    needed = max(k, rerank_depth) if reranker else k
    with chosen_engine(engine, ray_workers, ray_address):
        if documents is None:
            documents = retriever.documents(judged)
        run = retriever.top_k(judged, vectors, ids, documents, max(needed, DEPTH) if hybrid else needed)
    if bm25:
        run = fuse_bm25(bm25.retrieve(asked, max(needed, DEPTH)), run, weight=fuse_weight, k=needed)
    first = run
    if reranker:
        run = rank_again(run, asked, judged, reranker, k=k, depth=needed, progress=show_bars)
    answers = Answers()
    for number, question, vector in zip(ids, questions, vectors, strict=True):
        places, scores = run.results(number)
        columns = {"score": scores.tolist()}
        if bm25:
            columns["bm25"] = bm25.scores(question, places).tolist()
            columns["model"] = _scores(retriever, vector, documents, places)
        if reranker:
            before = first[number]
            columns["first"] = [before[judged.corpus_ids[place]] for place in places.tolist()]
        found = [
            {
                "id": judged.corpus_ids[place],
                **{name: column[i] for name, column in columns.items()},
                "text": judged.passages[place],
            }
            for i, place in enumerate(places.tolist())
        ]
        answers.append({"question": question, "found": found})
    return answers


class Answers(list[dict[str, Any]], Tabular):
    """The passages found for each question; printed, a table."""

    __repr__ = Tabular.__repr__

    def rows(self) -> list[dict[str, Any]]:
        """A row for each passage, the best of each question first."""
        return [{"question": one["question"], **passage} for one in self for passage in one["found"]]

    def to_json(self) -> list[dict[str, Any]]:
        """The answers."""
        return list(self)


def _scores(retriever: Retriever, vector: np.ndarray, documents: Store, places: np.ndarray) -> list[float]:
    """The model's scores of some passages for a question."""
    if not len(places):
        return []
    ids = [str(place) for place in places]
    vectors = np.concatenate([documents[place : place + 1] for place in places.tolist()])
    similarity = retriever.opened.similarity
    run = top_k(vector[None], vectors, ["0"], ids, len(ids), drop_self=False, similarity=similarity)
    return [run["0"][one] for one in ids]
