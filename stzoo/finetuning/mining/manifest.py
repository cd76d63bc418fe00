"""The manifest of mined negatives, stored with the parts and in the file."""

from importlib.metadata import version
from typing import Any

from stzoo.data.beir import RetrievalDataset
from stzoo.finetuning.mining.cross_encoder_filter import Teacher
from stzoo.finetuning.mining.searchers import Searcher
from stzoo.training.finetune_settings import MiningRules

SCHEMA_VERSION = 1
PACKAGES = ("stzoo", "sentence-transformers", "torch")


def build_manifest(
    finder: Searcher, judged: RetrievalDataset, rules: MiningRules, seed: int, teacher: Teacher | None
) -> dict[str, Any]:
    """Everything that mined negatives depend on, as JSON without any path."""
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": {
            **{name: getattr(rules, name) for name in MiningRules.model_fields if name != "teacher"},
            "seed": seed,
        },
        "model": finder.metadata,
        "teacher": teacher and {"name": teacher.name, **teacher.metadata},
        "data": {
            "name": judged.name,
            "split": judged.split,
            "fingerprint": judged.fingerprint,
            "corpus_fingerprint": judged.corpus_fingerprint,
        }
        | ({"columns": list(judged.columns)} if judged.columns else {}),
        "versions": {package: version(package) for package in PACKAGES},
    }
