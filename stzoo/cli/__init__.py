"""The command line: a thin skin over the functions of the same names; help imports nothing heavy.

guard.py               what becomes of an exception that ends a command
shared.py              the app, common flags, printing
info.py                plugins, list, recipe
train.py               pretrain, finetune, export, card, demo
evaluate.py            bench, search, score, compare, report, contamination
import_checkpoint.py, merge.py, mine.py, prepare.py, publish.py    the command of that name
demo.py                what `stzoo demo` does; ask_standalone.py its last step, without stzoo
"""

import sys

import typer

from stzoo.cli import evaluate, import_checkpoint, info, merge, mine, prepare, publish, train
from stzoo.cli.guard import guarded, leave
from stzoo.cli.shared import app
from stzoo.errors import PluginError
from stzoo.plugins import manager

__all__ = [
    "app",
    "evaluate",
    "import_checkpoint",
    "info",
    "main",
    "merge",
    "mine",
    "prepare",
    "publish",
    "train",
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
        from stzoo.utils.network import limit_waits

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
    for name, component in manager.all("command").items():
        if name in own:
            raise PluginError(f"a plugin brings the command {name!r}, which stzoo has itself.")
        if [name] != asked:
            app.command(name, help=component.summary)(lambda: None)
            continue
        made = manager.resolve(component)
        if not isinstance(made, typer.Typer):
            raise PluginError(f"the command {name!r} is a {type(made).__name__}; expected a typer.Typer.")
        app.add_typer(made, name=name, help=component.summary)
