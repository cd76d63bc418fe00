"""A run's folder: whose files are whose, and what a run that fails leaves of them."""

import json

import pytest

import stzoo
from stzoo.training import run_files, runs
from stzoo.training.pretrain_settings import PretrainSettings
from stzoo.utils.files import files_under

SETTINGS = PretrainSettings(base="x", corpus=["x"])


def begin(folder, **how):
    return runs.start(folder, SETTINGS, **(dict(resume=False, overwrite=False) | how))


def finished(folder):
    """A run whose model is two files, with a checkpoint."""
    with begin(folder) as run:
        run.record_inputs(base={"id": "x"})
        (folder / "checkpoints/checkpoint-5").mkdir(parents=True)
        (folder / "checkpoints/checkpoint-5/state.safetensors").touch()
        draft = folder / run_files.MODEL_DRAFT
        (draft / "1_Pooling").mkdir(parents=True)
        for name in ("modules.json", "model.safetensors", "1_Pooling/config.json"):
            (draft / name).write_text(name)
        run.install(draft, also=["README.md"])
        (folder / "README.md").write_text("the card, by stzoo")
        run.record(status="finished")
    return folder


def tree(folder):
    return {name: (folder / name).read_bytes() for name in files_under(folder)}


RECORD = {
    "schema_version": 1,
    "status": "failed",
    "versions": {"stzoo": "1"},
    "recipe": SETTINGS.dump(),
}
FOREIGN = {
    "another program's": '{"name": "experiment 7"}',
    "a list": "[1]",
    "no JSON": "name: experiment 7",
    "without a recipe": '{"schema_version": 1, "status": "running", "versions": {"stzoo": "1"}}',
    "of another command": '{"schema_version": 1, "status": "running", "versions": {"stzoo": "1"}, '
    '"recipe": {"command": "train"}}',
    "edited": json.dumps(RECORD | {"components": [5]}),
    "with a time that is no number": json.dumps(RECORD | {"seconds": "long"}),
    "nested deeply": "[" * 100_000,
    "a folder": None,
}


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}], ids=str)
@pytest.mark.parametrize("record", FOREIGN)
def test_a_folder_whose_record_is_not_a_runs_is_not_touched(record, how, tmp_path):
    project = tmp_path / "project"
    (project / ".git").mkdir(parents=True)
    (project / ".git/HEAD").touch()
    (project / "thesis.tex").write_text("years of work")
    if FOREIGN[record] is None:
        (project / "run.json").mkdir()
    else:
        (project / "run.json").write_text(FOREIGN[record])
    before = tree(project)
    with pytest.raises(stzoo.OutputError, match=r"run\.json"), begin(project, **how):
        pass
    assert tree(project) == before


def test_overwriting_a_run_removes_what_the_run_wrote_and_nothing_else(tmp_path):
    out = finished(tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    mine = ["notes.md", "results/scores.csv", ".git/HEAD", "checkpoints/best.txt", "1_Pooling/notes.md"]
    mine += ["checkpoints/checkpoint-5/notes.md", "checkpoints/checkpoint-best/x.pt", "work/notes.md"]
    mine += ["checkpoints/checkpoint-5/analysis.json", "work/table.parquet"]  # a training run writes neither
    mine += ["checkpoints/checkpoint-5/best.bin", "work/data.json", "work/embeddings/mine.npy"]
    for name in [*mine, "../elsewhere/kept"]:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    (out / "link").symlink_to("../elsewhere")
    (out / "episodes").symlink_to("../elsewhere")  # in the place of a folder of a run
    (out / "model.safetensors").unlink()
    (out / "model.safetensors").symlink_to("../elsewhere/kept")
    with begin(out, overwrite=True) as run:
        assert set(files_under(out)) >= {*mine, ".stzoo-old/README.md", ".stzoo-old/model.safetensors"}
        run.record_inputs(base={"id": "x"})
    assert set(files_under(out)) == {*mine, "link", "run.json"}
    assert (tmp_path / "elsewhere/kept").read_text() == "mine"


def test_the_files_of_a_project_that_a_record_was_copied_into_are_not_overwritten(tmp_path):
    out, project = finished(tmp_path / "out"), tmp_path / "project"
    project.mkdir()
    (project / "run.json").write_bytes((out / "run.json").read_bytes())
    for name in files_under(out):
        if name != "run.json":
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            (project / name).write_text("mine")
    before = tree(project)
    with pytest.raises(stzoo.OutputError, match=r"README\.md"), begin(project, overwrite=True):
        pass
    assert tree(project) == before


@pytest.mark.parametrize("name", ["README.md", "config.json", "1_Pooling/config.json", "checkpoints"])
@pytest.mark.parametrize("how", [{"resume": True}, {"overwrite": True}], ids=str)
def test_a_file_in_the_way_of_a_run_is_listed_and_nothing_is_moved(name, how, tmp_path):
    out = tmp_path / "out"
    with begin(out) as run:
        run.record_inputs(base={"id": "x"})
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine")
    before = tree(out)
    with (
        pytest.raises(stzoo.OutputError, match=rf"contains files that this run would overwrite.*: {name}"),
        begin(out, **how),
    ):
        pass
    assert tree(out) == before


def test_a_file_that_came_while_the_run_trained_is_not_replaced_by_its_model(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(stzoo.OutputError, match=r"would overwrite: README\.md"), begin(out) as run:
        run.record_inputs(base={"id": "x"})
        (out / "README.md").write_text("mine")
        (out / run_files.MODEL_DRAFT).mkdir()
        (out / run_files.MODEL_DRAFT / "modules.json").touch()
        run.install(out / run_files.MODEL_DRAFT, also=["README.md"])
    assert (out / "README.md").read_text() == "mine"
    assert set(files_under(out)) == {"README.md", "run.json"}


def test_a_failing_resume_leaves_all_that_is_there(tmp_path):
    out = tmp_path / "out"
    with begin(out) as run:
        run.record_inputs(base={"id": "x"})
    (out / "notes.md").write_text("mine")
    before = tree(out)
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error), begin(out, resume=True):
            raise error
        assert tree(out) == before


def test_a_run_that_fails_keeps_its_record_with_the_reason(tmp_path):
    out = tmp_path / "out"
    for error, status, reason in (
        (ZeroDivisionError("by 0"), "failed", "ZeroDivisionError: by 0"),
        (KeyboardInterrupt(), "interrupted", "Ctrl-C"),
        (SystemExit(143), "interrupted", "SIGTERM"),
    ):
        with pytest.raises(type(error)), begin(out, resume=True) as run:
            run.record_inputs(base={"id": "x"})
            run.record(log=[{"loss": 2.0}])
            assert run.metadata["status"] == "running"
            raise error
        record = json.loads((out / "run.json").read_text())
        assert (record["status"], record["log"]) == (status, [{"loss": 2.0}])
        assert record["error"] == reason
    with begin(out, resume=True) as run:
        assert "error" not in run.metadata


def test_a_run_that_fails_before_it_has_its_inputs_removes_only_what_it_made(tmp_path):
    with pytest.raises(ZeroDivisionError), begin(tmp_path / "new") as run:
        run.record()
        raise ZeroDivisionError
    assert not (tmp_path / "new").exists()
    with pytest.raises(ZeroDivisionError), begin(tmp_path / "new") as run:
        run.record()
        (tmp_path / "new/notes.md").touch()
        raise ZeroDivisionError
    assert files_under(tmp_path / "new") == ["notes.md"]
    out = finished(tmp_path / "out")
    (out / "checkpoints/best.txt").touch()
    (out / "checkpoints/checkpoint-5/notes.md").touch()  # the user's, in what a failed run would keep
    before = tree(out)
    with pytest.raises(ZeroDivisionError), begin(out, overwrite=True) as run:
        run.record()
        raise ZeroDivisionError
    assert tree(out) == before


def test_a_finished_run_whose_model_is_not_whole_is_not_taken_for_finished(tmp_path):
    out = finished(tmp_path / "out")
    with begin(out, resume=True) as run:
        assert run.metadata["status"] == "finished"
    (out / "README.md").write_text("the stzoo card, edited")  # may be
    with begin(out, resume=True):
        pass
    (out / "model.safetensors").write_text("other weights")
    with pytest.raises(stzoo.OutputError, match=r"model\.safetensors changed"), begin(out, resume=True):
        pass
    (out / "model.safetensors").unlink()
    (out / "1_Pooling/config.json").unlink()
    missing = "1_Pooling/config.json, model.safetensors missing"
    with pytest.raises(stzoo.OutputError, match=missing), begin(out, resume=True):
        pass
    record = json.loads((out / "run.json").read_text())
    del record["files"]  # as an older version wrote it
    (out / "run.json").write_text(json.dumps(record))
    with pytest.raises(stzoo.OutputError, match=r"\*\.safetensors missing"), begin(out, resume=True):
        pass
    with begin(out, overwrite=True) as run:
        run.record_inputs(base={"id": "x"})
    assert files_under(out) == ["run.json"]


@pytest.mark.parametrize("base", ["out", "out/base", "."])
def test_an_input_in_the_output_or_around_it_is_refused(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out/base").mkdir(parents=True)
    (tmp_path / "config.json").touch()  # "." is a model
    settings = SETTINGS.model_copy(update={"base": base})
    with (
        pytest.raises(stzoo.OutputError, match=r"which this command reads|is read by this command"),
        runs.start("out", settings, resume=False, overwrite=False),
    ):
        pass
