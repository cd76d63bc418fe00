"""Settings of search and demo, whose functions are in packages below or above the other settings."""

from pathlib import Path
from typing import ClassVar

from stzoo.training.settings import HARDWARE, MODEL, Name, Names, Settings, setting
from stzoo.utils.bounds import MAX_THREADS


class SearchSettings(Settings):
    """Settings of `stzoo search`."""

    command: ClassVar[str] = "search"
    positional: ClassVar[tuple[str, ...]] = ("source", "questions")

    source: Name = setting(..., "Model (folder or Hub id), or embeddings that bench stored.")
    questions: Names = setting(..., "Questions to ask.", min_length=1)
    data: Path | None = setting(
        None, "BEIR folder or corpus.jsonl to search; stored embeddings know their own."
    )
    k: int = setting(5, "Passages to show per question.", ge=1, le=10**7)
    max_tokens: int | None = setting(
        None, "Truncate texts to this many tokens; the model's limit by default.", MODEL, ge=1, le=10**9
    )
    store: Path | None = setting(None, "Folder for the embeddings; stzoo's cache by default.", MODEL)
    device: str | None = setting(
        None, "Device to run on, e.g. cpu or cuda; several with commas encode in parallel.", HARDWARE
    )
    threads: int | None = setting(None, "CPU threads.", HARDWARE, ge=1, le=MAX_THREADS)
    batch_tokens: int | None = setting(
        None, "Tokens encoded at once, padding included.", HARDWARE, ge=1, le=10**9
    )
    memory_gib: float = setting(2.0, "Memory for the search in GiB.", HARDWARE, ge=0, le=2**20)


class DemoSettings(Settings):
    """Settings of `stzoo demo`."""

    command: ClassVar[str] = "demo"

    base: str | None = setting(None, "Model to start from; all-MiniLM-L6-v2 by default.")
    corpus: str | None = setting(
        None, "BEIR folder with train and test qrels; the docstrings of Python's library by default."
    )
    seed: int = setting(42, "Random seed.", ge=0, le=2**32 - 1)
    threads: int | None = setting(None, "CPU threads.", ge=1, le=MAX_THREADS)
