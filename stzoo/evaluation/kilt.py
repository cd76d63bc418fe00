"""KILT's measures for rankings of pages.

How a ranking of pages is scored:
- The pages retrieved of an evidence set count as one entry of the ranking, at the rank of the last of them.
  A page of no set is an entry, too. A set whose pages are all retrieved is a hit.
- precision@k: hits among the first k entries, divided by k. recall@k: divided by the number of the question's
  evidence sets. success_rate@k: 1 if there is a hit among them.
- Rprec: share of an evidence set's R pages that are among the first R pages; the best over all sets.
- A question without provenance counts and scores 0. An output with empty provenance is an evidence set that
  cannot be found.

Source: facebookresearch/KILT at 2664322, kilt/eval_retrieval.py; tests/parity compares with its scores.
Unlike it: recall@1 and success_rate@1 are means like the others, and a question missing from the guess
scores 0, whereas KILT stops.
"""

from collections.abc import Iterable, Mapping, Sequence

from stzoo.data.kilt import Evidence
from stzoo.errors import DataError, RecipeError
from stzoo.evaluation.scoring import Scores


def score(evidence: Evidence, pages: Mapping[str, Iterable[str]], ks: Sequence[int] = (1, 5, 20)) -> Scores:
    """Scores rankings of pages as KILT does: Rprec, precision@k, recall@k and success_rate@k.

    Args:
        evidence: Evidence sets by question id, as `read_gold` returns them.
        pages: Page ids by question id, best first; repeated pages count once, at their first rank.
        ks: Cutoffs.

    Raises:
        DataError: If there are no questions.
        RecipeError: If there are no cutoffs, or one is below 1.
    """
    if not evidence:
        raise DataError("there are no questions to score; expected at least one.")
    if not ks or min(ks) < 1:
        raise RecipeError(f"the cutoffs are {list(ks)}; expected whole numbers of at least 1.")
    per_query: dict[str, dict[str, float]] = {"Rprec": {}}
    for query, sets in evidence.items():
        ranked = list(dict.fromkeys(pages.get(query, ())))
        shares = [len(needed.intersection(ranked[: len(needed)])) / len(needed) for needed in sets if needed]
        per_query["Rprec"][query] = max(shares, default=0.0)
        entries = _entries(sets, ranked)
        for k in ks:
            hits = sum(entries[:k])
            per_query.setdefault(f"precision@{k}", {})[query] = hits / k
            per_query.setdefault(f"recall@{k}", {})[query] = hits / max(len(sets), 1)
            per_query.setdefault(f"success_rate@{k}", {})[query] = float(hits > 0)
    mean = {name: sum(values.values()) / len(evidence) for name, values in per_query.items()}
    return Scores(mean, per_query)


def _entries(sets: Sequence[frozenset[str]], pages: Sequence[str]) -> list[bool]:
    """The entries of a ranking of unique pages, best first: True for a hit."""
    missing = [set(needed) for needed in sets]
    entries: dict[int | str, bool] = {}
    for page in pages:
        members = [i for i, needed in enumerate(sets) if page in needed]
        for i in members:
            missing[i].discard(page)
            entries.pop(i, None)  # moves the set to the rank of its last page
            entries[i] = not missing[i]
        if not members:
            entries[page] = False
    return list(entries.values())
