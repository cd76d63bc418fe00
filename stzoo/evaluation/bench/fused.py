"""Systems that fuse BM25 with a model, from the runs of both: nothing is encoded or searched again."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stzoo.data.beir import RetrievalDataset
from stzoo.data.ranking import Ranked
from stzoo.errors import DataError
from stzoo.evaluation.bench.datasets import evaluate
from stzoo.evaluation.bench.systems import Retrieved, System
from stzoo.evaluation.measures import Measure
from stzoo.retrieval.fusion import Method, fuse_bm25

WEIGHTS = tuple(tenths / 10 for tenths in range(11))  # of BM25, to choose from on a split


@dataclass(frozen=True)
class Fusion:
    """How to fuse BM25 with models.

    Attributes:
        method: One of `stzoo.retrieval.fusion.METHODS`.
        weight: Weight of BM25, from 0 to 1, or a split to choose it on.
        k: Number of results per query.
        measure: Measure to choose the weight by.
        run_of: Function that returns a system's run on the data set that is scored.
        read_split: Function that reads the split of a data set to choose the weight on.
    """

    method: Method
    weight: float | str
    k: int
    measure: Measure
    run_of: Callable[[System, RetrievalDataset], Ranked]
    read_split: Callable[[RetrievalDataset], RetrievalDataset]

    def system(self, bm25: System, model: System) -> System:
        """The fusion of BM25 with a model, named after the model; its revision has the revisions of both."""
        parts = {"bm25": bm25, "model": model}
        settings = {
            part: {name: value for name, value in system.settings.items() if name != "k"}
            for part, system in parts.items()
        }

        def retrieve(judged: RetrievalDataset) -> Retrieved:
            chosen = self._choose_weight(bm25, model, judged)
            run = self._fuse(self.run_of(bm25, judged), self.run_of(model, judged), chosen["weight"])
            return Retrieved(run, run_info={"fusion": {"method": self.method, **chosen}})

        name, revision = f"BM25 + {model.name}", f"{bm25.revision}+{model.revision}"
        return System(
            name,
            revision,
            {"name": name, "revision": revision, **{part: system.meta for part, system in parts.items()}},
            {"k": self.k, "fuse": self.method, "fuse_weight": self.weight, **settings},
            model.run_info,
            retrieve,
            model.notes,
        )

    def _choose_weight(self, bm25: System, model: System, judged: RetrievalDataset) -> dict[str, Any]:
        """The weight of BM25, where it is from, and the scores that it was chosen by.

        Raises:
            DataError: If the split to choose it on shares queries with the split that is scored.
        """
        if not isinstance(self.weight, str):
            return {"weight": self.weight, "weight_from": "fixed"}
        dev = self.read_split(judged)
        if both := sorted(dev.queries.keys() & judged.queries.keys()):
            raise DataError(
                f"{judged.name}: the splits {dev.split} and {judged.split} share {len(both)} queries, such "
                f"as {both[0]!r}, so {dev.split} cannot choose the weight of the fusion. Give --fuse-weight "
                "another split, or a number."
            )
        runs = bm25.retrieve(dev).run, model.retrieve(dev).run
        scores = {
            weight: evaluate(dev, self._fuse(runs[0], runs[1], weight), [self.measure]).mean[
                self.measure.name
            ]
            for weight in WEIGHTS
        }
        return {
            "weight": max(scores, key=lambda weight: (scores[weight], -abs(weight - 0.5))),
            "weight_from": f"{dev.split} ({len(dev.queries)} queries)",
            self.measure.name: {str(weight): round(score, 5) for weight, score in scores.items()},
        }

    def _fuse(self, bm25: Ranked, model: Ranked, weight: float) -> Ranked:
        return fuse_bm25(bm25, model, weight=weight, method=self.method, k=self.k)
