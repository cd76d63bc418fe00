"""The command `stzoo taco`: analyses a model by TACO's sensitivities."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Analyse multi-task models.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Makes `inspect` a subcommand, next to others that may be added."""


@app.command("inspect")
def inspect_command(
    runs: Annotated[list[Path], typer.Argument(help="Output folders of multi-task `stzoo finetune` runs.")],
    batches: Annotated[
        int, typer.Option(min=1, help="Number of batches to average sensitivities over.")
    ] = 16,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure how specialised a model's parameters are, before and after its training.

    Draws RUN/figures/specialisation.png, layers by tasks, which `stzoo report --runs RUN` also shows.
    """
    import json

    from stzoo_taco.inspect import inspect, table

    results = inspect(runs, batches=batches, device=device, threads=threads)
    typer.echo(json.dumps(results, indent=2) if as_json else table(results))
