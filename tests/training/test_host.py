"""The check of the host libraries' versions, with metadata of versions that do not exist yet."""

from importlib.metadata import version

import pytest

from stzoo.training.host import check_host


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Makes the metadata of a package say another version."""

    def add(package, number):
        info = tmp_path / number / f"{package.replace('-', '_')}-{number}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package}\nVersion: {number}\n", "utf-8"
        )
        monkeypatch.syspath_prepend(info.parent)
        assert version(package) == number

    monkeypatch.setenv("STZOO_CACHE", str(tmp_path / "cache"))
    return add


def test_the_tested_versions_bring_no_note(install, capfd):
    install("sentence-transformers", "6.2.9")
    install("transformers", "5.23.1")
    check_host()
    assert capfd.readouterr().err == ""


def test_a_newer_host_library_is_noted_once(install, capfd):
    install("sentence-transformers", "6.3rc1")
    check_host()
    said = "stzoo: sentence-transformers 6.3rc1 is installed; stzoo is tested with versions up to 6.2.\n"
    assert capfd.readouterr().err == said
    check_host()
    assert capfd.readouterr().err == ""
    install("sentence-transformers", "6.4.0")
    install("transformers", "5.24.0")
    check_host()
    assert [line.split()[1:3] for line in capfd.readouterr().err.splitlines()] == [
        ["sentence-transformers", "6.4.0"],
        ["transformers", "5.24.0"],
    ]


def test_only_the_main_process_notes_it(install, capfd, monkeypatch):
    install("transformers", "5.24.0")
    monkeypatch.setenv("RANK", "1")
    check_host()
    monkeypatch.setenv("RANK", "0")
    assert capfd.readouterr().err == ""
    check_host()
    assert "transformers 5.24.0" in capfd.readouterr().err


def test_a_cache_that_cannot_be_written_is_no_fault(install, capfd, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("STZOO_CACHE", str(tmp_path / "file" / "cache"))
    install("transformers", "5.24.0")
    for _ in range(2):
        check_host()
        assert "transformers 5.24.0" in capfd.readouterr().err
