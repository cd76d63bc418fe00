"""Settings of bench, score, compare, judge, report and contamination; it imports nothing heavy."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError

from stzoo.training.settings import (
    BATCH_TOKENS_HELP,
    COMMAS,
    DATA,
    HARDWARE,
    LANGUAGE_HELP,
    MAX_TOKENS_HELP,
    MEMORY_HELP,
    MODEL,
    RERANK_DEPTH_HELP,
    RERANK_HELP,
    SCORING,
    STORE_HELP,
    THREADS_HELP,
    VECTORS,
    CommaList,
    EngineSettings,
    LanguageCode,
    Name,
    Names,
    Settings,
    setting,
)
from stzoo.utils.bounds import MAX_THREADS

Backend = Literal["torch", "onnx", "openvino"]
Dtype = Literal["float32", "bfloat16", "float16"]
MissingJudged = Literal["error", "drop", "not-found"]
FuseMethod = Literal["min-max", "z-score", "rrf"]  # as in stzoo.retrieval.fusion


def parse_weight(text: str) -> float | str:
    """A weight from 0 to 1, or the name of a split."""
    try:
        return float(text)
    except ValueError:
        return text


def _check_weight(text: str) -> str:
    weight = parse_weight(text)
    if isinstance(weight, float) and not 0 <= weight <= 1:
        raise PydanticCustomError("weight", "expected a number from 0 to 1, or the name of a split")
    return text


def _as_text(given: Any) -> Any:
    return given if isinstance(given, bool) or not isinstance(given, int | float) else str(given)


FuseWeight = Annotated[str, BeforeValidator(_as_text), AfterValidator(_check_weight)]


class ScoringSettings(Settings):
    """What bench and score share: the judgements, and the measures."""

    data: Path | None = setting(
        None,
        "Data set (its name or BEIR folder), parent of several BEIR folders, or KILT file.",
        names="data",
        takes="judged",
        split="test",
    )
    split: str | None = setting(None, "Split of the judgements; the official one by default.", DATA)
    corpus: Path | None = setting(
        None, "Passages of a KILT file, as a BEIR folder or corpus.jsonl.", DATA, names="data"
    )
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


class EmbeddingSettings(EngineSettings):
    """How bench, encode and search encode texts."""

    max_tokens: int | None = setting(None, MAX_TOKENS_HELP, DATA, ge=1, le=10**9)
    store: Path | None = setting(None, STORE_HELP, VECTORS)
    device: str | None = setting(
        None,
        "Device to run on, or several with commas to encode in parallel; the best available one by default.",
        HARDWARE,
    )
    threads: int | None = setting(None, THREADS_HELP, HARDWARE, ge=1, le=MAX_THREADS)
    batch_tokens: int | None = setting(None, BATCH_TOKENS_HELP, HARDWARE, ge=1, le=10**9)


class SearchingSettings(EmbeddingSettings):
    """How bench and search search the vectors of texts."""

    memory_gib: float = setting(2.0, MEMORY_HELP, HARDWARE, ge=0, le=2**20)


class BenchSettings(ScoringSettings, SearchingSettings):
    """Settings of `stzoo bench`."""

    command: ClassVar[str] = "bench"
    positional: ClassVar[tuple[str, ...]] = ("models",)

    models: Names = setting(
        [],
        "Folders, Hub ids, names from `stzoo zoo`, or NAME=any of these; none to score BM25 alone.",
        names="model",
    )
    datasets: Annotated[list[str] | None, COMMAS] = setting(
        None,
        "Folders in --data, BEIR data sets (downloaded if missing) or suites, with commas: scifact,beir-13.",
        names="dataset",
    )
    suite: Literal["kilt"] | None = setting(
        None, "Suite to score: kilt, whose tasks in --data each get the model's prompt for the task.", DATA
    )
    bm25: bool = setting(True, "Score BM25 as well.", SCORING)
    language: LanguageCode | None = setting(None, LANGUAGE_HELP, SCORING)
    fuse: FuseMethod | None = setting(None, "Score the fusion of BM25 with each model as well.", SCORING)
    fuse_weight: FuseWeight = setting(
        "0.5", "Weight of BM25 in the fusion, from 0 to 1, or a split to choose it on, e.g. dev.", SCORING
    )
    rerank: Name | None = setting(None, RERANK_HELP, SCORING, names="cross-encoder", takes="cross-encoder")
    rerank_depth: int = setting(100, RERANK_DEPTH_HELP, SCORING, ge=1, le=10**6)
    run_files: bool = setting(True, "Write TREC run files.", SCORING)
    precision: CommaList = setting(
        ["float32"], "Precisions of stored vectors, with commas: float32, float16, int8, binary.", VECTORS
    )
    index: Names = setting(
        [], 'FAISS factory string to score in addition, e.g. HNSW32 or "IVF64,PQ48 nprobe=8".', VECTORS
    )
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

    runs: Names = setting(..., "TREC runs or KILT answers, as FILE or NAME=FILE.", takes="runs", min_length=1)
    data: Path = setting(
        ...,
        "Data set (its name or BEIR folder), qrels file, or KILT file.",
        names="data",
        takes="judged",
        split="test",
    )


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
    data: Path | None = setting(
        None,
        "Data set (its name or BEIR folder), or parent of several, with the texts of the queries.",
        names="data",
        takes="judged",
    )
    examples: int = setting(5, "Largest gains and losses to show.", ge=0, le=10**6)
    seed: int = setting(0, "Random seed of the tests.", ge=0, le=2**32 - 1)


class JudgeSettings(Settings):
    """Settings of `stzoo judge`."""

    command: ClassVar[str] = "judge"
    positional: ClassVar[tuple[str, ...]] = ("results",)

    results: Path = setting(..., "Folder that bench wrote (its --output) with run files, or a run of adapt.")
    data: Path | None = setting(
        None,
        "Data set (its name or BEIR folder) of the results; that of adapt's run by default.",
        names="data",
        takes="judged",
    )
    split: str | None = setting(None, "Split of the results; test, or the only one, by default.")
    pairs: int = setting(40, "Question-passage pairs to judge, at most.", ge=1, le=10**6)
    depth: int = setting(
        2, "Best passages of each system to judge per query; fewer give more queries.", ge=1, le=1000
    )
    baseline: str | None = setting(
        None, "System to compare the others with; base (of adapt's run), or else BM25, by default."
    )
    terminal: bool = setting(False, "Judge in the terminal, not in a browser.")
    browser: bool = setting(True, "Open the page in a browser.")
    port: int = setting(0, "Port of the page on this machine; any free one by default.", ge=0, le=65535)
    seed: int = setting(0, "Random seed of the pool, the order of pairs and the tests.", ge=0, le=2**32 - 1)


class ReportSettings(Settings):
    """Settings of `stzoo report`."""

    command: ClassVar[str] = "report"
    positional: ClassVar[tuple[str, ...]] = ("results",)

    results: Path = setting(
        ..., "Folder that bench wrote (its --output), a parent of several, or a run of adapt."
    )
    data: Path | None = setting(
        None,
        "Data set (its name or BEIR folder), or parent of several, with the texts of the queries.",
        names="data",
    )
    runs: Names = setting([], "Run folder of pretrain or finetune, to show its learning curve.")
    measure: str = setting("nDCG@10", "Measure to rank by; it must have been scored.")
    formats: CommaList = setting(["html", "txt", "csv"], "Formats to write, with commas: html, txt, csv.")
    seed: int = setting(0, "Random seed of the confidence intervals.", ge=0, le=2**32 - 1)


class ContaminationSettings(Settings):
    """Settings of `stzoo contamination`."""

    command: ClassVar[str] = "contamination"

    train: Names = setting(
        ..., "Training data: a data set (its name or BEIR folder) or a file.", names="data", takes="trainings"
    )
    data: Path = setting(
        ...,
        "Data set (its name or BEIR folder) with the test queries.",
        names="data",
        takes="judged",
        split="test",
    )
    split: str = setting("test", "Split with the test queries.")
    results: Names = setting([], "Result folder to score again without the contaminated queries.")
    measure: str = setting("nDCG@10", "Measure to score --results by; it must have been scored.")
    ngram: int = setting(13, "Consecutive words that count as a copy.", ge=2, le=10**6)
    jaccard: float = setting(0.8, "Jaccard similarity that counts as a near-copy.", ge=0.1, le=1)
    minhash: bool = setting(True, "Find near-copies as well.")
