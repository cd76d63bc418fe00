"""Loggers of other packages."""

import json
import os
from importlib.util import find_spec

import pytest

import stzoo
from stzoo.training.arguments import arguments
from stzoo.training.finetune_settings import FinetuneSettings
from stzoo.training.reports import LOGGERS, check_loggers, logs_in


def test_a_missing_package_is_said_before_anything_is_read(monkeypatch):
    monkeypatch.setattr("stzoo.training.reports.find_spec", lambda _: None)
    given = dict(model="no-such-model", data="no-such-data", output="out", report_to=["wandb"])
    with pytest.raises(
        stzoo.MissingExtraError, match=r"^wandb is not installed, which --report-to wandb needs"
    ):
        stzoo.finetune(**given)


def test_a_misspelt_logger_is_corrected():
    with pytest.raises(
        stzoo.RecipeError, match=r"no logger.* 'wandbb'; did you mean 'wandb'\? Known: .*swanlab"
    ):
        check_loggers(["wandbb"])
    with pytest.raises(stzoo.RecipeError, match=r"no logger.* 'none'\..*Known: .*tensorboard"):
        check_loggers(["none"])


@pytest.mark.parametrize(("name", "package"), [("swanlab", "swanlab"), ("flyte", "flytekit")])
def test_other_loggers_of_transformers_are_left_to_it(name, package, tmp_path):
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    check_loggers([name])
    settings = FinetuneSettings(model="x", data="y", report_to=[name], device="cpu")
    with pytest.raises(
        stzoo.RecipeError, match=rf"report_to is \['{name}'\], which cannot be used: .*{package}"
    ):
        arguments(settings, tmp_path)


def test_loggers_write_to_the_folder_unless_the_user_named_another(tmp_path, monkeypatch):
    for _, variable in LOGGERS.values():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_DIR", "elsewhere")
    with logs_in(tmp_path, list(LOGGERS)):
        assert os.environ["WANDB_DIR"] == "elsewhere"
        assert os.environ["TRACKIO_DIR"] == str(tmp_path / "logs/trackio")
        assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path / 'logs/mlflow/mlflow.db'}"
        (tmp_path / "logs/trackio/data.db").touch()
    assert "TRACKIO_DIR" not in os.environ
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["trackio"]


@pytest.mark.usefixtures("unverified")
def test_tensorboard_logs_are_in_the_runs_folder_and_replaced_with_it(base, judged, tmp_path):
    given = dict(data=str(judged), dev_queries=0, max_steps=1, log_steps=1, batch_size=8)
    given |= dict(report_to=["tensorboard"], output=tmp_path / "out")
    out = stzoo.finetune(str(base), **given)
    (first,) = (out / "logs/tensorboard").iterdir()
    stzoo.finetune(str(base), overwrite=True, **given)
    (second,) = (out / "logs/tensorboard").iterdir()
    assert first != second
    assert json.loads((out / "run.json").read_text())["status"] == "finished"
