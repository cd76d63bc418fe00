"""Settings of bench, score, compare, report and contamination; it imports nothing heavy."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from stzoo.data.languages import NONE
from stzoo.training.settings import (
    COMMAS,
    DATA,
    HARDWARE,
    MODEL,
    SCORING,
    VECTORS,
    CommaList,
    LanguageCode,
    Names,
    Settings,
    setting,
)
from stzoo.utils.bounds import MAX_THREADS

Backend = Literal["torch", "onnx", "openvino"]
Dtype = Literal["float32", "bfloat16", "float16"]
MissingJudged = Literal["error", "drop", "not-found"]


class ScoringSettings(Settings):
    """What bench and score share: the judgements, and the measures."""

    data: Path | None = setting(None, "BEIR folder, parent of several BEIR folders, or KILT file.")
    split: str | None = setting(None, "Split of the judgements; the official one by default.", DATA)
    corpus: Path | None = setting(None, "Passages of a KILT file, as a BEIR folder or corpus.jsonl.", DATA)
    pages: Path | None = setting(
        None, "File of passage-id<TAB>page-id lines, for passages that do not name their pages.", DATA
    )
    missing_judged: MissingJudged = setting(
        "error",
        "Judged documents that the corpus lacks: stop with an error, drop their judgements, or count them "
        "as not found.",
        DATA,
    )
    measures: str | None = setting(
        None, 'Additional measures by the names of ir-measures, e.g. "nDCG@20 RR(rel=2)@10".', SCORING
    )
    k: int = setting(1000, "Results to keep per query; Recall@1000 needs 1000.", SCORING, ge=1, le=10**7)


class EmbeddingSettings(Settings):
    """How a command encodes texts and searches their vectors."""

    max_tokens: int | None = setting(
        None, "Truncate texts to this many tokens; the model's limit by default.", MODEL, ge=1, le=10**9
    )
    device: str | None = setting(
        None, "Device to run on, e.g. cpu or cuda; several with commas encode in parallel.", HARDWARE
    )
    threads: int | None = setting(None, "CPU threads.", HARDWARE, ge=1, le=MAX_THREADS)
    batch_tokens: int | None = setting(
        None, "Tokens encoded at once, padding included.", HARDWARE, ge=1, le=10**9
    )
    memory_gib: float = setting(
        2.0, "Memory for the search in GiB, in addition to queries and results.", HARDWARE, ge=0, le=2**20
    )


class BenchSettings(EmbeddingSettings, ScoringSettings):
    """Settings of `stzoo bench`."""

    command: ClassVar[str] = "bench"
    positional: ClassVar[tuple[str, ...]] = ("models",)

    models: Names = setting([], "Folders or Hub ids, or NAME=FOLDER_OR_HUB_ID; none to score BM25 alone.")
    datasets: Annotated[list[str] | None, COMMAS] = setting(
        None,
        "Folders in --data, BEIR data sets (downloaded if missing) or suites, with commas: scifact,beir-13.",
        names="dataset",
    )
    suite: Literal["kilt"] | None = setting(
        None, "Score all tasks of KILT in --data, each with the model's prompt for the task.", DATA
    )
    bm25: bool = setting(True, "Score BM25 as well.", SCORING)
    language: LanguageCode | None = setting(
        None,
        f"Language of the passages for BM25 (de, german, {NONE}); detected by default.",
        SCORING,
    )
    run_files: bool = setting(True, "Write TREC run files.", SCORING)
    precision: CommaList = setting(
        ["float32"], "Precisions of stored vectors, with commas: float32, float16, int8, binary.", VECTORS
    )
    index: Names = setting(
        [], 'FAISS factory string to score in addition, e.g. HNSW32 or "IVF64,PQ48 nprobe=8".', VECTORS
    )
    store: Path | None = setting(None, "Folder for the embeddings; stzoo's cache by default.", VECTORS)
    keep_store: bool = setting(True, "Keep the embeddings for later runs.", VECTORS)
    shard_rows: int | None = setting(
        None,
        "Vectors per file; an interrupted run loses at most the unfinished file.",
        VECTORS,
        ge=1,
        le=10**9,
    )
    dtype: Dtype | None = setting(None, "Data type of the weights; as published by default.", MODEL)
    backend: Backend = setting("torch", "Backend of sentence-transformers.", MODEL)


class ScoreSettings(ScoringSettings):
    """Settings of `stzoo score`."""

    command: ClassVar[str] = "score"
    positional: ClassVar[tuple[str, ...]] = ("runs",)

    runs: Names = setting(..., "TREC runs or KILT answers, as FILE or NAME=FILE.", min_length=1)
    data: Path = setting(..., "BEIR folder, qrels file, or KILT file.")


class CompareSettings(Settings):
    """Settings of `stzoo compare`."""

    command: ClassVar[str] = "compare"
    positional: ClassVar[tuple[str, ...]] = ("systems",)

    systems: Names = setting(..., "Result folders, or names in --results; the first is the baseline.")
    results: Path | None = setting(None, "Folder that bench wrote (its --output).")
    measure: str = setting("nDCG@10", "Measure to compare by; it must have been scored.")
    datasets: Annotated[list[str] | None, COMMAS] = setting(
        None, "Data sets or suites, with commas; all that two systems share by default.", names="dataset"
    )
    data: Path | None = setting(None, "BEIR folder, or parent of several, with the texts of the queries.")
    examples: int = setting(5, "Largest gains and losses to show.", ge=0, le=10**6)
    seed: int = setting(0, "Random seed of the tests.", ge=0, le=2**32 - 1)


class ReportSettings(Settings):
    """Settings of `stzoo report`."""

    command: ClassVar[str] = "report"
    positional: ClassVar[tuple[str, ...]] = ("results",)

    results: Path = setting(..., "Folder that bench wrote (its --output), or a parent of several.")
    runs: Names = setting([], "Run folder of pretrain or finetune, to show its learning curve.")
    measure: str = setting("nDCG@10", "Measure to rank by; it must have been scored.")
    formats: CommaList = setting(["html", "txt", "csv"], "Formats to write, with commas: html, txt, csv.")
    seed: int = setting(0, "Random seed of the confidence intervals.", ge=0, le=2**32 - 1)


class ContaminationSettings(Settings):
    """Settings of `stzoo contamination`."""

    command: ClassVar[str] = "contamination"

    train: Names = setting(..., "Training data: a file or a BEIR folder.")
    data: Path = setting(..., "BEIR folder with the test queries.")
    split: str = setting("test", "Split with the test queries.")
    results: Names = setting([], "Result folder to score again without the contaminated queries.")
    measure: str = setting("nDCG@10", "Measure of those scores; it must have been scored.")
    ngram: int = setting(13, "Consecutive words that count as a copy.", ge=2, le=10**6)
    jaccard: float = setting(0.8, "Similarity that counts as a near-copy.", ge=0.1, le=1)
    minhash: bool = setting(True, "Find near-copies as well.")
