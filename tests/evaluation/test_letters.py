from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stzoo.evaluation.letters import compact_letters, significance_letters
from stzoo.evaluation.scoring import holm, paired_p_values, paired_test


@given(st.integers(1, 9).flatmap(lambda n: st.lists(st.booleans(), min_size=n * n, max_size=n * n)))
def test_two_systems_share_a_letter_if_and_only_if_they_do_not_differ(flags):
    size = round(len(flags) ** 0.5)
    differ = np.array(flags).reshape(size, size)
    letters = compact_letters(differ)
    assert all(letters)
    assert "a" in letters[0]
    for i, j in combinations(range(size), 2):
        assert bool(set(letters[i]) & set(letters[j])) != differ[i, j]
    used = sorted(set("".join(letters)))
    members = [{i for i in range(size) if letter in letters[i]} for letter in used]
    assert not any(one < other for one in members for other in members)  # no letter says what another says
    assert used == [chr(ord("a") + i) for i in range(len(used))]


def test_letters_beyond_z_stay_distinct():
    letters = compact_letters(np.ones((90, 90), bool))
    assert len(set(letters)) == 90


scores = st.sampled_from([0.0, 0.25, 0.5, 0.63, 1.0])


@given(st.lists(st.tuples(scores, scores, scores), min_size=2, max_size=13))
@settings(max_examples=25)
@example([(0.0, 0.0, 0.5), (0.0, 0.0, 0.63), (0.0, 0.5, 0.0), (0.0, 0.5, 0.0), (0.0, 0.63, 0.5)])  # sums to 0
def test_p_values_of_few_queries_are_those_of_the_paired_test(rows):
    found = paired_p_values(np.array(rows).T)
    for i, j in combinations(range(3), 2):
        a, b = ({str(q): row[side] for q, row in enumerate(rows)} for side in (i, j))
        assert found[i, j] == found[j, i] == pytest.approx(paired_test(a, b).p_value)


def test_p_values_of_many_queries_are_about_those_of_the_paired_test():
    drawn = np.random.default_rng(3).beta(0.5, 0.5, (4, 150)) + np.array([0.0, 0.02, 0.06, 0.2])[:, None]
    found = paired_p_values(drawn, seed=1)
    assert np.all(np.diag(found) == 1)
    for i, j in combinations(range(4), 2):
        a, b = ({str(q): value for q, value in enumerate(drawn[side])} for side in (i, j))
        assert found[i, j] == pytest.approx(paired_test(a, b).p_value, abs=0.02)


def test_many_systems_can_still_differ_by_holms_rule():
    """With 9999 random signs, 435 p-values could not be below 0.05 after the correction."""
    drawn = np.random.default_rng(0).normal(0, 0.1, (30, 60)) + np.arange(30)[::-1, None]
    rows = [[{str(q): value for q, value in enumerate(row)}] for row in drawn]
    assert len(set(significance_letters(rows))) == 30


def test_letters_follow_the_paired_tests_with_holms_correction():
    random = np.random.default_rng(5)
    hard = random.normal(0, 0.3, 40)
    systems = [hard + random.normal(0, 0.2, 40) + gain for gain in (0.5, 0.45, 0.3, 0.05, 0.0)]
    rows = [{f"q{q}": value for q, value in enumerate(system)} for system in systems]
    letters = significance_letters([[row] for row in rows])
    pairs = list(combinations(range(5), 2))
    adjusted = holm([paired_test(rows[i], rows[j]).p_value for i, j in pairs])
    assert not any(0.03 < p < 0.08 for p in adjusted)  # where another draw could decide otherwise
    for (i, j), p in zip(pairs, adjusted, strict=True):
        assert bool(set(letters[i]) & set(letters[j])) == (p >= 0.05)
    assert len(set(letters)) > 1


def test_each_data_set_counts_alike_in_the_mean():
    """One system is better on a small set, the other by less on a large set: their means are equal."""
    random = np.random.default_rng(1)
    small, large = ({f"q{q}": value for q, value in enumerate(random.random(n))} for n in (20, 400))
    one = [{q: v + 0.4 for q, v in small.items()}, large]
    other = [small, {q: v + 0.4 for q, v in large.items()}]
    assert significance_letters([one, other]) == ["a", "a"]
    assert significance_letters([other, one], [0.1, 0.9]) == ["a", "b"]
    assert significance_letters([other]) == [""]
    assert significance_letters([[{"q": 1.0}], [{"q": 0.0}]]) == ["", ""]
