"""The READMEs are true: tables are what their files say, links lead somewhere, and flags are there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.helpers import cli

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "plugins").glob("*/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / ".github/CONTRIBUTING.md",
]


def test_tables_are_those_that_the_results_make():
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks/tables.py"), "--check"], check=False)
    assert done.returncode == 0, "run: python benchmarks/tables.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_into_the_repository_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def commands():
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if "stzoo" in words[:-1] and words[0] != "pip":  # alone, or after `torchrun … -m`
                    yield " ".join(words[words.index("stzoo") + 1 :])


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_every_command_shown_has_those_flags(line):
    command, *words = line.split()
    part = [words.pop(0)] if command == "prepare" else []
    shown = cli(command, *part, "--help").stdout
    for word in words:
        if word.startswith("--"):
            assert re.search(rf"{re.escape(word)}\b", shown), f"stzoo {command} has no {word}"
