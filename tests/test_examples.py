"""The example notebooks run from top to bottom, and are committed with the outputs of a real run."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from support.helpers import UNVERIFIED

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
# a path of some machine; URLs have two slashes
ABSOLUTE = re.compile(r"(?<![\w/:.~<])/(?:home|root|tmp|usr|opt|work|var|Users|content|mnt)/|[A-Z]:\\\\")
NOISE = re.compile(r"Warning: |WARNING|Traceback|it/s\]|\d+%\|")


def read(path):
    """The notebook, checked against the format's schema."""
    book = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(book)
    return book


def code_cells(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_the_notebook_runs(path, base, judged, tmp_path, monkeypatch):
    """In a fresh kernel, on a tiny model, without a network."""
    installed = tmp_path / "installed"
    installed.mkdir()
    settings = {
        "STZOO_EXAMPLE_MODEL": base,
        "STZOO_EXAMPLE_DATA": judged,
        "STZOO_EXAMPLE_DOCUMENTS": 60,
        "STZOO_EXAMPLE_STEPS": 2,
        # what the notebook installs goes to a folder of its own
        "PIP_TARGET": installed,
        "PIP_NO_DEPS": 1,
        "PIP_NO_BUILD_ISOLATION": 0,  # pip's spelling of --no-build-isolation
        "PYTHONPATH": os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(installed)]),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    here = {"metadata": {"path": str(tmp_path)}}
    book = read(path)
    book.cells.insert(0, nbformat.v4.new_code_cell(UNVERIFIED))
    NotebookClient(book, timeout=300, kernel_name="python3", resources=here).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_the_committed_notebook_has_clean_outputs(path):
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run it from the top"
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    text = nbformat.writes(nbformat.v4.new_notebook(cells=cells))
    assert not ABSOLUTE.search(text), "it shows a path of the machine that it was run on"
    for output in outputs:
        assert not NOISE.search(str(output)), output
    assert path.stat().st_size < 100_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_the_notebook_opens_in_colab(path):
    colab = "https://colab.research.google.com/github/stzoo/stzoo/blob/main/examples"
    assert f"({colab}/{path.name})" in read(path).cells[0].source


def test_there_are_three_examples():
    assert NAMES == ["adapt", "compare", "method"]
