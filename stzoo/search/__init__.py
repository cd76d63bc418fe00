"""Search: which passages of a corpus lie nearest to a query.

ranking.py      what is kept of all that is found, and in which order
exact.py        every query with every passage; passes.py is how it is fast
binary.py       the same over one bit a dimension, with candidates by Hamming distance
ann.py          approximate, through FAISS indexes; building.py makes them
retriever.py    a model with its embedding stores
answers.py      search(): questions to a model, or to a store
"""

from ..calls import callable_module
from .ann import Index, open_index, recall
from .answers import search
from .binary import top_k_binary
from .building import empty, set_parameters
from .exact import Vectors, retrieve, top_k
from .passes import SIMILARITIES
from .ranking import Ranking
from .retriever import Retriever, default_root

__all__ = [
    "SIMILARITIES",
    "Index",
    "Ranking",
    "Retriever",
    "Vectors",
    "default_root",
    "empty",
    "open_index",
    "recall",
    "retrieve",
    "search",
    "set_parameters",
    "top_k",
    "top_k_binary",
]

callable_module(__name__)
