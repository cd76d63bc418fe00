"""Published checkpoints are used by their names: imported once, then read from stzoo's cache."""

import json
import multiprocessing
import shutil

import numpy as np
import pytest
from huggingface_hub import constants
from sentence_transformers import SentenceTransformer
from support.helpers import cli
from support.hub_server import HubServer, Repo
from support.models import sentence_transformer
from support.published import published

import stzoo
from stzoo import ModelError, RecipeError
from stzoo.hub import load as module
from stzoo.plugins import manager

NAME = "retromae-base.beir"
ROW = manager.find("checkpoint", NAME)
TEXTS = ["wing lift", "a flow around a plate"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with the checkpoint, and empty caches of the Hub and of stzoo."""
    server = HubServer()
    server.stand_in(monkeypatch, HF_HUB_CACHE=str(tmp_path / "hub"))
    monkeypatch.setenv("STZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("stzoo.hub.export._verify", lambda *_, **__: None)
    server.repos[ROW.hub_id] = Repo()
    server.commits = [server.repos[ROW.hub_id].commit(files(tmp_path, seed)) for seed in (1, 2)]
    yield server
    server.close()


def files(tmp_path, seed):
    """Those of a published model."""
    folder = published(tmp_path / f"published-{seed}", head=False, seed=seed)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def imported(folder):
    return json.loads((folder / "import.json").read_text())["imported"]


def test_a_checkpoint_is_imported_at_the_first_use_and_needs_no_network_later(hub, tmp_path, monkeypatch):
    model = stzoo.load(NAME)
    assert isinstance(model, SentenceTransformer)
    assert [type(part).__name__ for part in model] == ["Transformer", "Pooling"]
    assert (model.similarity_fn_name, model.max_seq_length) == ("dot", ROW.max_tokens)
    folder = tmp_path / "cache" / "zoo" / f"{NAME}-main"
    assert imported(folder)["commit"] == hub.commits[1]
    hub.close()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    shutil.rmtree(tmp_path / "hub")
    np.testing.assert_array_equal(stzoo.load(NAME).encode(TEXTS), model.encode(TEXTS))


def test_a_revision_pins_the_weights(hub, tmp_path):
    newest, pinned = stzoo.load(NAME), stzoo.load(NAME, revision=hub.commits[0])
    assert np.abs(newest.encode(TEXTS) - pinned.encode(TEXTS)).max() > 1e-3
    assert {path.name for path in (tmp_path / "cache" / "zoo").iterdir() if path.is_dir()} == {
        f"{NAME}-main",
        f"{NAME}-{hub.commits[0][:12]}",
    }
    out = stzoo.import_checkpoint(NAME, revision=hub.commits[0], output=tmp_path / "out")
    assert imported(out)["commit"] == hub.commits[0]
    with pytest.raises(RecipeError, match="is a folder"):
        stzoo.load(out, revision="main")
    with pytest.raises(RecipeError, match="--revision is for checkpoints on the Hub"):
        stzoo.import_checkpoint(out, like=NAME, revision="main", output=tmp_path / "again")


def test_a_checkpoint_described_otherwise_now_is_imported_again(hub):
    folder = module.checkpoint_folder(NAME)
    record = json.loads((folder / "import.json").read_text())
    record["imported"]["pooling"] = "mean"
    (folder / "import.json").write_text(json.dumps(record))
    assert module.checkpoint_folder(NAME) == folder
    assert imported(folder)["pooling"] == "cls"
    seen = len(hub.log)
    module.checkpoint_folder(NAME)
    assert len(hub.log) == seen


def test_a_failed_import_leaves_nothing(hub, tmp_path):
    del hub.repos[ROW.hub_id][hub.commits[1]]["pytorch_model.bin"]
    with pytest.raises(ModelError, match="no weights"):
        stzoo.load(NAME)
    assert not [path for path in (tmp_path / "cache" / "zoo").iterdir() if path.is_dir()]


def test_two_processes_import_a_checkpoint_once(hub, tmp_path):
    """Forked, so that both take the loopback hub for the Hub."""
    context = multiprocessing.get_context("fork")
    pipe = context.Queue()
    processes = [context.Process(target=lambda: pipe.put(str(module.checkpoint_folder(NAME)))) for _ in "ab"]
    for process in processes:
        process.start()
    found = {pipe.get(timeout=240) for _ in processes}
    for process in processes:
        process.join()
    assert found == {str(tmp_path / "cache" / "zoo" / f"{NAME}-main")}
    assert sum(path.endswith("pytorch_model.bin") for method, path in hub.log if method == "GET") == 1


@pytest.mark.usefixtures("hub")
def test_every_command_takes_the_name_of_a_checkpoint(judged, tmp_path):
    zoo = tmp_path / "cache" / "zoo" / f"{NAME}-main"
    found = cli("bench", NAME, "--data", judged, "--no-bm25", "--output", tmp_path / "results", "--json")
    assert found.returncode == 0, found.stderr
    [result] = json.loads(found.stdout)["results"]
    assert result["model"] == NAME
    assert (tmp_path / "results" / NAME).is_dir()

    given = dict(data=str(judged), batch_size=8, max_steps=1, dev_split=None)
    tuned = stzoo.finetune(NAME, output=tmp_path / "tuned", **given)
    record = json.loads((tuned / "run.json").read_text())
    assert record["recipe"]["model"] == NAME
    assert record["imported"]["checkpoint"] == NAME
    assert "fingerprint" in record["base"]
    assert f"base_model:\n- {ROW.hub_id}" in (tuned / "README.md").read_text()

    merged = stzoo.merge([NAME, str(zoo)], output=tmp_path / "merged")
    np.testing.assert_allclose(
        SentenceTransformer(str(merged)).encode(TEXTS), stzoo.load(NAME).encode(TEXTS), atol=1e-6
    )
    assert json.loads((merged / "merge.json").read_text())["merged"][0]["source"] == NAME
    assert (stzoo.export(NAME, tmp_path / "exported") / "import.json").is_file()
    assert stzoo.mine(NAME, data=str(judged), output=tmp_path / "mined.jsonl", mined=2, depth=5)["counts"]
    assert stzoo.search(NAME, "wing", data=judged, k=1)[0]["found"]


def test_a_folder_of_that_name_comes_first(hub, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sentence_transformer(base, "mean").save_pretrained(NAME)
    assert [type(part).__name__ for part in stzoo.load(NAME)] == ["Transformer", "Pooling", "Normalize"]
    assert not hub.log


def test_an_export_on_the_hub_is_loaded_by_its_id_and_revision(hub, base, tmp_path, monkeypatch):
    hub.repos["lab/tiny"] = Repo()
    commits = []
    for pooling in ("mean", "cls"):
        folder = stzoo.export(sentence_transformer(base, pooling), tmp_path / pooling)
        files = {
            str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        commits.append(hub.repos["lab/tiny"].commit(files))
    assert stzoo.load("lab/tiny")[1].pooling_mode == "cls"
    assert stzoo.load("lab/tiny", revision=commits[0])[1].pooling_mode == "mean"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert stzoo.load("lab/tiny", revision=commits[0])[1].pooling_mode == "mean"
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        stzoo.load("lab/other")


def test_a_checkpoint_that_is_not_on_the_hub_says_how_to_get_it():
    with pytest.raises(ModelError, match=r"msmarco-finetune is not on the Hub\. Download it"):
        stzoo.load("master-base.msmarco-finetune")


@pytest.mark.usefixtures("hub")
def test_the_zoo_lists_what_is_known_of_every_checkpoint():
    entries = json.loads(cli("zoo", "--json").stdout)
    assert {entry["name"] for entry in entries} == set(manager.all("checkpoint"))
    by_name = {entry["name"]: entry for entry in entries}
    found = by_name[NAME]
    assert (found["method"], found["base"], found["license"]) == ("retromae", ROW.base, "")
    assert (found["plugin"], found["distribution"]) == ("retromae", "stzoo-retromae")
    assert found["published"][0]["value"] == 0.452
    assert found["download_bytes"] == 4 * ROW.parameters
    assert not found["imported"]
    stzoo.load(NAME)
    shown = cli("zoo").stdout
    [line] = [line for line in shown.splitlines() if line.strip().startswith(NAME)]
    assert line.split()[-1] == "imported"
    assert {"beir-18:", "nDCG@10", "0.452", "unknown", "bert-base-uncased"} <= set(line.split())
    assert "not on the Hub" in shown
    assert len(stzoo.zoo().to_pandas()) == len(entries)
