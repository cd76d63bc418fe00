"""Rules that import-linter and ruff cannot state."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORE = sorted((ROOT / "stzoo").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").glob("*/stzoo_*/**/*.py"))


def strings(tree):
    """Strings that are no docstrings."""
    bodies = [node.body for node in ast.walk(tree) if isinstance(getattr(node, "body", None), list)]
    docs = {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docs)
    return [node.value for node in nodes if isinstance(node.value, str)]


def test_the_core_names_no_plugin():
    names = {path.relative_to(ROOT).parts[2] for path in PLUGINS}
    assert len(names) >= 3
    for path in CORE:
        texts = strings(ast.parse(path.read_text("utf-8")))
        assert [text for text in texts if any(name in text for name in names)] == [], path


def test_plugins_import_public_names():
    for path in PLUGINS:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "stzoo":
                names = [*node.module.split("."), *(alias.name for alias in node.names)]
                assert not any(name.startswith("_") for name in names), f"{path}:{node.lineno}"


def test_no_stored_file_can_run_code():
    """Ruff bans pickle and its kin."""
    for path in CORE + PLUGINS:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert given.get("allow_pickle", "False") == "False", f"{path}:{node.lineno}"
                if ast.unparse(node.func) == "torch.load":
                    assert given.get("weights_only") == "True", f"{path}:{node.lineno}"


def imported(path):
    """The packages that are imported anywhere in a file, the standard library's apart."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        yield from {name.split(".")[0] for name in names} - sys.stdlib_module_names


def test_every_imported_package_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [
        one for name, listed in project["optional-dependencies"].items() if name != "dev" for one in listed
    ]
    declared = {re.match(r"[\w.-]+", one)[0].lower() for one in [*project["dependencies"], *extras]}
    declared |= {"stzoo", "pydantic_core"}  # pydantic pins the latter
    distributions = packages_distributions()
    for path in CORE:
        for package in imported(path):
            owners = {name.lower().replace("_", "-") for name in distributions.get(package, [package])}
            assert owners & {name.replace("_", "-") for name in declared}, f"{path} imports {package}"
