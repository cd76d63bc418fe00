"""stzoo compare."""

import typer

from stzoo.cli.flags import Json, command
from stzoo.cli.shared import print_json, show
from stzoo.evaluation.settings import CompareSettings


@command(CompareSettings)
def compare_command(settings: CompareSettings, as_json: Json = False) -> None:
    """Test whether systems differ significantly, query by query."""
    from stzoo.evaluation.compare import compare
    from stzoo.evaluation.compare.result import as_json as to_json
    from stzoo.evaluation.compare.result import table, verdict

    found = compare(**settings.arguments())
    if as_json:
        print_json(to_json(found))
        return
    show(table(found))
    for pair in found.pairs:
        typer.echo(verdict(found, pair))
    for note in found.notes:
        typer.echo(note, err=True)
