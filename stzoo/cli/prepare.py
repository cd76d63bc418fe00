"""stzoo prepare NAME: a subcommand for each preparation that plugins bring, its settings as flags."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from stzoo.cli.flags import Json, Overwrite, Resume, settings_as_flags
from stzoo.cli.shared import PANEL_OF, app, print_json, show
from stzoo.utils.tables import new_table


class _Preparations(TyperGroup):
    """Finds the subcommands when they are asked for: no plugin is loaded before."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - click's signature
        from stzoo.plugins import manager

        return list(manager.all("preparation"))

    def get_command(self, ctx: Any, name: str) -> Any:  # noqa: ARG002
        from stzoo.plugins import builders, manager

        component = manager.find("preparation", name)
        kind: Any = builders.resolve(component)

        @settings_as_flags(kind.Settings, hidden={"preparation": name})
        def command(
            recipe: str | None,
            changes: dict[str, Any],
            output: Annotated[Path, typer.Option(help="Folder for the data set.")],
            resume: Resume = False,
            overwrite: Overwrite = False,
            as_json: Json = False,
        ) -> None:
            from stzoo.pretraining.prepare import prepare
            from stzoo.utils.distributed import is_main_process

            folder = prepare(name, recipe, output=output, resume=resume, overwrite=overwrite, **changes)
            if is_main_process():
                _report(folder, as_json)

        one = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
        one.command(name, help=f"Make {component.summary}.")(command)
        built = typer.main.get_command(one)
        built.name = name
        return built


HELP = "Make the extra columns that some objectives read."
preparations = typer.Typer(cls=_Preparations, help=HELP, no_args_is_help=True)
app.add_typer(preparations, name="prepare", rich_help_panel=PANEL_OF["prepare"])


@preparations.callback()
def _prepare() -> None:
    """Make the extra columns that some objectives read, and save them as a data set."""


def _report(folder: Path, as_json: bool) -> None:
    import json
    import shlex

    from stzoo.plugins import manager
    from stzoo.utils.distributed import is_main_process
    from stzoo.utils.outputs import RECORD

    if not is_main_process():
        return
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    if as_json:
        print_json(record)
        return
    table = new_table("column", "filled", "passages")
    for column, count in record["filled"].items():
        table.add_row(column, str(count), str(record["corpus"]["passages"]))
    show(table)
    for note in record["notes"]:
        typer.echo(note)
    name, base = record["recipe"]["preparation"], record["recipe"]["tokenizer"]
    objective = ["--objective", name] if name in manager.all("objective") else []
    words = ["stzoo", "pretrain", "--base", base, *objective, "--corpus", str(folder), "--output", "MODEL"]
    typer.echo(f"The data set is in {folder}. To train on it:\n  {shlex.join(words)}", err=True)
