"""What mined negatives depend on: in the manifest of the parts, and in the file."""

import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stzoo.data.beir import RetrievalDataset
from stzoo.errors import OutputError
from stzoo.finetuning.mining.cross_encoder_filter import Teacher
from stzoo.finetuning.mining.searchers import Searcher
from stzoo.training.settings import MiningRules

SCHEMA_VERSION = 1
PACKAGES = ("stzoo", "sentence-transformers", "torch")


def build_manifest(
    finder: Searcher, judged: RetrievalDataset, rules: MiningRules, seed: int, teacher: Teacher | None
) -> dict[str, Any]:
    """All that mined negatives depend on, as JSON; no path is among it."""
    facts = {
        "schema_version": SCHEMA_VERSION,
        "recipe": {
            **{name: getattr(rules, name) for name in MiningRules.model_fields if name != "teacher"},
            "seed": seed,
        },
        "model": finder.facts,
        "teacher": teacher and {"name": teacher.name, **teacher.facts},
        "data": {
            "name": judged.name,
            "split": judged.split,
            "fingerprint": judged.fingerprint,
            "corpus_fingerprint": judged.corpus_fingerprint,
        }
        | ({"columns": list(judged.columns)} if judged.columns else {}),
        "versions": {package: version(package) for package in PACKAGES},
    }
    return json.loads(json.dumps(facts))


def refuse_others(place: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Sees that two facts are the same.

    Raises:
        OutputError: if they are not; it names what differs.
    """
    then, new = (dict(_flat(facts)) for facts in (before, now))
    differing = [name for name in {**then, **new} if then.get(name) != new.get(name)]
    if differing:
        shown = "; ".join(f"{name}: {then.get(name)!r} then, {new.get(name)!r} now" for name in differing)
        raise OutputError(
            f"{place} is from a mining with other settings ({shown}). Resume it with its "
            "settings, or replace it with --overwrite."
        )


def _flat(facts: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, value
