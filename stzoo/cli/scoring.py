"""stzoo bench, search, score, compare, report, contamination: what models are worth."""

from pathlib import Path
from typing import Annotated

import typer

from .shared import Json, app, print_json, show


@app.command("bench")
def bench_command(
    models: Annotated[list[str], typer.Argument(help="Folders or Hub ids, or NAME=FOLDER_OR_HUB_ID.")],
    data: Annotated[Path, typer.Option(help="A BEIR folder, or the parent of several.")],
    output: Annotated[Path, typer.Option(help="Where results go.")],
    datasets: Annotated[str | None, typer.Option(help="Folders under --data, with commas between.")] = None,
    split: Annotated[str, typer.Option(help="Of the judgements.")] = "test",
    bm25: Annotated[bool, typer.Option(help="Score BM25 beside.")] = True,
    batch_size: Annotated[int, typer.Option(help="Texts encoded at once.")] = 32,
    max_tokens: Annotated[
        int | None, typer.Option(help="Cut texts here; the model's limit if left out.")
    ] = None,
    run_files: Annotated[bool, typer.Option(help="Keep TREC run files.")] = True,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Score anew what was scored on other data or settings.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Score models on BEIR folders, with BM25 beside."""
    from ..bench import as_json as to_json
    from ..bench import bench, table

    results = bench(
        models,
        data=data,
        output=output,
        datasets=datasets,
        split=split,
        bm25=bm25,
        batch_size=batch_size,
        max_tokens=max_tokens,
        run_files=run_files,
        device=device,
        threads=threads,
        overwrite=overwrite,
    )
    if as_json:
        print_json(to_json(results))
    else:
        show(table(results))
