"""BEIRModel: use a model in scripts written for BEIR.

    model = BEIRModel("sentence-transformers/all-MiniLM-L6-v2")
    retriever = EvaluateRetrieval(DenseRetrievalExactSearch(model), score_function=model.score_function)
    results = retriever.retrieve(corpus, queries)

Unlike beir's own SentenceBERT (https://github.com/beir-cellar/beir, beir/retrieval/models/sentence_bert.py):
the model's own prompts are applied without being named, documents may lack a title, the corpus may be a
datasets.Dataset, and batches are filled by tokens.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from stzoo.errors import DataError, ModelError
from stzoo.models.loading import load_plain

SCORE_FUNCTIONS = {"cosine": "cos_sim", "dot": "dot"}


class BEIRModel:
    """A model with the interface that BEIR's searchers call.

    Args:
        model: A SentenceTransformer, or its folder or Hub id.
        batch_tokens: Maximum number of tokens per batch; None chooses one for the device.
        device: Torch device for a model given by folder or Hub id; None uses the best available.

    Raises:
        ModelError: If the model cannot be found or loaded.
    """

    def __init__(self, model: Any, *, batch_tokens: int | None = None, device: str | None = None):
        self.model = load_plain(str(model), device=device) if isinstance(model, str | Path) else model
        self.batch_tokens = batch_tokens

    @property
    def score_function(self) -> str:
        """BEIR's name for the model's similarity: "cos_sim" or "dot".

        Raises:
            ModelError: If BEIR does not support the model's similarity.
        """
        similarity = self.model.similarity_fn_name
        if similarity not in SCORE_FUNCTIONS:
            raise ModelError(
                f"the model's similarity is {similarity!r}, but BEIR supports only "
                f"{' and '.join(SCORE_FUNCTIONS)}. Use stzoo.bench(), which supports it."
            )
        return SCORE_FUNCTIONS[similarity]

    def encode_queries(self, queries: Iterable[str], batch_size: int | None = None, **options: Any) -> Any:
        """Encodes queries with the model's query prompt.

        Args:
            queries: Q texts.
            batch_size: Ignored; `batch_tokens` limits the batches.
            options: show_progress_bar, convert_to_tensor and normalize_embeddings; each defaults to False.

        Returns:
            float32 array [Q, D], or a tensor on the CPU with convert_to_tensor.
        """
        return self._encode(list(queries), "query", batch_size, **options)

    def encode_corpus(self, corpus: Any, batch_size: int | None = None, **options: Any) -> Any:
        """Encodes documents (title and text joined by a space) with the model's document prompt.

        Args:
            corpus: N rows with "title" and "text", the two columns (a mapping of lists or a
                datasets.Dataset), or N texts. One of the two may be missing, and either may be None.
            batch_size: Ignored; `batch_tokens` limits the batches.
            options: show_progress_bar, convert_to_tensor and normalize_embeddings; each defaults to False.

        Returns:
            float32 array [N, D], or a tensor on the CPU with convert_to_tensor.

        Raises:
            DataError: If a document has neither a title nor a text.
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

        progress = bool(show_progress_bar)
        vectors = torch.from_numpy(
            encode(self.model, texts, role=role, batch_tokens=self.batch_tokens, progress=progress)
        )
        if normalize_embeddings:
            vectors = torch.nn.functional.normalize(vectors)
        return vectors if convert_to_tensor else vectors.numpy()


def _passages(corpus: Any) -> list[str]:
    """The title and text of each document, joined as in a RetrievalDataset."""
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
