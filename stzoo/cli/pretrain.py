"""stzoo pretrain."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stzoo.cli.flags import Json, Overwrite, Resume, command
from stzoo.cli.shared import print_json, show
from stzoo.errors import RecipeError
from stzoo.training.pretrain_settings import PretrainSettings
from stzoo.utils.distributed import is_main_process
from stzoo.utils.messages import counted
from stzoo.utils.tables import new_table

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Estimate memory and time by a few steps, and train nothing.")
]


@command(PretrainSettings)
def pretrain_command(
    recipe: str | None,
    changes: dict[str, Any],
    output: Annotated[Path, typer.Option(help="Folder for checkpoints, run.json and the finished model.")],
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Pre-train an encoder on plain text."""
    PretrainSettings.read(recipe, changes).check_names()  # before torch is imported, which takes seconds
    if dry_run:
        from stzoo.pretraining.dry_run import dry_run as estimate

        result = estimate(recipe, **changes)
        if is_main_process():
            print_json(result) if as_json else _show(result)
        return
    if as_json:
        raise RecipeError("--json has no effect without --dry-run; drop it.")
    from stzoo.pretraining.pretrain import pretrain

    pretrain(recipe, output=output, resume=resume, overwrite=overwrite, **changes)


def _show(result: dict[str, Any]) -> None:
    parameters, seconds = result["parameters"], result["seconds"]
    if seconds < 90:
        duration = counted(round(seconds), "second")
    elif seconds < 5400:
        duration = counted(round(seconds / 60), "minute")
    else:
        duration = f"{seconds / 3600:.1f} hours"
    memory = result["peak_memory_mib"]
    rows = {
        "Precision": f"{result['precision']['used']} ({result['precision']['reason']})",
        "Parameters": f"{parameters['encoder'] / 1e6:.1f} M in the encoder, "
        f"{parameters['other'] / 1e6:.1f} M elsewhere; {parameters['untrained'] / 1e6:.1f} M start untrained",
        "Passages": f"{result['passages']:,}",
        "Steps": f"{result['steps']:,} ({result['epochs']:.2f} epochs)",
        "Time": f"about {duration} ({result['seconds_per_step']:.2f} s per step)",
        "Memory": "not known on this system" if memory is None else f"{memory / 1024:.1f} GiB at the peak",
        "Utilisation": f"{result['utilisation']:.0%} of the speed of large matrix products",
    }
    if result["tokens"] is not None:
        rows["Tokens"] = (
            f"{result['tokens']:,} per epoch, {result['tokens_per_s']:,.0f} per second; "
            f"{result['padding']:.1%} padding"
        )
    table = new_table("", "Estimate")
    for name, text in rows.items():
        table.add_row(name, text)
    show(table)
