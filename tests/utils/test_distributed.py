"""Several processes: what is refused before anything is read or written."""

import pytest
from typer.testing import CliRunner

import stzoo
from stzoo.cli import app
from stzoo.utils.distributed import UNSUPPORTED, require_one_process

COMMANDS = {
    "merge": lambda out: stzoo.merge(["x", "y"], output=out),
    "import": lambda out: stzoo.import_checkpoint("x", output=out),
    "publish": lambda out: stzoo.publish(out, "org/name"),
    "demo": lambda out: stzoo.demo(output=out),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_of_one_process_refuses_several(name, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(stzoo.StzooError, match=rf"^{name} runs in one process, but 2 were started"):
        COMMANDS[name](tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_export_refuses_several_processes_on_the_command_line(tmp_path, monkeypatch):
    """The function itself is what the first process of a training run calls at its end."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "model").mkdir()
    done = CliRunner().invoke(app, ["export", str(tmp_path / "model"), "--output", str(tmp_path / "out")])
    assert "export runs in one process" in str(done.exception)


@pytest.mark.parametrize("variable", UNSUPPORTED)
def test_models_that_are_split_up_are_refused(variable, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, "true")
    for train in (
        lambda: stzoo.pretrain(base="x", corpus=["y"], output=tmp_path / "out"),
        lambda: stzoo.finetune("x", data="y", output=tmp_path / "out"),
    ):
        with pytest.raises(
            stzoo.RecipeError, match=rf"configured for {UNSUPPORTED[variable]}.*--shard-model"
        ):
            train()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["two", "-1", "\uff12", "1.5"])
def test_a_number_of_processes_that_is_no_number_is_refused(value, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", value)
    with pytest.raises(stzoo.StzooError, match="WORLD_SIZE is"):
        require_one_process("merge")
    monkeypatch.setenv("WORLD_SIZE", "")  # as an unset one
    require_one_process("merge")
