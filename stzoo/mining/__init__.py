"""Hard negatives: passages that a model ranks high for a query though they do not answer it.

known.py     what is known of each query's answers, as places in the corpus
finders.py   who searches: a dense model over its embedding store, or BM25
rules.py     which of the results may be negatives, and which of those are taken
taught.py    a cross-encoder as the judge of them
facts.py     what mined negatives depend on
parts.py     mining some hundred queries at a time, so that a kill loses little; the file
command.py   `stzoo mine`
"""

from .command import mine
from .finders import Dense, Finder, Lexical
from .parts import mine_into
from .rules import REMOVED, candidates, check_rules, chosen

__all__ = [
    "REMOVED",
    "Dense",
    "Finder",
    "Lexical",
    "candidates",
    "check_rules",
    "chosen",
    "mine",
    "mine_into",
]
