"""The command line: flags that are the recipe's keys, JSON beside every table, errors for people."""

import json
import os
import re
import subprocess
import sys

import pytest
from support.helpers import cli

import stzoo
from stzoo import Component, PluginError
from stzoo.cli import add_plugins
from stzoo.plugins import manager
from stzoo.training.settings import FinetuneSettings, MineSettings, PretrainSettings


def test_version():
    assert cli("--version").stdout.strip() == stzoo.__version__


def test_help_names_every_command():
    shown = cli("--help").stdout
    for command in ("plugins", "list", "pretrain", "finetune", "bench", "export", "publish", "import", "demo",
                    "recipe", "search", "score", "compare", "report", "contamination"):  # fmt: skip
        assert command in shown


@pytest.mark.parametrize(
    ("command", "settings"),
    [("pretrain", PretrainSettings), ("finetune", FinetuneSettings), ("mine", MineSettings)],
)
def test_every_setting_is_a_flag(command, settings):
    shown = cli(command, "--help", env={**os.environ, "COLUMNS": "200"}).stdout
    nested = ("options", "weights", "pooling_options", "losses", "loss_options")  # by --set
    nested += ("balancer_options", "tasks")
    for name in settings.model_fields:
        if name not in (*nested, "model"):
            assert f"--{name.replace('_', '-')}" in shown, name


def test_plugins_and_list_speak_json():
    plugins = json.loads(cli("plugins", "--json").stdout)
    assert {"builtin", "retromae"} <= {plugin["plugin"] for plugin in plugins}
    assert all(not plugin["failures"] for plugin in plugins)
    rows = json.loads(cli("list", "--json").stdout)
    assert {(row["kind"], row["name"]) for row in rows} == {
        (k, n) for k in manager.KINDS for n in manager.all(k)
    }
    assert {row["kind"] for row in json.loads(cli("list", "objectives", "--json").stdout)} == {"objective"}


def test_list_shows_what_is_there():
    shown = cli("list", "checkpoints").stdout
    assert "Shitao/RetroMAE_MSMARCO" in shown


def test_list_shows_the_data_sets_of_the_registry():
    shown = cli("list", "datasets").stdout
    (line,) = (line for line in shown.splitlines() if line.split()[:1] == ["scifact"])
    assert {"test", "5183", "300", "beir-13"} <= {word.strip(",") for word in line.split()}
    made = json.loads(cli("list", "datasets", "--json").stdout)
    assert {"beir-13", "nano-beir"} <= made["suites"].keys()
    assert next(row for row in made["datasets"] if row["name"] == "scifact")["documents"] == 5183


def test_a_recipe_is_shown_as_it_is():
    assert cli("recipe", "show", "retromae-pretrain").stdout == manager.recipe_text("retromae-pretrain")


BAD = {
    "no such command": (["pretrian"], "pretrian"),
    "no such kind": (["list", "objektives"], "did you mean 'objective'"),
    "no such recipe": (["recipe", "show", "retromae-pretrian"], "did you mean 'retromae-pretrain'"),
    "no such flag": (["pretrain", "--lerning-rate", "1"], "--learning-rate"),
    "a missing setting": (["pretrain", "--output", "x"], "base is missing"),
    "a missing flag": (["pretrain"], "--output"),
    "set without a value": (["pretrain", "--output", "x", "--set", "seed"], "key=value"),
    "a missing recipe file": (["pretrain", "--output", "x", "--recipe", "no.yaml"], "no.yaml"),
    "no such model": (["export", "no-such-model", "--output", "x"], "no-such-model"),
    "no such data": (["bench", "no-such-model", "--data", "no-such-data", "--output", "x"], "no-such-data"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_mistake_is_one_message_and_exit_code_2(what, tmp_path):
    words, expected = BAD[what]
    done = cli(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
    assert not list(tmp_path.iterdir())


def test_commands_of_plugins_stand_beside_our_own():
    """By the hook stzoo_commands, as stzoo-taco has it."""
    assert re.search(r"^ +taco +look into models", cli("--help").stdout, re.M)
    assert re.search(r"^ +inspect ", cli("taco", "--help").stdout, re.M)
    light = (
        "import sys; from stzoo.cli import add_plugins as a; a([]); print('stzoo_taco.cli' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", light], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("name", "build", "told"),
    [
        ("mine", "stzoo_taco.cli:app", "'mine', which stzoo has itself"),
        ("recipe", "stzoo_taco.cli:app", "'recipe', which stzoo has itself"),
        ("other", "stzoo.utils.files:write_json", "is a function; expected a typer.Typer"),
        ("other", "stzoo.nowhere:app", "import of 'stzoo.nowhere' failed"),
    ],
)
def test_a_command_that_cannot_be_added_is_told(name, build, told, monkeypatch):
    part = Component(name=name, build=build, summary="a command")
    monkeypatch.setattr(manager, "all", lambda _: {name: part})
    with pytest.raises(PluginError, match=re.escape(told)):
        add_plugins([name])
