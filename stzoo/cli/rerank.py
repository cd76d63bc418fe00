"""stzoo rerank."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stzoo.cli.flags import Overwrite, Resume, command
from stzoo.training.rerank_settings import RerankSettings


@command(RerankSettings)
def rerank_command(
    recipe: str | None,
    changes: dict[str, Any],
    output: Annotated[Path, typer.Option(help="Folder for checkpoints, run.json and the finished model.")],
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a cross-encoder, to rank what a retriever found."""
    from stzoo.finetuning.data import DEV_METRIC, METRIC
    from stzoo.finetuning.rerank import rerank
    from stzoo.training.records import read_run_record

    folder = rerank(recipe=recipe, output=output, resume=resume, overwrite=overwrite, **changes)
    record = read_run_record(folder) or {}
    if first := record.get("dev_before", {}).get("first_stage"):
        first_stage = f"{first:.4f} by {record['recipe']['retriever']} alone"
        typer.echo(
            f"{METRIC} on the dev queries: {first_stage}, {record[DEV_METRIC]:.4f} after reranking", err=True
        )
    typer.echo(
        f"The cross-encoder is in {folder}: CrossEncoder({str(folder)!r}). To use it:\n"
        f"  stzoo bench MODEL --data BEIR_FOLDER --rerank {folder} --output results",
        err=True,
    )
