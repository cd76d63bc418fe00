"""stzoo compare."""

from typing import Any

import typer

from stzoo.cli.flags import Json, settings_as_flags
from stzoo.cli.shared import command, print_json, show
from stzoo.evaluation.settings import CompareSettings


@command("compare")
@settings_as_flags(CompareSettings)
def compare_command(
    recipe: str | None,
    settings: dict[str, Any],
    as_json: Json = False,
) -> None:
    """Test whether systems differ significantly, query by query."""
    given = CompareSettings.read(recipe, settings)
    from stzoo.evaluation.compare import compare
    from stzoo.evaluation.compare.result import as_json as to_json
    from stzoo.evaluation.compare.result import table, verdict

    found = compare(**given.arguments())
    if as_json:
        print_json(to_json(found))
        return
    show(table(found))
    for pair in found.pairs:
        typer.echo(verdict(found, pair))
    for note in found.notes:
        typer.echo(note, err=True)
