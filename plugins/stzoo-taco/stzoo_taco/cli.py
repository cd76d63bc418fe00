"""The command `stzoo taco`: analyses a model by TACO's sensitivities."""

from pathlib import Path
from typing import Annotated

import typer

from stzoo.training.settings import THREADS_HELP

app = typer.Typer(help="Analyse multi-task models.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Makes `inspect` a subcommand, next to others that may be added."""


@app.command("inspect")
def inspect_command(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUNS", help="Output folders of multi-task `stzoo finetune` runs."),
    ],
    batches: Annotated[
        int,
        typer.Option(
            min=1, metavar="INTEGER", show_default=False, help="Batches to average over; 16 by default."
        ),
    ] = 16,
    device: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Device to run on: cpu, cuda or mps; cpu by default.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, metavar="INTEGER", help=THREADS_HELP)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure how specialised a model's parameters are, before and after its training.

    Draws RUN/figures/specialisation.png, layers by tasks, which `stzoo report --runs RUN` also shows.
    """
    import json

    from stzoo_taco.inspect import inspect, table

    results = inspect(runs, batches=batches, device=device, threads=threads)
    typer.echo(json.dumps(results, indent=2) if as_json else table(results))
