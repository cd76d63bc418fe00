"""stzoo: dense retrievers that train with plugins and serve with plain sentence-transformers.

Everything public is here by its short name and imported when first used, so that `import stzoo` is light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stzoo.errors import (
    BackboneError,
    ConflictError,
    DataError,
    ExportError,
    MissingExtraError,
    ModelError,
    OutputError,
    PluginError,
    PublishError,
    RecipeError,
    ServerError,
    ShapeError,
    StzooError,
    TrainingError,
    UnknownNameError,
    suggest,
)
from stzoo.plugins.hookspecs import Checkpoint, Component, Recipe, hookimpl

if TYPE_CHECKING:
    from stzoo.adaptation.adapt import adapt as adapt
    from stzoo.adaptation.ask import ask as ask
    from stzoo.adaptation.read import read_documents as read_documents
    from stzoo.cli.demo import demo as demo
    from stzoo.data.fetch import fetch as fetch
    from stzoo.evaluation.bench.beir_model import BEIRModel as BEIRModel
    from stzoo.evaluation.bench.bench import bench as bench
    from stzoo.evaluation.bench.score import score as score
    from stzoo.evaluation.compare import compare as compare
    from stzoo.evaluation.contamination import contamination as contamination
    from stzoo.evaluation.judge import judge as judge
    from stzoo.evaluation.report import report as report
    from stzoo.finetuning.finetune import finetune as finetune
    from stzoo.finetuning.mining.mine import mine as mine
    from stzoo.finetuning.rerank import rerank as rerank
    from stzoo.hub.card import card as card
    from stzoo.hub.export import export as export
    from stzoo.hub.import_checkpoint import import_checkpoint as import_checkpoint
    from stzoo.hub.load import load as load
    from stzoo.hub.merge import merge as merge
    from stzoo.hub.publish import publish as publish
    from stzoo.hub.zoo import zoo as zoo
    from stzoo.pretraining.backbone import Backbone as Backbone
    from stzoo.pretraining.objective import Objective as Objective
    from stzoo.pretraining.prepare import Preparation as Preparation
    from stzoo.pretraining.prepare import prepare as prepare
    from stzoo.pretraining.pretrain import pretrain as pretrain
    from stzoo.retrieval.encode import encode as encode
    from stzoo.retrieval.search.search import search as search
    from stzoo.training.trained import TrainedModel as TrainedModel

__version__ = "0.1.0"

_LAZY = {
    "BEIRModel": "evaluation.bench.beir_model",
    "Backbone": "pretraining.backbone",
    "Objective": "pretraining.objective",
    "Preparation": "pretraining.prepare",
    "TrainedModel": "training.trained",
    "adapt": "adaptation.adapt",
    "ask": "adaptation.ask",
    "bench": "evaluation.bench.bench",
    "card": "hub.card",
    "compare": "evaluation.compare",
    "contamination": "evaluation.contamination",
    "demo": "cli.demo",
    "encode": "retrieval.encode",
    "export": "hub.export",
    "fetch": "data.fetch",
    "finetune": "finetuning.finetune",
    "import_checkpoint": "hub.import_checkpoint",
    "judge": "evaluation.judge",
    "load": "hub.load",
    "merge": "hub.merge",
    "mine": "finetuning.mining.mine",
    "prepare": "pretraining.prepare",
    "pretrain": "pretraining.pretrain",
    "publish": "hub.publish",
    "read_documents": "adaptation.read",
    "report": "evaluation.report",
    "rerank": "finetuning.rerank",
    "score": "evaluation.bench.score",
    "search": "retrieval.search.search",
    "zoo": "hub.zoo",
}

__all__ = [
    "BackboneError",
    "Checkpoint",
    "Component",
    "ConflictError",
    "DataError",
    "ExportError",
    "MissingExtraError",
    "ModelError",
    "OutputError",
    "PluginError",
    "PublishError",
    "Recipe",
    "RecipeError",
    "ServerError",
    "ShapeError",
    "StzooError",
    "TrainingError",
    "UnknownNameError",
    "hookimpl",
    *_LAZY,
]


# functions of other names than their commands, which Python cannot have or has already
_RENAMED = {"import": "import_checkpoint", "read": "read_documents"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        guess = f"; did you mean {_RENAMED[name]!r}?" if name in _RENAMED else suggest(name, _LAZY)
        if name in ("list", "recipe"):
            guess = f"; `stzoo {name}` is a command only."
        raise AttributeError(f"module 'stzoo' has no attribute {name!r}{guess}")
    found = getattr(import_module(f"stzoo.{_LAZY[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    names = {*globals(), *__all__} - {"TYPE_CHECKING", "Any", "import_module", "suggest"}
    return sorted(name for name in names if not name.startswith("_") or name.endswith("__"))
