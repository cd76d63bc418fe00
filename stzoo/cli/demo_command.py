"""stzoo demo."""

from pathlib import Path
from typing import Annotated

import typer

from stzoo.cli.flags import Json, Overwrite, command
from stzoo.cli.settings import DemoSettings
from stzoo.cli.shared import done, print_json, show, show_answers


@command(DemoSettings)
def demo_command(
    settings: DemoSettings,
    output: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo"),
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Pre-train, fine-tune, compare, export and search in minutes.

    A second call continues where the first one ended.
    """
    from stzoo.cli.demo import demo
    from stzoo.evaluation.bench import tables
    from stzoo.evaluation.compare import result

    made = demo(
        **settings.arguments(),
        output=output,
        overwrite=overwrite,
        say=lambda line: typer.echo(line, err=True),
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
