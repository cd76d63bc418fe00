"""Files whole or absent, folders held by one, fingerprints that follow the bytes."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.helpers import abandoned_draft

import stzoo
from stzoo.utils.files import atomic_file, atomic_folder, fingerprint, lock_folder, write_json


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file"
    with pytest.raises(ZeroDivisionError), atomic_file(path) as draft:
        draft.write_text("half")
        assert not path.exists()
        raise ZeroDivisionError
    assert not list(path.parent.iterdir())
    with atomic_file(path) as draft:
        draft.write_text("all")
    assert path.read_text() == "all"
    with pytest.raises(ZeroDivisionError), atomic_file(path) as draft:
        draft.write_text("another half")
        raise ZeroDivisionError
    assert path.read_text() == "all"


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder"
    for number in range(2):
        with atomic_folder(path, replaces=[r"file\d"]) as draft:
            (draft / f"file{number}").touch()
        assert [file.name for file in path.iterdir()] == [f"file{number}"]
    with pytest.raises(ZeroDivisionError), atomic_folder(path, replaces=[r"file\d"]) as draft:
        raise ZeroDivisionError
    assert [file.name for file in tmp_path.rglob("*")] == ["folder", "file1"]
    (path / "mine").mkdir()
    with (
        pytest.raises(stzoo.OutputError, match="not replace: mine/"),
        atomic_folder(path, replaces=["file1"]),
    ):
        pass
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["file1", "folder", "mine"]


def test_weights_have_the_mode_of_other_files(tmp_path):
    with atomic_file(tmp_path / "one.safetensors") as draft:
        save_file({"a": np.zeros(2)}, draft)
    with atomic_folder(tmp_path / "folder") as draft:
        save_file({"a": np.zeros(2)}, draft / "two.safetensors")
    (tmp_path / "usual").write_text("")
    modes = {path.stat().st_mode for path in tmp_path.rglob("*") if path.is_file()}
    assert len(modes) == 1


def test_a_link_in_the_place_of_a_folder_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine").touch()
    (tmp_path / "link").symlink_to("data")
    with atomic_folder(tmp_path / "link") as draft:
        (draft / "file").touch()
    assert [file.name for file in (tmp_path / "link").iterdir()] == ["file"]
    assert (tmp_path / "data/mine").exists()


def test_a_draft_is_cleared_once_its_owner_is_gone_and_not_before(tmp_path):
    code = (
        "import sys, time; from stzoo.utils.files import atomic_file, atomic_folder\n"
        "with atomic_file(sys.argv[1] + '/f') as f, atomic_folder(sys.argv[1] + '/out') as out:\n"
        "    f.touch(); (out / 'x').touch(); print(1, flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    process.stdout.readline()
    mine = [".f.12.part", ".out.abcdefgh.part"]
    for name in mine:
        (tmp_path / name).mkdir()
    with atomic_folder(tmp_path / "a"):
        assert len(list(tmp_path.glob(".*.stzoo.part"))) == 3
    process.kill()
    process.wait()
    with atomic_folder(tmp_path / "b"):
        assert len(list(tmp_path.glob(".*.stzoo.part"))) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [*mine, "a", "b"]


def test_a_replacement_that_a_kill_or_an_error_cuts_short_is_ended_or_undone(tmp_path, monkeypatch):
    path, rename = tmp_path / "folder", Path.rename
    path.mkdir()
    (path / "old").touch()

    def fails_for_the_new_one(source, target):
        if source.name == "new":
            raise OSError("the disk is gone")
        return rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fails_for_the_new_one)
        with pytest.raises(stzoo.OutputError, match="disk is gone"), atomic_folder(path, replaces=["old"]):
            pass
    assert [file.name for file in tmp_path.rglob("*")] == ["folder", "old"]
    box = abandoned_draft(tmp_path, "folder")  # a kill between the two renames
    (box / "new").mkdir()
    (box / "new/file").touch()
    path.rename(box / "old")
    with atomic_folder(tmp_path / "other"):
        pass
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["file", "folder", "other"]


def test_a_lock_is_removed_while_it_is_held_and_one_that_was_removed_is_not_taken(tmp_path, monkeypatch):
    unlink, taken = Path.unlink, []

    def sees_whether_it_is_locked(path, **more):
        with path.open("rb+") as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                taken.append(path)
            except BlockingIOError:
                pass
        unlink(path, **more)

    with lock_folder(tmp_path):
        stale = os.open(tmp_path / ".stzoo.lock", os.O_RDWR)  # as by a process that locks it too late
        monkeypatch.setattr(Path, "unlink", sees_whether_it_is_locked)
    assert not list(tmp_path.iterdir())
    assert not taken
    real, first = os.open, [stale]
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lambda *given, **more: first.pop() if first else real(*given, **more))
        with lock_folder(tmp_path), pytest.raises(stzoo.OutputError, match="in use"), lock_folder(tmp_path):
            pass


@pytest.mark.parametrize("words", ["No space left on device (os error 28)", "file write failed"])
def test_a_full_disk_is_known_by_whatever_writer(words, tmp_path):
    with pytest.raises(stzoo.OutputError, match="No space left"), atomic_file(tmp_path / "file"):
        raise RuntimeError(words)
    with pytest.raises(RuntimeError, match="something else"), atomic_file(tmp_path / "file"):
        raise RuntimeError("something else")


def test_a_number_that_is_none_is_not_written_as_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_held_folder_is_refused_to_another_process_and_free_after_a_kill(tmp_path):
    code = (
        "import sys, time; from stzoo.utils.files import lock_folder\n"
        "with lock_folder(sys.argv[1]): print(1, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    process.stdout.readline()
    with pytest.raises(stzoo.OutputError, match="in use by another run"), lock_folder(tmp_path):
        pass
    process.kill()
    process.wait()
    with lock_folder(tmp_path) as folder:
        assert folder == tmp_path
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(stzoo.OutputError, match=str(tmp_path)), lock_folder(tmp_path / "out"):
        pass


def test_a_fingerprint_follows_names_and_bytes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x").write_text("1")
    first = fingerprint(tmp_path / "a")
    assert first == fingerprint(tmp_path / "a")
    assert len(first) == 64
    (tmp_path / "a/x").write_text("2")
    second = fingerprint(tmp_path / "a")
    (tmp_path / "a/x").rename(tmp_path / "a/y")
    assert len({first, second, fingerprint(tmp_path / "a")}) == 3


def test_a_file_in_the_way_of_a_folder_is_said(tmp_path):
    (tmp_path / "taken").touch()
    with (
        pytest.raises(stzoo.OutputError, match="could not be written"),
        atomic_file(tmp_path / "taken" / "x"),
    ):
        raise AssertionError("never reached")
