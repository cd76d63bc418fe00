"""Stage 6: the scores of all systems, and the decision."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stzoo.adaptation.stages.filter import Filtered
from stzoo.adaptation.stages.read import Passages
from stzoo.adaptation.stages.run import Run
from stzoo.adaptation.stages.train import Trained, describe
from stzoo.evaluation.adapt_record import ADAPTED, BASE, HELD_OUT, MEASURE, RESULTS, reason_to_keep_base
from stzoo.evaluation.bench.bench import bench
from stzoo.evaluation.scoring import PairedTest, paired_test
from stzoo.hub import card
from stzoo.models.loaded import open_model
from stzoo.retrieval.search.retriever import Retriever
from stzoo.retrieval.store import Store


@dataclass(frozen=True)
class Compared:
    """The outcome.

    Attributes:
        scores: nDCG@10 of each system on the questions for the test.
        gain: The paired test of the adapted model against the base.
        decision: "adapted" or "base".
    """

    scores: dict[str, float]
    gain: PairedTest
    decision: str


def compare(run: Run, passages: Passages, store: Store, filtered: Filtered, trained: Trained) -> Compared:
    """Scores all systems on the questions for the test, and decides."""
    config = run.config
    common: dict[str, Any] = dict(device=config.device, dtype="float32")
    root = run.retriever.root
    Retriever(open_model(f"{ADAPTED}={trained.folder}", **common), root).copy_documents(passages.data, store)
    found = bench(
        [f"{BASE}={config.model}", f"{ADAPTED}={trained.folder}"],
        data=run.folder / HELD_OUT,
        output=run.folder / RESULTS,
        store=root,
        fuse="min-max",
        language=filtered.language,
        memory_gib=config.memory_gib,
        overwrite=True,
        **common,
        **run.encoding,
    )
    scores = {one.model: one.scores.mean[MEASURE] for one in found}
    per_query = {one.model: one.scores.per_query[MEASURE] for one in found}
    ids = (one.id for one in filtered.questions)
    document_of = dict(zip(ids, filtered.split.documents.tolist(), strict=True))
    before, after = (_means(per_query[name], document_of) for name in (BASE, ADAPTED))
    gain = paired_test(before, after, seed=config.seed)
    decision = BASE if reason_to_keep_base(vars(gain)) else ADAPTED
    describe(trained.folder, run, passages, filtered, trained, scores=scores, gain=vars(gain))
    card.write(trained.folder)
    return Compared(scores, gain, decision)


def _means(scores: Mapping[str, float], document_of: Mapping[str, int]) -> dict[str, float]:
    """The mean score of each document's questions."""
    grouped: dict[int, list[float]] = {}
    for query, score in scores.items():
        grouped.setdefault(document_of[query], []).append(score)
    return {str(document): float(np.mean(values)) for document, values in grouped.items()}
