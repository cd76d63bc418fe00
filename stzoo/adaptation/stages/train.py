"""Stage 5: the map of the query vectors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stzoo.adaptation.general import GeneralCheck
from stzoo.adaptation.hold_out import DEV, TRAIN
from stzoo.adaptation.query_map import adapted_model, apply, learn_query_map, part_way
from stzoo.adaptation.stages.filter import Filtered
from stzoo.adaptation.stages.read import Passages
from stzoo.adaptation.stages.run import Run
from stzoo.adaptation.vectors import ndcg
from stzoo.data.corpus_sources import hub_ids
from stzoo.evaluation.adapt_record import ADAPTED
from stzoo.hub.export import export
from stzoo.models.encode import encode
from stzoo.training.recipes import SCHEMA_VERSION
from stzoo.training.records import imported as import_record
from stzoo.training.records import versions
from stzoo.utils.files import write_json
from stzoo.utils.messages import notify
from stzoo.utils.outputs import ADAPTATION

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the learnt map
MOST_GENERAL_LOSS = 0.05  # in the general check; a share that loses more is not chosen


@dataclass(frozen=True)
class Trained:
    """The adapted model, and how its share of the map was chosen.

    Attributes:
        folder: Folder of the adapted model.
        share: Share of the learnt map.
        before: Scores of the base: "dev", on the questions for tuning, and "general".
        curve: The same scores for each share.
    """

    folder: Path
    share: float
    before: dict[str, float]
    curve: dict[float, dict[str, float]]

    @property
    def after(self) -> dict[str, float]:
        """Scores of the adapted model."""
        return self.curve[self.share]


def train(run: Run, passages: Passages, filtered: Filtered) -> Trained:
    """Learns the map, chooses the share of it by the questions for tuning, and exports the model."""
    config, dev, documents = run.config, filtered.of(DEV), filtered.vectors
    learnt = learn_query_map(
        filtered.lessons.part(filtered.of(TRAIN)),
        documents,
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        batch_size=config.train_batch_size,
        temperature=config.teacher_temperature,
        seed=config.seed,
    )
    general = GeneralCheck(run.retriever, filtered.weighted)
    sources, vectors = filtered.lessons.sources[dev], filtered.lessons.vectors[dev]
    asked = [one.text for one in filtered.chosen(DEV)]
    plain = encode(run.base.model, asked, role="query", desc="Questions", **run.encoding)
    curve = {
        share: {
            "dev": ndcg(apply(part_way(learnt, share), vectors), documents, sources),
            "general": general.score(part_way(learnt, share)),
        }
        for share in SHARES
    }
    before = {"dev": ndcg(plain, documents, sources), "general": general.before}
    share = choose_share(curve, before["general"])
    model = adapted_model(run.base.model, query_map=part_way(learnt, share), weights=filtered.weights)
    made = Trained(run.folder / ADAPTED, share, before, curve)
    export(
        model,
        made.folder,
        extra=lambda draft: describe(draft, run, passages, filtered, made),
        overwrite=True,
    )
    return made


def choose_share(curve: dict[float, dict[str, float]], general: float) -> float:
    """The share that is best on the questions for tuning, and does not forget too much.

    Args:
        curve: Scores "dev" and "general" of each share.
        general: The base's score in the general check.
    """
    best = max(curve, key=lambda one: (curve[one]["dev"], -one))
    kept = [one for one in curve if curve[one]["general"] >= general - MOST_GENERAL_LOSS]
    chosen = max(kept or [0.0], key=lambda one: (curve[one]["dev"], -one))
    if chosen != best:
        notify(
            f"{best:.0%} of the map would be best on the questions for tuning, but on other texts its score "
            f"falls from {general:.3f} to {curve[best]['general']:.3f}; {chosen:.0%} of it is used."
        )
    return chosen


def describe(
    folder: Path, run: Run, passages: Passages, filtered: Filtered, trained: Trained, **results: Any
) -> None:
    """Writes the record of the adapted model, from which its card is made."""
    name, given, teacher = str(run.config.model), run.base.given, run.config.teacher
    imported = import_record(given)  # of a published checkpoint
    about = {
        "base": _public(name),
        "base_id": imported["hub_id"] if imported else None if Path(given).exists() else name,
        "teacher": teacher and _public(teacher),
        "datasets": hub_ids([run.config.corpus]),
        "passages": len(passages),
        "questions": filtered.counts[TRAIN],
        "generator": "stzoo ask, without a model" if filtered.copied else "a language model",
        "weighted_tokens": filtered.weights is not None,
        "share": trained.share,
        **results,
    }
    record = {"schema_version": SCHEMA_VERSION, "adapted": about, "versions": versions()}
    write_json(folder / ADAPTATION, record)


def _public(model: str) -> str:
    """The Hub id, or the name of the folder."""
    return Path(model).name if Path(model).exists() else model
