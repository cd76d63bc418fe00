"""The command line: a thin skin over the functions of the same names; help imports nothing heavy.

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

import os
import sys

import typer

from .. import host
from ..errors import PluginError, StzooError
from . import about, importing, making, merging, mining, preparing, publishing, scoring
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

INTERRUPTED = 130
STOPPED = (
    "stopped. pretrain, finetune, prepare and mine go on with --resume; demo, bench and publish when called"
    " again."
)


def main() -> None:
    """Runs the command line: exit code 2 for a user's mistake, 130 for Ctrl-C."""
    try:
        add_plugins(sys.argv[1:2])
        code = app(standalone_mode=False)  # typer's own way to end is to return the exit code
        sys.exit(_say(STOPPED, code) if code == INTERRUPTED else code)
    except StzooError as error:
        sys.exit(_say(str(error), error.exit_code))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(_say(STOPPED, INTERRUPTED))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if hasattr(error, "format_message"):  # click's own errors of usage
            sys.exit(_say(error.format_message(), getattr(error, "exit_code", 2)))
        raise


def add_plugins(asked: list[str]) -> None:
    """Adds the commands that plugins bring; the code of one is imported only if it is asked for.

    Raises:
        PluginError: if one has the name of a command of ours, or is no `typer.Typer`.
    """
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


def _say(text: str, code: int) -> int:
    typer.echo(f"stzoo: {text}", err=True)
    return code
