"""The rooms of the house: who may import whom, read with `ast`, so imports inside functions count too."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import stzoo

ROOT = Path(__file__).parent.parent
# A later room may import an earlier one, never the reverse. A package (bench, hub) is one room.
ROOMS = """
    errors messages network bounds calls quiet memory signals inputs words languages
    files outputs hookspecs host column_roles recipe distributed runs texts registry measures qrels judged trec
    provenance pydocs rows sources corpus masking backbone decoders poolings weights limits models opened encode
    store search lexical metrics curves bench training teacher objective hub callbacks
    checkpoints batches losses examples trainer pretrain prepare balancers multitask mining lora
    splits fitting episodes finetune merge builtin testing ask demo cli __main__
""".split()  # noqa: SIM905 - one line for each would hide the order
FILES = sorted((ROOT / "stzoo").rglob("*.py"))
PLUGIN_FILES = sorted((ROOT / "plugins").rglob("*.py"))
PLUGINS = {"stzoo_retromae", "stzoo_master", "stzoo_taco"} | {
    folder.parent.name.replace("-", "_") for folder in (ROOT / "plugins").glob("*/pyproject.toml")
}
PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def imports(path: str, tree: ast.AST) -> Iterator[str]:
    """Absolute dotted names of all that is imported; `path` is as "stzoo/hub/export.py"."""
    package = path.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = [*above, *([node.module] if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)


def order_faults(path: str, tree: ast.AST) -> Iterator[str]:
    """Imports of a core module that do not point to an earlier room."""
    room = path.removeprefix("stzoo/").removesuffix(".py").split("/")[0]
    for target in imports(path, tree):
        top, _, rest = target.partition(".")
        goal = rest.split(".")[0]
        if top in PLUGINS or any(top.startswith(f"{plugin}_") for plugin in PLUGINS):
            yield f"the core imports the plugin {top}"
        if top == "pluggy" and room not in ("host", "hookspecs"):
            yield "imports pluggy"
        if top == "stzoo" and goal != "__version__":
            if goal not in ROOMS:
                yield f"imports {target}, which is no room"
            elif ROOMS.index(goal) > ROOMS.index(room):
                yield f"imports {goal}, a later room"


def plugin_faults(path: str, tree: ast.AST) -> Iterator[str]:
    """What a plugin imports of stzoo that is not public."""
    for target in imports(path, tree):
        top, *parts = target.split(".")
        if top == "pluggy":
            yield "imports pluggy"
        if top != "stzoo" or not parts:
            continue
        if any(part.startswith("_") for part in parts) or parts[0] in ("builtin", "cli"):
            yield f"imports {target}, which is not public"
        elif parts[0] not in {*ROOMS, *stzoo.__all__}:
            yield f"imports {target}, which stzoo does not export"


def naming_faults(tree: ast.AST) -> Iterator[str]:
    """Strings of the core, docstrings apart, that name a plugin's module."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            for plugin in sorted(PLUGINS):
                if re.search(rf"\b{plugin}", node.value):
                    yield f"line {node.lineno} names {plugin}"


def pickle_faults(path: str, tree: ast.AST) -> Iterator[str]:
    """Ways in which a stored file could run code."""
    for target in imports(path, tree):
        if target.split(".")[0] in PICKLES or target == "torch.load":
            yield f"imports {target}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        given = {k.arg: isinstance(k.value, ast.Constant) and k.value.value for k in node.keywords}
        if ast.unparse(node.func) == "torch.load" and given.get("weights_only") is not True:
            yield f"line {node.lineno}: torch.load without weights_only=True"
        if given.get("allow_pickle", False) is not False:
            yield f"line {node.lineno}: allow_pickle"


def parsed(path: Path) -> tuple[str, ast.AST]:
    return path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=label)
def test_every_module_is_in_a_room(path):
    room = path.relative_to(ROOT / "stzoo").parts[0].removesuffix(".py")
    assert room in {*ROOMS, "__init__"}


@pytest.mark.parametrize("path", [p for p in FILES if p != ROOT / "stzoo" / "__init__.py"], ids=label)
def test_imports_go_one_way(path):
    assert list(order_faults(*parsed(path))) == []


@pytest.mark.parametrize("path", FILES, ids=label)
def test_the_core_names_no_plugin(path):
    assert list(naming_faults(parsed(path)[1])) == []


@pytest.mark.parametrize("path", PLUGIN_FILES, ids=label)
def test_a_plugin_sees_only_public_names(path):
    assert list(plugin_faults(*parsed(path))) == []


@pytest.mark.parametrize("path", FILES + PLUGIN_FILES, ids=label)
def test_no_stored_file_can_run_code(path):
    assert list(pickle_faults(*parsed(path))) == []


def test_there_is_something_to_read():
    assert {"stzoo/host.py", "stzoo/hookspecs.py"} <= set(map(label, FILES))
    assert any(path.stem in PLUGINS for path in PLUGIN_FILES)


# The readers above find what they look for:


@pytest.mark.parametrize(
    ("path", "code", "fault"),
    [
        ("stzoo/search.py", "from .pretrain import pretrain", "imports pretrain, a later room"),
        ("stzoo/search.py", "from . import pretrain", "imports pretrain, a later room"),
        ("stzoo/search.py", "def f():\n    import stzoo.cli as c", "imports cli, a later room"),
        ("stzoo/search.py", "from stzoo.bench.runner import run", "imports bench, a later room"),
        ("stzoo/hub/card.py", "from ..pretrain import x", "imports pretrain, a later room"),
        ("stzoo/search.py", "from stzoo import Objective", "imports stzoo.Objective, which is no room"),
        ("stzoo/recipe.py", "import pluggy", "imports pluggy"),
        ("stzoo/builtin.py", "import stzoo_retromae", "the core imports the plugin stzoo_retromae"),
        ("stzoo/cli.py", "from stzoo_taco_x import y", "the core imports the plugin stzoo_taco_x"),
        ("stzoo/search.py", "from .errors import DataError\nimport torch", None),
        ("stzoo/hub/card.py", "from .export import export\nfrom ..files import held", None),
        ("stzoo/cli.py", "from . import __version__", None),
    ],
)  # fmt: skip
def test_an_import_of_a_later_room_would_be_seen(path, code, fault):
    assert list(order_faults(path, ast.parse(code))) == ([fault] if fault else [])


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("import pluggy", "imports pluggy"),
        ("from stzoo.host import _shared", "imports stzoo.host._shared, which is not public"),
        ("import stzoo._secret", "imports stzoo._secret, which is not public"),
        ("from stzoo import builtin", "imports stzoo.builtin, which is not public"),
        ("from stzoo.cli import main", "imports stzoo.cli.main, which is not public"),
        ("from stzoo import no_such_name", "imports stzoo.no_such_name, which stzoo does not export"),
        ("import stzoo\nfrom stzoo.hookspecs import Component\nimport torch", None),
    ],
)
def test_a_private_import_of_a_plugin_would_be_seen(code, fault):
    assert list(plugin_faults("plugins/stzoo-x/stzoo_x.py", ast.parse(code))) == ([fault] if fault else [])


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("x = import_module('stzoo_retromae')", 1),
        ("def f():\n    return 'stzoo_taco:TACO'", 1),
        ("def f():\n    'Example: stzoo_retromae:RetroMAE'\n    return 'stzoo_objectives'", 0),
    ],
)
def test_a_plugin_named_by_the_core_would_be_seen(code, found):
    assert len(list(naming_faults(ast.parse(code)))) == found


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import pickle", 1),
        ("def f():\n    from pickle import loads", 1),
        ("from torch import load", 1),
        ("torch.load(path)", 1),
        ("torch.load(path, weights_only=False)", 1),
        ("torch.load(path, weights_only=flag)", 1),
        ("numpy.load(path, allow_pickle=True)", 1),
        ("torch.load(path, weights_only=True); numpy.load(path, allow_pickle=False); json.load(file)", 0),
    ],
)
def test_a_stored_file_that_could_run_code_would_be_seen(code, found):
    assert len(list(pickle_faults("stzoo/files.py", ast.parse(code)))) == found
