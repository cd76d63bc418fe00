"""Publishing, with the real client, to a hub on the loopback device."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from huggingface_hub import constants
from support import processes
from support.helpers import cli, record_run, wait_for
from support.hub_server import Fault, HubServer, Repo

from stzoo.errors import DataError, PublishError, RecipeError
from stzoo.hub import licences, upload_files, verify_standalone
from stzoo.hub.publish import publish
from stzoo.training.finetune_settings import FinetuneSettings

TOKEN = "hf_" + "x" * 34
REPO = "lab/tiny"


@pytest.fixture(scope="session")
def exported(base, tmp_path_factory):
    """A finished model as `export` writes it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    from stzoo.hub.export import export

    prompts = {"query": "query: ", "document": ""}
    model = SentenceTransformer(modules=[Transformer(str(base)), Pooling(32)], device="cpu", prompts=prompts)
    return export(model, tmp_path_factory.mktemp("exported") / "tiny", verify=False)


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of it, as a run leaves it."""
    shutil.copytree(exported, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "checkpoint-1" / "optimizer.pt").write_bytes(b"pickled")
    (tmp_path / "run" / "logs").mkdir()
    (tmp_path / "run" / "logs" / "train.txt").write_text("/somewhere/else/ entirely")
    record_run(tmp_path / "record", FinetuneSettings(model="some/base", data="scifact"), [])
    (tmp_path / "record" / "run.json").rename(tmp_path / "run" / "run.json")
    return tmp_path / "run"


@pytest.fixture
def hub(monkeypatch):
    """A hub that this process takes for the Hub, and where it may write to lab/…"""
    server = HubServer()
    server.add_user(TOKEN, "tester", orgs=["lab"])
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.stand_in(monkeypatch)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def unloaded(monkeypatch):
    """Models are not loaded in a process of their own, which takes seconds; other tests see to it."""
    monkeypatch.setattr("stzoo.hub.publish.check_load", lambda _: 32)


def send(folder, **options):
    said = []
    options = {"license": "apache-2.0", "say": said.append} | options
    made = publish(folder, options.pop("repo", REPO), **options)
    made.said = "\n".join(said)
    return made


def held(hub, repo=REPO, branch="main"):
    """What the hub has on a branch."""
    return hub.repos[repo][hub.repos[repo].heads[branch]]


def writes(hub):
    """The requests that would change something."""
    harmless = "/api/validate-yaml"
    return [one for one in hub.log if one[0] not in ("GET", "HEAD") and one[1] != harmless]


def refused(match, folder, **options):
    with pytest.raises(PublishError, match=match) as error:
        send(folder, **options)
    assert TOKEN not in str(error.value)
    return str(error.value)


# What is sent


def test_the_model_is_sent_in_one_commit_and_what_a_run_keeps_beside_it_stays(hub, folder):
    made = send(folder)
    there = held(hub)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    names -= {"checkpoints/checkpoint-1/optimizer.pt", "logs/train.txt"}
    assert there.keys() == names | {"README.md", ".gitattributes", ".stzoo.json"}
    for name in names - {"README.md"}:
        assert there[name] == (folder / name).read_bytes()
    assert (made.commit, made.changed) == (hub.repos[REPO].heads["main"], True)
    assert made.url == f"{hub.url}/{REPO}/commit/{made.commit}"
    assert len(hub.repos[REPO]) == 2, "the first commit is the hub's own"
    assert made.stays == ["checkpoints/", "logs/"]


def test_both_towers_of_a_model_that_begins_with_a_router_are_sent(hub, base, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    from stzoo.hub.export import export

    towers = [[Transformer(str(base)), Pooling(32)] for _ in ("queries", "passages")]
    model = SentenceTransformer(modules=[Router.for_query_document(*towers)], device="cpu")
    folder = export(model, tmp_path / "towers", verify=False)
    send(folder)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert sum(name.endswith("model.safetensors") for name in names) == 2
    assert names <= held(hub).keys()


def test_a_summary_of_the_card_or_all_of_it_and_every_file_is_shown(hub, folder):
    made = send(folder, dry_run=True)
    for line in ("  Licence: apache-2.0", "  Base model: none", "  Languages: none", "  Scores: none"):
        assert line in made.said.splitlines()
    assert re.search(r"^The card, \d+ lines \(--show-card shows it\):$", made.said, re.M)
    assert "library_name" not in made.said
    made = send(folder, show_card=True)
    assert held(hub)["README.md"].decode().strip() in made.said
    assert "--show-card" not in made.said
    for name in held(hub).keys() - {".gitattributes"}:
        assert f"new      {name}" in made.said
    assert f"{(folder / 'model.safetensors').stat().st_size:,}  new      model.safetensors" in made.said
    assert "Not published: checkpoints/, logs/." in made.said


def test_a_missing_package_for_fast_uploads_is_noted(hub, folder, monkeypatch):
    monkeypatch.setattr("stzoo.hub.publish.find_spec", {"hf_xet": None}.get)
    made = send(folder)
    assert "Note: hf_xet is not installed, so large files are sent over plain HTTP" in made.said
    assert "model.safetensors" in held(hub)


def test_publishing_twice_changes_nothing(hub, folder):
    first = send(folder)
    hub.log.clear()
    second = send(folder)
    assert writes(hub) == []
    assert (second.commit, second.changed) == (first.commit, False)
    assert {facts["change"] for facts in second.files.values()} == {"same"}
    assert "Already published" in second.said


def test_only_what_differs_is_sent_again_and_what_is_gone_goes(hub, folder):
    (folder / "old.txt").write_text("of the first one")
    (folder / "notes.txt").write_text("first")
    send(folder)
    hub.repos[REPO].commit(held(hub) | {"theirs.txt": b"somebody's", ".gitattributes": b"changed"})
    (folder / "old.txt").unlink()
    (folder / "notes.txt").write_text("later")
    made = send(folder)
    changes = {name: facts["change"] for name, facts in made.files.items() if facts["change"] != "same"}
    assert changes == dict.fromkeys(["notes.txt", ".stzoo.json"], "changed")
    assert made.deleted == ["old.txt"]
    assert "deleted  old.txt" in made.said
    assert "old.txt" not in held(hub)
    assert (held(hub)["theirs.txt"], held(hub)[".gitattributes"]) == (b"somebody's", b"changed")
    assert made.notes == [f"{REPO} has files that stzoo did not publish; they are kept: theirs.txt."]


def test_what_else_is_called_a_config_may_hold_anything(hub, folder):
    (folder / "data_config.json").write_text('[{"name": "of all-MiniLM-L6-v2"}]')
    send(folder)
    assert "data_config.json" in held(hub)


def test_hidden_folders_stay(hub, folder):
    for name in (".ipynb_checkpoints", ".git"):
        (folder / "1_Pooling" / name).mkdir()
        (folder / "1_Pooling" / name / "config.json").write_text("{}")
    send(folder)
    assert [name for name in held(hub) if name.startswith("1_Pooling/")] == ["1_Pooling/config.json"]


def test_a_run_record_that_names_places_of_this_machine_stays(hub, folder):
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"notes": ["from /data/models/base"]}))
    made = send(folder)
    assert "run.json" not in held(hub)
    assert "run.json (it contains an absolute path)" in made.stays


def test_files_that_the_repository_ignores_are_sent_all_the_same(hub, folder):
    hub.repos[REPO] = Repo()
    hub.repos[REPO].commit({".gitignore": b"*.json\n*.safetensors\n"})
    send(folder)
    assert {"config.json", "model.safetensors"} <= held(hub).keys()


def test_a_dry_run_changes_nothing(hub, folder):
    made = send(folder, dry_run=True, collection="Zoo")
    assert writes(hub) == []
    assert hub.repos == {}
    assert (made.commit, made.changed) == (None, False)
    assert "new      model.safetensors" in made.said
    assert "nothing was changed" in made.said


def test_a_dry_run_needs_neither_token_nor_network(hub, folder, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    made = send(folder, dry_run=True)
    assert "Note: HF_HUB_OFFLINE is set" in made.said
    assert "The content of the repository was not checked." in made.said
    assert hub.log == []


# The card


@pytest.fixture(scope="module")
def results(exported, judged, tmp_path_factory):
    """Scores of the model, and of another one."""
    from stzoo.evaluation.bench.bench import bench

    other = tmp_path_factory.mktemp("other") / "other"
    shutil.copytree(exported, other)
    weights(other, lambda t: {name: tensor * 0.5 for name, tensor in t.items()})
    folder = tmp_path_factory.mktemp("results")
    for model in (exported, other):
        bench([str(model)], data=judged, output=folder / model.name, bm25=False, keep_store=False)
    return folder


def test_new_scores_appear_on_the_card_that_is_there(hub, folder, results):
    send(folder)
    assert "## Results" not in held(hub)["README.md"].decode()
    made = send(folder, results=results / "tiny")
    assert "## Results" in held(hub)["README.md"].decode()
    assert {name for name, facts in made.files.items() if facts["change"] != "same"} == {"README.md"}


def test_results_of_another_model_are_refused(hub, folder, results):
    with pytest.raises(DataError, match=r"has no results of .*run in its present form"):
        send(folder, results=results / "other")
    assert writes(hub) == []


def test_a_picture_of_the_card_is_sent_though_it_is_none_of_the_models_files(hub, folder):
    (folder / "learning_curve.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0 /no/path")
    made = send(folder)
    assert not send(folder).changed
    assert held(hub)["learning_curve.png"].startswith(b"\x89PNG")
    assert made.stays == ["checkpoints/", "logs/"]


# Branches, owners, collections


def test_a_branch_is_made_and_main_stays(hub, folder):
    first = send(folder)
    (folder / "run.json").write_text("{}")
    made = send(folder, revision="v2")
    assert hub.repos[REPO].heads == {"main": first.commit, "v2": made.commit}
    assert held(hub, branch="v2")["run.json"] == b"{}"
    assert not send(folder, revision="v2").changed


def test_a_new_repository_gets_the_branch_beside_an_empty_main(hub, folder):
    made = send(folder, revision="v1")
    assert held(hub, branch="v1").keys() > {"model.safetensors"}
    assert held(hub).keys() == {".gitattributes"}
    assert made.revision == "v1"


def test_a_branch_of_what_main_holds_is_made_as_well(hub, folder):
    first = send(folder)
    made = send(folder, revision="release/1.0")
    assert hub.repos[REPO].heads == {"main": first.commit, "release/1.0": first.commit}
    assert (made.commit, made.changed) == (first.commit, True)
    assert not send(folder, revision="release/1.0").changed


def test_a_private_model_is_private(hub, folder):
    assert send(folder, private=True).private
    assert hub.repos[REPO].private
    assert send(folder).private
    hub.repos[REPO].private = False
    refused(r"lab/tiny exists and is public", folder, private=True)


def test_a_model_is_put_into_a_collection_once(hub, folder):
    made = send(folder, collection="Our Zoo")
    ((slug, collection),) = hub.collections.items()
    assert made.collection == f"{hub.url}/collections/{slug}"
    send(folder, collection="Our Zoo")
    send(folder, collection=slug)
    assert [item["id"] for item in collection["items"]] == [REPO]
    assert len(hub.collections) == 1


def test_a_collection_that_is_not_there_is_told_before_anything_is_made(hub, folder):
    refused(
        r"Not found.*\(HTTP 404 while reading the collection lab/other-123: Collection not found\)",
        folder,
        collection="lab/other-123",
    )
    assert writes(hub) == []


def test_a_collection_that_fails_says_where_the_model_is(hub, folder):
    hub.faults.append(Fault("POST /api/collections", status=403, error="no collections for you"))
    told = refused("no permission for this.*no collections for you", folder, collection="Zoo")
    assert f"The model is at {hub.url}/{REPO}/commit/{hub.repos[REPO].heads['main']}." in told


# What the hub, or the way to it, may answer


REFUSALS = [
    ("GET /api/whoami", 401, "There is no token, or it is invalid; run `hf auth login`.*checking your token"),
    ("GET /api/whoami", 503, "The Hub has an internal error; try again later"),
    ("POST /api/validate", 500, "internal error.*validating the card"),
    ("GET /api/models", 403, "no permission.*listing the files of lab/tiny"),
    ("POST /api/repos/create", 403, "no permission for this.*creating lab/tiny"),
    ("POST /api/repos/create", 409, "The name is taken.*creating lab/tiny"),
    ("POST /api/repos/create", 402, r"The Hub refused \(HTTP 402 while .*: ordered by the test\)"),
    ("POST .*/preupload/", 403, "no permission"),
    ("POST .*/info/lfs", 403, "no permission"),
    ("PUT /lfs", 400, "refused.*uploading the files of lab/tiny"),
    ("POST .*/commit/", 429, "Too many requests; try again in 77 seconds"),
    ("POST .*/commit/", 500, "internal error.*committing to lab/tiny"),
    ("POST .*/commit/", 413, "refused"),
]


@pytest.mark.parametrize(("where", "status", "match"), REFUSALS)
def test_a_refusal_leaves_a_new_repository_empty(hub, folder, where, status, match):
    hub.faults.append(Fault(where, status=status, headers={"Retry-After": "77"}))
    told = refused(match, folder)
    begun = where.endswith(("preupload/", "lfs", "commit/"))
    assert begun == ("lab/tiny was created and is empty." in told) == (REPO in hub.repos)
    assert not begun or held(hub).keys() == {".gitattributes"}
    assert send(folder).changed, "the next call mends it"


@pytest.mark.parametrize(("where", "status", "match"), [one for one in REFUSALS if "create" not in one[0]])
def test_a_refusal_leaves_a_repository_as_it_was(hub, folder, where, status, match):
    send(folder)
    weights(folder, lambda t: {name: tensor * 0.5 for name, tensor in t.items()})
    before = dict(hub.repos[REPO].heads)
    hub.faults.append(Fault(where, status=status, headers={"Retry-After": "77"}))
    told = refused(match, folder)
    assert where.endswith(("preupload/", "lfs", "commit/")) == ("lab/tiny is unchanged." in told)
    assert hub.repos[REPO].heads == before
    assert send(folder).changed, "the next call mends it"


def test_a_connection_that_breaks_is_tried_again(hub, folder):
    hub.faults.append(Fault("PUT /lfs", cut="asked"))
    hub.faults.append(Fault("POST .*/preupload/", status=503))
    assert send(folder).changed
    assert len(hub.asked("PUT")) == 2


def test_a_date_to_wait_for_is_not_told_as_seconds(hub, folder):
    date = {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}
    hub.faults.append(Fault("POST .*/commit/", status=429, headers=date))
    refused(r"try again in a few minutes \(HTTP 429", folder)


def test_a_slow_hub_is_waited_for(hub, folder):
    hub.faults.append(Fault("POST .*/commit/", wait=1.0))
    assert send(folder).changed


@pytest.mark.parametrize("revision", ["main", "v2"])
def test_a_commit_whose_answer_is_lost_is_found(hub, folder, revision):
    hub.faults.append(Fault("POST .*/commit/", cut="done"))
    made = send(folder, revision=revision)
    assert (made.commit, made.changed) == (hub.repos[REPO].heads[revision], True)
    assert len(hub.repos[REPO]) == 2


def test_a_commit_whose_answer_and_all_that_follows_is_lost_is_not_called_undone(hub, folder):
    gone = Fault(f"GET /api/models/{REPO}$", status=503)
    hub.faults.append(Fault("POST .*/commit/", cut="done", first=lambda: hub.faults.append(gone)))
    refused("It is unknown whether the commit was made; publish again to find out", folder)
    assert not send(folder).changed


def test_a_refused_commit_is_not_looked_for(hub, folder):
    gone = Fault(f"GET /api/models/{REPO}$", status=503)
    hub.faults.append(Fault("POST .*/commit/", status=429, first=lambda: hub.faults.append(gone)))
    refused("Too many requests", folder)


def test_a_commit_that_comes_in_between_is_not_overwritten(hub, folder):
    send(folder)
    (folder / "run.json").write_text("{}")
    theirs = held(hub) | {"config.json": b"theirs"}
    hub.faults.append(Fault("POST .*/commit/", first=lambda: hub.repos[REPO].commit(theirs)))
    refused(r"has changed in the meantime; look at the changes, and publish again \(HTTP 412", folder)
    assert held(hub) == theirs


def test_a_branch_that_its_commit_failed_for_is_taken_back(hub, folder):
    send(folder)
    (folder / "run.json").write_text("{}")
    hub.faults.append(Fault("POST .*/commit/", status=400))
    refused("refused", folder, revision="v2")
    assert hub.repos[REPO].heads.keys() == {"main"}


@pytest.mark.parametrize("fault", [{"cut": "done"}, {"status": 503}, {"status": 409}])
def test_a_branch_that_is_not_known_to_be_made_is_taken_back(hub, folder, fault):
    send(folder)
    (folder / "run.json").write_text("{}")
    hub.faults.append(Fault("POST .*/branch/", **fault))
    refused("creating the branch v2.* lab/tiny is unchanged", folder, revision="v2")
    assert hub.repos[REPO].heads.keys() == {"main"}


def test_a_branch_that_somebody_else_makes_meanwhile_is_left_alone(hub, folder):
    first = send(folder)
    (folder / "run.json").write_text("{}")
    theirs = hub.repos[REPO].heads
    meanwhile = Fault("POST .*/branch/", first=lambda: theirs.update(v2=first.commit))
    hub.faults.append(meanwhile)
    refused(r"HTTP 409 while .*: Reference already exists", folder, revision="v2")
    assert held(hub, branch="v2") == held(hub)


def test_a_branch_that_somebody_else_has_used_meanwhile_is_not_taken_back(hub, folder):
    send(folder)
    (folder / "run.json").write_text("{}")
    meanwhile = Fault("POST .*/commit/", first=lambda: hub.repos[REPO].commit({"a": b""}, "v2"))
    hub.faults.append(meanwhile)
    refused("has changed in the meantime", folder, revision="v2")
    assert held(hub, branch="v2") == {"a": b""}


def test_a_killed_upload_leaves_the_repository_as_it_was(hub, folder, tmp_path):
    stop = threading.Event()
    hub.faults.append(Fault("PUT /lfs", first=lambda: stop.wait(60)))
    code = f"""
        import stzoo.hub.publish as module
        module.check_load = lambda _: 32
        module.publish({str(folder)!r}, {REPO!r}, license="mit")
    """
    process = processes.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], env=outside(hub, tmp_path), stdout=subprocess.DEVNULL
    )
    wait_for(lambda: hub.asked("PUT"), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    stop.set()
    assert held(hub).keys() == {".gitattributes"}


def test_ctrl_c_before_the_commit_leaves_the_repository_as_it_was(hub, folder, tmp_path):
    stop = threading.Event()
    hub.faults.append(Fault("POST .*/commit/", first=lambda: stop.wait(60), status=503))
    words = ["stzoo", "publish", str(folder), REPO, "--license", "mit", "--revision", "v2"]
    code = f"""
        import sys
        import stzoo.cli, stzoo.hub.publish
        stzoo.hub.publish.check_load = lambda _: 32
        sys.argv = {words!r}
        stzoo.cli.main()
    """
    process = processes.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], env=outside(hub, tmp_path), stdout=subprocess.DEVNULL
    )
    wait_for(lambda: any("/commit/" in path for path in hub.asked("POST")), process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    stop.set()
    assert hub.repos[REPO].heads.keys() == {"main"}
    assert held(hub).keys() == {".gitattributes"}


def test_without_a_network_the_hub_is_named(hub, folder, monkeypatch):
    hub.close()
    told = refused("cannot be reached, or the connection broke", folder)
    assert hub.url in told
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("HF_HUB_OFFLINE is set", folder)


def test_without_a_token_nothing_is_asked(hub, folder, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    refused("publishing needs a token. Run `hf auth login`, or set HF_TOKEN", folder)
    assert hub.log == []


def test_a_token_for_reading_is_refused_at_once(hub, folder):
    hub.add_user(TOKEN, "tester", orgs=["lab"], role="read")
    refused("tester's token is read-only. Create one .*/settings/tokens", folder)
    assert hub.asked("GET") == ["/api/whoami-v2"]


def test_anothers_name_cannot_be_used(hub, folder):
    refused(r"no permission for this \(HTTP 403 .*under 'others'\)", folder, repo="others/tiny")
    assert hub.repos == {}


def test_a_name_that_is_taken_is_not_overwritten_unless_asked_to(hub, folder):
    theirs = {"README.md": b"theirs", "config.json": b"theirs", "notes.md": b"theirs"}
    hub.repos[REPO] = Repo()
    before = hub.repos[REPO].commit(theirs)
    names = r"\(README.md, config.json\)"
    refused(rf"the name lab/tiny is taken: it has files that stzoo did not publish {names}", folder)
    assert hub.repos[REPO].heads == {"main": before}
    send(folder, overwrite=True)
    assert held(hub)["config.json"] == (folder / "config.json").read_bytes()
    assert held(hub)["notes.md"] == b"theirs"
    assert not send(folder).changed


@pytest.mark.parametrize("readme", [b"", b"---\nlicense: mit\n---\n", b"---\r\nlicense: mit\r\n---\r\n\r\n"])
def test_a_repository_that_the_hub_has_just_made_is_filled(hub, folder, readme):
    hub.repos[REPO] = Repo()
    hub.repos[REPO].commit({"README.md": readme, ".gitattributes": b"*.bin"})
    send(folder)
    assert held(hub)["README.md"].startswith(b"---\nlicense: apache-2.0\n")
    assert held(hub)[".gitattributes"] == b"*.bin"


@pytest.mark.parametrize("readme", [b"soon", b"---\nlicense: mit\n---\n\n# My notes\n"])
def test_a_card_that_others_wrote_is_not_overwritten_unless_asked_to(hub, folder, readme):
    hub.repos[REPO] = Repo()
    before = hub.repos[REPO].commit({"README.md": readme, ".gitattributes": b"*.bin"})
    refused(r"it has files that stzoo did not publish \(README.md\)", folder)
    refused(r"it has files that stzoo did not publish \(README.md\)", folder, dry_run=True)
    assert hub.repos[REPO].heads == {"main": before}
    send(folder, overwrite=True)
    assert held(hub)["README.md"].startswith(b"---\nlicense: apache-2.0\n")


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("p_value", [0.3, 0.01])
def test_an_adapted_model_that_is_not_better_has_a_note(folder, dry_run, p_value):
    gain = {"difference": 0.02, "p_value": p_value, "low": 0.0, "high": 0.04, "queries": 8}
    scores = {"base": 0.5, "adapted": 0.52}
    about = {"base": "some/base", "base_id": None, "teacher": None, "passages": 9, "questions": 9}
    about |= {"generator": "x", "weighted_tokens": True, "share": 1.0, "scores": scores, "gain": gain}
    (folder / "adaptation.json").write_text(json.dumps({"schema_version": 1, "adapted": about}))
    note = "`stzoo adapt` advised to keep the base model instead of this one: the gain is not beyond chance."
    made = send(folder, dry_run=dry_run)
    assert (note in made.notes) == (p_value > 0.05)
    assert (f"Note: {note}" in made.said.splitlines()) == (p_value > 0.05)


def test_a_list_that_cannot_be_read_is_told(hub, folder):
    hub.repos[REPO] = Repo()
    hub.repos[REPO].commit({".stzoo.json": b'{"schema_version": 99}'})
    refused(r"\.stzoo\.json in lab/tiny is not a list of this version", folder)


def test_a_card_that_the_hub_refuses_is_not_sent(hub, folder):
    refused(r'the Hub rejects the card: "license" must be one of \[apache-2.0', folder, license="my-own")
    assert writes(hub) == []


@pytest.mark.usefixtures("hub")
def test_a_card_names_a_licence(folder):
    refused("the card has no licence. Give one.*--license apache-2.0", folder, license=None)


# What must not be published


@pytest.mark.parametrize("repo", ["tiny", "a/b/c", "lab/", "lab/a--b", "lab/a b", "lab/tiny.git"])
def test_a_name_that_cannot_be_is_refused(hub, folder, repo):
    with pytest.raises(RecipeError, match=f"repo is {repo!r}: .*expected ORG/NAME"):
        send(folder, repo=repo)
    assert hub.log == []


def test_a_commit_is_no_branch(folder):
    with pytest.raises(RecipeError, match="is a commit; expected the name of a branch"):
        send(folder, revision="0" * 40)


def test_a_folder_that_is_no_export_is_refused(hub, folder, tmp_path):
    refused("nowhere is not a folder", tmp_path / "nowhere")
    (folder / "modules.json").unlink()
    refused("run .* is not finished, so it has no model yet. Continue it with --resume", folder)
    (folder / "run.json").unlink()
    refused("run is not a model: it has no modules.json", folder)
    assert writes(hub) == []


def change(path, **changes):
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | changes))


def listed(folder, **changes):
    path = folder / "modules.json"
    first, second = json.loads(path.read_text())
    path.write_text(json.dumps([first, second | changes]))


def weights(folder, edit, **metadata):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file(edit(tensors), folder / "model.safetensors", metadata={"format": "pt", **metadata})


MISFITS = {
    "pickled weights": (
        lambda f: (f / "pytorch_model.bin").write_bytes(b""),
        "pytorch_model.bin may run code when opened; only safetensors",
    ),
    "pickled weights of a module": (
        lambda f: (f / "1_Pooling" / "x.pt").write_bytes(b""),
        "1_Pooling/x.pt may run code",
    ),
    "code of its own": (
        lambda f: listed(f, type="stzoo_x.Pooling"),
        "stzoo_x.Pooling is not from sentence-transformers",
    ),
    "modules of 6 alone": (
        lambda f: listed(f, type="sentence_transformers.sentence_transformer.modules.Pooling"),
        "is unknown before sentence-transformers 6. `stzoo export`",
    ),
    "a module outside": (
        lambda f: listed(f, path="../1_Pooling"),
        "'../1_Pooling', which is not a folder inside",
    ),
    "a module that is the folder": (lambda f: listed(f, path="."), "'.', which is not a folder inside"),
    "routes without types": (
        lambda f: (f / "router_config.json").write_text('{"types": ["a"]}'),
        "router_config.json has no types",
    ),
    "a pooling of 6 alone": (
        lambda f: (f / "1_Pooling" / "config.json").write_text(
            '{"embedding_dimension": 32, "pooling_mode": "mean"}'
        ),
        "1_Pooling/config.json does not state the same pooling",
    ),
    "two poolings": (
        lambda f: change(f / "1_Pooling" / "config.json", pooling_mode="cls"),
        "1_Pooling/config.json does not state the same pooling",
    ),
    "a prompt that is none": (
        lambda f: change(f / "config_sentence_transformers.json", prompts={"query": 1}),
        "the prompts are {'query': 1}; expected texts by name",
    ),
    "a default prompt that is none": (
        lambda f: change(f / "config_sentence_transformers.json", default_prompt_name="qury"),
        "the default prompt 'qury' is unknown; expected one of: query, document",
    ),
    "a default prompt that is no text": (
        lambda f: change(f / "config_sentence_transformers.json", default_prompt_name=["query"]),
        r"the default prompt \['query'\] is unknown",
    ),
    "an empty file of weights": (
        lambda f: os.truncate(f / "model.safetensors", 0),
        "the header of model.safetensors is not JSON",
    ),
    "a link to elsewhere": (
        lambda f: (f / "notes.txt").symlink_to(__file__),
        "notes.txt links to a file outside",
    ),
    "a picture linked from elsewhere": (
        lambda f: (f / "learning_curve.png").symlink_to(__file__),
        "learning_curve.png links to a file outside",
    ),
    "a name of a file in lines": (lambda f: (f / "a\nb.txt").write_text(""), r"the name 'a\\nb.txt'"),
    "a name of a file that is no text": (
        lambda f: (f / os.fsdecode(b"a\xff.txt")).write_text(""),
        r"the name 'a\\udcff.txt'",
    ),
    "a damaged file": (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
    "a huge file": (
        lambda f: os.truncate(f / "model.safetensors", 50 * 10**9 + 1),
        "model.safetensors has 50,000,000,001 bytes, but the Hub accepts 50,000,000,000",
    ),
}


@pytest.mark.parametrize("what", MISFITS)
def test_a_model_that_does_not_fit_is_refused(hub, folder, what):
    misfit, match = MISFITS[what]
    misfit(folder)
    refused(match, folder)
    assert writes(hub) == []


SECRETS = {
    "hf_" + "a1" * 17: "a Hugging Face token",
    "sk-" + "proj-" + "Ab3_" * 8: "an API key",
    "AIza" + "a" * 35: "an API key",
    "xoxb-" + "123456789012": "an API key",
    "api_org_" + "a" * 34: "a Hugging Face token",
    "AKIA" + "Z" * 16: "an AWS key",
    "ASIA" + "Z" * 16: "an AWS key",
    "aws_secret_access_key = " + "wJalrXUtnFEMI/K7": "a password or key",
    "api_key=" + "abcd1234efgh": "a password or key",
    "ghp_" + "b" * 36: "a GitHub token",
    "-----BEGIN OPENSSH " + "PRIVATE KEY-----": "a private key",
    "https://me:" + "secret@example.org": "a password",
    "/home/me/models/base": "an absolute path",
    "/Users/me/base": "an absolute path",
    "C:\\Users\\me\\base": "an absolute path",
    "C:/models/base": "an absolute path",
    r"\\server\share\model": "an absolute path",
    "file:///mnt/base": "an absolute path",
    "~/models/base": "an absolute path",
    "~me/models/base": "an absolute path",
    "path:/mnt/disk/base": "an absolute path",
    "/données/modèle": "an absolute path",
    "/mnt/disk/base": "an absolute path",
    str(Path.home() / "base"): "your home folder",
}


@pytest.mark.parametrize("secret", SECRETS, ids=SECRETS.get)
def test_a_secret_is_found(secret):
    for name, content in (
        ("a.txt", secret),
        ("a.txt", f"at {secret} there"),
        ("a.json", json.dumps({"x": f"one\n{secret}"})),
        ("a.json", json.dumps([secret]).replace("/", "\\/")),
    ):
        assert f"{name}:2: {SECRETS[secret]}" in upload_files.findings(name, f"\n{content}\n".encode())


def test_the_token_itself_is_found_whatever_its_form(hub, folder, monkeypatch):
    own = "of-our-own-hub-42"
    monkeypatch.setenv("HF_TOKEN", own)
    hub.add_user(own, "tester", orgs=["lab"])
    (folder / "notes.txt").write_text(f"take {own}")
    assert own not in refused(r"notes.txt:1: your own token", folder)
    assert writes(hub) == []


def test_an_answer_that_repeats_the_token_does_not_tell_it(hub, folder):
    hub.faults.append(Fault("POST .*/commit/", status=403, error=f"{TOKEN} has no right"))
    refused(r"no permission for this \(HTTP 403 .*: … has no right\)", folder)


@pytest.mark.parametrize("place", ["notes.txt", "1_Pooling/extra.json", "model.safetensors"])
def test_a_secret_is_told_by_its_place_alone(hub, folder, place):
    if place == "model.safetensors":
        weights(folder, dict, source=TOKEN)
    else:
        (folder / place).write_text(json.dumps({"source": TOKEN}))
    refused(rf"{place}:\d: a Hugging Face token.*Remove them", folder)
    assert writes(hub) == []


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/lab/tiny/resolve/main/a.json, https://example.org/home/of/stzoo",
        "see [it](benchmarks/results) and ../a/b, and/or/not, 1/2/3, ~5/10, a~/b",
        "<b>x</b></p>",
        "task-specific sk-learn hf_transfer risk-free-and-very-long-words-here",
        "it costs $1:\\alpha",
        '{"secret": 2, "template": "\\\\n\\\\nsecret: one"}',
        '{"secret": 3.2985899448394775, "password": -12345678, "api_key": 1.25e-10}',
        '{"secret": null, "password": false, "api_key": true}',
    ],
)
def test_what_is_no_secret_is_let_through(text):
    assert upload_files.findings("notes.txt", text.encode()) == []


@pytest.mark.parametrize(
    "text",
    [
        '{"password": "12345678"}',
        "password: 1234abcd5678",
        "password = 12345678",
        "api_key: 20240131123456\n",
        '{"secret":3.29x85899}',
        "api_key = '0123.4567'",
    ],
)
def test_a_text_with_digits_may_be_a_secret(text):
    assert upload_files.findings("a.json", text.encode()) == ["a.json:1: a password or key"]


def test_the_weights_of_words_are_no_secrets_and_no_paths():
    weights = json.dumps(
        {"word_weights": {"secret": 3.2985899448394775, "/usr/bin": 2.5, "secret:a1b2c3d4": 1}}
    )
    name = "1_Router/query_0_WordWeights/config.json"
    assert upload_files.findings(name, weights.encode()) == []
    assert upload_files.findings(name, json.dumps({"vocab": [TOKEN]}).encode()) != []


def test_the_tokens_of_a_vocabulary_are_no_paths():
    tokens = b"/usr/bin\n/a/b/c\n"
    assert upload_files.findings("vocab.txt", tokens) == []
    assert upload_files.findings("notes.txt", tokens) != []
    assert upload_files.findings("vocab.txt", b"/home/me/x\n") == ["vocab.txt:1: an absolute path"]


# That it loads


@pytest.fixture
def in_process(monkeypatch):
    """alone.py's answers, without the seconds that a process of its own takes."""
    monkeypatch.setattr(upload_files, "run_alone", lambda words, _: [verify_standalone.twice(words[1])])


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda t: {name: tensor * float("nan") for name, tensor in t.items()}, "not finite"),
        (
            lambda t: {name: tensor for name, tensor in t.items() if "layer.1" not in name},
            "two loads of the model give different embeddings; check that its files",
        ),
    ],
    ids=["not finite", "missing"],
)
def test_weights_that_are_not_whole_are_not_sent(hub, folder, monkeypatch, edit, match):
    monkeypatch.setattr("stzoo.hub.publish.check_load", upload_files.check_load)
    weights(folder, edit)
    refused(match, folder)
    assert writes(hub) == []


@pytest.mark.usefixtures("in_process")
def test_the_files_that_are_sent_are_enough(folder):
    assert upload_files.check_load(upload_files.pack(folder)[0]) == 32


# Licences


@pytest.mark.parametrize(
    ("own", "licence", "told"),
    [
        ("apache-2.0", "mit", ""),
        ("cc-by-nc-4.0", "cc-by-nc-sa-3.0", "requires the same licence"),
        ("cc-by-nc-4.0", "cc-by-nc-4.0", ""),
        ("apache-2.0", "cc-by-nc-4.0", "allows no commercial use"),
        ("cc-by-nd-4.0", "cc-by-nd-4.0", "allows no derivatives"),
        ("apache-2.0", "gpl-3.0", "requires the same licence"),
        ("apache-2.0", "llama3", "which has its own terms"),
        ("apache-2.0", "openrail", "which has its own terms"),
        ("llama3", "llama3", ""),
        ("mit", "apache-2.0", ""),
        ("cc-by-nc-sa-4.0", "cc-by-nc-4.0", ""),
        ("apache-2.0", "", "has no licence that the Hub knows"),
        ("other", "other", "has no licence that the Hub knows"),
        ("mit", "claims CC BY 4.0", "has its own terms (claims CC BY 4.0)"),
    ],
)
def test_a_licence_that_asks_for_more_is_named(own, licence, told):
    assert told in licences.conflict(own, licence)
    assert bool(told) == bool(licences.conflict(own, licence))


def test_the_licences_of_bases_and_data_are_looked_up(hub):
    from huggingface_hub import HfApi

    for name, licence in {"a/base": "cc-by-nc-4.0", "a/free": "mit", "a/data": "cc-by-sa-4.0"}.items():
        hub.repos[name] = Repo()
        hub.repos[name].commit({"README.md": f"---\nlicense: {licence}\n---\n".encode()})
    front = {"license": "apache-2.0", "base_model": ["a/base", "a/free", "a/gone"], "datasets": "a/data"}
    assert licences.notes(HfApi(), front) == [
        f"{what}. Check that the model may be under apache-2.0."
        for what in (
            "the base a/base is under cc-by-nc-4.0, which allows no commercial use",
            "the base a/gone has no licence that the Hub knows",
            "the data set a/data is under cc-by-sa-4.0, which requires the same licence",
        )
    ]


def test_the_licences_of_data_sets_of_the_registry_are_those_of_the_registry(hub):
    from huggingface_hub import HfApi

    hub.repos["mteb/hotpotqa"] = Repo()
    hub.repos["mteb/hotpotqa"].commit({"README.md": b"---\nlicense: mit\n---\n"})
    front = {"license": "mit", "datasets": ["mteb/hotpotqa", "mteb/dbpedia", "mteb/msmarco", "mteb/nfcorpus"]}
    notes = licences.notes(HfApi(), front)
    assert notes == [
        f"the data set mteb/{what}. Check that the model may be under mit."
        for what in (
            "hotpotqa is under cc-by-sa-4.0, which requires the same licence",
            "msmarco is under msr-la-nc, which allows no commercial use",
            "nfcorpus has no licence that the Hub knows",
        )
    ]


# As a user does it


def outside(hub, tmp_path):
    """The environment of a process that takes this hub for the Hub."""
    fixed = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    return {**os.environ, **fixed, "HF_HOME": str(tmp_path / "hf")}


CLIENT = """
    import json, sys
    sys.modules["stzoo"] = None
    from sentence_transformers import SentenceTransformer
    from huggingface_hub import constants

    def embed(**options):
        model = SentenceTransformer("lab/tiny", device="cpu", **options)
        return model.encode(["lift of a wing", "tax"], prompt_name="query").tolist()

    found = {"cold": embed(), "pinned": embed(revision=sys.argv[1])}
    constants.HF_HUB_OFFLINE = True
    found["cached"] = embed(local_files_only=True)
    print(json.dumps(found))
"""


def test_the_command_publishes_and_plain_sentence_transformers_loads(hub, folder, tmp_path):
    words = ["publish", folder, REPO, "--license", "apache-2.0", "--json"]
    done = cli(*words, env=outside(hub, tmp_path))
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["commit"] == hub.repos[REPO].heads["main"]
    assert "vectors of dimension 32" in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    hub.repos[REPO].commit(held(hub) | {"README.md": b"later"})
    command = [sys.executable, "-c", textwrap.dedent(CLIENT), made["commit"]]
    plain = processes.run(
        command, env=outside(hub, tmp_path) | {"HF_TOKEN": ""}, capture_output=True, text=True, check=False
    )
    assert plain.returncode == 0, plain.stderr
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    here = model.encode(["lift of a wing", "tax"], prompt_name="query").tolist()
    assert json.loads(plain.stdout) == {"cold": here, "pinned": here, "cached": here}
    assert len([path for path in hub.asked("GET") if path.endswith("model.safetensors")]) == 1
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_a_mistake_is_one_sentence_and_exit_code_2(hub, tmp_path):
    done = cli("publish", tmp_path / "nowhere", REPO, env=outside(hub, tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("stzoo: ")
    assert done.stderr.count("\n") == 1
