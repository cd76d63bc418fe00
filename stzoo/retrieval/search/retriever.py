"""A model with its embedding stores: what it has encoded once is found again."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from stzoo.data.beir import RetrievalDataset
from stzoo.data.corpus import cache_folder
from stzoo.data.trec import Run
from stzoo.models.encode import copies_on, encode
from stzoo.models.encode.batches import prompt_of, reading_notes
from stzoo.models.loaded import NO_REVISION, LoadedModel
from stzoo.retrieval.search.binary import top_k_binary
from stzoo.retrieval.search.exact import top_k
from stzoo.retrieval.store import SHARD_ROWS, Store, fill, place
from stzoo.utils.messages import notify

# Of more results there are so many candidates that scoring all passages by the float queries is quicker.
CANDIDATES_UP_TO = 100


@dataclass(frozen=True)
class Retriever:
    """One model and how it encodes and is searched.

    Attributes:
        opened: the model.
        root: where embedding stores lie.
        batch_tokens: tokens encoded at once, padding included; None suits the device.
        shard_rows: vectors a file of a store.
        memory_gib: for search, see `top_k`.
        progress: True for progress bars on stderr.
    """

    opened: LoadedModel
    root: Path
    batch_tokens: int | None = None
    shard_rows: int = SHARD_ROWS
    memory_gib: float = 2.0
    progress: bool = False
    _notes: dict[Any, list[str]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def model(self) -> Any:
        """The model, or a copy of it for each of several devices, as `encode` takes it."""
        devices = self.opened.devices
        return copies_on(self.opened.model, devices) if len(devices) > 1 else self.opened.model

    def documents(self, judged: RetrievalDataset) -> Store:
        """The store of a corpus, filled; the same for all splits."""
        return self._store(judged, judged.passages, judged.corpus_fingerprint, "document")

    def queries(self, judged: RetrievalDataset) -> Store:
        """The store of the judged queries, filled."""
        fingerprint = hashlib.sha256(json.dumps(list(judged.queries.items())).encode()).hexdigest()
        return self._store(judged, list(judged.queries.values()), fingerprint, "query", judged.task)

    def top_k(
        self, judged: RetrievalDataset, query_vectors: Any, query_ids: Sequence[str], documents: Store, k: int
    ) -> Run:
        """Every query with every passage; for few results over one bit a dimension `top_k_binary`."""
        about: dict[str, Any] = dict(
            drop_self=judged.shares_ids,
            similarity=self.opened.similarity,
            memory_gib=self.memory_gib,
            progress=self.progress,
        )
        if documents.precision == "binary" and k <= CANDIDATES_UP_TO:
            return top_k_binary(query_vectors, documents, query_ids, judged.corpus_ids, k, **about)
        device = "cuda" if self.opened.model.device.type == "cuda" else "cpu"
        return top_k(query_vectors, documents, query_ids, judged.corpus_ids, k, device=device, **about)

    def notes(self, judged: RetrievalDataset) -> list[str]:
        """What a reader of the model's scores on this set should know; shown to the user the first time."""
        key = (judged.folder, judged.name, judged.split, judged.task)
        if key not in self._notes:
            model = self.opened.model
            found = list(self.opened.notes)
            for role, what, texts in (
                ("query", "queries", list(judged.queries.values())),
                ("document", "documents", judged.passages),
            ):
                prompt = prompt_of(model, role, judged.task)
                limit = model.max_seq_length
                found += reading_notes(model, texts, what, prompt=prompt, max_tokens=limit)
            for note in found[len(self.opened.notes) :]:
                notify(f"{self.opened.name} on {judged.name}: {note}")
            self._notes[key] = found
        return self._notes[key]

    def _store(
        self, judged: RetrievalDataset, texts: Sequence[str], fingerprint: str, role: str, task: str = ""
    ) -> Store:
        facts = {"revision": self.opened.revision, **self.opened.settings, "role": role, "texts": fingerprint}
        facts["prompts"] = {role: prompt_of(self.opened.model, role, task) or ""}  # no other prompt matters
        if self.opened.revision == NO_REVISION:
            facts["model"] = self.opened.given
        # several sets may have one corpus, and so one folder
        name = judged.folder.resolve().name if role == "document" else judged.name
        # not the name that results are filed under: another name for the same model has the same vectors
        given = Path(self.opened.given).name if Path(self.opened.given).is_dir() else self.opened.given
        return fill(
            place(self.root, given, f"{name}-{role}", facts),
            texts,
            facts,
            partial(
                encode,
                self.model,
                role=role,
                task=task,
                batch_tokens=self.batch_tokens,
                progress=self.progress,
            ),
            shard_rows=self.shard_rows,
            data={"model": self.opened.given, "folder": str(judged.folder.resolve())},
            progress=self.progress,
        )


def default_root() -> Path:
    """Where embeddings are kept if nobody says: in stzoo's cache."""
    return cache_folder() / "embeddings"
