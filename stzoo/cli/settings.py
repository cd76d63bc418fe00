"""Settings of encode, search and demo, whose functions are in packages below or above the other settings."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator

from stzoo.evaluation.settings import Backend, Dtype, EmbeddingSettings, SearchingSettings
from stzoo.training.settings import (
    HARDWARE,
    LANGUAGE_HELP,
    RERANK_DEPTH_HELP,
    RERANK_HELP,
    SCORING,
    THREADS_HELP,
    VECTORS,
    LanguageCode,
    Name,
    Names,
    Settings,
    setting,
)
from stzoo.utils.bounds import MAX_THREADS
from stzoo.utils.inputs import path_or_url

Corpus = Annotated[
    Path | str, BeforeValidator(path_or_url)
]  # a path, or a URL such as s3://bucket/corpus.jsonl


class EncodeSettings(EmbeddingSettings):
    """Settings of `stzoo encode`."""

    command: ClassVar[str] = "encode"
    positional: ClassVar[tuple[str, ...]] = ("model", "data")

    model: Name = setting(..., "Model: folder, Hub id or name from `stzoo zoo`.", names="model")
    data: Corpus = setting(
        ...,
        "Corpus: data set (its name or BEIR folder), file of texts, or URL (s3://…).",
        names="data",
        takes="corpus",
    )
    to: Literal["npy", "parquet", "faiss", "qdrant", "lancedb"] | None = setting(
        None, "What to make of the vectors in --output; a store by default, which stzoo reads."
    )
    index: Name | None = setting(None, "Factory string of the FAISS index; Flat by default.", VECTORS)
    collection: Name | None = setting(
        None, "Qdrant's collection or LanceDB's table; by default the corpus's name.", VECTORS
    )
    url: Name | None = setting(None, "Server of Qdrant, in place of --output.", VECTORS)
    role: Literal["document", "query"] = setting("document", "Whose prompt the texts get.")
    precision: Literal["float32", "float16", "int8", "binary"] = setting(
        "float32", "Precision of the stored vectors.", VECTORS
    )
    dtype: Dtype | None = setting(None, "Data type of the weights; the published one by default.", HARDWARE)
    backend: Backend = setting("torch", "Backend of sentence-transformers.", HARDWARE)
    shard_rows: int | None = setting(
        None, "Vectors per file, which an interruption loses at most.", VECTORS, ge=1, le=10**9
    )


class SearchSettings(SearchingSettings):
    """Settings of `stzoo search`."""

    command: ClassVar[str] = "search"
    positional: ClassVar[tuple[str, ...]] = ("source", "questions")

    source: Name = setting(
        ...,
        "Model: folder, Hub id or name from `stzoo zoo`; or embeddings that bench stored.",
        names="model",
    )
    questions: Names = setting(..., "Questions to ask.", min_length=1)
    data: Corpus | None = setting(
        None,
        "Corpus to search: data set (its name or BEIR folder) or corpus.jsonl; not needed for stored "
        "embeddings.",
        names="data",
        takes="corpus",
    )
    k: int = setting(5, "Passages to show per question.", ge=1, le=10**7)
    hybrid: bool = setting(False, "Rank by the fusion of BM25 and the model.")
    fuse_weight: float = setting(0.5, "Weight of BM25 in the fusion.", SCORING, ge=0, le=1)
    language: LanguageCode | None = setting(None, LANGUAGE_HELP, SCORING)
    rerank: Name | None = setting(None, RERANK_HELP, SCORING, names="cross-encoder")
    rerank_depth: int = setting(100, RERANK_DEPTH_HELP, SCORING, ge=1, le=10**6)


class DemoSettings(Settings):
    """Settings of `stzoo demo`."""

    command: ClassVar[str] = "demo"

    base: str | None = setting(None, "Model to start from; all-MiniLM-L6-v2 by default.")
    corpus: str | None = setting(
        None,
        "Data set (its name or BEIR folder) with train and test qrels; the docstrings of Python's library by "
        "default.",
        names="data",
    )
    seed: int = setting(42, "Random seed.", ge=0, le=2**32 - 1)
    threads: int | None = setting(None, THREADS_HELP, ge=1, le=MAX_THREADS)
