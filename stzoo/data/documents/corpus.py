"""A corpus of passages, made from documents in one stream.

Memory holds one document, and about 5 KB per passage to find near-copies.

FOLDER/corpus.jsonl    {"_id", "title", "text", "metadata": {"document", "language"}} per passage
FOLDER/passages.json   settings, counts, languages, what was skipped and why, the copies that were left out

The folder is written whole or not at all. It is not resumed: reading is fast compared with what is done with
the passages.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stzoo.data.documents.find import ROWS, File, Skipped, find_files, reason_of
from stzoo.data.documents.formats import Reader
from stzoo.data.documents.language import LanguageDetector
from stzoo.data.documents.sections import Document
from stzoo.data.documents.split import Passage, PassageSplitter
from stzoo.data.documents.tables import RowReader
from stzoo.data.near_copies import Copy, CopyFinder
from stzoo.data.words import has_words
from stzoo.errors import DataError, MissingExtraError, OutputError, abbreviated, first_line, is_failure
from stzoo.utils.files import atomic_folder, check_replaceable, sha256, write_json
from stzoo.utils.outputs import check_output
from stzoo.utils.progress import progress_bar

CORPUS, MANIFEST = "corpus.jsonl", "passages.json"
_OURS = (r"corpus\.jsonl", r"passages\.json")
_ALONE = 20  # words; shorter texts are copies only if their titles are the same too

Row = dict[str, Any]
Progress = Callable[[float], object]


@dataclass
class DocumentCorpus:
    """Passages of documents.

    Attributes:
        corpus: Path of corpus.jsonl; the rows if no output was given.
        documents: Number of documents with passages.
        passages: Number of passages.
        skipped: Files, folders and rows that were not read, with the reasons.
        languages: Number of passages by language; "none" if it is not clear.
        copies: Passages that were left out as copies of earlier ones.
        kinds: Number of files, documents and passages by kind of file.
        empty: Names of documents without text.
        guessed: Names of text files that are not UTF-8, and were read with the setting `encoding`.
    """

    corpus: Path | list[Row]
    documents: int = 0
    passages: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    languages: dict[str, int] = field(default_factory=dict)
    copies: list[Copy] = field(default_factory=list)
    kinds: dict[str, dict[str, int]] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    guessed: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The values as JSON, without the passages."""
        return {
            "documents": self.documents,
            "passages": self.passages,
            "files": self.kinds,
            "languages": self.languages,
            "skipped": [one.as_json() for one in self.skipped],
            "empty": self.empty,
            "read_with_encoding": self.guessed,
            "copies": [copy._asdict() for copy in self.copies],
        }


class CorpusBuilder:
    """Makes a corpus from documents.

    Args:
        reader: Reads files.
        rows: Reads rows.
        splitter: Makes passages.
        copies: Finds copies; None keeps them.
        language: The language of all passages; None to detect it.

    Raises:
        MissingExtraError: If a library is not installed.
    """

    def __init__(
        self,
        reader: Reader,
        rows: RowReader,
        splitter: PassageSplitter,
        copies: CopyFinder | None,
        language: str | None,
    ) -> None:
        self._reader, self._rows, self._splitter = reader, rows, splitter
        self._copies, self._language = copies, language
        self._detector = None if language else LanguageDetector()
        self._ids: set[str] = set()
        self._bad_rows: dict[str, tuple[str, int]] = {}

    def build(
        self,
        source: Any,
        output: Path | None,
        settings: Mapping[str, Any],
        *,
        overwrite: bool = False,
        progress: bool | None = None,
    ) -> DocumentCorpus:
        """Reads a source, and writes its passages.

        Args:
            source: Path of a file or folder, or data that `RowReader.data` reads.
            output: Folder to write; None to return the rows.
            settings: Written to the manifest.
            overwrite: True to replace an earlier corpus.
            progress: True for a progress bar, None to show it on a terminal only.

        Raises:
            DataError: If nothing can be read.
            OutputError: If the output must not be written.
        """
        if output is None:
            kept: list[Row] = []
            made = DocumentCorpus(kept)
            kept.extend(self._run(source, made, None, progress))
            return made
        output = check_read_output(output, source, overwrite=overwrite)
        made = DocumentCorpus(output / CORPUS)
        with atomic_folder(output, replaces=_OURS) as draft:
            with (draft / CORPUS).open("w", encoding="utf-8") as file:
                for row in self._run(source, made, output, progress):
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
            manifest = {"settings": settings, **made.as_json(), "sha256": sha256(draft / CORPUS)}
            write_json(draft / MANIFEST, {"command": "read", **manifest})
        return made

    def _run(
        self, source: Any, made: DocumentCorpus, output: Path | None, progress: bool | None
    ) -> Iterator[Row]:
        languages: Counter[str] = Counter()
        for kind, document in self._documents(source, made, output, progress):
            number = 0
            for passage in self._splitter.passages(document):
                number += 1
                if not self._is_new(passage, made):
                    continue
                language = self._language or self._detected(passage.text, document)
                languages[language] += 1
                made.kinds[kind]["passages"] += 1
                metadata = {**document.metadata, "document": document.name, "language": language}
                yield {
                    "_id": passage.id,
                    "title": passage.title,
                    "text": passage.text,
                    "metadata": metadata,
                }
            if number:
                made.documents += 1
                made.kinds[kind]["documents"] += 1
            else:
                made.empty.append(document.name)
        made.passages = languages.total()
        made.languages = dict(languages.most_common())
        made.guessed = self._reader.guessed
        made.skipped += [Skipped(name, reason, rows) for name, (reason, rows) in self._bad_rows.items()]
        if not made.passages:
            raise DataError(_nothing(source, made))

    def _detected(self, text: str, document: Document) -> str:
        assert self._detector is not None, "there is one unless the language is given"
        return self._detector.of_passage(text, document)

    def _is_new(self, passage: Passage, made: DocumentCorpus) -> bool:
        if self._copies is None:
            return True
        alone = has_words(passage.text, _ALONE)
        found = self._copies.find(passage.id, passage.text if alone else f"{passage.title}\n{passage.text}")
        if found is not None:
            made.copies.append(found)
        return found is None

    def _documents(
        self, source: Any, made: DocumentCorpus, output: Path | None, progress: bool | None
    ) -> Iterator[tuple[str, Document]]:
        if not isinstance(source, str | Path):
            kind = type(source).__name__
            made.kinds[kind] = {"files": 0, "documents": 0, "passages": 0}
            for document in self._rows.data(source, lambda _: None, self._bad_row(kind)):
                if self._is_first(document, kind):
                    yield kind, document
            return
        files, made.skipped = find_files(source, output)
        hidden = None if progress is None else not progress
        with progress_bar(
            total=sum(file.size for file in files),
            unit="B", unit_scale=True, delay=2, disable=hidden, desc="Reading documents",
        ) as bar:  # fmt: skip
            done = 0
            for file in files:

                def report(share: float, file: File = file, done: int = done) -> None:
                    bar.update(done + int(share * file.size) - bar.n)

                before = made.kinds.setdefault(file.kind, {"files": 0, "documents": 0, "passages": 0})
                read = 0
                for document in self._of_file(file, report, made):
                    read += 1
                    if self._is_first(document, file.name):
                        yield file.kind, document
                before["files"] += bool(read)
                report(1)
                done += file.size
        made.kinds = {kind: counts for kind, counts in made.kinds.items() if counts["files"]}

    def _of_file(self, file: File, report: Progress, made: DocumentCorpus) -> Iterator[Document]:
        """The documents of a file; if it cannot be read, the reason is noted."""
        try:
            if file.kind in ROWS:
                on_bad = self._bad_row(file.name, str(file.path))
                yield from self._rows.file(file, report, on_bad)
            else:
                yield self._reader.read(file)
        except (MissingExtraError, OutputError):
            raise
        except (DataError, OSError) as error:
            made.skipped.append(Skipped(file.name, reason_of(error, file.path)))
        except BaseException as error:
            if not is_failure(error):
                raise
            # of the libraries: they fail in many ways on damaged files
            reason = f"cannot be read ({type(error).__name__}: {abbreviated(first_line(error))})"
            made.skipped.append(Skipped(file.name, reason))

    def _is_first(self, document: Document, file: str) -> bool:
        """False, with a note, if a row has the id of an earlier one."""
        if document.is_row and document.name in self._ids:
            self._bad_row(file)(DataError(f"the id {document.name} again; expected each id once"))
            return False
        self._ids.add(document.name)
        return True

    def _bad_row(self, name: str, path: str = "") -> Callable[[DataError], None]:
        def note(error: DataError) -> None:
            reason, rows = self._bad_rows.get(name, ("", 0))
            reason = reason or reason_of(error, Path(path or name))
            self._bad_rows[name] = reason, rows + 1

        return note


def check_read_output(output: str | Path, source: Any, *, overwrite: bool) -> Path:
    """Checks that a corpus may be written to a folder.

    Raises:
        OutputError: If the folder has other files than those of an earlier corpus, or has one and is not to
            be replaced.
    """
    path = check_output(output, kind="run", inputs=[source])
    try:
        names = {entry.name for entry in path.iterdir()}
    except FileNotFoundError:
        return path
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not names:
        return path
    if not _is_ours(path / MANIFEST):
        raise OutputError(
            f"{path} has files that `stzoo read` has not written ({', '.join(sorted(names)[:3])}); choose "
            "another folder as --output."
        )
    check_replaceable(path, _OURS)
    if not overwrite:
        raise OutputError(f"{path} already has a corpus. Use --overwrite, or another --output.")
    return path


def _is_ours(manifest: Path) -> bool:
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("command") == "read"


def _nothing(source: Any, made: DocumentCorpus, most: int = 5) -> str:
    where = str(source) if isinstance(source, str | Path) else f"the {type(source).__name__}"
    reasons = [f"{one.file}: {one.reason}" for one in made.skipped]
    reasons += [f"{name}: no text" for name in made.empty]
    listed = "; ".join(reasons[:most]) + (f"; and {len(reasons) - most} more" if len(reasons) > most else "")
    return f"{where} has no document with text that can be read. {listed or 'It is empty'}."
