"""What the commands share: the app itself, flags of the same meaning, printing."""

import inspect
import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from stzoo.errors import RecipeError, quoted
from stzoo.utils.bounds import MAX_THREADS
from stzoo.utils.inputs import check_number


class _Commands(typer.core.TyperGroup):
    """Commands whose numbers are written in the digits 0 to 9; Python, and so typer, reads 1_0 as 10."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See typer; first it looks at the numbers."""
        check_numbers(args)
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="stzoo",
    cls=_Commands,
    help="Dense retrievers that train with plugins and serve with plain sentence-transformers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the run in --output. Files that it did not write stay.")
]
Threads = Annotated[int | None, typer.Option(min=1, max=MAX_THREADS, help="CPU threads.")]
SEEDS = {"min": 0, "max": 2**32 - 1}


def finite(value: float) -> float:
    """Refuses NaN, which lies within any bounds for typer."""
    if math.isnan(value):
        raise typer.BadParameter("nan is not a number.")
    return value


def check_numbers(words: list[str]) -> None:
    """Refuses a command line in which a number has other characters than the digits 0 to 9, sign and point.

    Raises:
        RecipeError: it names the option.
    """
    callbacks = {one.name: one.callback for one in app.registered_commands}
    callback = callbacks.get(words[0]) if words else None
    kinds = {}
    for name, parameter in inspect.signature(callback).parameters.items() if callback else ():
        kind = (*get_args(parameter.annotation), parameter.annotation)[0]  # of Annotated
        items = next((get_args(one)[0] for one in get_args(kind) if get_origin(one) is list), kind)
        kinds[f"--{name.replace('_', '-')}"] = items
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        given = value if equals else following
        try:
            check_number(kinds.get(option), given or None)
        except ValueError as error:
            raise RecipeError(f"{option} is {quoted(given)}: {error}.") from None


def done(folder: Path) -> None:
    """Says where the model is."""
    from stzoo.utils.distributed import is_main_process

    if is_main_process():
        typer.echo(f"The model is in {folder}: SentenceTransformer({str(folder)!r})", err=True)


def new_table(*columns: str) -> Any:
    """An empty table of the house's look."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def show(table: Any) -> None:
    """Prints a table."""
    from rich.console import Console

    # without a terminal there is no width to fit into, and a cut table cannot be read by a program either
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def print_json(value: Any) -> None:
    """Prints JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def show_answers(answers: list[dict[str, Any]]) -> None:
    """Prints the passages found for each question."""
    for number, answer in enumerate(answers):
        typer.echo(("\n" if number else "") + f"> {answer['question']}")
        for found in answer["found"]:
            text = found["text"] if len(found["text"]) < 240 else f"{found['text'][:240]} …"
            typer.echo(f"  {found['score']:.3f}  {found['id']}\n         {text}")
