"""stzoo: dense retrievers that train with plugins and serve with plain sentence-transformers.

Everything public is here by its short name and imported when first used, so that `import stzoo` is light.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .errors import (
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
    ShapeError,
    StzooError,
    TrainingError,
    UnknownNameError,
)
from .hookspecs import Checkpoint, Component, Recipe, hookimpl

if TYPE_CHECKING:
    from .backbone import Backbone as Backbone
    from .bench import bench as bench
    from .bench.beir_model import BEIRModel as BEIRModel
    from .bench.compare import compare as compare
    from .bench.contamination import contamination as contamination
    from .bench.report import report as report
    from .bench.score import score as score
    from .demo import demo as demo
    from .finetune import finetune as finetune
    from .hub.card import card as card
    from .hub.export import export as export
    from .hub.importing import import_checkpoint as import_checkpoint
    from .hub.publish import publish as publish
    from .merge import merge as merge
    from .mining import mine as mine
    from .objective import Objective as Objective
    from .prepare import Preparation as Preparation
    from .prepare import prepare as prepare
    from .pretrain import pretrain as pretrain
    from .search import search as search

__version__ = "0.1.0"

_LAZY = {
    "BEIRModel": "bench",
    "Backbone": "backbone",
    "Objective": "objective",
    "Preparation": "prepare",
    "bench": "bench",
    "card": "hub.card",
    "compare": "bench",
    "contamination": "bench",
    "demo": "demo",
    "export": "hub.export",
    "finetune": "finetune",
    "import_checkpoint": "hub.importing",
    "merge": "merge",
    "mine": "mining",
    "prepare": "prepare",
    "pretrain": "pretrain",
    "publish": "hub.publish",
    "report": "bench",
    "score": "bench",
    "search": "search",
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
    "ShapeError",
    "StzooError",
    "TrainingError",
    "UnknownNameError",
    "hookimpl",
    *_LAZY,
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'stzoo' has no attribute {name!r}")
    module = importlib.import_module(f".{_LAZY[name]}", __name__)
    return module if name == _LAZY[name] else getattr(module, name)  # a command's module can be called
