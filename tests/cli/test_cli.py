"""The command line: flags that are the recipe's keys, JSON beside every table, errors for people."""

import inspect
import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from support.helpers import cli

import stzoo
from stzoo import Component, PluginError, RecipeError
from stzoo.cli import add_plugins
from stzoo.cli.settings import DemoSettings, SearchSettings
from stzoo.cli.shared import PANELS
from stzoo.evaluation import settings as of_evaluation
from stzoo.hub import settings as of_hub
from stzoo.plugins import manager
from stzoo.training.finetune_settings import FinetuneSettings, MineSettings
from stzoo.training.pretrain_settings import PretrainSettings
from stzoo.training.rerank_settings import RerankSettings

SETTINGS = (
    *(PretrainSettings, FinetuneSettings, MineSettings, RerankSettings, SearchSettings, DemoSettings),
    *(of_evaluation.BenchSettings, of_evaluation.ScoreSettings, of_evaluation.CompareSettings),
    *(of_evaluation.JudgeSettings, of_evaluation.ReportSettings, of_evaluation.ContaminationSettings),
    *(of_hub.ExportSettings, of_hub.CardSettings, of_hub.PublishSettings, of_hub.ImportSettings),
    of_hub.MergeSettings,
)
# arguments that say where a command writes and how it is shown; they are not settings of a recipe
NO_SETTINGS = {"output", "overwrite", "on_result", "progress", "say", "dry_run", "show_card"}
NO_SETTINGS |= {"masked_lm", "extra", "verify", "describe"}  # of export, for Python only


def test_version():
    assert cli("--version").stdout.strip() == stzoo.__version__


def test_help_names_every_command():
    shown = cli("--help").stdout
    panels = re.split(r"^╭─ (.+?) ─+╮$", shown, flags=re.M)
    in_panel = dict(zip(panels[1::2], panels[2::2], strict=True))
    for panel, commands in PANELS.items():
        rows = re.findall(r"^│ ([a-z]+) +(.+?) *│$", in_panel[panel], re.M)
        assert tuple(name for name, _ in rows) == commands  # a row each: their summaries fit in 80 columns
        assert all(summary.endswith(".") for _, summary in rows)


OTHERS = ("prepare master", "recipe show", "taco inspect")


@pytest.mark.parametrize("words", [*(name for names in PANELS.values() for name in names), *OTHERS])
def test_help_shows_values_as_they_are_typed(words):
    shown = cli(*words.split(), "--help").stdout
    assert not re.search(r"<(bool|float|int|list|path|str)\b", shown)  # types of Python
    assert shown.count("[default") == len(re.findall(r"\[default=\S+\]", shown))  # in one line


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.command)
def test_every_setting_is_a_flag(settings):
    shown = cli(settings.command, "--help").stdout
    nested = ("options", "pooling_options", "losses", "loss_options")  # by --set
    nested += ("balancer_options", "tasks", *(["weights"] if settings is PretrainSettings else []))
    for name, field in settings.model_fields.items():
        assert re.match(r"[A-Z].*\.$", field.description), name
        if name in settings.positional:
            assert re.search(rf"│ +{name.upper()} ", shown), name
        elif name not in nested:
            assert re.search(rf"--{name.replace('_', '-')} ", shown), name


@pytest.mark.parametrize("settings", SETTINGS[4:], ids=lambda settings: settings.command)
def test_a_function_has_the_settings_of_its_command_with_the_same_defaults(settings):
    function = getattr(stzoo, settings.command.replace("import", "import_checkpoint"))
    parameters = inspect.signature(function).parameters
    assert settings.model_fields.keys() == parameters.keys() - NO_SETTINGS
    for name, field in settings.model_fields.items():
        default = parameters[name].default
        assert (default is inspect.Parameter.empty) == field.is_required(), name
        if not field.is_required() and default not in (None, field.default):
            made = settings.read(None, {**required(settings), name: default})
            assert getattr(made, name) == field.default, name


def required(settings):
    """Values of the settings that must be given."""
    return {name: "x" for name, field in settings.model_fields.items() if field.is_required()}


@pytest.mark.parametrize("settings", SETTINGS[6:], ids=lambda settings: settings.command)
def test_a_wrong_value_has_the_same_message_from_python_and_from_a_recipe(settings, tmp_path):
    wrong = {key: {"a": []} for key in settings.model_fields}
    (tmp_path / "s.yaml").write_text(json.dumps({"command": settings.command, **wrong}))
    function = getattr(stzoo, settings.command.replace("import", "import_checkpoint"))
    output = {"output": tmp_path / "x"} if "output" in inspect.signature(function).parameters else {}
    with pytest.raises(RecipeError) as error:
        function(**wrong, **output)
    _, *problems = str(error.value).splitlines()
    anything = {
        name for name, field in settings.model_fields.items() if field.annotation in (Any, dict[str, Any])
    }
    assert {line.split()[0] for line in problems} == wrong.keys() - anything
    done = cli(settings.command, "--recipe", "s.yaml", *(["--output", "x"] if output else []), cwd=tmp_path)
    assert (done.returncode, done.stderr.rstrip().splitlines()[1:]) == (2, problems)


def test_a_recipe_has_the_settings_of_any_command(tmp_path):
    (tmp_path / "s.yaml").write_text("command: score\nk: 0\nmeasures: RR@5\ndata: nowhere\n")
    done = cli("score", "x.run", "--recipe", "s.yaml", "--output", "out", cwd=tmp_path)
    assert "the recipe s.yaml of `stzoo score`:\n  k is 0: input should be greater than" in done.stderr
    done = cli("score", "x.run", "--recipe", "s.yaml", "--set", "k=7", cwd=tmp_path)
    assert "there is no file or folder nowhere, and no data set of that name. Expected a path" in done.stderr
    done = cli("score", "x.run", "--recipe", "s.yaml", "--k", "7", "--set", "k=7", cwd=tmp_path)
    assert "--k and --set k are both given" in done.stderr
    done = cli("bench", "--recipe", "s.yaml", "--output", "out", cwd=tmp_path)
    assert "is for `stzoo score`, not for `stzoo bench`" in done.stderr


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
    kinds = cli("list").stdout
    assert re.search(r"losses +contrastive, cosent, gist, kl, margin-mse", kinds)
    assert re.search(r"datasets +.*beir-13", kinds)


def test_list_shows_one_component_with_its_options():
    shown = cli("list", "objectives", "retromae").stdout
    assert re.search(r"plugin +retromae \(stzoo-retromae \S+\)", shown)
    assert re.search(r"^ decoder_rate +float +0\.5", shown, re.M)
    assert "@inproceedings" in shown
    made = json.loads(cli("list", "loss", "kl", "--json").stdout)
    assert made["options"] == [
        {"name": "teacher_temperature", "type": "float", "required": False, "default": 1.0}
    ]
    assert (made["plugin"], made["distribution"]) == ("builtin", "stzoo")
    prepared = json.loads(cli("list", "preparations", "master", "--json").stdout)
    assert "queries_per_passage" in {option["name"] for option in prepared["options"]}
    assert "hub_id" in cli("list", "checkpoints", "retromae-base.msmarco").stdout
    assert "5183" in cli("list", "datasets", "scifact").stdout
    for kind in manager.KINDS:
        for name in manager.all(kind):
            assert cli("list", kind, name, "--json").returncode == 0, (kind, name)


def complete(line):
    """What bash is offered for the last word of a command line."""
    words = line.split(" ")
    env = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_STZOO_COMPLETE": "complete_bash"}
    done = cli(env={**os.environ, **env})
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("stzoo pretr", "pretrain"),
        ("stzoo taco ins", "inspect"),
        ("stzoo finetune m --lora-r", "--lora-rank"),
        ("stzoo pretrain --objective retromae-", "retromae-basic"),
        ("stzoo finetune m --balancer ta", "taco"),
        ("stzoo finetune m --pooling me", "mean"),
        ("stzoo finetune m --precision b", "bf16"),
        ("stzoo finetune m --set losses.k", "losses.kl="),
        ("stzoo finetune m --set temp", "temperature="),
        ("stzoo pretrain --recipe retromae-pretrain-", "retromae-pretrain-msmarco"),
        ("stzoo recipe show retromae-pretrain-", "retromae-pretrain-msmarco"),
        ("stzoo bench m --datasets nfcorpus,nano-be", "nfcorpus,nano-beir"),
        ("stzoo import retromae-base.w", "retromae-base.wikibook"),
        ("stzoo list obj", "objectives"),
        ("stzoo list losses marg", "margin-mse"),
    ],
)
def test_the_shell_completes_commands_flags_and_values(line, offered):
    assert complete(line) == [offered]


def test_completion_can_be_installed_and_shown():
    shown = cli("--help").stdout
    assert "--install-completion" in shown
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # the shell is given, not detected
    script = cli("--show-completion", "bash", env={**os.environ, **named})
    assert "_STZOO_COMPLETE=complete_bash" in script.stdout


def test_list_shows_the_data_sets_of_the_registry():
    shown = cli("list", "datasets").stdout
    (line,) = (line for line in shown.splitlines() if line.split()[:1] == ["scifact"])
    assert {"test", "5,183", "300", "beir-13"} <= {word.strip(",") for word in line.split()}
    made = json.loads(cli("list", "datasets", "--json").stdout)
    assert {"beir-13", "nano-beir"} <= made["suites"].keys()
    assert next(row for row in made["datasets"] if row["name"] == "scifact")["documents"] == 5183


def test_a_recipe_is_shown_as_it_is():
    assert cli("recipe", "show", "retromae-pretrain").stdout == manager.recipe_text("retromae-pretrain")


def test_a_recipe_is_found_by_a_name_that_is_nearly_its_own_and_that_is_said(tmp_path):
    done = cli("finetune", "--recipe", "scifact-inbatch", cwd=tmp_path)
    assert done.stderr.startswith("stzoo: scifact-inbatch stands for the recipe scifact-in-batch.\n")
    assert done.stderr.count("stands for") == 1
    assert "stands for" not in cli("finetune", "--recipe", "scifact-in-batch", cwd=tmp_path).stderr


BAD = {
    "no such command": (["pretrian"], "pretrian"),
    "no such kind": (["list", "objektives"], "did you mean 'objectives'?"),
    "no such kind, and data sets are one": (["list", "dataset s"], "did you mean 'datasets'?"),
    "no such recipe": (["recipe", "show", "retromae-pretrian"], "did you mean 'retromae-pretrain'"),
    "no such flag": (["pretrain", "--lerning-rate", "1"], "--learning-rate"),
    "a forgotten argument": (
        ["search", "who?", "--data", "x"],
        "questions is missing ('who?' was given as the model); give QUESTIONS or set it in the recipe.",
    ),
    "a missing setting": (["pretrain", "--output", "x"], "base is missing"),
    "a missing flag": (["pretrain"], "recipe.\n  output is missing; give --output.\n"),
    "a missing flag alone": (["export", "x"], "`stzoo export`:\n  output is missing; give --output.\n"),
    "a kind that users expect": (["list", "models"], "recipes. Checkpoints are"),
    "no such folder": (["bench", "./no-such", "--output", "x"], "./no-such is not a folder"),
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


@pytest.mark.parametrize(
    "words",
    [
        ["bench", "runs/no-such", "--output", "x"],
        ["finetune", "no-such.checkpoint", "--data", "x", "--output", "x"],
        ["mine", "no-such", "--data", "x", "--output", "x"],
        ["pretrain", "--base", "no-such", "--corpus", "x", "--output", "x", "--batch-size", "0"],
        ["report", "no-such"],
        ["card", "no-such"],
    ],
    ids=lambda words: words[0],
)
def test_a_mistake_is_found_before_torch_is_imported(words):
    code = (
        "import sys\nfrom stzoo.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n"
        "    assert end.code == 2 and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stderr.startswith("stzoo: ")


def test_commands_of_plugins_stand_beside_our_own():
    """By the hook stzoo_commands, as stzoo-taco has it."""
    assert re.search(r"^│ +taco +Show which parameters of multi-task models", cli("--help").stdout, re.M)
    assert re.search(r"^│ +inspect ", cli("taco", "--help").stdout, re.M)
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
