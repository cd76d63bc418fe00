"""read_documents(): documents become a corpus of passages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stzoo.adaptation.settings import ReadSettings
from stzoo.data.documents.corpus import CorpusBuilder, DocumentCorpus, check_read_output
from stzoo.data.documents.formats import Reader
from stzoo.data.documents.split import Count, PassageSplitter, count_words, token_counter
from stzoo.data.documents.tables import RowReader
from stzoo.data.near_copies import CopyFinder
from stzoo.data.objects import corpus_of
from stzoo.utils.public import public


@public()
def read_documents(
    source: Any,
    output: str | Path | None = None,
    *,
    passage_tokens: int = 200,
    tokenizer: str | Path | None = None,
    copies: str = "near",
    jaccard: float = 0.8,
    split_rows: bool = True,
    columns: str | Mapping[str, Any] | None = None,
    language: str | None = None,
    encoding: str = "windows-1252",
    max_file_mib: float = 200.0,
    overwrite: bool = False,
    progress: bool | None = None,
) -> DocumentCorpus:
    """Reads documents, and makes a corpus of their passages in BEIR's layout.

    Files of these kinds are read: md, txt and html; pdf (with text) and docx; csv, tsv, jsonl, json and
    Parquet, each row of which is a document with a "text" and perhaps a "title", an "_id" or "id". What
    cannot be read is skipped, and listed with the reason.

    A passage is the text, or a part of the text, under a heading; the headings above it are its title
    ("Handbook > Leave > Parental leave"). Its id is made of the document's path and a number ("leave.md#3"),
    so it stays the same when other documents change. A row that is one passage keeps its id.

    Args:
        source: Path of a folder (searched with its subfolders) or file; or a list of texts or dicts, a pandas
            or polars frame, an Arrow table or a `datasets.Dataset`; or the dicts (corpus, queries, qrels) of
            BEIR, of which only the corpus is read.
        output: Folder for corpus.jsonl and passages.json, the manifest; None to return the rows.
        passage_tokens: Maximum size of a passage without its title.
        tokenizer: Model whose tokens are counted; by default, words and punctuation marks are.
        copies: "near" leaves out passages that are nearly the same as an earlier one, "exact" those that are
            the same, "keep" none.
        jaccard: Threshold of near-copies, 0.1 to 1.
        split_rows: False keeps each row as one passage, whatever its size.
        columns: Columns of rows by role, "text=body,title=name,id=key" or a mapping.
        language: Code of the language of all passages; None to detect it.
        encoding: Encoding of text files that are not UTF-8.
        max_file_mib: Files that are larger are skipped, except those of rows.
        overwrite: True to replace an earlier corpus in `output`.
        progress: True for a progress bar on stderr after two seconds, None to show it on a terminal only.

    Returns:
        The corpus: `corpus` (the path of corpus.jsonl, or the rows), `documents`, `passages`, `skipped`,
        `languages` and `copies`.

    Raises:
        DataError: If there is no such source, or no text in it that can be read.
        MissingExtraError: If the extra stzoo[documents] is not installed.
        ModelError: If the tokenizer cannot be loaded, or is not a fast one.
        OutputError: If `output` has other files, or an earlier corpus without `overwrite`.
        RecipeError: If an option is invalid.

    Example:
        >>> import stzoo
        >>> made = stzoo.read_documents(["Leave is granted by the manager.", "Lunch is at noon."])
        >>> made.passages, made.corpus[0]["text"]
        (2, 'Leave is granted by the manager.')
    """
    source = corpus_of(source)
    is_path = isinstance(source, str | Path)
    given = {**locals(), "source": str(source) if is_path else type(source).__name__}
    settings = ReadSettings.check(given)
    if output is not None:
        output = check_read_output(output, source, overwrite=overwrite)
    count: Count = count_words
    if settings.tokenizer is not None:
        from stzoo.models.loading import load_tokenizer

        count = token_counter(load_tokenizer(settings.tokenizer))
    finder = CopyFinder(settings.jaccard if settings.copies == "near" else None)
    max_bytes = int(settings.max_file_mib * 2**20)
    builder = CorpusBuilder(
        Reader(settings.encoding, max_bytes),
        RowReader(settings.columns or {}, max_bytes),
        PassageSplitter(settings.passage_tokens, count, split_rows=settings.split_rows),
        None if settings.copies == "keep" else finder,
        settings.language,
    )
    return builder.build(source, output, settings.dump(), overwrite=overwrite, progress=progress)
