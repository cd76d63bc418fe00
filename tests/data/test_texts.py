import os
import pickle
import random
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stzoo.data import texts
from stzoo.data.texts import Texts

# All that UTF-8 can hold; short ones of few letters repeat.
strings = st.lists(st.one_of(st.text(), st.text("aé\U0001d538", max_size=2)), max_size=30)


@pytest.fixture(autouse=True, scope="module")
def small_chunks():
    """Chunks of a few texts, so that some examples have several, the last of them in a temporary file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "CHUNK_BYTES", 150)
        patch.setattr(texts, "MEMORY_BYTES", 200)
        yield


@given(strings, st.data())
def test_texts_are_what_they_were_made_of(given_texts, draw):
    held = Texts(iter(given_texts))
    assert (len(held), list(held)) == (len(given_texts), given_texts)
    assert [held[i] for i in range(-len(held), len(held))] == given_texts + given_texts
    part = draw.draw(st.slices(len(given_texts)))
    assert held[part] == given_texts[part]
    assert held[:: 1 << 63] == given_texts[:1]
    assert pickle.loads(pickle.dumps(held)) == held
    for place in (len(held), -len(held) - 1):
        with pytest.raises(IndexError):
            held[place]


@given(strings, strings)
def test_texts_equal_what_holds_the_same_strings(some, others):
    same = some == others
    assert (Texts(some) == Texts(others), Texts(some) == others, others == Texts(some)) == (same, same, same)
    assert Texts(some) == tuple(some) == Texts(some)
    assert Texts(some) != [*some, ""]
    assert Texts(some) != "".join(some)


@given(strings)
def test_they_sort_by_code_point_and_equals_keep_their_order(given_texts):
    order = Texts(given_texts).sort_order()
    assert order.dtype == np.int64
    assert order.tolist() == sorted(range(len(given_texts)), key=given_texts.__getitem__)


@given(strings)
def test_the_first_repeat_is_found(given_texts):
    repeats = (place for place, text in enumerate(given_texts) if text in given_texts[:place])
    assert Texts(given_texts).first_repeat() == next(repeats, None)


def test_equal_hashes_of_other_texts_are_no_repeat(monkeypatch):
    monkeypatch.setattr(texts, "hash", len, raising=False)
    assert Texts(["ab", "cd", "e", "ef"]).first_repeat() is None
    assert Texts(["ab", "cd", "e", "cd"]).first_repeat() == 3


def test_a_text_takes_its_bytes_and_eight_more(monkeypatch):
    monkeypatch.setattr(texts, "CHUNK_BYTES", 1 << 20)
    draw = random.Random(0)
    given_texts = ["слово word " * draw.randrange(99) for _ in range(5000)]
    size = sum(len(text.encode()) for text in given_texts)
    held = Texts(given_texts)
    assert size + 8 * 5000 <= held.nbytes < size + 8 * 5010


def test_half_of_a_surrogate_pair_is_refused():
    with pytest.raises(UnicodeEncodeError):
        Texts(["fine", "\ud800"])


# -- the temporary file

MANY = [f"text {number}" for number in range(1000)]


def test_the_file_of_many_texts_has_no_name_and_ends_with_them(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def mappings():
        with open("/proc/self/maps") as maps:  # noqa: PTH123
            return sum(str(tmp_path) in line for line in maps)

    held = Texts(iter(MANY))
    assert mappings() == 1
    assert not any(tmp_path.iterdir())
    part = held._chunks[990:]
    del held
    assert part.to_pylist() == MANY[990:]
    del part
    assert mappings() == 0


def test_forked_processes_read_the_same_file():
    held = Texts(iter(MANY))
    reader, writer = os.pipe()
    if not os.fork():
        os.write(writer, held[999].encode())
        os._exit(0)
    assert os.read(reader, 100).decode() == MANY[999]
    os.close(reader)
    os.close(writer)


FULL = """
import resource, sys
from stzoo.data import texts
texts.CHUNK_BYTES, texts.MEMORY_BYTES = 10_000, 20_000
given = texts.Texts(f"{number}" for number in range(4000))
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
texts.Texts(iter(given)) if sys.argv[1] == "texts" else given.first_repeat()
"""


@pytest.mark.parametrize("what", ["texts", "hashes"])
def test_a_full_disk_is_one_sentence(what, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, what],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"OutputError: many texts need a temporary file, which could not be written in {tmp_path}: " in (
        done.stderr
    )
    assert "set TMPDIR" in done.stderr
    assert not any(tmp_path.iterdir())
