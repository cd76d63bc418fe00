"""Reads a file as a document, by its kind."""

import codecs
import re
import zipfile
from pathlib import Path

from stzoo.data.documents.find import File, check_size
from stzoo.data.documents.pdf import pdf_document
from stzoo.data.documents.sections import (
    Document,
    Section,
    clean,
    html_document,
    library,
    markdown_document,
)
from stzoo.errors import DataError
from stzoo.utils.inputs import open_input

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CHARSET = re.compile(rb"""charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
# Word's style for the title of a document; `html_document` knows the class
_STYLES = "p[style-name='Title'] => h1.title:fresh"


class Reader:
    """Reads files as documents.

    Args:
        encoding: Encoding of text files that are not UTF-8 and have no byte order mark.
        max_bytes: Larger files are refused.

    Attributes:
        guessed: Names of the files that were read with that encoding.
    """

    def __init__(self, encoding: str, max_bytes: int) -> None:
        self.encoding, self.max_bytes = encoding, max_bytes
        self.guessed: list[str] = []

    def read(self, file: File) -> Document:
        """The document of a file.

        Raises:
            DataError: If it cannot be read; the message is the reason, without the file's name.
            OSError: If it cannot be opened.
        """
        check_size(file.size, self.max_bytes)
        fallback = _title(file.path)
        if file.kind == "pdf":
            with open_input(file.path):  # for the system's reason if it may not be read
                pass
            return pdf_document(file.name, file.path, fallback)
        if file.kind == "docx":
            return html_document(file.name, self._docx_as_html(file.path), fallback)
        with open_input(file.path) as opened:
            content = opened.read()
        text = self.decode(file.name, content, html=file.kind == "html")
        if file.kind == "html":
            return html_document(file.name, text.encode(), fallback)
        if file.kind == "md":
            return markdown_document(file.name, text, fallback)
        text = clean(text).strip()
        return Document(file.name, fallback, [Section((), text)] if text else [])

    def decode(self, name: str, content: bytes, *, html: bool = False) -> str:
        """The text of a file.

        Raises:
            DataError: If it is not text, or has another encoding.
        """
        for mark, encoding in _MARKS:
            if content.startswith(mark):
                return self._decoded(content[len(mark) :] if encoding == "utf-8" else content, encoding)
        if b"\0" in content:
            raise DataError("not text: it has NUL bytes")
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            declared = _declared(content) if html else ""
        if not declared:
            self.guessed.append(name)
        return self._decoded(content, declared or self.encoding)

    def _decoded(self, content: bytes, encoding: str) -> str:
        try:
            return content.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            raise DataError(
                f"neither UTF-8 nor {encoding}; convert it to UTF-8, or give its --encoding"
            ) from None

    def _docx_as_html(self, path: Path) -> bytes:
        mammoth = library("mammoth")
        with open_input(path) as opened:
            try:
                with zipfile.ZipFile(opened) as archive:
                    check_size(sum(part.file_size for part in archive.infolist()), self.max_bytes)
            except zipfile.BadZipFile:
                raise DataError("not a readable docx; it may be encrypted, or an older .doc file") from None
            opened.seek(0)
            made = mammoth.convert_to_html(
                opened, style_map=_STYLES, convert_image=mammoth.images.img_element(lambda _: {})
            )
        return f"<html><body>{made.value}</body></html>".encode()


def _declared(content: bytes) -> str:
    """The encoding that a page declares; "" if there is none."""
    declared = _CHARSET.search(content[:4096])
    name = declared[1].decode("ascii").lower() if declared else ""
    return "" if name in ("utf-8", "utf8") else "windows-1252" if name in ("iso-8859-1", "latin1") else name


def _title(path: Path) -> str:
    """A file's name as a title."""
    return clean(path.stem.replace("_", " ").replace("-", " ")).strip() or path.name
