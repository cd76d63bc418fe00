"""Training data: read from all the forms that they come in, and written by mining.

Read sets.py (what they are), forms.py (a row of each form), tables.py (the files that hold rows), named.py
(rows that name passages by id), collect.py (rows become a set), reading.py (all of it), mined.py (writing).
"""

from .collect import TrainingSetWriter, note_missing, text_key
from .forms import described
from .mined import check_mined_name, read_made, write_training
from .reading import from_judged, read_judged, read_training
from .sets import Candidate, Lists, Mined, TrainingSet

FORMS = described()

__all__ = [
    "FORMS",
    "Candidate",
    "Lists",
    "Mined",
    "TrainingSet",
    "TrainingSetWriter",
    "check_mined_name",
    "from_judged",
    "note_missing",
    "read_judged",
    "read_made",
    "read_training",
    "text_key",
    "write_training",
]
