"""The singular and plural of counted nouns."""

import pytest

from stzoo.utils.messages import counted


@pytest.mark.parametrize(
    ("noun", "plural"),
    [("judged query", "judged queries"), ("loss", "losses"), ("batch", "batches"), ("key", "keys")],
)
def test_a_number_agrees_with_its_noun(noun, plural):
    assert counted(1, noun) == f"1 {noun}"
    assert counted(0, noun) == f"0 {plural}"
    assert counted(2000, noun) == f"2,000 {plural}"
