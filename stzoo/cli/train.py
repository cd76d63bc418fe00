"""stzoo pretrain, finetune, export, card, demo: what makes models, and tells of them."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from stzoo.cli.shared import SEEDS, Json, Overwrite, Threads, app, done, print_json, show, show_answers
from stzoo.errors import RecipeError
from stzoo.training.settings import FinetuneSettings, PretrainSettings, Settings, TaskSettings, parse_changes

Output = Annotated[Path, typer.Option(help="Folder for checkpoints, run.json and, at the end, the model.")]
Recipe = Annotated[str | None, typer.Option(help="A YAML file, or the name of an installed recipe.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting, e.g. options.decoder_rate=0.7."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the unfinished run in --output.")]


def settings_as_flags(
    settings: type[Settings], positional: str | None = None, hidden: str | None = None
) -> Callable[[Any], Any]:
    """Gives a command one flag for each setting, so that the recipe's keys are the flags.

    A flag left out is None and leaves the setting to the recipe or to its default.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command).parameters.values() if p.name != "settings"]
        flags = []
        for name, field in settings.model_fields.items():
            kind: Any = field.annotation
            if kind in (dict[str, Any], dict[str, float], list[TaskSettings]):
                continue  # nested: by --set, or in a recipe
            if name == hidden:  # the command itself says it
                continue
            if getattr(kind, "__origin__", None) is not list and not isinstance(kind, type):
                kind = _plain(kind)
            value = ", ".join(field.default) if isinstance(field.default, list) else field.default
            default = "" if field.is_required() or value in (None, "") else f" [{value}]"
            text = field.description or ""
            must = " (required)" if field.is_required() and name != positional else ""
            about = f"{text[:1].upper()}{text[1:]}.{default}{must}"
            many = "TEXT; give it again for more" if kind == list[str] else None
            option = typer.Option(help=about, metavar=many)
            given = typer.Argument(help=about) if name == positional else option
            annotation = Annotated[kind | None, given]
            flags.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            )
        flags.sort(key=lambda parameter: parameter.name != positional)

        def run(**given: Any) -> None:
            named = {p.name: given.pop(p.name) for p in own}
            changes = {k: v for k, v in given.items() if v is not None and v != []}
            by_set = parse_changes(named.get("changes") or [])
            if twice := sorted(changes.keys() & by_set.keys()):
                flag = twice[0].replace("_", "-")
                raise RecipeError(f"--{flag} and --set {twice[0]} are both given; keep one of the two.")
            command(**named, settings=changes | by_set)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        kept = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        run.__signature__ = inspect.Signature([*flags, *kept])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in [*flags, *kept]}
        return run

    return decorate


def _plain(kind: Any) -> Any:
    """The type behind `X | None`, and text for a choice of words, which pydantic checks and explains."""
    choices = [k for k in getattr(kind, "__args__", ()) if k is not type(None)]
    return choices[0] if choices and isinstance(choices[0], type) else str


@app.command("pretrain")
@settings_as_flags(PretrainSettings)
def pretrain_command(
    output: Output,
    settings: dict[str, Any],
    recipe: Recipe = None,
    changes: Set = None,  # noqa: ARG001 - merged into settings
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Pre-train an encoder on plain text, and export it for plain sentence-transformers."""
    from stzoo.pretraining.pretrain import pretrain

    done(pretrain(recipe, output=output, resume=resume, overwrite=overwrite, **settings))


@app.command("finetune")
@settings_as_flags(FinetuneSettings, positional="model")
def finetune_command(
    output: Output,
    settings: dict[str, Any],
    recipe: Recipe = None,
    changes: Set = None,  # noqa: ARG001 - merged into settings
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune a retriever on judged queries, and export it."""
    from stzoo.finetuning.finetune import finetune

    model = settings.pop("model", None)
    done(finetune(model, recipe, output=output, resume=resume, overwrite=overwrite, **settings))


@app.command("export")
def export_command(
    model: Annotated[str, typer.Argument(help="A sentence-transformers model: folder or Hub id.")],
    output: Annotated[Path, typer.Option(help="The folder to write.")],
    portable: Annotated[bool, typer.Option(help="Built-in modules only; needs nothing of ours.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that is there.")] = False,
) -> None:
    """Write a model folder that sentence-transformers 5 and 6 load alike, and check it in a fresh process.

    It holds the retriever only; an MLM head or decoders kept for pre-training stay where they are.
    """
    from stzoo.hub.export import export
    from stzoo.utils.distributed import require_one_process

    require_one_process("export")
    done(export(model, output, portable=portable, overwrite=overwrite))


@app.command("card")
def card_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A trained or exported model.")],
    results: Annotated[
        Path | None, typer.Option(help="An --output of bench, for the scores of this very model.")
    ] = None,
    repo_id: Annotated[str, typer.Option(help="ORG/NAME on the Hub, for the usage code.")] = "",
    license_: Annotated[
        str | None, typer.Option("--license", help="As the Hub spells it: apache-2.0, mit, other.")
    ] = None,
    language: Annotated[str | None, typer.Option(help="Codes, with commas between: en,de.")] = None,
    output: Annotated[Path | None, typer.Option(help="The file to write; printed if left out.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the metadata alone, as JSON.")] = False,
) -> None:
    """Show the model card that the Hub would get: use, method, data, recipe, scores, limits, citation."""
    from stzoo.hub.card import card, metadata

    given: dict[str, Any] = dict(results=results, repo_id=repo_id, license=license_, language=language)
    text = card(folder, output=output, overwrite=overwrite, **given)
    if as_json:
        print_json(metadata(text))
    elif output is None:
        typer.echo(text, nl=False)
    else:
        typer.echo(output)


@app.command("demo")
def demo_command(
    output: Annotated[Path, typer.Option(help="Folder for all that the demo makes.")] = Path("demo"),
    base: Annotated[
        str | None, typer.Option(help="The model to start from; all-MiniLM-L6-v2 if left out.")
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(help="A BEIR folder with train and test qrels; Python's docstrings if left out."),
    ] = None,
    seed: Annotated[int, typer.Option(**SEEDS, help="Of everything random.")] = 42,
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """The whole way in minutes: pre-train, fine-tune, compare, export, ask. A second call goes on."""
    from stzoo.cli.demo import demo, verdict
    from stzoo.evaluation.bench.tables import as_json as to_json
    from stzoo.evaluation.bench.tables import table

    made = demo(
        output=output,
        base=base,
        corpus=corpus,
        seed=seed,
        threads=threads,
        overwrite=overwrite,
        say=lambda line: typer.echo(line, err=True),
    )
    if as_json:
        verdicts = [verdict(test) for test in made["tests"]]
        print_json({**made, "verdicts": verdicts, **to_json(made["results"])})
        return
    show(table(made["results"]))
    for test in made["tests"]:
        typer.echo(verdict(test))
    typer.echo("")
    show_answers(made["answers"])
    typer.echo("")
    done(Path(made["model"]))
