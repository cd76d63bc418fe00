"""Names of models: folders, Hub ids and published checkpoints, checked without torch or network."""

import pytest
from huggingface_hub import close_session, constants
from support.hub_server import Fault, HubServer, Repo

from stzoo import ModelError
from stzoo.models.names import check_source


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    (tmp_path / "runs" / "tuned").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize("source", ["runs/tuned", "./runs", "retromae-base.beir"])
def test_what_exists_is_accepted(source):
    check_source(source)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("./runs/tund", "is not a Hub id either; did you mean 'runs/tuned'?"),
        ("a/b/c", "a/b/c is not a folder, and cannot be loaded from the Hub, as it is not a Hub id either."),
        (
            "runs/tund",
            "HF_HUB_OFFLINE is set, and the Hub's cache has no such model; did you mean 'runs/tu",
        ),
        ("retromae-base.bier", "did you mean 'retromae-base.beir'?"),
        ("notes.txt", "notes.txt is a file; expected a model"),
    ],
)
def test_what_cannot_be_a_model_is_refused_at_once(source, said, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as error:
        check_source(source)
    assert said in str(error.value)


def test_a_model_in_the_hubs_cache_is_accepted_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name, short in (("org--name", "org/name"), ("sentence-transformers--tiny", "tiny")):
        with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
            check_source(short)
        snapshot = tmp_path / "hub" / f"models--{name}" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text("abc")
        check_source(short)


@pytest.fixture
def hub(monkeypatch):
    made = HubServer()
    made.stand_in(monkeypatch)
    close_session()
    yield made
    made.close()
    close_session()


def test_online_the_hub_is_asked_once_whether_it_has_the_model(hub):
    with pytest.raises(ModelError) as error:
        check_source("runs/tund")
    assert str(error.value) == (
        "there is no folder runs/tund, and no such repository on the Hub, or your token cannot read it; did "
        "you mean 'runs/tuned'?"
    )
    assert hub.log == [("HEAD", "/runs/tund/resolve/main/modules.json")]
    hub.repos |= {"org/name": Repo(), "sentence-transformers/tiny": Repo()}
    check_source("org/name")  # even without that file
    check_source("tiny")
    hub.faults.append(Fault("lab/broken", status=500))
    check_source("lab/broken")  # as it may be there
