"""stzoo export."""

from pathlib import Path
from typing import Annotated

import typer

from stzoo.cli.flags import Overwrite, command
from stzoo.cli.shared import done
from stzoo.hub.settings import ExportSettings
from stzoo.utils.outputs import check_model_output


@command(ExportSettings)
def export_command(
    settings: ExportSettings,
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Export a model for plain sentence-transformers, and verify.

    The folder loads in sentence-transformers 5 and 6 alike, which a fresh process checks.

    Only the retriever is exported; an MLM head or decoders kept for pre-training are left out.
    """
    check_model_output(output, overwrite, [settings.model])  # before torch is imported, which takes seconds
    from stzoo.hub.export import export
    from stzoo.utils.distributed import require_one_process

    require_one_process("export")
    done(export(**settings.arguments(), output=output, overwrite=overwrite))
