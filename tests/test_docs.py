"""The documentation is true: tables, links, commands, code, and the site that is built of it."""

import ast
import inspect
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from support.helpers import cli

import stzoo
from stzoo.testing import tiny_masked_lm

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "plugins").glob("*/README.md")),
    *sorted(DOCS.rglob("*.md")),
    ROOT / "benchmarks/README.md",
    ROOT / ".github/CONTRIBUTING.md",
]
REPOSITORY = re.compile(
    r"https://(?:github\.com/stzoo/stzoo/blob|raw\.githubusercontent\.com/stzoo/stzoo)/main/(.+)"
)
SITE = re.compile(r"https://stzoo\.github\.io/stzoo/(.*?)(?:\.html)?")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page, kind):
    return re.findall(rf"```{kind}\n(.*?)```", page.read_text(), re.DOTALL)


def test_tables_are_those_that_the_results_make():
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks/tables.py"), "--check"], check=False)
    assert done.returncode == 0, "run: python benchmarks/tables.py"


def test_each_table_is_shown():
    shown = {name for page in PAGES for name in re.findall(r"<!-- table (\w+) -->", page.read_text())}
    functions = ast.parse((ROOT / "benchmarks/tables.py").read_text()).body
    without = [f.name for f in functions if isinstance(f, ast.FunctionDef) and not f.args.args]
    assert shown == set(without)


def anchors(page):
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@each_page
def test_links_into_the_repository_lead_somewhere(page):
    for link in re.findall(r"\]\((\S+?)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if found := REPOSITORY.fullmatch(path):
            target = ROOT / found[1]
        elif found := SITE.fullmatch(path):
            target = DOCS / f"{found[1] or 'index'}.md"
        elif re.match(r"\w+:", path):
            continue
        if target.parent == DOCS / "reference/commands":  # pages that docs/reference.py makes
            assert target.exists() or cli(*target.stem.split("-"), "--help").returncode == 0, link
            continue
        assert target.exists(), link
        is_made = target.is_relative_to(DOCS / "reference") or target == DOCS / "contributing.md"
        if anchor and target.suffix == ".md" and not is_made:  # those of others are checked in the site
            assert anchor in anchors(target), link


def commands():
    for page in PAGES:
        lines = "\n".join([*blocks(page, "bash"), *re.findall(r"(?m)^\$ ((?:.*\\\n)*.*)$", page.read_text())])
        for line in lines.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "stzoo" in words[:-1] and words[0] != "pip":  # alone, or after `torchrun … -m`
                yield shlex.join(words[words.index("stzoo") + 1 :])


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_every_command_shown_has_those_flags(line):
    command, *words = shlex.split(line)
    part = [words.pop(0)] if command == "prepare" else []
    shown = cli(command, *part, "--help").stdout
    for word in words:
        if word.startswith("--"):
            assert re.search(rf"{re.escape(word)}\b", shown), f"stzoo {command} has no {word}"


def calls():
    for page in PAGES:
        for code in blocks(page, "python"):
            for node in ast.walk(ast.parse(code)):
                if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("stzoo."):
                    yield ast.unparse(node)


@pytest.mark.parametrize("call", sorted(set(calls())))
def test_every_function_shown_takes_those_arguments(call):
    node = ast.parse(call).body[0].value
    function = getattr(stzoo, node.func.attr)
    if function is stzoo.prepare:  # it also takes the settings of the preparation
        function = function.__wrapped__
    inspect.signature(function).bind(*node.args, **{one.arg: one.value for one in node.keywords})


@pytest.mark.usefixtures("unverified")
def test_the_page_from_python_can_be_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_masked_lm("bert", tmp_path / "base")
    [code] = blocks(DOCS / "guides/python.md", "python")
    for old, new in (
        ("google-bert/bert-base-uncased", "base"),
        ("output=", "batch_size=2, max_steps=1, output="),
    ):
        assert old in code
        code = code.replace(old, new)
    scope = {}
    exec(code, scope)
    assert list(scope["results"].to_pandas()["model"]) == ["bm25s", "mine"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The documentation, built strictly: a warning is an error."""
    try:
        version("mkdocs-material"), version("mkdocstrings-python")
    except PackageNotFoundError as error:
        pytest.skip(f"{error.name} is not installed; pip install 'stzoo[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=quiet)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_reference_has_every_command_and_every_public_name(site):
    names = re.findall(r'id="?(stzoo\.\w+)[" >]', (site / "reference/python.html").read_text())
    assert {f"stzoo.{name}" for name in stzoo.__all__} <= set(names)
    shown = {page.stem for page in (site / "reference/commands").glob("*.html")} - {"index"}
    help_text = cli("--help").stdout
    listed = re.findall(r"^│ ([a-z]+)\s{2,}", help_text, re.MULTILINE)
    assert {name.split("-")[0] for name in shown} == set(listed)


@pytest.mark.parametrize("width", [390])  # the narrow screen of the two that were looked at
def test_no_page_is_wider_than_the_screen_or_asks_the_network(width, site, browser):
    page = browser.new_page(viewport={"width": width, "height": 900})
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    for file in sorted(site.rglob("*.html")):
        if file.name != "404.html":
            page.goto(file.as_uri())
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"{file.relative_to(site)} is {wide} pixels wide"
    assert [url for url in asked if not url.startswith("file:")] == []
    page.close()
