"""stzoo merge."""

import json
from pathlib import Path
from typing import Annotated

import typer

from stzoo.cli.flags import Overwrite, command
from stzoo.cli.shared import done, show
from stzoo.hub.settings import MergeSettings
from stzoo.utils.tables import new_table


@command(MergeSettings)
def merge_command(
    settings: MergeSettings,
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Average the weights of several models (a model soup)."""
    from stzoo.hub.merge import merge
    from stzoo.utils.outputs import MERGED

    folder = merge(**settings.arguments(), output=output, overwrite=overwrite)
    table = new_table("source", "weight", "revision")
    for one in json.loads((folder / MERGED).read_text(encoding="utf-8"))["merged"]:
        table.add_row(one["source"], f"{one['weight']:.4g}", one["revision"])
    show(table)
    done(folder)
