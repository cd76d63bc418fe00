"""The command line: each command is its settings class and one function; help imports nothing heavy.

guard.py      explains the exception that ends a command
shared.py     the app, the order of its commands, printing
flags.py      a command's flags, made from its settings; complete.py completes their values in the shell
settings.py   settings of encode, search and demo; those of other commands are with their functions
info.py       plugins, recipe; components.py is `stzoo list`
demo.py       what `stzoo demo` does; ask_standalone.py is its last step, without stzoo

The other modules have the command of their name each.
"""

import os
import sys
from typing import Any

import typer

from stzoo.cli import (  # noqa: F401 - each registers its command
    adapt,
    ask,
    bench,
    card,
    compare,
    components,
    contamination,
    demo_command,
    encode,
    export,
    fetch,
    finetune,
    import_checkpoint,
    info,
    judge,
    merge,
    mine,
    prepare,
    pretrain,
    publish,
    read,
    report,
    rerank,
    score,
    search,
    zoo,
)
from stzoo.cli.guard import guarded, leave
from stzoo.cli.shared import app
from stzoo.errors import PluginError
from stzoo.plugins import builders, manager

LIGHT = ("plugins", "list", "zoo", "recipe", "--version", "--help")  # commands that use no network
COMPLETE = "_STZOO_COMPLETE"  # set by a shell that asks for completions
OWN = tuple(app.registered_commands), tuple(app.registered_groups)


def main(words: list[str] | None = None) -> None:
    """Runs the command line and exits; the exit codes are those of guard.py.

    Args:
        words: the command line without the program's name; that of this process if None.
    """
    given = sys.argv[1:] if words is None else words
    leave(guarded(lambda: _run(given), given))


def _run(words: list[str]) -> object:
    if os.environ.get(COMPLETE):
        line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
        add_plugins(line.split()[1:2])
        typer.main.get_command(app).main([], prog_name="stzoo")  # answers the shell and exits
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
        PluginError: if one has the name of a command of stzoo, or is not a `typer.Typer`.
    """
    app.registered_commands[:], app.registered_groups[:] = OWN  # without those of an earlier call
    own = {one.name for one in app.registered_commands} | {one.name for one in app.registered_groups}
    for name, component in manager.all("command").items():
        if name in own:
            raise PluginError(f"a plugin brings the command {name!r}, which stzoo has itself.")
        about: dict[str, Any] = dict(name=name, help=component.summary, rich_help_panel="Plugins")
        if [name] != asked:
            app.command(**about)(lambda: None)
            continue
        made = builders.resolve(component)
        if not isinstance(made, typer.Typer):
            raise PluginError(f"the command {name!r} is a {type(made).__name__}; expected a typer.Typer.")
        app.add_typer(made, **about)
