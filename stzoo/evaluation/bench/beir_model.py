"""BEIRModel: a model in scripts written for BEIR.

    model = BEIRModel("sentence-transformers/all-MiniLM-L6-v2")
    retriever = EvaluateRetrieval(DenseRetrievalExactSearch(model), score_function=model.score_function)
    results = retriever.retrieve(corpus, queries)

Unlike beir's own SentenceBERT (https://github.com/beir-cellar/beir, beir/retrieval/models/sentence_bert.py):
the prompts that the model holds are used without being named, documents may lack a title, the corpus may be
a datasets.Dataset, and batches are filled by tokens.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from stzoo.errors import DataError, ModelError
from stzoo.models.loading import load_plain

SCORE_FUNCTIONS = {"cosine": "cos_sim", "dot": "dot"}


class BEIRModel:
    """A model under the interface that BEIR's searchers call.

    Args:
        model: a SentenceTransformer, or the folder or Hub id of one.
        batch_tokens: tokens encoded at once; None chooses.
        device: of torch, for a folder or Hub id; None takes the best there is.

    Raises:
        ModelError: if there is no such model.
    """

    def __init__(self, model: Any, *, batch_tokens: int | None = None, device: str | None = None):
        self.model = load_plain(str(model), device=device) if isinstance(model, str | Path) else model
        self.batch_tokens = batch_tokens

    @property
    def score_function(self) -> str:
        """The model's own similarity as BEIR calls it: "cos_sim" or "dot".

        Raises:
            ModelError: if BEIR does not have it.
        """
        similarity = self.model.similarity_fn_name
        if similarity not in SCORE_FUNCTIONS:
            raise ModelError(f"BEIR has no similarity {similarity!r}, only {' and '.join(SCORE_FUNCTIONS)}.")
        return SCORE_FUNCTIONS[similarity]

    def encode_queries(self, queries: Iterable[str], batch_size: int | None = None, **options: Any) -> Any:
        """Encodes queries, with the model's own prompt for them.

        Args:
            queries: Q texts.
            batch_size: passed over; `batch_tokens` bounds a batch.
            options: show_progress_bar, convert_to_tensor, normalize_embeddings; all False.

        Returns:
            float32 [Q, D], an array, or a tensor on the CPU if convert_to_tensor.
        """
        return self._encode(list(queries), "query", batch_size, **options)

    def encode_corpus(self, corpus: Any, batch_size: int | None = None, **options: Any) -> Any:
        """Encodes documents, title and text joined by a space, with the model's own prompt for them.

        Args:
            corpus: N rows with "title" and "text", or these columns (a mapping of lists, a datasets.Dataset),
                or N texts. One of the two may be missing, either may be None.
            batch_size: passed over; `batch_tokens` bounds a batch.
            options: show_progress_bar, convert_to_tensor, normalize_embeddings; all False.

        Returns:
            float32 [N, D], an array, or a tensor on the CPU if convert_to_tensor.

        Raises:
            DataError: if a document has neither title nor text.
        """
        return self._encode(_passages(corpus), "document", batch_size, **options)

    def _encode(
        self,
        texts: list[str],
        role: str,
        batch_size: int | None,  # noqa: ARG002 - BEIR passes it to every model
        *,
        show_progress_bar: bool = False,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
    ) -> Any:
        from stzoo.models.encode import encode

        bars = bool(show_progress_bar)
        vectors = torch.from_numpy(
            encode(self.model, texts, role=role, batch_tokens=self.batch_tokens, progress=bars)
        )
        if normalize_embeddings:
            vectors = torch.nn.functional.normalize(vectors)
        return vectors if convert_to_tensor else vectors.numpy()


def _passages(corpus: Any) -> list[str]:
    """Title and text of each document, joined as in a judged set."""
    names = ("title", "text")
    columns = corpus if isinstance(corpus, Mapping) else getattr(corpus, "column_names", None)
    rows: Iterable[tuple[str | None, ...]]
    if columns is None:
        rows = (
            (row,) if isinstance(row, str) else tuple(row[n] for n in names if n in row) for row in corpus
        )
    else:
        rows = zip(*(corpus[name] for name in names if name in columns), strict=True)
        if not any(name in columns for name in names):
            rows = [()]
    passages = []
    for number, parts in enumerate(rows, 1):
        if not parts:
            raise DataError(
                f'document {number} of the corpus is empty; expected a "title", a "text" or both.'
            )
        passages.append(" ".join(part or "" for part in parts).strip())
    return passages
