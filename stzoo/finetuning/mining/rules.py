"""Rules that decide which of a query's results may be negatives and which are used, as array functions."""

from hashlib import blake2b

import numpy as np

from stzoo.errors import RecipeError
from stzoo.training.finetune_settings import MiningRules

# reasons for removing passages, in order
REMOVED = ("answers", "copies", "skipped", "absolute_margin", "relative_margin", "teacher_margin")


def check_rules(rules: MiningRules) -> None:
    """Checks that the rules leave enough candidates.

    Raises:
        RecipeError: If they leave too few, or options of a teacher are set without a teacher.
    """
    if rules.depth - rules.skip < rules.mined:
        raise RecipeError(
            f"depth {rules.depth} minus skip {rules.skip} leaves too few passages for mined = {rules.mined} "
            "negatives. Increase depth, or reduce skip or mined."
        )
    if rules.teacher is None and (rules.teacher_margin is not None or rules.teacher_tokens is not None):
        raise RecipeError("teacher_margin and teacher_tokens need a teacher (--teacher).")


def candidates(
    kinds: np.ndarray, scores: np.ndarray, answers: np.ndarray, best: float, rules: MiningRules
) -> tuple[np.ndarray, list[int]]:
    """Finds the results of a query that may be its negatives.

    Ranks count only passages that are not answers. Of the first `depth` ranks, the first `skip` are removed,
    and of equal texts only the best-ranked one is kept. Margins are relative to the query's best-scored
    positive, found or not: absolute_margin keeps score <= best - margin, relative_margin keeps
    score <= best - |best| * margin.

    Args:
        kinds: Keys of the results' texts, best result first, int64 [R]; equal for equal texts.
        scores: Scores of the results, float32 [R], descending.
        answers: Keys of the texts that are known to answer the query, int64.
        best: Score of the best-scored positive.
        rules: The rules of mining.

    Returns:
        The positions of the remaining results, int64 [C], ascending; and how many of the examined results
        were removed for each reason in REMOVED.

    Source: sentence_transformers/util/hard_negatives.py, mine_hard_negatives (6.2), which has the margins
        from NV-Retriever, https://arxiv.org/abs/2407.15831.
    Unlike it: sentence-transformers takes margins from the worst-scored of several positives, which leaves
        no negatives if the model does not find that positive; it skips among the results that the margins
        leave, not among all; and it examines as many results beyond `depth` as a query has positives at most.
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
    """Orders candidates by preference, int64 [C]: by rank, or at random.

    Args:
        left: Positions of the candidates, int64 [C], ascending.
        rules: The rules of mining, which name the sampling.
        seed: Seed of the random order.
        query_id: Second part of the seed, so that the order does not depend on other queries.
    """
    if rules.sampling == "top":
        return left
    query_seed = int.from_bytes(blake2b(query_id.encode(), digest_size=8).digest())
    return np.random.default_rng([seed, query_seed]).permutation(left)
