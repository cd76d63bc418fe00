"""What becomes of an exception that ends a command: a message, an exit code, the traceback in a file."""

import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import stzoo
from stzoo.cli import main
from stzoo.cli.guard import guarded
from stzoo.errors import DataError
from stzoo.utils.files import fingerprint, is_disk_full, write_json

TOKEN = "hf_" + "a" * 34


def run(work, *words, capsys):
    """The exit code and what is said."""
    code = guarded(work, words)
    said = capsys.readouterr()
    assert not said.out
    assert "Traceback" not in said.err
    return code, said.err


def log_of(said):
    path = Path(re.search(r"The full traceback is in (\S+\.log)\.", said)[1])
    return path, path.read_text()


def test_a_fault_is_one_message_and_its_traceback_a_file(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("STZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "a-token-of-another-form")
    (tmp_path / "x").mkdir()
    words = ("bench", "--set", f"token={TOKEN}", "api_key=secret99", "a-token-of-another-form")
    code, said = run(lambda: fingerprint(tmp_path / "x", 7), *words, capsys=capsys)
    assert code == 70
    assert said.startswith("stzoo: `stzoo bench` failed in stzoo.utils.files.fingerprint")
    assert "TypeError: " in said
    assert "https://github.com/stzoo/stzoo/issues" in said
    path, log = log_of(said)
    assert path.is_relative_to(tmp_path / "cache")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "command: stzoo 'bench' '--set'" in log
    assert f"stzoo {stzoo.__version__}, torch " in log
    assert log.count("Traceback (most recent call last)") == 1
    assert "in fingerprint" in log
    for secret in (TOKEN, "secret99", "a-token-of-another-form"):
        assert secret not in log
        assert secret not in said


def test_the_file_is_named_if_it_is_known(capsys, tmp_path):
    (tmp_path / "run.json").mkdir()
    code, said = run(lambda: (tmp_path / "run.json").read_text(), "card", capsys=capsys)
    assert code == 70
    assert f"with {tmp_path / 'run.json'}:" in said


def test_a_plugins_fault_names_the_plugin(capsys):
    from stzoo.plugins import builders, manager

    build = builders.resolve(manager.find("objective", "retromae"))
    code, said = run(lambda: build(None), "pretrain", capsys=capsys)
    assert code == 70
    assert re.search(
        r"arose in the plugin retromae \(stzoo-retromae \S+\) \(\S+/stzoo_retromae/retromae\.py:\d+\)", said
    )
    assert "report it to stzoo-retromae's author" in said
    assert "github.com" not in said


def test_a_log_that_cannot_be_written_is_said(capsys, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("STZOO_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    code, said = run(lambda: {}["x"], "bench", capsys=capsys)
    assert code == 70
    assert "could not be saved (NotADirectoryError" in said
    assert "STZOO_DEBUG=1" in said


def test_with_stzoo_debug_the_traceback_is_shown_as_well(capsys, monkeypatch):
    monkeypatch.setenv("STZOO_DEBUG", "1")

    def work():
        raise DataError("no such line.")

    assert guarded(work, ["bench"]) == 2
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert said.endswith("stzoo: no such line.\n")


def deep():
    return json.loads("[" * 100_000)


def full():
    with open("/dev/full", "w") as file:  # noqa: PTH123 - no path that is written
        file.write("x")


def full_in_torch():
    torch.save({"x": torch.zeros(1 << 20)}, "/dev/full")


ENDS = {
    "Ctrl-C": (lambda: signal.raise_signal(signal.SIGINT), 130, "run the same command with --resume"),
    "SIGTERM": (lambda: signal.raise_signal(signal.SIGTERM), 143, "run the same command with --resume"),
    "an end of file": (lambda: next(iter(())) if input() else None, 70, "EOFError"),
    "too little memory": (lambda: bytearray(1 << 60), 2, "too little memory"),
    "too little memory for a tensor": (lambda: torch.empty(1 << 55), 2, "too little memory"),
    "nesting": (deep, 70, "nested very deeply"),
    "a full disk": (full, 2, "the disk is full"),
    "a full disk in torch": (full_in_torch, 2, "the disk is full"),
    "a long name": (lambda: Path("x" * 256).read_text(), 2, f"({'x' * 256}): File name too long"),
    "a loop of links": (lambda: Path("loop").read_text(), 2, "(loop): Too many levels of symbolic links"),
    "NUL in a path": (lambda: Path("a\0b").read_text(), 70, "embedded null byte"),
    "an exit": (lambda: exit(3), 3, ""),
}


@pytest.mark.parametrize("end", ENDS)
def test_every_end_has_a_sentence_and_a_code(end, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: PTH123, SIM115
    work, expected, text = ENDS[end]
    code, said = run(work, "mine", capsys=capsys)
    assert (code, text in said) == (expected, True), said
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_the_terminal_cannot_show_is_escaped(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, "ascii", write_through=True))
    assert guarded(lambda: print("\u00e9 \ud800"), ["search"]) == 0
    assert raw.getvalue() == b"\\xe9 \\ud800\n"


def test_writers_that_raise_no_oserror_are_known_to_report_a_full_disk():
    for text in ("basic_ios::clear: iostream error", "unexpected pos 128 vs 22", "os error 28"):
        assert is_disk_full(RuntimeError(text))
    assert not is_disk_full(RuntimeError("another"))


def test_what_is_written_to_a_full_disk_is_an_output_error(capsys):
    code, said = run(lambda: write_json("/dev/full/x.json", {}), "card", capsys=capsys)
    assert code == 2
    assert "/dev/full/x.json could not be written" in said


def test_a_command_can_be_run_several_times_in_a_process(capsys):
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main(["taco", "--help"])
        assert ended.value.code == 0
        assert "inspect" in capsys.readouterr().out


HUGE = str(10**22)
ABSURD = [
    ["pretrain", "--base", "x", "--corpus", "y", "--threads", HUGE],
    ["finetune", "x", "--data", "y", "--threads", HUGE],
    ["finetune", "x", "--data", "y", "--lora-rank", str(10**30)],
    ["finetune", "x", "--data", "y", "--workers", "1000000"],
    ["finetune", "x", "--data", "y", "--epochs", "1e300"],
    ["finetune", "x", "--data", "y", "--max-steps", HUGE],
    ["mine", "x", "--data", "y", "--depth", HUGE],
    ["mine", "x", "--data", "y", "--memory-gib", "1e300"],
    ["bench", "x", "--data", "y", "--threads", HUGE],
    ["bench", "x", "--data", "y", "--k", HUGE],
    ["bench", "x", "--data", "y", "--max-tokens", "-1"],
    ["bench", "x", "--data", "y", "--batch-tokens", "0"],
    ["bench", "x", "--data", "y", "--shard-rows", HUGE],
    ["bench", "x", "--data", "y", "--memory-gib", "nan"],
    ["bench", "x", "--data", "y", "--memory-gib", "-1"],
    ["pretrain", "--base", "a\0b", "--corpus", "y"],
    ["finetune", "x", "--data", "y", "--set", 'query_prompt="a\\0b"'],
]


@pytest.mark.parametrize("words", ABSURD, ids=lambda words: " ".join(words)[:60].replace("\0", "NUL"))
def test_an_absurd_value_is_refused_by_its_name_before_anything_is_read(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([*words, "--output", "out"])
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    name = "query_prompt" if words[-2] == "--set" else words[-2].lstrip("-")
    name = "base" if "\0" in words[2] else name
    assert re.search(rf"{name}|{name.replace('-', '_')}", said), said
    assert not list(tmp_path.iterdir())


BUSY = """
import hashlib
from stzoo.cli.guard import guarded, leave

def work():
    print("begun", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 12_000_000)  # seconds, in which Python cannot act on a signal

leave(guarded(work, ["bench"]))
"""


def test_ctrl_c_is_answered_while_a_library_computes():
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    time.sleep(1)  # until the library computes, which takes longer
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert said == "stzoo: stopping …\nstzoo: stopped. To continue, run the same command again.\n"
    assert process.returncode == 130


def test_ctrl_c_that_ends_a_command_at_once_is_not_announced(capsys):
    def work():
        signal.raise_signal(signal.SIGINT)

    assert run(work, "bench", capsys=capsys) == (
        130,
        "stzoo: stopped. To continue, run the same command again.\n",
    )


def test_an_unknown_option_is_answered_with_the_one_that_was_meant(capsys):
    def said(*words):
        with pytest.raises(SystemExit) as end:
            main([*words])
        assert end.value.code == 2
        return capsys.readouterr().err

    assert said("finetune", "model", "--lr", "1e-5") == (
        "stzoo: No such option: --lr; did you mean '--learning-rate'? `stzoo finetune --help` shows all.\n"
    )
    assert "did you mean '--data'?" in said("bench", "model", "--dataset", "scifact")
    assert said("list", "--xyzzy") == "stzoo: No such option: --xyzzy. `stzoo list --help` shows all.\n"
