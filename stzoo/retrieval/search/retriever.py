"""A model with its embedding stores, so that texts are encoded only once."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stzoo.data.beir import RetrievalDataset
from stzoo.data.ranking import Ranked
from stzoo.models.encode import copies_on, encode, moved
from stzoo.models.encode.batches import prompt_of, reading_notes
from stzoo.models.loaded import NO_REVISION, LoadedModel
from stzoo.retrieval.search.exact import top_k
from stzoo.retrieval.store import SHARD_ROWS, Store, fill, place
from stzoo.utils.cache import cache_folder
from stzoo.utils.messages import counted, notify


@dataclass(frozen=True)
class Retriever:
    """A model, and how to encode and search with it.

    Attributes:
        opened: The model.
        root: Folder of the embedding stores.
        batch_tokens: Maximum number of tokens per batch, padding included; None chooses one for the device.
        shard_rows: Number of vectors per file of a store.
        memory_gib: Memory limit of the search in GiB; see `top_k`.
        precision: Precision of the stored vectors of passages.
        progress: True shows progress bars on stderr.
    """

    opened: LoadedModel
    root: Path
    batch_tokens: int | None = None
    shard_rows: int = SHARD_ROWS
    memory_gib: float = 2.0
    progress: bool = False
    precision: str = "float32"
    _notes: dict[Any, list[str]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def model(self) -> Any:
        """The model for `encode`, or a copy of it per device if there are several."""
        devices = self.opened.devices
        return copies_on(self.opened.model, devices) if len(devices) > 1 else self.opened.model

    def documents(self, judged: RetrievalDataset) -> Store:
        """The embeddings of the corpus, which all splits share."""
        return self._store(judged, judged.passages, judged.corpus_fingerprint, "document")

    def passages(self, judged: RetrievalDataset, role: str, folder: Path | None) -> Store:
        """The embeddings of the corpus in a given folder, by the prompt of a role; None for the usual one."""
        return self._store(judged, judged.passages, judged.corpus_fingerprint, role, folder=folder)

    def copy_documents(self, judged: RetrievalDataset, source: Store) -> Store:
        """The embeddings of the corpus, copied from a model whose embeddings of passages are the same."""
        return self._store(judged, source, judged.corpus_fingerprint, "document", copied=True)

    def queries(self, judged: RetrievalDataset) -> Store:
        """The embeddings of the judged queries."""
        fingerprint = hashlib.sha256(json.dumps(list(judged.queries.items())).encode()).hexdigest()
        return self._store(judged, list(judged.queries.values()), fingerprint, "query", judged.task)

    def top_k(
        self, judged: RetrievalDataset, query_vectors: Any, query_ids: Sequence[str], documents: Store, k: int
    ) -> Ranked:
        """The k nearest passages of each query, by exact search."""
        return top_k(
            query_vectors,
            documents,
            query_ids,
            judged.corpus_ids,
            k,
            drop_self=judged.shares_ids,
            similarity=self.opened.similarity,
            memory_gib=self.memory_gib,
            device="cuda" if self.opened.model.device.type == "cuda" else "cpu",
            progress=self.progress,
        )

    def notes(self, judged: RetrievalDataset) -> list[str]:
        """Notes for readers of the model's scores on a data set, which are also shown the first time."""
        key = (judged.folder, judged.name, judged.split, judged.task)
        if key not in self._notes:
            model = self.opened.model
            notes = list(self.opened.notes)
            for role, what, texts in (
                ("query", "queries", list(judged.queries.values())),
                ("document", "documents", judged.passages),
            ):
                prompt = prompt_of(model, role, judged.task)
                limit = model.max_seq_length
                notes += reading_notes(model, texts, what, prompt=prompt, max_tokens=limit)
            for note in notes[len(self.opened.notes) :]:
                notify(f"{self.opened.name} on {judged.name}: {note}")
            self._notes[key] = notes
        return self._notes[key]

    def _store(
        self,
        judged: RetrievalDataset,
        texts: Sequence[str] | Store,
        fingerprint: str,
        role: str,
        task: str = "",
        *,
        copied: bool = False,
        folder: Path | None = None,
    ) -> Store:
        manifest = {
            "revision": self.opened.revision,
            **self.opened.settings,
            "role": role,
            "texts": fingerprint,
            "prompts": {role: prompt_of(self.opened.model, role, task) or ""},  # the others do not matter
        }
        if self.opened.revision == NO_REVISION:
            manifest["model"] = self.opened.given
        # data sets may share a corpus, which is then stored under the name of its folder
        is_corpus = fingerprint == judged.corpus_fingerprint
        name = judged.folder.resolve().name if is_corpus else judged.name
        precision = self.precision if is_corpus else "float32"
        suffix = "" if precision == "float32" else f"-{precision}"
        # not the name of the results, as a model has the same vectors under any name
        model = Path(self.opened.given).name if Path(self.opened.given).is_dir() else self.opened.given
        noun = "query" if role == "query" else "passage"
        return fill(
            folder or place(self.root, model, name, f"{role}{suffix}", manifest),
            texts,
            manifest,
            np.array if copied else _Encode(self.model, role, task, self.batch_tokens, self.progress),
            shard_rows=self.shard_rows,
            precision=precision,
            remote=not copied,
            data={
                "model": "" if self.opened.is_object else self.opened.given,  # to load it again
                "folder": str(judged.folder.resolve()),
            },
            progress=self.progress,
            note=""
            if copied
            else f"encoding {counted(len(texts), noun)}, or the rest of them, with {model} …",
        )


@dataclass(frozen=True)
class _Encode:
    """Encodes texts; see `encode`."""

    model: Any
    role: str
    task: str
    batch_tokens: int | None
    progress: bool

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return encode(
            self.model,
            texts,
            role=self.role,
            task=self.task,
            batch_tokens=self.batch_tokens,
            progress=self.progress,
        )

    def on(self, device: str | None) -> "_Encode":
        """See `stzoo.utils.workers.on_device`; a copy per device becomes a single one."""
        model = self.model[0] if isinstance(self.model, list) else self.model
        return replace(self, model=moved(model, device), progress=False)


def default_root() -> Path:
    """The default folder for embeddings, in stzoo's cache."""
    return cache_folder() / "embeddings"
