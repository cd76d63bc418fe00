"""Parts: made once, whole or not at all, and never mixed with those of other settings."""

import contextlib
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from support.helpers import abandoned_draft

import stzoo
from stzoo.utils import files
from stzoo.utils.files import claimed_file, write_json
from stzoo.utils.parts import ArrayParts, check_manifest, differences, open_manifest

ROWS, SIZE = 22, 5
SETTINGS = {"schema_version": 1, "model": {"name": "m", "revision": "abc"}, "depth": 20}


class Squares(ArrayParts):
    """Parts of the squares of their rows, which remember what was made."""

    def __init__(self, folder, rows=ROWS, size=SIZE):
        super().__init__(folder, "part-{number:03d}.safetensors", rows, size)
        self.made = []

    def squares(self, part):
        self.made.append(part.number)
        rows = np.arange(part.first, part.last)
        return {"rows": rows, "squares": (rows**2).astype(np.float32)}

    def fill(self):
        for part in self:
            self.get(part, self.squares)
        return self


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    parts = Squares(tmp_path_factory.mktemp("whole"))
    open_manifest(parts.folder / "manifest.json", SETTINGS)
    return parts.fill()


@given(rows=st.integers(1, 40), size=st.integers(1, 50))
def test_parts_cover_the_rows_once_and_in_order(tmp_path_factory, rows, size):
    parts = list(Squares(tmp_path_factory.getbasetemp(), rows, size))
    assert [row for part in parts for row in range(part.first, part.last)] == list(range(rows))
    assert all(len(part) == size for part in parts[:-1])
    assert 1 <= len(parts[-1]) <= size
    assert [part.number for part in parts] == list(range(len(parts)))
    assert len({part.path for part in parts}) == len(parts)


def test_a_file_may_be_named_by_its_first_row(tmp_path):
    names = [part.path.name for part in ArrayParts(tmp_path, "rows-{first:09d}.parquet", 7, 3)]
    assert names == ["rows-000000000.parquet", "rows-000000003.parquet", "rows-000000006.parquet"]


@given(present=st.sets(st.integers(0, 4)))
def test_whatever_is_there_only_the_rest_is_made(whole, tmp_path_factory, present):
    parts = Squares(tmp_path_factory.mktemp("some"))
    for number in sorted(present):
        shutil.copy(whole[number].path, parts[number].path)
    missing = sorted({*range(5)} - present)
    assert [part.number for part in parts.missing()] == missing
    parts.fill()
    assert parts.made == missing
    assert contents(parts.folder).items() < contents(whole.folder).items()
    for part in parts:
        assert np.array_equal(parts.read(part)["squares"], np.arange(part.first, part.last) ** 2)


@given(number=st.integers(0, 4), start=st.floats(0, 1, exclude_max=True), flip=st.integers(0, 255))
def test_a_damaged_part_is_made_again(whole, tmp_path_factory, number, start, flip):
    """A byte is flipped, or the file cut short if `flip` is 0."""
    parts = Squares(tmp_path_factory.mktemp("damaged"))
    shutil.copytree(whole.folder, parts.folder, dirs_exist_ok=True)
    path, raw = parts[number].path, bytearray(parts[number].path.read_bytes())
    place = int(start * len(raw))
    path.write_bytes(raw[:place] + bytes([raw[place] ^ flip]) + raw[place + 1 :] if flip else raw[:place])
    parts.fill()
    assert parts.made in ([number], [])
    assert np.array_equal(parts.read(parts[number])["squares"], whole.read(whole[number])["squares"])
    if parts.made:  # damage that changes no value, e.g. another blank in the header, harms nothing
        assert path.read_bytes() == raw


def test_damage_is_noted_and_a_part_that_is_read_must_be_whole(whole, tmp_path, capsys):
    parts = Squares(tmp_path / "copy")
    shutil.copytree(whole.folder, parts.folder)
    parts[1].path.write_bytes(b"half")
    with pytest.raises(stzoo.DataError, match=r"part-001\.safetensors is missing or damaged"):
        parts.read(parts[1])
    parts.fill()
    assert capsys.readouterr().err.count("part-001.safetensors is damaged") == 1


def test_a_part_under_another_number_is_made_again_and_one_of_an_older_version_is_read(whole, tmp_path):
    parts = Squares(tmp_path / "copy")
    shutil.copytree(whole.folder, parts.folder)
    shutil.copy(parts[3].path, parts[1].path)
    arrays, digest = parts.read(parts[2]), sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    save_file(arrays, parts[2].path, {"sha256": digest.hexdigest()})  # without the number
    parts.fill()
    assert parts.made == [1]


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from utils.test_parts import SETTINGS, Squares, open_manifest
from stzoo.utils.files import lock_folder

for name in ("manifest.json", "part-000", "part-003", None):
    for event in ("os.rename", "os.mkdir"):
        if (child := os.fork()) == 0:
            sys.addaudithook(lambda e, args: e == event and name and name in str(args) and os._exit(9))
            with lock_folder(sys.argv[2]) as folder:
                open_manifest(folder / "manifest.json", SETTINGS)
                print(*Squares(folder).fill().made, flush=True)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), end=" ", flush=True)
"""


def test_a_kill_before_a_draft_takes_its_place_costs_that_part(whole, tmp_path):
    words = [sys.executable, "-c", KILLED, Path(__file__).parents[1], tmp_path / "killed"]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    # killed at the manifest, at part 0 and at part 3: as the draft takes its place, and as it is begun
    made = ["9 9 9 9 9 9 3 4", "0 ", "0 "]
    assert done.stdout.split("\n") == made, done.stderr
    assert contents(tmp_path / "killed") == contents(whole.folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=2),
    max_leaves=5,
)
MANIFESTS = st.dictionaries(st.sampled_from("abc"), JSON, max_size=3)


def alike(then, now):
    """True if two values are the same; an entry that is None counts as none."""
    if isinstance(then, dict) and isinstance(now, dict):
        return all(alike(then.get(key), now.get(key)) for key in {**then, **now})
    return then == now


@given(then=MANIFESTS, now=MANIFESTS)
def test_a_folder_of_other_settings_is_refused_and_left_as_it_is(tmp_path_factory, then, now):
    folder = tmp_path_factory.mktemp("other")
    write_json(folder / "manifest.json", {**then, "log": [1]})
    (folder / "part-000.safetensors").write_bytes(b"x")
    before = contents(folder)
    if all(alike(then.get(key), now[key]) for key in now):
        assert open_manifest(folder / "manifest.json", now) == {**then, "log": [1]}
    else:
        with pytest.raises(stzoo.OutputError, match="made with other settings") as refused:
            open_manifest(folder / "manifest.json", now)
        for key, (old, new) in differences(then, now).items():
            assert f"{key}: {old!r} then, {new!r} now" in str(refused.value)
    assert contents(folder) == before


def test_the_refusal_names_each_key_with_both_values(tmp_path):
    now = {**SETTINGS, "model": {"name": "m", "revision": "def"}, "seed": 1}
    with pytest.raises(stzoo.OutputError) as refused:
        check_manifest(tmp_path, {**SETTINGS, "log": []}, now)
    assert "(model.revision: 'abc' then, 'def' now; seed: None then, 1 now)" in str(refused.value)
    check_manifest(tmp_path, {"pair": [1, 2]}, {"pair": (1, 2)})  # JSON has no tuples


def test_an_exact_comparison_counts_what_is_no_setting_any_more_and_none_within_a_value(tmp_path):
    now = {"seed": 1, "options": {"rate": 0.5}}
    check_manifest(tmp_path, {"options": {"rate": 0.5}, "seed": 1, "gone": None}, now, exact=True)
    for then, words in (
        ({**now, "gone": 2}, "gone: 2 then, None now"),
        ({**now, "options": {"rate": 0.5, "tau": None}}, "options: {'rate': 0.5, 'tau': None} then"),
        ({**now, "options": {"rate": 0.4}}, "options.rate: 0.4 then, 0.5 now"),
    ):
        with pytest.raises(stzoo.OutputError, match=rf"is not ours \({words}.*\)\. Move it\.") as refused:
            check_manifest(tmp_path, then, now, exact=True, fault="is not ours", advice="Move it.")
        assert str(refused.value).startswith(str(tmp_path))


def test_files_that_nothing_explains_are_refused_but_for_parts_without_a_manifest(tmp_path):
    for name in ("part-000.safetensors", "thesis.txt", ".hidden"):
        (tmp_path / name).touch()
    before = contents(tmp_path)
    for parts in ("", r"part-\d+\.safetensors"):
        with pytest.raises(stzoo.OutputError, match=r"no manifest\.json but other files \(.*thesis\.txt\)"):
            open_manifest(tmp_path / "manifest.json", SETTINGS, parts=parts)
        assert contents(tmp_path) == before
    (tmp_path / "thesis.txt").unlink()
    open_manifest(tmp_path / "manifest.json", SETTINGS, parts=parts)
    assert sorted(contents(tmp_path)) == [".hidden", "manifest.json"]


@pytest.mark.parametrize("damaged", ["", "[]", "{", '{"a": 1}x'])
def test_a_damaged_manifest_is_refused(tmp_path, damaged):
    (tmp_path / "manifest.json").write_text(damaged)
    with pytest.raises(stzoo.OutputError, match=rf"manifest\.json .* Remove {tmp_path}"):
        open_manifest(tmp_path / "manifest.json", SETTINGS)
    assert (tmp_path / "manifest.json").read_text() == damaged


# -- claims

OTHER = """
import sys
from pathlib import Path
from stzoo.utils.files import claimed_file
with claimed_file(Path(sys.argv[1])) as draft:
    print(draft is not None, flush=True)
    if sys.argv[2:]:
        draft.write_text("half")
        sys.stdin.read()
"""


def start_other(path, *more):
    words = [sys.executable, "-c", OTHER, str(path), *more]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_one_process_at_a_time_makes_a_part(tmp_path):
    parts = Squares(tmp_path)
    with parts.claim(parts[0]) as draft:
        assert draft is not None
        assert start_other(parts[0].path).communicate()[0] == "False\n"
        assert start_other(parts[1].path).communicate()[0] == "True\n"
        with pytest.raises(stzoo.OutputError, match="being made by another process"):
            parts.make(parts[0], parts.squares)
    assert not list(tmp_path.iterdir())  # nothing was written
    parts.make(parts[0], parts.squares)
    assert parts.made == [0]


def test_a_claim_ends_with_its_process_and_an_error_leaves_nothing(tmp_path):
    path = tmp_path / "part"
    other = start_other(path, "waits")
    assert other.stdout.readline() == "True\n"
    with claimed_file(path) as draft:
        assert draft is None
    other.kill()
    other.wait()
    with pytest.raises(ZeroDivisionError), claimed_file(path) as draft:
        draft.write_text("half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with claimed_file(path) as draft:
        draft.write_text("all")
    assert contents(tmp_path) == {"part": b"all"}


def test_where_there_are_no_locks_a_claim_that_a_kill_left_is_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_try_lock", lambda _, without_locks: without_locks)
    abandoned_draft(tmp_path, "part").rename(tmp_path / ".part._claimed.stzoo.part")
    with claimed_file(tmp_path / "part") as draft:
        draft.write_text("all")
    assert contents(tmp_path) == {"part": b"all"}


def test_several_makers_make_each_part_once(tmp_path, whole):
    """As processes would: each goes through all parts and makes those that it gets and that are missing."""
    makers = [Squares(tmp_path) for _ in range(3)]
    with contextlib.ExitStack() as held:
        for turn in range(len(whole)):
            maker = makers[turn % 3]
            claims = ((part, held.enter_context(maker.claim(part))) for part in maker)
            part, draft = next((part, draft) for part, draft in claims if draft is not None)
            maker.save(draft, part, maker.squares(part))
    assert [maker.made for maker in makers] == [[0, 3], [1, 4], [2]]
    assert contents(tmp_path).items() < contents(whole.folder).items()
