"""Significance letters: systems that share a letter do not differ by the paired test.

All pairs of systems are tested by `paired_p_values`, adjusted by Holm's rule. With several data sets, the
test is of the mean over them: the signs of the queries' differences are flipped, and each query has the
weight of its data set divided by the number of its queries.

Source: Piepho, Journal of Computational and Graphical Statistics 13, 2004 (insert and absorb).
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from string import ascii_letters
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stzoo.evaluation.scoring import holm, paired_p_values

LEVEL = 0.05


def significance_letters(
    systems: Sequence[Sequence[Mapping[str, float]]], weights: Sequence[float] | None = None, *, seed: int = 0
) -> list[str]:
    """The letters of each system; none if there are fewer than two systems or queries.

    Args:
        systems: For each system, best first, its scores by query id on each data set.
        weights: Weight of each data set in the mean; equal by default.
        seed: Random seed.
    """
    sets = list(zip(*systems, strict=True))
    total = sum(len(one[0]) for one in sets)
    if len(systems) < 2 or total < 2:
        return [""] * len(systems)
    scaled = [
        weight * total / len(rows[0]) * np.array([[row[query] for query in rows[0]] for row in rows])
        for rows, weight in zip(sets, weights or [1 / len(sets)] * len(sets), strict=True)
    ]
    pairs = list(combinations(range(len(systems)), 2))
    p_values = paired_p_values(np.concatenate(scaled, axis=1), seed=seed)
    differ = np.zeros(p_values.shape, bool)
    for pair, p in zip(pairs, holm([float(p_values[pair]) for pair in pairs]), strict=True):
        differ[pair] = p < LEVEL
    return compact_letters(differ)


def compact_letters(differ: NDArray[Any]) -> list[str]:
    """Letters such that two systems share one if and only if they do not differ.

    Args:
        differ: bool [S, S]; only pairs [i, j] with i < j are read. The first system has the letter a.
    """
    groups = {frozenset(range(len(differ)))}
    for i, j in combinations(range(len(differ)), 2):
        if differ[i, j]:
            parts = {
                part
                for group in groups
                for part in ((group - {i}, group - {j}) if {i, j} <= group else (group,))
            }
            groups = {part for part in parts if not any(part < other for other in parts)}
    ordered = sorted(groups, key=sorted)
    return [
        "".join(_letter(number) for number, group in enumerate(ordered) if system in group)
        for system in range(len(differ))
    ]


def _letter(number: int) -> str:
    """The Latin letters, small ones first, then those from the Greek alpha on."""
    return ascii_letters[number] if number < len(ascii_letters) else chr(0x3B1 + number - len(ascii_letters))
