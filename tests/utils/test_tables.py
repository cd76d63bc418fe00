"""Tables look the same in the terminal and in notebooks, and are shown once there."""

import builtins
import json
import sys

import pytest
from rich import console

from stzoo.cli.shared import show
from stzoo.errors import OutputError
from stzoo.training.trained import Log
from stzoo.utils.recorded import Counts
from stzoo.utils.tables import new_table


@pytest.fixture
def jupyter(monkeypatch):
    """Makes rich believe that it is in a notebook."""
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setattr(builtins, "get_ipython", lambda: shell, raising=False)
    assert console._is_jupyter()


@pytest.mark.usefixtures("jupyter")
def test_a_table_in_a_notebook_is_a_text_and_displays_nothing(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython.display", None)  # with which rich would display the table
    log = Log([{"step": 1, "loss": 0.5}])
    assert "0.5000" in str(log) == repr(log)
    assert capsys.readouterr().out == ""
    assert "<td>0.5000</td>" in log._repr_html_()
    table = new_table("Name")
    table.add_row("a row")
    show(table)
    assert "a row" in capsys.readouterr().out


def test_integers_have_separators_of_thousands():
    shown = str(Counts(negatives=24_023, removed_copies=0))
    assert [line.split() for line in shown.splitlines()[2:]] == [
        ["negatives", "24,023"],
        ["removed", "copies", "0"],
    ]
    assert "<td>24,023</td>" in Counts(negatives=24_023)._repr_html_()


def test_a_table_is_saved_in_the_format_that_its_name_ends_in(tmp_path):
    log = Log([{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}])
    assert log.save(tmp_path / "log.CSV").read_text() == "step,loss\n1,0.5\n2,\n"
    assert json.loads(log.save(tmp_path / "log.json").read_text()) == log
    for name in ("log.xlsx", "log"):
        with pytest.raises(OutputError, match=r"log.* ends in .*; expected \.json or \.csv"):
            log.save(tmp_path / name)
