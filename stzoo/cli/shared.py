"""What the commands share: the app itself, the order of its commands, printing."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

# the panels of `stzoo --help` and the commands in them, in this order; those of plugins come last
PANELS = {
    "Adapt": ("adapt", "read", "ask"),
    "Train": ("prepare", "pretrain", "mine", "finetune", "merge", "rerank"),
    "Evaluate": ("bench", "score", "compare", "judge", "report", "contamination"),
    "Use": ("encode", "search"),
    "Share": ("import", "export", "card", "publish"),
    "Look around": ("demo", "fetch", "zoo", "plugins", "list", "recipe"),
}
PANEL_OF = {command: panel for panel, commands in PANELS.items() for command in commands}


def _value(parameter: Any, ctx: Any) -> str:
    """What help shows as the value of an option; none for switches, and for arguments, which have a name."""
    if isinstance(parameter, typer.core.TyperArgument) or parameter.is_flag:
        return ""
    return str(parameter.metavar or parameter.display_type(ctx))


_kind: Any
for _kind in (typer.core.TyperArgument, typer.core.TyperOption):
    _kind.display_type_rich = _value  # typer shows Python's types, as <bool> or <list[str]>


class _Commands(typer.core.TyperGroup):
    """The commands in the order of PANELS, then those of plugins."""

    def list_commands(self, ctx: Any) -> list[str]:
        """See typer."""
        order = list(PANEL_OF)
        return sorted(
            super().list_commands(ctx), key=lambda name: order.index(name) if name in order else len(order)
        )


app = typer.Typer(
    name="stzoo",
    cls=_Commands,
    help="Dense retrievers that train with plugins and serve with plain sentence-transformers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def register(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a command of this name in its panel."""
    return app.command(name, rich_help_panel=PANEL_OF[name])


def done(folder: Path) -> None:
    """Says where the model is."""
    from stzoo.utils.distributed import is_main_process

    if is_main_process():
        typer.echo(f"The model is in {folder}: SentenceTransformer({str(folder)!r})", err=True)


def show(table: Any) -> None:
    """Prints a table."""
    from stzoo.utils.tables import text_console

    # without a terminal there is no width to fit into, and a cut table cannot be read by a program either
    text_console(sys.stdout, None if sys.stdout.isatty() else 160).print(table)


def print_json(value: Any) -> None:
    """Prints JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def show_answers(answers: list[dict[str, Any]]) -> None:
    """Prints the passages found for each question."""
    for number, answer in enumerate(answers):
        typer.echo(("\n" if number else "") + f"> {answer['question']}")
        for found in answer["found"]:
            text = found["text"] if len(found["text"]) < 240 else f"{found['text'][:240]} …"
            names = {"bm25": "BM25", "model": "model", "first": "before reranking"}
            parts = ", ".join(f"{names[key]} {found[key]:.3f}" for key in names if key in found)
            parts = f"  ({parts})" if parts else ""
            typer.echo(f"  {found['score']:.3f}  {found['id']}{parts}\n         {text}")
