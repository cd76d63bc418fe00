"""Tests of the contract itself: what every hook, every registered part and every exported name must have."""

import inspect
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest
import yaml

import stzoo
import stzoo.testing
from stzoo.plugins import hookspecs, manager

ROOT = Path(__file__).parents[2]
HOOKS = {kind: getattr(hookspecs, manager.hook_name(kind)) for kind in manager.KINDS}
# gist needs a guide model: test_losses.py compares it with sentence-transformers' own. The documentation
# quotes the check of stzoo-retromae's objectives, so it stays in the tests of that plugin.
ELSEWHERE = {("loss", "gist"), *(("objective", name) for name in ("retromae", "retromae-basic", "dupmae"))}
PARTS = [
    part for kind in manager.KINDS for name in manager.all(kind) if (part := (kind, name)) not in ELSEWHERE
]
HEAVY = {"torch", "transformers", "sentence_transformers", "datasets", "faiss", "scipy", "pyarrow", "bm25s"}


def assert_light(code: str) -> None:
    """Runs code in an interpreter of its own, and sees that it imported nothing heavy."""
    code += f"\nimport sys\nfound = sorted({HEAVY} & set(sys.modules))\nassert not found, found"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", HOOKS)
def test_every_hook_is_documented_with_an_example_that_runs(kind):
    text, example = inspect.getdoc(HOOKS[kind]).split("Example:")
    assert text.strip()
    space = dict(vars(hookspecs))
    exec(f"def hook():{example}", space)
    assert [type(value) for value in space["hook"]()] == [manager.KINDS[kind]]


@pytest.mark.parametrize("kind", HOOKS)
def test_every_hook_has_a_typed_return(kind):
    returned = get_type_hints(HOOKS[kind])["return"]
    assert get_origin(returned) is Iterable
    assert is_dataclass(get_args(returned)[0])


@pytest.mark.parametrize("kind", HOOKS)
def test_every_hook_is_used_by_a_real_plugin(kind):
    assert [p.name for p in manager.plugins() if p.distribution.startswith("stzoo") and p.provides.get(kind)]


@pytest.mark.parametrize("kind", HOOKS)
def test_every_hook_is_named_in_a_test(kind):
    tests = [*ROOT.glob("tests/**/test_*.py"), *ROOT.glob("plugins/*/tests/test_*.py")]
    assert [path.name for path in tests if manager.hook_name(kind) in path.read_text(encoding="utf-8")]


def test_our_own_plugins_load_in_full():
    ours = [p for p in manager.plugins() if p.distribution.startswith("stzoo")]
    assert {"builtin", "master", "retromae"} <= {p.name for p in ours}
    assert {p.name: p.failures for p in ours if p.failures} == {}


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_every_registered_part_passes_its_check(kind, name):
    getattr(stzoo.testing, f"check_{kind}")(manager.find(kind, name))


ROW = hookspecs.Checkpoint(
    name="x-base.data",
    hub_id="a/b",
    revision="main",
    license="",
    source="https://x.org",
    recipe="",
    summary="x",
)


@pytest.mark.parametrize(
    "change",
    [
        {"hub_id": "no-owner"},
        {"revision": "v1"},
        {"license": "Apache-2.0"},
        {"source": ""},
        {"source": "a paper"},
        {"summary": " "},
        {"summary": "two\nlines"},
        {"recipe": "nobody-has-it"},
        {"hub_id": ""},  # with a revision
        {"base": "no-owner"},
        {"pooling": "nobody-has-it"},
        {"importer": "stzoo.hub.importers:nothing"},
        {"similarity": "euclid"},
        {"prompts": {"query": None}},
        {"max_tokens": 0},
        {"expected": (("msmarco", "MRR@10", 39.3, "https://x.org"),)},
        {"expected": (("msmarco", "MRR@10", 0.393, "a paper"),)},
        {"citation": "a paper"},
    ],
)
def test_a_checkpoint_that_does_not_hold_is_refused(change):
    stzoo.testing.check_checkpoint(ROW)
    with pytest.raises((AssertionError, stzoo.PluginError)):
        stzoo.testing.check_checkpoint(replace(ROW, **change))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("schema_version: 1\ncommand: pretrain\nlearning_rate: 1e-4\noptions: {}", None),
        ("", "no settings"),
        ("command: pretrain", "schema_version"),
        ("schema_version: 1\nlearning_rate: 1e-4", "command is None"),
        ("schema_version: 1\ncommand: finetune\nlearning_rat: 1e-4", "learning_rat"),
        ("schema_version: 1\ncommand: finetune\nlearning_rate: high", "learning_rate"),
        ("schema_version: 1\ncommand: pretrain\nobjective: nobody-has-it", "no objective"),
        ("schema_version: 1\ncommand: mine\ndepth: 0", "depth"),
        ("schema_version: 1\ncommand: finetune\nlosses: {nobody-has-it: 1.0}", "no loss"),
        (
            "schema_version: 1\ncommand: finetune\nlosses: {kl: 1.0}\nloss_options: {kl: {temp: 1.0}}",
            "temp",
        ),
        (
            "schema_version: 1\ncommand: pretrain\nobjective: retromae\noptions: {decoder_rat: 0.5}",
            "decoder_rat",
        ),
    ],
)
def test_a_recipe_that_does_not_hold_is_refused(tmp_path, monkeypatch, text, told):
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / f"recipes_{tmp_path.name}"  # a package of its own for each case
    folder.mkdir()
    (folder / "x.yaml").write_text(text, encoding="utf-8")
    recipe = hookspecs.Recipe(name="x", resource=f"{folder.name}:x.yaml", summary="x")
    if told is None:
        stzoo.testing.check_recipe(recipe)
    else:
        with pytest.raises((AssertionError, stzoo.StzooError), match=told):
            stzoo.testing.check_recipe(recipe)


@pytest.mark.parametrize("name", sorted(manager.all("recipe")))
def test_a_recipe_of_the_authors_settings_leaves_no_setting_of_the_optimiser_to_our_defaults(name):
    recipe = yaml.safe_load(manager.recipe_text(name))
    if recipe["command"] in ("pretrain", "finetune"):
        stated = {"learning_rate", "warmup_ratio", "weight_decay"}
        assert stated | ({"max_grad_norm"} if recipe["command"] == "finetune" else set()) <= recipe.keys()


def test_help_imports_nothing_heavy():
    assert_light("""
import sys
from stzoo.cli import main
sys.argv = ["stzoo", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code
""")


def test_discovery_imports_nothing_heavy():
    assert_light("from stzoo.plugins import manager as m\nfor kind in m.KINDS: assert m.all(kind), kind")


def test_stzoo_itself_imports_nothing_heavy():
    assert_light("import stzoo, stzoo.testing\nassert stzoo.__all__")


def test_the_exported_names_are_listed_once():
    assert stzoo.__all__
    assert len(set(stzoo.__all__)) == len(stzoo.__all__)


@pytest.mark.parametrize("name", getattr(stzoo, "__all__", []))
def test_every_exported_name_is_there_and_documented(name):
    value = getattr(stzoo, name)
    if inspect.ismodule(value):  # a command: the module can be called as the function in it
        assert value.__doc__
        value = getattr(value, name)
    text = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    assert text, "has no docstring"
    assert not text.startswith(f"{name}("), "has only the docstring that dataclass writes"
