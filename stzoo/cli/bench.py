"""stzoo bench, and the printing of results that `stzoo score` shares."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from stzoo.cli.flags import Json, command
from stzoo.cli.shared import print_json, show
from stzoo.evaluation.settings import BenchSettings


@command(BenchSettings)
def bench_command(
    settings: BenchSettings,
    output: Annotated[Path, typer.Option(help="Folder for the results.")],
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace results of other data or settings."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Score models on BEIR and KILT data, and BM25 as well."""
    from stzoo.evaluation.bench.bench import bench

    with printed(settings.measures, as_json, settings.suite) as on_result:
        found = bench(**settings.arguments(), output=output, overwrite=overwrite, on_result=on_result)
    if found and not as_json:
        typer.echo(
            f"The results are in {output}. Next: {shlex.join(_next(settings, found, output))}", err=True
        )


def _next(settings: BenchSettings, found: Sequence[Any], output: Path) -> list[str]:
    """A command for the results: the comparison of two systems, or the report on a single one."""
    from stzoo.models.names import parse_name

    known = dict.fromkeys(result.model for result in found)
    models = [name for name, _ in map(parse_name, settings.models or ()) if name in known]
    pair = (models if len(models) > 1 else [*known])[:2]
    if len(pair) < 2:
        return ["stzoo", "report", str(output), "--output", "report.html"]
    folders = {result.model: result.path.parent for result in found}  # OUTPUT/model/revision
    if any(len([*folders[name].parent.iterdir()]) > 1 for name in pair):
        return ["stzoo", "compare", *(str(folders[name]) for name in pair)]
    return ["stzoo", "compare", *pair, "--results", str(output)]


@contextmanager
def printed(measures: str | None, as_json: bool, suite: str | None = None) -> Iterator[Callable[[Any], None]]:
    """Collects results and prints them at the end, also those before a failure or Ctrl-C."""
    results: list[Any] = []
    whole = False
    try:
        yield results.append
        whole = True
    finally:
        if results:  # there is no mean of an unfinished suite
            _print(results, measures, as_json, suite if whole else None)


def _print(results: Any, measures: str | None, as_json: bool, suite: str | None) -> None:
    from stzoo.evaluation.bench import kilt_suite
    from stzoo.evaluation.bench.tables import as_json as to_json
    from stzoo.evaluation.bench.tables import costs, table
    from stzoo.evaluation.measures import parse_measures

    for note in dict.fromkeys(f"{r.dataset}: {note}" for r in results for note in r.details.get("notes", ())):
        typer.echo(f"warning: {note}", err=True)
    if as_json:
        print_json(to_json(results) | (kilt_suite.as_json(results) if suite else {}))
        return
    if suite:
        show(kilt_suite.table(results))
        return
    show(table(results, [measure.name for measure in parse_measures(measures)] if measures else ()))
    if variants := costs(results):
        show(variants)
