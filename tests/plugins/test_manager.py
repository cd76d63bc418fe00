"""The plugin host, with a crowd of fake distributions (hand-written dist-info) on the path in every test."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from stzoo.errors import ConflictError, MissingExtraError, PluginError, RecipeError, UnknownNameError
from stzoo.plugins.builders import read_recipe, resolve
from stzoo.plugins.hookspecs import Checkpoint, Component, Recipe
from stzoo.plugins.manager import KINDS, Host

FAKES = Path(__file__).parents[1] / "support" / "fake_plugins"


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.syspath_prepend(FAKES)
    monkeypatch.delenv("STZOO_PLUGINS", raising=False)


@pytest.fixture
def host():
    return Host()


def plugin(host, distribution):
    (found,) = [p for p in host.plugins() if p.distribution == distribution]
    return found


def line(text, file):
    """FILE:LINE, as faults carry it, of the only line in a fake plugin that begins with this text."""
    path = FAKES / file
    lines = path.read_text(encoding="utf-8").splitlines()
    (number,) = [number for number, one in enumerate(lines, 1) if one.strip().startswith(text)]
    return f"({path}:{number})"


def reason(host, distribution):
    """Why a plugin that must provide nothing does so."""
    found = plugin(host, distribution)
    assert found.provides == {}
    (failure,) = found.failures
    return failure


# --- discovery


def test_nothing_is_loaded_at_import_and_everything_at_first_use():
    code = (
        "import sys; from stzoo.plugins import manager; assert 'fake_good' not in sys.modules;"
        "manager.find('objective', 'fake-objective'); assert 'fake_good' in sys.modules;"
        "assert 'fake_good.heavy' not in sys.modules;"
        "manager.build('objective', 'fake-objective', None, rate=1); assert 'fake_good.heavy' in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(FAKES)!r}); {code}"], check=True
    )


def test_kinds_come_from_the_hooks():
    assert KINDS["objective"] is Component
    assert KINDS["checkpoint"] is Checkpoint
    assert KINDS["recipe"] is Recipe


def test_a_good_plugin_provides_its_parts_beside_all_the_broken_ones(host):
    found = plugin(host, "dist-good")
    assert (found.name, found.version, found.module) == ("fake-good", "1.0", "fake_good")
    assert found.failures == []
    assert set(found.provides) == set(KINDS)
    assert host.find("pooling", "fake-wide") is found.provides["pooling"]["fake-wide"]
    assert host.find("checkpoint", "fake-base.nothing").hub_id == "example/fake"


def test_the_house_comes_through_the_same_door(host):
    house = plugin(host, "stzoo")
    assert (house.name, house.module, house.failures) == ("builtin", "stzoo.plugins.builtin", [])
    assert {"cls", "mean", "max"} <= set(house.provides["pooling"])
    assert {"enhanced", "stacked"} <= set(house.provides["decoder"])


def test_all_lists_by_name_in_order(host):
    names = list(host.all("pooling"))
    assert names == sorted(names)
    assert {"cls", "fake-wide"} <= set(names)


# --- broken plugins


def test_a_plugin_that_cannot_be_imported_is_left_out(host):
    assert reason(host, "dist-import-error") == (
        "ModuleNotFoundError: No module named 'a_module_that_nobody_has' "
        + line("import a_module", "fake_import_error.py")
    )


def test_a_plugin_that_exits_is_left_out(host):
    expected = "SystemExit: a script, not a plugin " + line("sys.exit", "fake_exit.py")
    assert reason(host, "dist-exit") == expected


def test_a_plugin_with_an_unknown_hook_is_left_out_and_told_the_nearest(host):
    path = FAKES / "fake_unknown_hook.py"
    assert reason(host, "dist-unknown-hook") == (
        f"unknown hook stzoo_objectivs; did you mean 'stzoo_objectives'? ({path}:4)"
    )
    assert "fake-beside-misspelt" not in host.all("pooling")


def test_a_plugin_with_a_wrong_signature_is_left_out(host):
    told = reason(host, "dist-wrong-signature")
    assert "stzoo_objectives(model)" in told
    assert told.endswith("fake_wrong_signature.py:9)")
    assert "fake-beside-wrong" not in host.all("decoder")


def test_a_hook_without_its_marker_is_noticed(host):
    expected = "stzoo_objectives is not marked with @hookimpl " + line("def", "fake_unmarked.py")
    assert reason(host, "dist-unmarked") == expected


def test_a_module_without_hooks_is_noticed(host):
    assert reason(host, "dist-empty") == f"implements no hook ({FAKES / 'fake_empty.py'}:1)"


def test_a_hook_that_raises_loses_all_its_parts_and_no_other_hook_does(host):
    found = plugin(host, "dist-raises")
    assert found.failures == [
        f"hook stzoo_objectives: RuntimeError: halfway through {line('raise Run', 'fake_raises.py')}",
        f"hook stzoo_poolings: LookupError: at once {line('raise Look', 'fake_raises.py')}",
    ]
    assert {kind: list(parts) for kind, parts in found.provides.items()} == {"decoder": ["fake-survivor"]}


@pytest.mark.parametrize(
    ("hook", "told"),
    [
        (
            "stzoo_objectives",
            "yields {'name': 'fake-dict', 'build': <built-in function print>}; expected a Component",
        ),
        ("stzoo_poolings", "yields the name 'Fake_Name'; expected kebab-case"),
        ("stzoo_decoders", "yields 'fake-again' twice"),
        ("stzoo_checkpoints", "yields the name 'fake-base'; expected method-size.data"),
        ("stzoo_recipes", "TypeError: 'NoneType' object is not iterable"),
    ],
)
def test_a_wrong_value_is_left_out_with_its_hook(host, hook, told):
    found = plugin(host, "dist-wrong-values")
    assert found.provides == {}
    (failure,) = [one for one in found.failures if one.startswith(f"hook {hook}: {told}")]
    assert re.search(r"fake_wrong_values\.py:\d+\)$", failure)


def test_two_distributions_with_one_entry_point_name_are_both_left_out(host):
    assert reason(host, "dist-double-a") == ("fake-double (dist-double-b 1.0) has the same entry-point name")
    assert "dist-double-a" in reason(host, "dist-double-b")


def test_nobody_can_take_the_name_of_the_house(host):
    assert "builtin (stzoo" in reason(host, "dist-usurper")
    assert "cls" in host.all("pooling")


# --- looking up


def test_two_plugins_with_one_name_conflict(host):
    with pytest.raises(ConflictError) as caught:
        host.find("objective", "fake-twin")
    for culprit in (
        "fake-twin-a (dist-twin-a 1.0)",
        "fake-twin-b (dist-twin-b 1.0)",
        "fake-twin-a:fake-twin",
    ):
        assert culprit in str(caught.value)
    assert plugin(host, "dist-twin-a").failures == [
        f"objective 'fake-twin' is also provided by fake-twin-b (dist-twin-b 1.0) ({FAKES}/fake_twin_a.py:4)"
    ]


def test_a_qualified_name_settles_a_conflict(host):
    assert host.build("objective", "fake-twin-a:fake-twin") == "a"
    assert host.build("objective", "fake-twin-b:fake-twin") == "b"
    assert host.full_name("objective", "fake-twin") == "fake-twin"
    used = [host.origin("objective", "fake-twin-b:fake-twin")]
    assert host.full_name("objective", "fake-twin", used) == "fake-twin-b:fake-twin"
    assert host.full_name("pooling", "cls") == host.full_name("pooling", "builtin:cls") == "builtin:cls"
    assert host.build("objective", "fake-only-a") == "a"  # the other names of the two keep working
    assert host.find("pooling", "builtin:cls") is host.find("pooling", "cls")


def test_every_name_that_all_lists_can_be_found(host):
    for kind in KINDS:
        for name, part in host.all(kind).items():
            assert host.find(kind, name) is part
    assert {"fake-twin-a:fake-twin", "fake-twin-b:fake-twin"} <= set(host.all("objective"))
    assert "fake-twin" not in host.all("objective")


def test_an_unknown_name_is_told_the_nearest_and_all_there_are(host):
    with pytest.raises(UnknownNameError) as caught:
        host.find("pooling", "fake-wyde")
    text = str(caught.value)
    assert "no pooling 'fake-wyde'; did you mean 'fake-wide'?" in text
    assert ", ".join(host.all("pooling")) in text


def test_an_unknown_name_points_to_plugins_that_did_not_load(host):
    with pytest.raises(UnknownNameError) as caught:
        host.find("objective", "fake-import-error")
    assert "Plugin fake-import-error (dist-import-error 1.0) provides no objective: ModuleNotFound" in str(
        caught.value
    )
    assert "dist-good" not in str(caught.value)
    assert "Plugin builtin (stzoo" not in str(caught.value)  # it provides no objective either, and rightly so


def test_an_unknown_name_gives_the_command_if_a_plugin_that_comes_with_stzoo_is_missing(
    tmp_path, monkeypatch
):
    # as stzoo is installed, but with dependencies that are not
    info = tmp_path / "stzoo-0.1.0.dist-info"
    info.mkdir()
    needs = ("pluggy>=1.6", "stzoo-elsewhere==0.1.*", "dist-good==1.*", "stzoo[demo]; extra == 'all'")
    lines = (
        "Metadata-Version: 2.1",
        "Name: stzoo",
        "Version: 0.1.0",
        *(f"Requires-Dist: {n}" for n in needs),
    )
    (info / "METADATA").write_text("\n".join(lines), "utf-8")
    (info / "entry_points.txt").write_text("[stzoo]\nbuiltin = stzoo.plugins.builtin\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    command = "Not installed: stzoo-elsewhere. Run: pip install 'stzoo-elsewhere==0.1.*'"
    with pytest.raises(UnknownNameError) as caught:
        Host().find("objective", "retromea")
    assert str(caught.value).endswith(command)
    monkeypatch.setenv("STZOO_PLUGINS", "elsewhere")
    with pytest.raises(UnknownNameError) as caught:
        Host().plugins()
    assert str(caught.value).endswith(command)


@pytest.mark.parametrize("name", ["nobody:cls", "fake-good:cls", "builtin:nothing", ":", ""])
def test_a_qualified_name_that_nobody_has_is_unknown(host, name):
    with pytest.raises(UnknownNameError):
        host.find("pooling", name)


@pytest.mark.parametrize("ask", [lambda h: h.all("objectives"), lambda h: h.find("objectives", "x")])
def test_an_unknown_kind_is_told_the_kinds(host, ask):
    with pytest.raises(UnknownNameError, match=r"no kind 'objectives'; did you mean 'objective'\?"):
        ask(host)


# --- STZOO_PLUGINS


@pytest.mark.parametrize(
    ("chosen", "loaded"), [("", []), ("fake-good", ["fake-good"]), (" fake-only , fake-good", None)]
)
def test_stzoo_plugins_restricts_what_loads_but_never_the_house(monkeypatch, chosen, loaded):
    monkeypatch.setenv("STZOO_PLUGINS", chosen)
    host = Host()
    if loaded is None:
        with pytest.raises(PluginError, match=r"no plugin 'fake-only'.*Known: .*fake-good.*STZOO_PLUGINS"):
            host.plugins()
        return
    assert [p.name for p in host.plugins() if p.provides] == ["builtin", *loaded]
    assert reason(host, "dist-raises") == f"excluded by STZOO_PLUGINS={chosen}"
    with pytest.raises(
        UnknownNameError, match=r"fake-twin-a .* provides no objective: excluded by STZOO_PLUGINS"
    ):
        host.find("objective", "fake-only-a")


# --- building


def test_build_passes_arguments_and_options_on(host):
    assert host.build("pooling", "fake-wide", 3, factor=5, bias=True) == ("wide", 15, True)
    built = host.build("objective", "fake-objective", "model", rate=1, anything="goes")
    assert built.given == ("model", 1, 0.5, {"anything": "goes"})


def test_an_unknown_option_is_told_the_nearest_and_all_there_are(host):
    with pytest.raises(
        RecipeError, match=r"pooling 'fake-wide' has no option 'factr'; did you mean 'factor'\?"
    ):
        host.build("pooling", "fake-wide", 3, factr=5)
    with pytest.raises(RecipeError, match=r"no option 'zzz'\. Options: factor, bias\."):
        host.build("pooling", "fake-wide", 3, zzz=5)


def test_an_option_cannot_replace_what_the_caller_gives(host):
    with pytest.raises(RecipeError, match="no option 'dim'"):
        host.build("pooling", "fake-wide", 3, dim=4)


def test_an_option_of_another_type_is_told(host):
    told = r"pooling 'fake-wide': the option bias is 'maybe': input should be a valid boolean"
    with pytest.raises(RecipeError, match=told):
        host.build("pooling", "fake-wide", 3, bias="maybe")
    assert host.build("pooling", "fake-wide", 3, bias="true") == ("wide", 6, True)
    assert host.build("pooling", "fake-wide", "x", factor=2) == ("wide", "xx", False)  # not annotated


def test_an_option_that_is_needed_is_named(host):
    with pytest.raises(RecipeError, match="objective 'fake-objective' needs the option 'rate'"):
        host.build("objective", "fake-objective", "model")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("fake-broken", "import of 'fake_good.broken' failed: ValueError: the code of this part is broken"),
        ("fake-missing", "'fake_good.heavy:NoSuch' does not exist: module .* has no attribute 'NoSuch'"),
        ("fake-constant", "'fake_good.heavy:CONSTANT' is not callable"),
    ],
)
def test_code_that_cannot_be_reached_is_explained(host, name, told):
    with pytest.raises(PluginError, match=f"'{name}' cannot be used: {told}"):
        host.build("objective", name, "model", rate=1)


@pytest.mark.parametrize(
    "build",
    ["", "nowhere", ":x", ".relative:x", "stzoo.plugins.manager:", "stzoo.plugins.manager:Host..find"],
)
def test_a_build_string_of_another_form_is_a_plugin_error(build):
    with pytest.raises(PluginError, match="'odd' cannot be used"):
        resolve(Component(name="odd", build=build, summary=""))


def test_a_missing_extra_keeps_its_advice(host):
    with pytest.raises(MissingExtraError, match=r"pip install 'stzoo\[fake\]'"):
        host.build("objective", "fake-extra", "model")


def test_data_is_not_built(host):
    with pytest.raises(PluginError, match=r"the checkpoint 'fake-base.nothing' is data"):
        host.build("checkpoint", "fake-base.nothing")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "fake-takes-nothing",
            r"calls TakesNothing with 1 positional argument.*TakesNothing\(\) \(.*misfit\.py:5\)",
        ),
        ("fake-takes-it-by-name", r"its signature is TakesItByName\(\*, backbone\) \(.*fake_misfit\.py:10\)"),
        ("fake-fails-inside", r"AttributeError: .*no_such_attribute.* \(.*fake_misfit\.py:16\)"),
    ],
)
def test_a_constructor_that_does_not_fit_is_told_with_plugin_file_and_line(host, name, told):
    with pytest.raises(
        PluginError, match=rf"fake-misfit \(dist-misfit 1\.0\).*'{name}' cannot be built: .*{told}"
    ):
        host.build("objective", name, "backbone")


def test_what_a_builder_says_of_an_option_stays_a_value_error(host):
    """Of poolings it becomes an error of the model."""
    with pytest.raises(ValueError, match=r"is 2\.0") as caught:
        host.build("objective", "fake-refuses-an-option", "backbone")
    fault = host.culprit(caught.value)
    assert (fault.plugin.distribution, fault.line) == ("dist-misfit", 21)
    assert fault.file == str(FAKES / "fake_misfit.py")
    with pytest.raises(RecipeError) as ours:
        host.build("pooling", "fake-wide", 3, zzz=5)
    assert host.culprit(ours.value) is None


# --- what is used, and what is wrong


def test_what_is_used_is_recorded_with_its_distribution_and_version(host):
    host.build("pooling", "cls", 8)
    with host.recording() as used:
        host.build("pooling", "fake-wide", 3)
        host.build("pooling", "fake-good:fake-wide", 3)
        with host.recording() as inner:
            host.use("objective", "fake-twin-a:fake-twin")
    host.build("pooling", "cls", 8)
    wide = dict(kind="pooling", name="fake-wide", plugin="fake-good", distribution="dist-good", version="1.0")
    twin = dict(
        kind="objective", name="fake-twin", plugin="fake-twin-a", distribution="dist-twin-a", version="1.0"
    )
    assert used == [wide, twin]
    assert inner == [twin]


def test_faults_are_those_of_loading_and_of_every_component(host, monkeypatch):
    found = {(plugin.distribution, text) for plugin, text in host.faults()}
    told = "\n".join(text for _, text in found)
    assert {("dist-raises", text) for text in plugin(host, "dist-raises").failures} <= found
    for name, words in (
        ("fake-missing", "does not exist"),
        ("fake-broken", "import of 'fake_good.broken' failed"),
        ("fake-constant", "is not callable"),
        ("fake-takes-nothing", "calls TakesNothing with 1"),
        ("fake-lost", "cannot be read"),
    ):
        assert re.search(rf"hook stzoo_\w+ \(.*\.py:\d+\): .*'{name}'.* {words}", told)
    for sound in ("fake-extra", "fake-objective", "fake-wide", "fake-recipe"):
        assert f"'{sound}'" not in told
    monkeypatch.setenv("STZOO_PLUGINS", "")  # disabling a plugin is no fault
    assert [plugin.distribution for plugin, _ in Host().faults()] == ["dist-usurper"]


def test_strict_exits_with_1_on_any_fault(monkeypatch):
    from typer.testing import CliRunner

    import stzoo.plugins.manager
    from stzoo.cli.shared import app

    crowd = Host()
    for name in ("plugins", "faults"):
        monkeypatch.setattr(stzoo.plugins.manager, name, getattr(crowd, name))
    import stzoo.cli

    assert CliRunner().invoke(app, ["plugins"]).exit_code == 0
    strict = CliRunner().invoke(app, ["plugins", "--strict"])
    assert strict.exit_code == 1
    assert "'fake-missing' cannot be used" in strict.stderr
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder != str(FAKES)])
    sound = Host()
    for name in ("plugins", "faults"):
        monkeypatch.setattr(stzoo.plugins.manager, name, getattr(sound, name))
    assert CliRunner().invoke(app, ["plugins", "--strict"]).exit_code == 0


# --- recipes


def test_a_recipe_is_read_from_inside_its_distribution(host):
    assert host.recipe_text("fake-recipe") == (FAKES / "fake_good" / "settings.yaml").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("resource", ["fake_good:nowhere.yaml", "nowhere:settings.yaml", "fake_good", ""])
def test_a_recipe_that_cannot_be_read_is_explained(resource):
    with pytest.raises(PluginError, match=r"recipe 'lost': .* cannot be read"):
        read_recipe(Recipe(name="lost", resource=resource, summary=""))
