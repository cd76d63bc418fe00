"""The text of PDF files, by pypdfium2, with the entries of the outline as headings.

Lines that break within a sentence are joined, words that are hyphenated at the end of a line too. Lines with
only a page number, and headers and footers that most pages share, are left out.
"""

import re
from collections import Counter
from pathlib import Path

from stzoo.data.documents.sections import Document, SectionBuilder, library
from stzoo.errors import DataError

_PAGE_NUMBER = re.compile(
    r"((page|seite|p\.|p[aá]gina)\s*)?[-\u2013\u2014|\s]*(\d{1,5}|[ivxlc]+)(\s*(/|of|von|de|sur)\s*\d+)?[-\u2013\u2014|\s]*",
    re.IGNORECASE,
)
_HYPHEN = "\ufffe"  # PDFium's mark of a hyphen at the end of a line
_SENTENCE_ENDS = tuple('.!?:;)"\u3002\uff01\uff1f\u2026\u201d\u00bb')
_FEWEST = 4  # pages, to tell what they share
_EDGE = 2  # lines at the top and at the bottom of a page that may be header or footer


def pdf_document(name: str, path: Path, fallback: str) -> Document:
    """The document of a PDF file.

    Raises:
        DataError: If it is encrypted or damaged, or has no text.
    """
    pdfium = library("pypdfium2")
    try:
        with pdfium.PdfDocument(path) as pdf:
            title = str(pdf.get_metadata_dict().get("Title") or "")
            pages = [_lines(page) for page in pdf]
            outline: dict[int, list[tuple[int, str]]] = {}
            for entry in pdf.get_toc():
                target = entry.get_dest()
                if target is not None and target.get_index() is not None:
                    outline.setdefault(target.get_index(), []).append((entry.level + 1, entry.get_title()))
    except pdfium.PdfiumError as error:
        if "password" in str(error):
            raise DataError("encrypted with a password; save it without one") from None
        raise DataError(f"not a readable PDF ({error})") from None
    if not any(map(any, pages)):
        raise DataError("no text; run OCR first")
    if title.lower() in ("untitled", "untitled document") or re.fullmatch(r".*\.\w{2,4}", title):
        title = ""  # the name of the file that it was made from
    built = SectionBuilder()
    for number, lines in enumerate(_without_edges(pages)):
        _add_page(built, lines, outline.get(number, []))
    return built.finish(name, title, fallback)


def _lines(page: object) -> list[str]:
    text = page.get_textpage()  # type: ignore[attr-defined]
    try:
        content = text.get_text_range().replace(_HYPHEN, "")
    finally:
        text.close()
        page.close()  # type: ignore[attr-defined]
    lines = (" ".join(line.split()) for line in content.splitlines())
    return [line for line in lines if line and not _PAGE_NUMBER.fullmatch(line)]


def _without_edges(pages: list[list[str]]) -> list[list[str]]:
    """The pages' lines without headers and footers: first or last lines that more than half of them share."""
    if len(pages) < _FEWEST:
        return pages

    def key(line: str) -> str:
        return re.sub(r"\d+", "0", line)

    counts = Counter(one for lines in pages for one in {key(line) for line in lines[:_EDGE] + lines[-_EDGE:]})
    shared = {one for one, count in counts.items() if count > len(pages) / 2}
    return [
        [
            line
            for place, line in enumerate(lines)
            if key(line) not in shared or _EDGE <= place < len(lines) - _EDGE
        ]
        for lines in pages
    ]


def _add_page(built: SectionBuilder, lines: list[str], headings: list[tuple[int, str]]) -> None:
    """Adds a page; each heading comes where its text is a line, or at once if there is no such line."""
    keys = [_key(line) for line in lines]
    at = 0
    for level, title in headings:
        key = _key(title)
        found = next((i for i in range(at, len(keys)) if key and keys[i].endswith(key)), None)
        if found is not None and len(keys[found]) <= len(key) + 12:  # a number may be in front
            _add_lines(built, lines[at:found])
            at = found + 1
        built.heading(level, title)
    _add_lines(built, lines[at:])


def _key(text: str) -> str:
    return "".join(filter(str.isalnum, text)).casefold()


def _add_lines(built: SectionBuilder, lines: list[str]) -> None:
    for line in lines:
        built.text(line + ("\n" if line.endswith(_SENTENCE_ENDS) else " "))
