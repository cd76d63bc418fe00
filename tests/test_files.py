"""Files whole or absent, folders held by one, fingerprints that follow the bytes."""

import os
import subprocess
import sys

import pytest

import stzoo
from stzoo.files import fingerprint, held, whole_file, whole_folder, write_json


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file"
    with pytest.raises(ZeroDivisionError), whole_file(path) as draft:
        draft.write_text("half")
        assert not path.exists()
        raise ZeroDivisionError
    assert not list(path.parent.iterdir())
    with whole_file(path) as draft:
        draft.write_text("all")
    assert path.read_text() == "all"
    with pytest.raises(ZeroDivisionError), whole_file(path) as draft:
        draft.write_text("another half")
        raise ZeroDivisionError
    assert path.read_text() == "all"


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder"
    for number in range(2):
        with whole_folder(path) as draft:
            (draft / f"file{number}").touch()
        assert [file.name for file in path.iterdir()] == [f"file{number}"]
    with pytest.raises(ZeroDivisionError), whole_folder(path) as draft:
        raise ZeroDivisionError
    assert [file.name for file in tmp_path.rglob("*")] == ["folder", "file1"]


@pytest.mark.parametrize("words", ["No space left on device (os error 28)", "file write failed"])
def test_a_full_disk_is_known_by_whatever_writer(words, tmp_path):
    with pytest.raises(stzoo.OutputError, match="No space left"), whole_file(tmp_path / "file"):
        raise RuntimeError(words)
    with pytest.raises(RuntimeError, match="something else"), whole_file(tmp_path / "file"):
        raise RuntimeError("something else")


def test_a_number_that_is_none_is_not_written_as_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_held_folder_is_refused_to_another_process_and_free_after_a_kill(tmp_path):
    code = (
        "import sys, time; from stzoo.files import held\n"
        "with held(sys.argv[1]): print(1, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    process.stdout.readline()
    with pytest.raises(stzoo.OutputError, match="in use by another run"), held(tmp_path):
        pass
    process.kill()
    process.wait()
    with held(tmp_path) as folder:
        assert folder == tmp_path
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(stzoo.OutputError, match=str(tmp_path)), held(tmp_path / "out"):
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
    with pytest.raises(stzoo.OutputError, match="could not be written"), whole_file(tmp_path / "taken" / "x"):
        raise AssertionError("never reached")
