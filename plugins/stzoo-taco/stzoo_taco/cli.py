"""stzoo taco: what TACO's sensitivities say of a model."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Look into models of several tasks.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `inspect` a command of its own, beside others that may come."""


@app.command("inspect")
def inspect_command(
    runs: Annotated[list[Path], typer.Argument(help="Output folders of `stzoo finetune` with tasks.")],
    batches: Annotated[int, typer.Option(min=1, help="Batches that sensitivities are the mean of.")] = 16,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure how specialised a model's parameters are, before its training and after.

    Draws RUN/figures/specialisation.png, layers by tasks, which `stzoo report --runs RUN` shows, too.
    """
    import json

    from stzoo_taco.inspect import inspect, table

    found = inspect(runs, batches=batches, device=device, threads=threads)
    typer.echo(json.dumps(found, indent=2) if as_json else table(found))
