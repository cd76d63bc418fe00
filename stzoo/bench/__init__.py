"""Scoring retrievers on judged sets: `stzoo.bench(...)`, `stzoo bench` and the commands around it.

runner.py         bench(): all models on all sets
score.py          score(): runs that other systems made
compare/          compare(): whether systems differ, and where
report/           report(): one page about all results
contamination/    contamination(): test data that training data holds
sets.py           what is scored; datasets.py and fetch.py find it, kilt.py reads KILT's files,
                  kilt_suite.py all of them
dense.py          a model as a system: exact, smaller vectors, FAISS
results.py        one JSON file a model and data set, in mteb's shape; tables.py shows them
beir_model.py     a model with BEIR's interface, for BEIR's scripts
"""

from ..calls import callable_module
from .beir_model import BEIRModel
from .compare import compare
from .contamination import contamination
from .report import report
from .results import Result
from .runner import bench
from .score import score
from .tables import as_json, costs, table

__all__ = [
    "BEIRModel",
    "Result",
    "as_json",
    "bench",
    "compare",
    "contamination",
    "costs",
    "report",
    "score",
    "table",
]

callable_module(__name__)
