"""Makes the reference from the code, and lets pages refer to files outside of docs/; hooks of MkDocs.

- A page for each command, from the parameters that `stzoo COMMAND --help` shows and from its settings class.
- In pages, `<!-- commands -->` becomes the list of commands, and `<!-- api MODULE KIND -->` what mkdocstrings
  shows of the module's public functions, classes or errors.
- `<!-- source PATH NAME -->` becomes the code of a function or class of the repository.
- Links to files of the repository become links to GitHub; pictures outside of docs/ are copied to the site.
"""

import ast
import importlib
import inspect
import os
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

import griffe
import typer
import yaml
from mkdocs.structure.files import File
from pydantic.fields import FieldInfo
from rich.text import Text

from stzoo.cli import add_plugins
from stzoo.cli.flags import METAVARS, NESTED
from stzoo.cli.shared import PANEL_OF, PANELS, app
from stzoo.errors import StzooError
from stzoo.plugins import builders, manager
from stzoo.training.finetune_settings import TaskSettings
from stzoo.training.settings import Settings

DOCS = Path(__file__).parent
ROOT = DOCS.parent
REPOSITORY = "https://github.com/stzoo/stzoo/blob/main/"
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)#]+)(#[^)]*)?\)")
FUNCTIONS = {"import": "import_checkpoint", "read": "read_documents"}  # of commands with another name


def on_config(config: Any) -> Any:
    """Adds the pages of the commands to the navigation."""
    pages: dict[str, list[str]] = {}
    for words in commands():
        pages.setdefault(PANEL_OF.get(words[0], "Plugins"), []).append(page_of(words))
    [reference] = [part["Reference"] for part in config.nav if isinstance(part, dict) and "Reference" in part]
    reference[0]["Commands"] += [{panel: found} for panel, found in pages.items()]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages of the commands, and pictures of the repository that pages show."""
    for words, command in commands().items():
        files.append(File.generated(config, page_of(words), content=command_page(words, command)))
    shown = {
        target
        for file in files.documentation_pages()
        if file.abs_src_path
        for is_image, _, link, _ in LINK.findall(Path(file.abs_src_path).read_text(encoding="utf-8"))
        if is_image and (target := outside(file.src_uri, link))
    }
    for target in sorted(shown):
        files.append(File.generated(config, f"files/{target}", abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fills in what is made from the code, and rewrites links that leave docs/."""

    def link(found: re.Match[str]) -> str:
        is_image, text, path, anchor = found.groups()
        if (target := outside(page.file.src_uri, path)) is None:
            return found[0]
        if is_image:
            path = os.path.relpath(f"files/{target}", Path(page.file.src_uri).parent)
            return f"![{text}]({path})"
        return f"[{text}]({REPOSITORY}{target}{anchor or ''})"

    markdown = re.sub(r"<!-- api (\S+) (\w+) -->", lambda found: api(*found.groups()), markdown)
    markdown = re.sub(r"<!-- source (\S+) (\w+) -->", lambda found: source(*found.groups()), markdown)
    markdown = markdown.replace("<!-- commands -->", command_list())
    return LINK.sub(link, markdown)


class Examples(griffe.Extension):
    """Shows the examples of docstrings as code."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Makes code of the part `Example:`, up to the end or the next part."""
        if obj.docstring:
            part = r"^Example:\n((?:    .*\n?|\n)+)"
            obj.docstring.value = re.sub(part, self.code, obj.docstring.value, flags=re.MULTILINE)

    @staticmethod
    def code(found: re.Match[str]) -> str:
        """The part in Markdown: a sentence before the code stays text."""
        text, double_colon, code = textwrap.dedent(found[1]).strip().rpartition("::\n\n")
        kind = "pycon" if code.startswith(">>>") else "python"
        code = re.sub(r" +# doctest: \+SKIP", "", textwrap.dedent(code).rstrip())
        return f"**Example.** {text}{double_colon[:1]}\n\n```{kind}\n{code}\n```\n\n"


def source(path: str, name: str) -> str:
    """The code of a function or class of a file of the repository."""
    text = (ROOT / path).read_text(encoding="utf-8")
    [node] = [one for one in ast.parse(text).body if getattr(one, "name", "") == name]
    first = min([node.lineno, *(one.lineno for one in node.decorator_list)])  # type: ignore[attr-defined]
    code = "\n".join(text.splitlines()[first - 1 : node.end_lineno])
    return f'```python title="{path}"\n{code}\n```'


def outside(page: str, link: str) -> str | None:
    """The path in the repository of what a page links to, if it is not in docs/."""
    path = os.path.normpath(DOCS / Path(page).parent / link)
    return None if path.startswith(f"{DOCS}{os.sep}") else Path(path).relative_to(ROOT).as_posix()


@cache
def commands() -> dict[tuple[str, ...], Any]:
    """The commands and subcommands by their words, in the order of `stzoo --help`."""
    found: dict[tuple[str, ...], Any] = {}

    def walk(group: Any, words: tuple[str, ...], names: list[str]) -> None:
        context = typer.Context(group)
        for name in names:
            command = group.get_command(context, name)
            if hasattr(command, "list_commands"):
                walk(command, (*words, name), command.list_commands(context))
            else:
                found[*words, name] = command

    of_plugins = list(manager.all("command"))
    own = typer.main.get_command(app)
    walk(own, (), [name for name in PANEL_OF if name in own.list_commands(typer.Context(own))])
    for name in of_plugins:
        add_plugins([name])  # its parameters are known once it is asked for
        walk(typer.main.get_command(app), (), [name])
    return found


def page_of(words: tuple[str, ...]) -> str:
    """The page of a command."""
    return f"reference/commands/{'-'.join(words)}.md"


def command_list() -> str:
    """The commands with one line each, by panel."""
    lines = []
    for panel in (*PANELS, "Plugins"):
        of_panel = {
            words: one for words, one in commands().items() if PANEL_OF.get(words[0], "Plugins") == panel
        }
        lines += [f"**{panel}**", "", "| command | what it does |", "|---|---|"]
        lines += [
            f"| [`stzoo {' '.join(words)}`]({'-'.join(words)}.md) | {plain(one.help).splitlines()[0]} |"
            for words, one in of_panel.items()
        ]
        lines.append("")
    return "\n".join(lines)


def command_page(words: tuple[str, ...], command: Any) -> str:
    """The page of a command in Markdown."""
    settings = settings_of(words)
    fields = settings.model_fields if settings else {}
    context = typer.Context(command, info_name=f"stzoo {' '.join(words)}")
    lines = [
        f"# stzoo {' '.join(words)}",
        "",
        plain(command.help),
        "",
        "```text",
        command.get_usage(context),
        "```",
        "",
    ]
    function = FUNCTIONS.get(words[0], words[0])
    if function in importlib.import_module("stzoo").__all__:
        lines += [f"In Python: [`stzoo.{function}`](../python.md#stzoo.{function}).", ""]
    panels: dict[str, list[list[str]]] = {}
    for parameter in command.get_params(context):
        if parameter.name == "help":
            continue
        text, default = split_help(parameter)
        bounds = limits(fields[parameter.name]) if parameter.name in fields else ""
        if parameter.param_type_name == "argument":
            panels.setdefault("Arguments", []).append([f"`{parameter.name.upper()}`", "", default, text])
            continue
        value = "" if parameter.is_flag else f"{parameter.metavar or parameter.type.name.upper()}{bounds}"
        flags = ", ".join(f"`{flag}`" for flag in (*parameter.opts, *parameter.secondary_opts))
        panels.setdefault(parameter.rich_help_panel or "Options", []).append([flags, value, default, text])
    for panel, rows in panels.items():
        lines += [f"## {panel}", "", *table("name" if panel == "Arguments" else "flag", rows), ""]
    if nested := {name: field for name, field in fields.items() if field.annotation in NESTED}:
        lines += ["## Settings without a flag", "", "By `--set NAME.KEY=VALUE`, or in a recipe.", ""]
        lines += [*table("setting", [field_row(name, field) for name, field in nested.items()]), ""]
    if "tasks" in nested:
        lines += ["## Settings of each of several tasks", "", "Keys of each item of `tasks` in a recipe.", ""]
        lines += table("setting", [field_row(*one) for one in TaskSettings.model_fields.items()])
    return "\n".join(lines)


def table(first: str, rows: list[list[str]]) -> list[str]:
    """A Markdown table, without columns that are empty."""
    heads = [first, "value", "default", "what it does"]
    kept = [number for number in range(4) if any(row[number] for row in rows)]
    lines = [heads, ["---"] * 4, *rows]
    return [f"| {' | '.join(line[number] for number in kept)} |" for line in lines]


def settings_of(words: tuple[str, ...]) -> type[Settings] | None:
    """The settings class of a command; None for the few without."""

    def below(kind: type[Settings]) -> Iterator[type[Settings]]:
        for one in kind.__subclasses__():
            yield one
            yield from below(one)

    if words[0] == "prepare":
        made: Any = builders.resolve(manager.find("preparation", words[1]))
        return made.Settings
    return next((one for one in below(Settings) if vars(one).get("command") == words[0]), None)


def split_help(parameter: Any) -> tuple[str, str]:
    """The help of a parameter, and its default in a column of its own."""
    text = plain(parameter.help or "")
    if found := re.fullmatch(r"(.*?) ?\[(?:default=(.*)|(required))\]", text, re.DOTALL):
        return found[1], found[3] or f"`{found[2]}`"
    return text, ""


def field_row(name: str, field: FieldInfo) -> list[str]:
    """A setting without a flag: name, type, default, description."""
    default = "required" if field.is_required() else ""
    if not field.is_required() and field.default not in (None, "", [], {}):
        default = f"`{yaml.safe_dump(field.default, default_flow_style=True).split(chr(10))[0].strip('{}')}`"
    return [f"`{name}`", kind_of(field.annotation) + limits(field), default, plain(field.description or "")]


def kind_of(annotation: Any) -> str:
    """A type as `--help` names it, without None."""
    parts = get_args(annotation)
    kind = parts[0] if type(None) in parts else annotation
    origin = get_origin(kind) or kind
    return {dict: "MAPPING", list: "LIST"}.get(origin) or METAVARS.get(origin, "TEXT")


def limits(field: FieldInfo) -> str:
    """The bounds of a number, without those that only exclude the absurd."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [
        f"{sign} {bound:g}"
        for one in field.metadata
        for name, sign in signs.items()
        if isinstance(bound := getattr(one, name, None), int | float) and bound < 10_000
    ]
    return f" {', '.join(found)}" if found else ""


def plain(text: str) -> str:
    """Help text without markup of the terminal, for a cell of a table."""
    return Text.from_markup(inspect.cleandoc(text)).plain.replace("|", "\\|").replace("<", "&lt;")


def api(module: str, kind: str) -> str:
    """What mkdocstrings shows of a module's public `functions`, `classes` or `errors`, or of its `hooks`."""
    found = importlib.import_module(module)
    hooks = [name for name in vars(found) if name.startswith("stzoo_")]
    lines = []
    for name in hooks if kind == "hooks" else sorted(found.__all__):
        value = getattr(found, name)
        is_error = inspect.isclass(value) and issubclass(value, StzooError)
        if kind not in (
            "hooks",
            "errors" if is_error else "functions" if inspect.isfunction(value) else "classes",
        ):
            continue
        lines += [f"::: {module}.{name}", ""]
        words = next((key for key, value in FUNCTIONS.items() if value == name), name)
        if module == "stzoo" and words in PANEL_OF and kind == "functions":
            page = "index" if words == "prepare" else words
            lines += [f"Settings and their defaults: [`stzoo {words}`](commands/{page}.md).", ""]
    return "\n".join(lines)
