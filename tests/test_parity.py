"""One command compares the parity file of any method with its authors' figures, and it can fail."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import processes

HERE = Path(__file__).with_name("parity")
FILES = sorted(Path(__file__).parents[1].glob("plugins/*/tests/parity/*.safetensors"))
KILT = HERE / "kilt.json"


def check(path, *words, run=processes.run):
    command = [sys.executable, str(HERE / "check.py"), str(path), *words]
    done = run(command, capture_output=True, text=True, timeout=600)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("max relative error: "))
    return done.returncode, float(line.removeprefix("max relative error: "))


@pytest.fixture(scope="module")
def checks():
    """check.py as a module."""
    spec = importlib.util.spec_from_file_location("check", HERE / "check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_one_command_checks_the_file_of_any_method(path):
    code, error = check(path, run=subprocess.run if path == FILES[0] else processes.run)
    assert code == 0
    assert error < 1e-5
    assert check(path, "--tolerance", "1e-12") == (1, error)


def test_a_file_of_no_known_method_is_refused(checks, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", metadata={"config": "{}"})
    with pytest.raises(SystemExit, match="knows a file with these tensors"):
        checks.errors(tmp_path / "x.safetensors")


def test_the_scores_of_kilt_are_those_of_its_authors(checks, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check.py", str(KILT)])
    assert checks.main() == 0
    assert capsys.readouterr().out.endswith("\nmax absolute error: 0\n")
    about = json.loads(KILT.read_text())
    about["mean"]["recall@5"] += 2e-9
    (tmp_path / "kilt.json").write_text(json.dumps(about))
    monkeypatch.setattr(sys, "argv", ["check.py", str(tmp_path / "kilt.json")])
    assert checks.main() == 1
    assert capsys.readouterr().out.endswith("the worst is recall@5 of mean\nmax absolute error: 2e-09\n")


def pages(about, part, number):
    return about[part][number]["output"][0]["provenance"]


# Question 0 has four evidence sets, of which {1003, 1005, 1001} is complete with the page guessed ninth.
KILT_CHANGES = {
    "the score of a question": lambda about: about["per_query"][7].update(Rprec=0.123),
    "a mean": lambda about: about["mean"].update({"precision@20": about["mean"]["precision@20"] + 1e-8}),
    "no number": lambda about: about["per_query"][0].update(Rprec=float("nan")),
    "the last page of a set": lambda about: pages(about, "guess", 0)[8].update(wikipedia_id="none"),
    "the order of the guess": lambda about: pages(about, "guess", 0).reverse(),
    "a set less": lambda about: about["gold"][0]["output"].pop(1),
    "a page more in a set": lambda about: about["gold"][0]["output"][1]["provenance"].append(
        {"wikipedia_id": "none"}
    ),
}


@pytest.mark.parametrize("change", KILT_CHANGES)
def test_the_check_of_kilt_notices(checks, change, tmp_path):
    about = json.loads(KILT.read_text())
    KILT_CHANGES[change](about)
    (tmp_path / "kilt.json").write_text(json.dumps(about))
    assert max(checks.kilt_errors(tmp_path / "kilt.json").values()) > 1e-9


def test_a_file_of_other_cutoffs_and_without_some_keys_is_checked_by_what_it_has(checks, tmp_path):
    """Two questions by hand: x a, of which a is evidence; and nothing guessed."""
    gold = [
        {"id": name, "input": "?", "output": [{"answer": "y"}, {"provenance": [{"wikipedia_id": "a"}]}]}
        for name in "pq"
    ]
    guess = [
        {"id": "q", "output": [{"provenance": []}]},
        {"id": "p", "output": [{"provenance": [{"wikipedia_id": "x"}, {"wikipedia_id": "a"}]}]},
    ]
    about = {
        "gold": gold,
        "guess": guess,
        "per_query": [{"Rprec": 0.0, "precision@2": 0.5, "recall@3": 1.0, "success_rate@2": 1}, {"Rprec": 0}],
        "mean": {"Rprec": 0.0, "precision@2": 0.25, "recall@3": 0.5, "recall@1": 0.0},
    }
    (tmp_path / "kilt.json").write_text(json.dumps(about))
    found = checks.kilt_errors(tmp_path / "kilt.json")
    assert len(found) == 9
    assert set(found.values()) == {0.0}
