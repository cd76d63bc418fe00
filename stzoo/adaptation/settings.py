"""Settings of read, ask and adapt; it imports nothing heavy."""

import codecs
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from stzoo.data.column_roles import parse_columns
from stzoo.training.pretrain_settings import CORPUS_HELP, SKIP_BAD_LINES_HELP
from stzoo.training.settings import (
    BATCH_TOKENS_HELP,
    COMMAS,
    DATA,
    DEVICE_HELP,
    HARDWARE,
    MEMORY_HELP,
    MODEL,
    OPTIMISER,
    STORE_HELP,
    THREADS_HELP,
    VECTORS,
    Device,
    EngineSettings,
    LanguageCode,
    Name,
    Names,
    Settings,
    setting,
)
from stzoo.utils.bounds import MAX_THREADS

ENDPOINT = "Endpoint"


def _seconds(given: Any) -> Any:
    """Reads "90s", "30m" or "2h" as seconds; a plain number is one of seconds."""
    if isinstance(given, str) and (found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", given.strip())):
        return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]
    return given


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=10**8)]
# columns of rows by role; the roles are those of `stzoo.data.documents.tables.ROLES`
TextColumns = Annotated[
    dict[str, list[str]] | None,
    BeforeValidator(lambda given: parse_columns(given, ("text", "title", "id"), "text=body,id=key") or None),
]


class ReadSettings(Settings):
    """Settings of `stzoo read`."""

    command: ClassVar[str] = "read"
    positional: ClassVar[tuple[str, ...]] = ("source",)

    source: Name = setting(..., "Folder with documents, which is searched with its subfolders, or one file.")
    passage_tokens: int = setting(
        200,
        "Maximum size of a passage without its title, in words and punctuation marks, or in tokens of "
        "--tokenizer.",
        ge=8,
        le=10**6,
    )
    tokenizer: Name | None = setting(
        None, "Model folder or Hub id whose tokens are counted; it must have a fast tokenizer."
    )
    copies: Literal["near", "exact", "keep"] = setting(
        "near", "Leave out near-copies of earlier passages, exact copies only, or keep all."
    )
    jaccard: float = setting(
        0.8, "Jaccard similarity of three-word sequences that counts as a near-copy.", ge=0.1, le=1
    )
    split_rows: bool = setting(
        True,
        "Split rows of csv, jsonl and Parquet files that exceed --passage-tokens; --no-split-rows keeps each "
        "as one passage.",
        DATA,
    )
    columns: TextColumns = setting(
        None, "Columns of rows by role (text, title, id) if they have other names: text=body,id=key.", DATA
    )
    language: LanguageCode | None = setting(
        None, "Language of all passages (de, german, none); detected by default.", DATA
    )
    encoding: str = setting("windows-1252", "Encoding of text files that are not UTF-8.", DATA)
    max_file_mib: float = setting(
        200.0, "Skip larger files, except those of rows, which are streamed.", DATA, gt=0, le=10**6
    )

    @field_validator("encoding")
    @classmethod
    def _known(cls, name: Any) -> Any:
        try:
            codecs.lookup(name)
            b"".decode(name)
        except (LookupError, ValueError):
            raise ValueError("expected an encoding that Python knows, e.g. windows-1252") from None
        return name


class QuestionSettings(Settings):
    """What ask and adapt share: how to generate queries."""

    queries: str = setting(
        "none",
        "What generates the queries: the URL of an OpenAI-compatible API, a language model (folder, GGUF "
        "file or Hub id), or none to take words of the passages.",
        min_length=1,
    )
    queries_model: str | None = setting(
        None, "Model at the URL, if it has several; or the GGUF file of a model on the Hub."
    )
    count: int | None = setting(
        None, "Queries to ask for; by default 3 per passage, and at most 10,000.", ge=1, le=10**9
    )
    per_passage: int | None = setting(
        None, "Queries to ask for at once about a passage; 1 to 3 by default.", ge=1, le=20
    )
    styles: Annotated[list[str] | None, COMMAS] = setting(
        None,
        "Styles of the queries, with commas: question, keywords, statement; without a model title, sentence, "
        "keywords, span. All by default.",
    )
    seed: int = setting(42, "Random seed for the choice of passages, styles and words.", ge=0, le=2**32 - 1)
    min_words: int = setting(10, "Leave out passages with fewer words.", DATA, ge=1)
    passage_words: int = setting(
        120, "Words of a passage that the model reads; more cost more.", DATA, ge=10, le=10**5
    )
    language: LanguageCode | None = setting(
        None, "Language of passages without `metadata.language`; detected by default.", DATA
    )
    temperature: float = setting(
        0.7, "Randomness of the answers; 0 for the most likely ones.", MODEL, ge=0, le=2
    )
    queries_key_env: str = setting(
        "OPENAI_API_KEY", "Environment variable that has the key.", ENDPOINT, pattern=r"^[A-Za-z_]\w*$"
    )
    concurrency: int = setting(8, "Requests at the same time.", ENDPOINT, ge=1, le=256)
    timeout: float = setting(60.0, "Seconds to wait for an answer.", ENDPOINT, gt=0, le=86400)
    retries: int = setting(
        4, "Repetitions of a request that fails for a reason that may pass.", ENDPOINT, ge=0, le=100
    )
    price_in: float | None = setting(
        None, "Price of a million tokens sent, to show the cost.", ENDPOINT, ge=0
    )
    price_out: float | None = setting(None, "Price of a million tokens received.", ENDPOINT, ge=0)
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto", "Precision of a local model; auto is bf16 on processors that compute with it.", HARDWARE
    )
    device: Device | None = setting(None, DEVICE_HELP, HARDWARE)
    threads: int | None = setting(None, THREADS_HELP, HARDWARE, ge=1, le=MAX_THREADS)


class AskSettings(QuestionSettings):
    """Settings of `stzoo ask`."""

    command: ClassVar[str] = "ask"
    positional: ClassVar[tuple[str, ...]] = ("corpus",)

    corpus: Names = setting(..., CORPUS_HELP, min_length=1, names="data", takes="corpora")
    skip_bad_lines: bool = setting(False, SKIP_BAD_LINES_HELP, DATA)


class AdaptSettings(QuestionSettings, EngineSettings):
    """Settings of `stzoo adapt`."""

    command: ClassVar[str] = "adapt"
    positional: ClassVar[tuple[str, ...]] = ("model",)

    model: Name = setting(
        ..., "Model to adapt: folder, Hub id or name from `stzoo zoo`.", names="model", takes="model"
    )
    corpus: Name = setting(
        ...,
        "Documents: a folder or file that `stzoo read` reads, or a data set (its name or BEIR folder).",
        min_length=1,
        names="data",
    )
    questions: Path | None = setting(
        None,
        "Queries that exist, in place of generated ones: an --output of `stzoo ask`, or a file like its "
        "questions.jsonl.",
    )
    budget: Seconds | None = setting(
        None,
        "Time for the run (90s, 30m, 2h): a language model is asked for fewer queries if they take too long.",
    )
    held_out: int = setting(
        2000,
        "Queries of whole documents to hold out for tuning and testing; at most 30 % of all.",
        ge=20,
        le=10**6,
    )
    store: Path | None = setting(None, STORE_HELP, VECTORS)
    found_in: int = setting(
        20, "Keep a query if BM25 and the model together rank its passage among the first N.", ge=1
    )
    teacher: Name | None = setting(
        None,
        "Cross-encoder (folder or Hub id) that ranks the candidates in place of BM25 and the model; slow "
        "without a GPU.",
        OPTIMISER,
    )
    teacher_tokens: int | None = setting(
        None, "Truncate each query and passage together to this many tokens for the teacher.", OPTIMISER, ge=4
    )
    bm25_weight: float = setting(
        0.5, "Weight of BM25 in the teacher, and in finding candidates.", OPTIMISER, ge=0, le=1
    )
    candidates: int = setting(100, "Passages per query that the teacher ranks.", OPTIMISER, ge=2, le=10**4)
    teacher_temperature: float = setting(
        0.3, "Divides the teacher's scores; lower values put more weight on its top ranks.", OPTIMISER, gt=0
    )
    epochs: int = setting(3, "Passes over the queries.", OPTIMISER, ge=1, le=1000)
    learning_rate: float = setting(6e-4, "Learning rate, which falls linearly to 0.", OPTIMISER, gt=0, le=1)
    train_batch_size: int = setting(64, "Queries per step.", OPTIMISER, ge=1, le=10**5)
    batch_tokens: int | None = setting(None, BATCH_TOKENS_HELP, HARDWARE, ge=1, le=10**9)
    memory_gib: float = setting(2.0, MEMORY_HELP, HARDWARE, ge=0, le=2**20)
