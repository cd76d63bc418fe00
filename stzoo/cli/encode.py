"""stzoo encode."""

from typing import Annotated

import typer

from stzoo.cli.flags import Json, command
from stzoo.cli.settings import EncodeSettings
from stzoo.cli.shared import print_json


@command(EncodeSettings)
def encode_command(
    settings: EncodeSettings,
    output: Annotated[
        str | None,
        typer.Option(help="Folder for the vectors (--to also writes to URLs); stzoo's cache by default."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Encode a corpus, with one process or many."""
    from stzoo.retrieval.encode import encode
    from stzoo.utils.distributed import is_main_process

    made = encode(**settings.arguments(), output=output)
    if is_main_process():
        print_json(made.to_json()) if as_json else typer.echo(made)
