"""A document's sections, each a text with the headings above it; readers of Markdown and HTML.

Markdown is parsed by markdown-it-py, so that "#" in a code block is not a heading; the text of a section is
that of the file, with its marks. HTML is parsed by lxml: of the main part, if the page marks one, the visible
text is kept without navigation, and a table's row is a line.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from stzoo.data.words import normal_form
from stzoo.errors import MissingExtraError
from stzoo.utils.inputs import parse_yaml

_CONTROLS = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f]")
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?\n)(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_LINE_BREAK = re.compile("\r\n?")


@dataclass(frozen=True)
class Section:
    """The text between two headings.

    Attributes:
        headings: The headings above it, from the top-level one down.
        text: The text, without headings.
        top: Number of the top-level heading above it; 0 before the first heading.
    """

    headings: tuple[str, ...]
    text: str
    top: int = 0


@dataclass(frozen=True)
class Document:
    """A document.

    Attributes:
        name: Its path relative to the source, or the id of a row.
        title: Its title.
        sections: Its sections in order; those without text are left out.
        markdown: True if the text is Markdown.
        is_row: True if it is a row; its only passage has the id of the row.
        metadata: Metadata of the row.
    """

    name: str
    title: str
    sections: list[Section]
    markdown: bool = False
    is_row: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)


class SectionBuilder:
    """Collects the sections of a document from its headings and texts, which are given in order."""

    def __init__(self) -> None:
        self.sections: list[Section] = []
        self._open: list[tuple[int, str]] = []
        self._texts: list[str] = []
        self._top = 0
        self._least = 9

    def heading(self, level: int, text: str) -> None:
        """Adds a heading.

        Args:
            level: 1 to 6, or 0 for the title of the document.
            text: Its text; a blank heading only ends the section.
        """
        self._close()
        while self._open and self._open[-1][0] >= level:
            self._open.pop()
        if text := " ".join(clean(text).split()):
            self._top += not self._open
            self._open.append((level, text))
            self._least = min(self._least, level)

    def text(self, text: str) -> None:
        """Adds text."""
        self._texts.append(text)

    def finish(self, name: str, title: str, fallback: str, **about: Any) -> Document:
        """The document.

        If it has headings but none of level 1, its title is put above them.

        Args:
            name: See `Document`.
            title: The title that the document has; "" if it has none.
            fallback: The title of a document without one.
            about: Further attributes of `Document`.
        """
        self._close()
        title = " ".join(clean(title).split()) or fallback
        if 1 < self._least < 9:
            self.sections = [
                Section((title, *section.headings), section.text, section.top) if section.top else section
                for section in self.sections
            ]
        return Document(name, title, self.sections, **about)

    def _close(self) -> None:
        text = clean("".join(self._texts)).strip()
        self._texts = []
        if text:
            self.sections.append(Section(tuple(text for _, text in self._open), text, self._top))


def clean(text: str) -> str:
    """The text in normal form (NFC), without control characters."""
    return _CONTROLS.sub("", normal_form(_LINE_BREAK.sub("\n", text)))


def library(name: str, package: str = "") -> Any:
    """Imports a library that reads documents.

    Args:
        name: Name of the module.
        package: Name of its package, if it differs.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        raise MissingExtraError(package or name, "documents") from None


# -- Markdown


def markdown_document(name: str, text: str, fallback: str) -> Document:
    """The document of a Markdown text (CommonMark); YAML front matter may have its title."""
    text, title = _LINE_BREAK.sub("\n", text), ""
    if found := _FRONT_MATTER.match(text):
        try:
            about = parse_yaml(found[1])
        except ValueError:
            about = None
        if isinstance(about, dict):
            text = text[found.end() :]
            title = about["title"] if isinstance(about.get("title"), str) else ""
    tokens = library("markdown_it", "markdown-it-py").MarkdownIt("commonmark").parse(text)
    lines, at, built = text.split("\n"), 0, SectionBuilder()
    for place, token in enumerate(tokens):
        if token.type == "heading_open" and token.level == 0:
            built.text("\n".join(lines[at : token.map[0]]))
            built.heading(int(token.tag[1]), _plain(tokens[place + 1]))
            at = token.map[1]
    built.text("\n".join(lines[at:]))
    return built.finish(name, title, fallback, markdown=True)


def _plain(inline: Any) -> str:
    """The text of a heading, without its marks."""
    return "".join(
        child.content if child.type in ("text", "code_inline", "image") else " "
        for child in inline.children
        if child.content or child.type in ("softbreak", "hardbreak")
    )


# -- HTML

_LEFT_OUT = frozenset(
    (
        *("script", "style", "noscript", "template", "head", "svg", "iframe", "object", "canvas", "audio"),
        *("video", "nav", "header", "footer", "aside", "dialog", "button", "select", "textarea"),
    )
)
_LEFT_OUT_ROLES = frozenset(("navigation", "banner", "contentinfo", "search", "menu", "dialog"))
_PARAGRAPHS = frozenset(
    (
        *("address", "article", "blockquote", "body", "dd", "details", "div", "dl", "dt", "fieldset", "form"),
        *("figcaption", "figure", "hr", "legend", "main", "ol", "p", "pre", "section", "summary", "table"),
        "ul",
    )
)
_LINES = frozenset(("br", "caption", "li", "tr"))
# Marks of breaks, which are white space, and what a run of them becomes: the first of these that is in it.
_PARAGRAPH, _LINE, _CELL, _SPACE = "\x1c\x1d\x1e\x1f"
_BREAK = re.compile(r"[ \t]*[\x1c-\x1f]\s*")
_BREAKS = {_PARAGRAPH: "\n\n", _LINE: "\n", _CELL: " | ", _SPACE: " "}
_CELLS = frozenset(("td", "th"))
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_MAIN = "//main | //*[@role='main'] | //body[count(.//article) = 1]//article"
_ANCHORS = " \n\t#¶§🔗"  # links to a heading itself, at its end


def html_document(name: str, content: bytes, fallback: str) -> Document:
    """The document of an HTML page.

    Args:
        name: Its name.
        content: The page in UTF-8.
        fallback: Its title if it has none.
    """
    html = library("lxml.html", "lxml")
    parser = html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True, huge_tree=True)
    page = html.document_fromstring(content, parser=parser)
    title = next((text for text in page.xpath("//head/title/text()")), "")
    built = SectionBuilder()
    mains = page.xpath(_MAIN)
    roots = [one for one in mains if not any(other in mains for other in one.iterancestors())]
    for root in roots if any(root.text_content().strip() for root in roots) else page.xpath("//body"):
        for level, text in _blocks(root):
            if level is None:
                built.text(text)
            else:
                built.heading(level, text.strip(_ANCHORS))
    return built.finish(name, title, fallback)


def _blocks(root: Any) -> Iterator[tuple[int | None, str]]:
    """The texts of a page, (None, text), and its headings, (level, text)."""
    walk = library("lxml.etree", "lxml").iterwalk(root, events=("start", "end"))
    level: int | None = None
    parts: list[str] = []
    preformatted = cells = 0

    def flush() -> tuple[int | None, str]:
        text = _BREAK.sub(_break, "".join(parts))
        parts.clear()
        return level, text

    def spaced(text: str | None) -> str:
        if not text or preformatted:
            return text or ""
        return re.sub(r"\s+", " ", text)

    for event, element in walk:
        tag = element.tag if isinstance(element.tag, str) else ""
        ends = _PARAGRAPH if tag in _PARAGRAPHS else _LINE if tag in _LINES else ""
        ends = _SPACE if ends and cells else ends  # a row is a line
        if event == "start":
            if _is_left_out(tag, element) and element is not root:
                walk.skip_subtree()
                continue
            if tag in _HEADINGS:
                yield flush()
                level = 0 if "title" in element.get("class", "").split() else _HEADINGS[tag]
            preformatted += tag == "pre"
            cells += tag in _CELLS
            parts += [ends, "- " if tag == "li" else "", spaced(element.text)]
            continue
        if not _is_left_out(tag, element) or element is root:
            preformatted -= tag == "pre"
            cells -= tag in _CELLS
            if tag in _HEADINGS:
                yield flush()
                level = None
            elif tag in _CELLS and element.getnext() is not None:
                parts.append(_CELL)
            else:
                parts.append(ends)
        if element is not root:
            parts.append(spaced(element.tail))
    yield flush()


def _break(found: re.Match[str]) -> str:
    return next(text for mark, text in _BREAKS.items() if mark in found[0])


def _is_left_out(tag: str, element: Any) -> bool:
    if tag in _LEFT_OUT:
        # the header of an article often has its title
        return tag != "header" or element.find(".//h1") is None
    about = element.attrib
    hidden = "hidden" in about or about.get("aria-hidden") == "true"
    return hidden or about.get("role") in _LEFT_OUT_ROLES
