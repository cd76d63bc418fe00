"""Which of a query's results may be negatives, and which of those are taken: plain functions of arrays."""

from hashlib import blake2b

import numpy as np

from stzoo.errors import RecipeError
from stzoo.training.settings import MiningRules

# what takes passages away, in this order
REMOVED = ("answers", "copies", "skipped", "absolute_margin", "relative_margin", "teacher_margin")


def check_rules(rules: MiningRules) -> None:
    """Sees that the rules leave enough to take from.

    Raises:
        RecipeError: if they do not.
    """
    if rules.depth - rules.skip < rules.mined:
        raise RecipeError(
            f"depth is {rules.depth} and skip {rules.skip}, which leaves {max(0, rules.depth - rules.skip)} "
            f"passages to take mined = {rules.mined} negatives from; expected at least as many."
        )
    if rules.teacher is None and (rules.teacher_margin is not None or rules.teacher_tokens is not None):
        raise RecipeError("teacher_margin and teacher_tokens need a teacher; name a cross-encoder.")


def candidates(
    kinds: np.ndarray, scores: np.ndarray, answers: np.ndarray, best: float, rules: MiningRules
) -> tuple[np.ndarray, list[int]]:
    """Which of one query's results may be its negatives.

    A rank is one among the passages that are no answers. Of `depth` ranks the first `skip` are left out, and
    of a text that stands there twice the better rank counts. Margins are taken from the best-scored of the
    query's positives, found or not: absolute_margin leaves score <= best - margin, relative_margin leaves
    score <= best - |best| * margin.

    Args:
        kinds: int64 [R] of the results, best first; equal where texts are.
        scores: float32 [R], descending.
        answers: int64, kinds of the passages that are known to answer the query.
        best: score of its best-scored positive.
        rules: what is left out.

    Returns:
        int64 [C], ascending ranks of the results that are left; and how many each of REMOVED took away, of
        those that were looked at.

    Source: sentence_transformers/util/hard_negatives.py, mine_hard_negatives (6.2), which has the margins
        from NV-Retriever, https://arxiv.org/abs/2407.15831.
    Unlike: with several positives it takes margins from the worst-scored one, which next to a positive that
        the model does not find leaves no negatives; it skips among those that the margins leave, not among
        all, and looks at as many more than `depth` as a query has positives at most.
    """
    answer = np.isin(kinds, answers)
    others = np.flatnonzero(~answer)[: rules.depth]
    looked_at = others[-1] + 1 if len(others) == rules.depth else len(kinds)
    removed = [int(np.count_nonzero(answer[:looked_at]))]

    def keep(left: np.ndarray, holds: np.ndarray) -> np.ndarray:
        removed.append(len(left) - int(np.count_nonzero(holds)))
        return left[holds]

    first = np.zeros(len(others), bool)
    first[np.unique(kinds[others], return_index=True)[1]] = True
    left = keep(others, first)
    left = keep(left, np.arange(len(left)) >= rules.skip)
    for limit in (
        best - rules.absolute_margin if rules.absolute_margin is not None else np.inf,
        best - abs(best) * rules.relative_margin if rules.relative_margin is not None else np.inf,
    ):
        left = keep(left, scores[left].astype(np.float64) <= limit)
    return left, [*removed, 0]


def chosen(left: np.ndarray, rules: MiningRules, seed: int, query_id: str) -> np.ndarray:
    """The order in which candidates are taken, int64 [C]: as they rank, or at random.

    Args:
        left: int64 [C], ascending ranks.
        rules: with the sampling.
        seed: of the draw.
        query_id: also of the draw, so that it depends on no other query.
    """
    if rules.sampling == "top":
        return left
    own = int.from_bytes(blake2b(query_id.encode(), digest_size=8).digest())
    return np.random.default_rng([seed, own]).permutation(left)
