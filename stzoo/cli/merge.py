"""stzoo merge."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from stzoo.cli.flags import Overwrite, settings_as_flags
from stzoo.cli.shared import command, done, show
from stzoo.hub.settings import MergeSettings
from stzoo.utils.tables import new_table


@command("merge")
@settings_as_flags(MergeSettings)
def merge_command(
    recipe: str | None,
    settings: dict[str, Any],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Average the weights of several models (a model soup)."""
    given = MergeSettings.read(recipe, settings)
    from stzoo.hub.merge import merge
    from stzoo.utils.outputs import MERGED

    folder = merge(**given.arguments(), output=output, overwrite=overwrite)
    table = new_table("source", "weight", "revision")
    for one in json.loads((folder / MERGED).read_text(encoding="utf-8"))["merged"]:
        table.add_row(one["source"], f"{one['weight']:.4g}", one["revision"])
    show(table)
    done(folder)
