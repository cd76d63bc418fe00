"""KILT's own scores of rankings of pages.

How a ranking of pages is scored:
- An evidence set is one point of the ranking, at the place of its last page found, however many of its pages
  came before; a page of no set is a point, too. A set all of whose pages are found is a hit.
- precision@k: hits among the first k points, of k. recall@k: of the question's evidence sets.
  success_rate@k: 1 if there is a hit among them.
- Rprec: the share of an evidence set's R pages among the first R pages; the best of all sets.
- A question without provenance scores 0 and counts, and an output whose provenance is empty is a set that
  cannot be found.

Source: facebookresearch/KILT at 2664322, kilt/eval_retrieval.py; tests/parity compares with its figures.
Unlike it: recall@1 and success_rate@1 are means like the others, and a question that the guess leaves out
scores 0, where KILT stops.
"""

from collections.abc import Iterable, Mapping, Sequence

from stzoo.data.kilt import Evidence
from stzoo.errors import DataError, RecipeError
from stzoo.evaluation.scoring import Scores


def score(evidence: Evidence, pages: Mapping[str, Iterable[str]], ks: Sequence[int] = (1, 5, 20)) -> Scores:
    """Scores rankings of pages as KILT does: Rprec, precision@k, recall@k and success_rate@k.

    Args:
        evidence: see `read_gold`.
        pages: page ids by question id, best first; of repeated pages the first counts.
        ks: cutoffs.

    Raises:
        DataError: if there is no question.
        RecipeError: if a cutoff is below 1, or there is none.
    """
    if not evidence:
        raise DataError("there are no questions to score by.")
    if not ks or min(ks) < 1:
        raise RecipeError(f"the cutoffs are {list(ks)}; expected whole numbers from 1.")
    per_query: dict[str, dict[str, float]] = {"Rprec": {}}
    for query, sets in evidence.items():
        found = list(dict.fromkeys(pages.get(query, ())))
        shares = [len(needed.intersection(found[: len(needed)])) / len(needed) for needed in sets if needed]
        per_query["Rprec"][query] = max(shares, default=0.0)
        points = _points(sets, found)
        for k in ks:
            hits = sum(points[:k])
            per_query.setdefault(f"precision@{k}", {})[query] = hits / k
            per_query.setdefault(f"recall@{k}", {})[query] = hits / max(len(sets), 1)
            per_query.setdefault(f"success_rate@{k}", {})[query] = float(hits > 0)
    mean = {name: sum(values.values()) / len(evidence) for name, values in per_query.items()}
    return Scores(mean, per_query)


def _points(sets: Sequence[frozenset[str]], pages: Sequence[str]) -> list[bool]:
    """The points of a ranking of unique pages, best first: True where an evidence set is complete."""
    missing = [set(needed) for needed in sets]
    points: dict[int | str, bool] = {}
    for page in pages:
        holders = [i for i, needed in enumerate(sets) if page in needed]
        for i in holders:
            missing[i].discard(page)
            points.pop(i, None)  # to stand at its last page
            points[i] = not missing[i]
        if not holders:
            points[page] = False
    return list(points.values())
