"""Scoring retrievers on judged sets: `stzoo.bench(...)` and `stzoo bench`.

models.py    what is scored: a folder or Hub id, its name and revision
lexical.py   BM25, the row to beat
results.py   one JSON file a model and data set, in mteb's shape; the table
runner.py    bench(): all models on all sets
"""

from ..calls import callable_module
from .results import Result, as_json, table
from .runner import bench

__all__ = ["Result", "as_json", "bench", "table"]

callable_module(__name__)
