"""The command line: a thin skin over the functions of the same names; help imports nothing heavy.

guard.py       what becomes of an exception that ends a command
shared.py      the app, common flags, printing
about.py       plugins, list, recipe
making.py      pretrain, finetune, export, card, demo
importing.py   import
preparing.py   prepare
mining.py      mine
merging.py     merge
publishing.py  publish
scoring.py     bench, search, score, compare, report, contamination
"""

import sys

import typer

from .. import host
from ..errors import PluginError
from . import about, importing, making, merging, mining, preparing, publishing, scoring
from .guard import guarded, leave
from .shared import app

__all__ = [
    "about",
    "app",
    "importing",
    "main",
    "making",
    "merging",
    "mining",
    "preparing",
    "publishing",
    "scoring",
]

LIGHT = ("plugins", "list", "recipe", "--version", "--help")  # commands that ask nothing of a hub
OWN = tuple(app.registered_commands), tuple(app.registered_groups)


def main(words: list[str] | None = None) -> None:
    """Runs the command line and exits; the exit codes are those of guard.py.

    Args:
        words: the command line without the program's name; that of this process if None.
    """
    given = sys.argv[1:] if words is None else words
    leave(guarded(lambda: _run(given), given))


def _run(words: list[str]) -> object:
    add_plugins(words[:1])
    if words and words[0] not in LIGHT and "--help" not in words:
        from ..network import limit_waits

        limit_waits()
    # typer's own main() would take an EOFError for Ctrl-C
    command = typer.main.get_command(app)
    with command.make_context("stzoo", list(words)) as context:
        return command.invoke(context)


def add_plugins(asked: list[str]) -> None:
    """Adds the commands that plugins bring; the code of one is imported only if it is asked for.

    Raises:
        PluginError: if one has the name of a command of ours, or is no `typer.Typer`.
    """
    app.registered_commands[:], app.registered_groups[:] = OWN  # without those of an earlier call
    own = {one.name for one in app.registered_commands} | {one.name for one in app.registered_groups}
    for name, component in host.all("command").items():
        if name in own:
            raise PluginError(f"a plugin brings the command {name!r}, which stzoo has itself.")
        if [name] != asked:
            app.command(name, help=component.summary)(lambda: None)
            continue
        made = host.resolve(component)
        if not isinstance(made, typer.Typer):
            raise PluginError(f"the command {name!r} is a {type(made).__name__}; expected a typer.Typer.")
        app.add_typer(made, name=name, help=component.summary)
