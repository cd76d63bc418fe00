"""stzoo contamination."""

from pathlib import Path
from typing import Annotated

import typer

from stzoo.cli.flags import Json, Overwrite, command
from stzoo.cli.shared import print_json, show
from stzoo.evaluation.settings import ContaminationSettings


@command(ContaminationSettings)
def contamination_command(
    settings: ContaminationSettings,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the list and the report; not saved by default.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Find test queries and their passages in training data."""
    from stzoo.evaluation.contamination import contamination
    from stzoo.evaluation.contamination.result import as_json as to_json
    from stzoo.evaluation.contamination.result import table

    found = contamination(**settings.arguments(), output=output, overwrite=overwrite)
    print_json(to_json(found)) if as_json else show(table(found))
