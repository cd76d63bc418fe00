"""The command line: a thin skin over the functions of the same names; help imports nothing heavy."""

import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__
from .errors import StzooError
from .recipe import FinetuneSettings, PretrainSettings, Settings, parse_changes

INTERRUPTED = 130
STOPPED = "stopped. pretrain and finetune go on with --resume; demo and bench when called again."

app = typer.Typer(
    name="stzoo",
    help="Dense retrievers that train with plugins and serve with plain sentence-transformers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
recipes = typer.Typer(help="Show the recipes that plugins bring.", no_args_is_help=True)
app.add_typer(recipes, name="recipe")

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Output = Annotated[Path, typer.Option(help="Folder for checkpoints, run.json and, at the end, the model.")]
Recipe = Annotated[str | None, typer.Option(help="A YAML file, or the name of an installed recipe.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting, e.g. options.decoder_rate=0.7."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the unfinished run in --output.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Remove what an earlier run left in --output.")]


def _flags(settings: type[Settings], positional: str | None = None) -> Callable[[Any], Any]:
    """Gives a command one flag for each setting, so that the recipe's keys are the flags.

    A flag left out is None and leaves the setting to the recipe or to its default.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command).parameters.values() if p.name != "settings"]
        flags = []
        for name, field in settings.model_fields.items():
            kind: Any = field.annotation
            if kind in (dict[str, Any], dict[str, float]):
                continue  # nested: by --set
            if getattr(kind, "__origin__", None) is not list and not isinstance(kind, type):
                kind = _plain(kind)
            default = "" if field.is_required() or field.default in (None, []) else f" [{field.default}]"
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
            command(**named, settings=changes | parse_changes(named.get("changes") or []))

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


@app.callback(invoke_without_command=True)
def _about(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command("plugins")
def plugins_command(as_json: Json = False) -> None:
    """Show the installed plugins: versions, what each provides, and what failed and why."""
    from . import host

    rows = [
        {
            "plugin": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "provides": {kind: sorted(parts) for kind, parts in plugin.provides.items() if parts},
            "failures": plugin.failures,
        }
        for plugin in host.plugins()
    ]
    if as_json:
        _print_json(rows)
        return
    table = _table("plugin", "distribution", "version", "provides")
    for row in rows:
        parts = "\n".join(f"{kind}: {', '.join(names)}" for kind, names in row["provides"].items())  # type: ignore[attr-defined]
        table.add_row(row["plugin"], row["distribution"], row["version"], parts)
    _print(table)
    for row in rows:
        for failure in row["failures"]:
            typer.echo(f"{row['plugin']} ({row['distribution']}): {failure}", err=True)


@app.command("list")
def list_command(
    kind: Annotated[
        str | None, typer.Argument(help="objectives, poolings, decoders, …; all if left out")
    ] = None,
    as_json: Json = False,
) -> None:
    """List what can be asked for by name."""
    from . import host

    kinds = [kind.removesuffix("s")] if kind else list(host.KINDS)
    rows = []
    for one in kinds:
        for name, part in host.all(one).items():
            hub_id = {"hub_id": part.hub_id} if hasattr(part, "hub_id") else {}
            rows.append({"kind": one, "name": name, "summary": part.summary, **hub_id, "source": part.source})
    if as_json:
        _print_json(rows)
        return
    table = _table("kind", "name", "summary", "source")
    for row in rows:
        more = f"{row['hub_id']}: " if "hub_id" in row else ""
        table.add_row(row["kind"], row["name"], more + row["summary"], row["source"])
    _print(table)


@recipes.command("show")
def recipe_show(name: Annotated[str, typer.Argument(help="see `stzoo list recipes`")]) -> None:
    """Print a recipe, to be copied and changed."""
    from . import host

    typer.echo(host.recipe_text(name), nl=False)


@app.command("pretrain")
@_flags(PretrainSettings)
def pretrain_command(
    output: Output,
    settings: dict[str, Any],
    recipe: Recipe = None,
    changes: Set = None,  # noqa: ARG001 - merged into settings
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Pre-train an encoder on plain text, and export it for plain sentence-transformers."""
    from .pretrain import pretrain

    _done(pretrain(recipe, output=output, resume=resume, overwrite=overwrite, **settings))


@app.command("finetune")
@_flags(FinetuneSettings, positional="model")
def finetune_command(
    output: Output,
    settings: dict[str, Any],
    recipe: Recipe = None,
    changes: Set = None,  # noqa: ARG001 - merged into settings
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune a retriever on judged queries, and export it."""
    from .finetune import finetune

    model = settings.pop("model", None)
    _done(finetune(model, recipe, output=output, resume=resume, overwrite=overwrite, **settings))


@app.command("bench")
def bench_command(
    models: Annotated[list[str], typer.Argument(help="Folders or Hub ids, or NAME=FOLDER_OR_HUB_ID.")],
    data: Annotated[Path, typer.Option(help="A BEIR folder, or the parent of several.")],
    output: Annotated[Path, typer.Option(help="Where results go.")],
    datasets: Annotated[str | None, typer.Option(help="Folders under --data, with commas between.")] = None,
    split: Annotated[str, typer.Option(help="Of the judgements.")] = "test",
    bm25: Annotated[bool, typer.Option(help="Score BM25 beside.")] = True,
    batch_size: Annotated[int, typer.Option(help="Texts encoded at once.")] = 32,
    max_tokens: Annotated[
        int | None, typer.Option(help="Cut texts here; the model's limit if left out.")
    ] = None,
    run_files: Annotated[bool, typer.Option(help="Keep TREC run files.")] = True,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Score anew what was scored on other data or settings.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Score models on BEIR folders, with BM25 beside."""
    from .bench import as_json as to_json
    from .bench import bench, table

    results = bench(
        models,
        data=data,
        output=output,
        datasets=datasets,
        split=split,
        bm25=bm25,
        batch_size=batch_size,
        max_tokens=max_tokens,
        run_files=run_files,
        device=device,
        threads=threads,
        overwrite=overwrite,
    )
    if as_json:
        _print_json(to_json(results))
    else:
        _print(table(results))


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
    from .hub.export import export

    _done(export(model, output, portable=portable, overwrite=overwrite))


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
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 42,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """The whole way in minutes: pre-train, fine-tune, compare, export, ask. A second call goes on."""
    from .bench import as_json as to_json
    from .bench import table
    from .demo import demo, verdict

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
        _print_json({**made, "verdicts": verdicts, "results": to_json(made["results"])})
        return
    _print(table(made["results"]))
    for test in made["tests"]:
        typer.echo(verdict(test))
    for answer in made["answers"]:
        typer.echo(f"\n> {answer['question']}")
        for found in answer["found"]:
            text = found["text"] if len(found["text"]) < 240 else f"{found['text'][:240]} …"
            typer.echo(f"  {found['score']:.3f}  {found['id']}\n         {text}")
    typer.echo("")
    _done(Path(made["model"]))


def _done(folder: Path) -> None:
    from .runs import is_first_process

    if is_first_process():
        typer.echo(f"The model is in {folder}: SentenceTransformer({str(folder)!r})", err=True)


def _table(*columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(table: Any) -> None:
    from rich.console import Console

    # without a terminal there is no width to fit into, and a cut table cannot be read by a program either
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def main() -> None:
    """Runs the command line: exit code 2 for a user's mistake, 130 for Ctrl-C."""
    try:
        code = app(standalone_mode=False)  # typer's own way to end is to return the exit code
        sys.exit(_say(STOPPED, code) if code == INTERRUPTED else code)
    except StzooError as error:
        sys.exit(_say(str(error), error.exit_code))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(_say(STOPPED, INTERRUPTED))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if hasattr(error, "format_message"):  # click's own errors of usage
            sys.exit(_say(error.format_message(), getattr(error, "exit_code", 2)))
        raise


def _say(text: str, code: int) -> int:
    typer.echo(f"stzoo: {text}", err=True)
    return code
