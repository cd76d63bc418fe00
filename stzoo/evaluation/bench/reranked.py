"""Systems that rank the best passages of another system again by a cross-encoder, from that system's run."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stzoo.data.beir import RetrievalDataset
from stzoo.data.ranking import Ranked
from stzoo.evaluation.bench.systems import Retrieved, System
from stzoo.models.cross_encoder import Teacher
from stzoo.retrieval.rerank import rerank


@dataclass(frozen=True)
class Reranking:
    """How to rank again.

    Attributes:
        reranker: The cross-encoder.
        depth: Number of passages per query that are ranked again.
        k: Number of results per query.
        root: Folder for its scores.
        run_of: Function that returns a system's run on the data set that is scored.
        progress: True shows progress bars on stderr.
    """

    reranker: Teacher
    depth: int
    k: int
    root: Path
    run_of: Callable[[System, RetrievalDataset], Ranked]
    progress: bool

    def system(self, first: System) -> System:
        """The ranking of a system, ranked again; its name and revision are those of both."""
        settings = {name: value for name, value in first.settings.items() if name != "k"}

        def retrieve(judged: RetrievalDataset) -> Retrieved:
            run = self.run_of(first, judged)
            start = time.monotonic()
            again = rerank(
                run,
                judged.queries,
                judged,
                self.reranker,
                k=self.k,
                depth=self.depth,
                root=self.root,
                progress=self.progress,
            )
            return Retrieved(again, run_info={"rerank_seconds": round(time.monotonic() - start, 2)})

        name = f"{first.name} + {self.reranker.name}"
        revision = f"{first.revision}+{self.reranker.revision}"
        reranker = {"name": self.reranker.name, **self.reranker.metadata}
        return System(
            name,
            revision,
            {"name": name, "revision": revision, "first": first.meta, "reranker": reranker},
            {"k": self.k, "rerank": self.reranker.metadata, "rerank_depth": self.depth, "first": settings},
            first.run_info,
            retrieve,
            first.notes,
        )
