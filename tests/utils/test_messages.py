"""The singular and plural of counted nouns, and notes on what takes long."""

import time

import pytest

from stzoo.utils.messages import collect_notes, counted, note_if_slow


@pytest.mark.parametrize(
    ("noun", "plural"),
    [("judged query", "judged queries"), ("loss", "losses"), ("batch", "batches"), ("key", "keys")],
)
def test_a_number_agrees_with_its_noun(noun, plural):
    assert counted(1, noun) == f"1 {noun}"
    assert counted(0, noun) == f"0 {plural}"
    assert counted(2000, noun) == f"2,000 {plural}"


def test_only_what_takes_long_is_noted(capsys):
    with collect_notes() as notes:
        with note_if_slow("quick …", 0.2):
            pass
        with note_if_slow("slow …", 0.01):
            time.sleep(0.3)
    assert capsys.readouterr().err == "stzoo: slow …\n"
    assert notes == []
