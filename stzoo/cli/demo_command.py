"""stzoo demo."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stzoo.cli.flags import Json, Overwrite, settings_as_flags
from stzoo.cli.settings import DemoSettings
from stzoo.cli.shared import command, done, print_json, show, show_answers


@command("demo")
@settings_as_flags(DemoSettings)
def demo_command(
    recipe: str | None,
    settings: dict[str, Any],
    output: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo"),
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Pre-train, fine-tune, compare, export and search in minutes.

    A second call continues where the first one ended.
    """
    given = DemoSettings.read(recipe, settings)
    from stzoo.cli.demo import demo
    from stzoo.evaluation.bench import tables
    from stzoo.evaluation.compare import result

    made = demo(
        **given.arguments(), output=output, overwrite=overwrite, say=lambda line: typer.echo(line, err=True)
    )
    if as_json:
        verdicts = [result.verdict(test, test.pairs[0]) for test in made["tests"]]
        made["tests"] = [result.as_json(test) for test in made["tests"]]
        print_json({**made, "verdicts": verdicts, **tables.as_json(made["results"])})
        return
    show(tables.table(made["results"]))
    for test in made["tests"]:
        typer.echo(result.verdict(test, test.pairs[0]))
    typer.echo("")
    show_answers(made["answers"])
    typer.echo("")
    done(Path(made["model"]))
