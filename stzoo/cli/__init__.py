"""The command line: a thin skin over the functions of the same names; help imports nothing heavy.

shared.py   the app, common flags, printing
about.py    plugins, list, recipe
making.py   pretrain, finetune, export, demo
preparing.py  prepare
mining.py   mine
merging.py  merge
scoring.py  bench, search, score, compare, report, contamination
"""

import os
import sys

import typer

from ..errors import StzooError
from . import about, making, merging, mining, preparing, scoring
from .shared import app

__all__ = ["about", "app", "main", "making", "merging", "mining", "preparing", "scoring"]

INTERRUPTED = 130
STOPPED = (
    "stopped. pretrain, finetune, prepare and mine go on with --resume; demo and bench when called again."
)


def main() -> None:
    """Runs the command line: exit code 2 for a user's mistake, 130 for Ctrl-C."""
    try:
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


def _say(text: str, code: int) -> int:
    typer.echo(f"stzoo: {text}", err=True)
    return code
