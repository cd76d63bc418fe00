"""Prepares MASTER's data: queries, continuations and neighbours of each passage, and word frequencies.

Values that the corpus already has are kept; the others are made. The released files, with token ids under
"text", "queries" and "next", can be read directly.

Source: https://github.com/microsoft/SimXNS at 0163380, MASTER/README.md: queries by docT5, continuations by
GPT-2, the form of the data, how words are counted.

Unlike: the settings of the two generators were not published; generate.py lists those used here. The released
    code halves passages where the paper's figure has a neighbour; here there are neighbours.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stzoo import ModelError, Preparation, RecipeError
from stzoo.data.corpus import Corpus, tokenizer_fingerprint
from stzoo.data.languages import check_language
from stzoo.training.pretrain_settings import PrepareSettings
from stzoo.training.settings import DATA, HARDWARE, LANGUAGE_HELP, LanguageCode, Names, setting
from stzoo.utils.cache import cache_folder
from stzoo.utils.messages import counted
from stzoo_master.related import DOCUMENT_PATTERN

DOCUMENT, BM25, LEXICAL, COUNT, NONE = "document", "bm25", "lexical", "count", "none"
QUERIES, CONTINUATIONS, NEIGHBOURS = "Queries", "Continuations", "Neighbours"  # groups of flags
TABLE = "frequencies/words.parquet"  # in the folder of the data set


class MASTERSettings(PrepareSettings):
    """Settings of `stzoo prepare master`."""

    queries: str = setting(
        "doc2query/msmarco-t5-base-v1",
        "Sequence-to-sequence model that writes queries (folder or Hub id), lexical (no model), or none.",
        QUERIES,
    )
    queries_per_passage: int = setting(10, "Queries per passage.", QUERIES, ge=1)
    query_tokens: int = setting(64, "Maximum length of a query, in tokens of its model.", QUERIES, ge=1)
    query_top_k: int = setting(
        10, "Sample each token of a query from the k most likely; 0 for all.", QUERIES, ge=0
    )
    continuation: str = setting(
        "gpt2", "Causal language model that continues passages (folder or Hub id), or none.", CONTINUATIONS
    )
    continuation_tokens: int = setting(
        128, "Maximum length of a continuation, in tokens of its model.", CONTINUATIONS, ge=1
    )
    continuation_top_k: int = setting(
        50, "Sample each token of a continuation from the k most likely; 0 for all.", CONTINUATIONS, ge=0
    )
    generator_batch_size: int = setting(
        32, "Passages for which queries or continuations are written at once.", HARDWARE, ge=1
    )
    neighbours: Names = setting(
        [DOCUMENT],
        "Source of neighbours: document (the same one), bm25, an encoder (folder or Hub id), or none; "
        "several are used in turn.",
        NEIGHBOURS,
        min_length=1,
    )
    neighbours_per_passage: int = setting(
        3, "Neighbours per passage, of each source and in all.", NEIGHBOURS, ge=1
    )
    document_pattern: str = setting(
        DOCUMENT_PATTERN,
        "Regular expression of ids; passages with the same first group are of one document.",
        NEIGHBOURS,
    )
    language: LanguageCode | None = setting(None, LANGUAGE_HELP, NEIGHBOURS)
    frequencies: str = setting(
        COUNT, "Word frequencies: count, none, or a Parquet table with the columns word and count.", DATA
    )


class MASTERData(Preparation):
    """Queries, continuations, neighbours and word frequencies for pre-training with the objective `master`.

    Args:
        settings: Settings of the preparation.
        corpus: The corpus; columns that it already has are kept.
        tokenizer: Tokenizer of the base to be pre-trained.
        work: Folder for indexes and other intermediate files.

    Raises:
        DataError: If the table of frequencies is invalid.
        ModelError: If a generator or encoder cannot be loaded, or is a model of another kind.
        RecipeError: If "none" is combined with other neighbours, the document pattern is not a regular
            expression, the language is unknown or not used, or the table of frequencies is missing.
    """

    Settings = MASTERSettings
    columns = {"queries": list[str], "continuation": str, "neighbours": list[str]}
    reads = {"title": str, "next": list[str]}

    def __init__(self, settings: Any, corpus: Corpus, tokenizer: Any, work: Path):
        super().__init__(settings, corpus, tokenizer, work)
        if NONE in settings.neighbours and len(settings.neighbours) > 1:
            raise RecipeError(
                f"neighbours is {settings.neighbours}; expected none alone, or others without it."
            )
        if settings.language is not None:
            if BM25 not in settings.neighbours:
                raise RecipeError(
                    "--language has no effect without --neighbours bm25; add that, or drop --language."
                )
            check_language(settings.language)
        if settings.frequencies not in (COUNT, NONE):
            if not Path(settings.frequencies).is_file():
                raise RecipeError(
                    f"frequencies is {settings.frequencies!r}, which is not a file; expected count, none, or "
                    "a Parquet table with the columns word and count."
                )
            from stzoo_master.words import read_table

            self._given_counts = read_table(settings.frequencies, tokenizer)
        # only what is needed is loaded; what reports a mistake quickly comes first
        needs_queries = self._needs("queries")
        self.queries: Any = self._generator() if needs_queries and settings.queries != LEXICAL else None
        self.continuation: Any = self._continuation() if self._needs("continuation") else None
        kinds = settings.neighbours if self._needs("neighbours") else []
        # BM25 comes last: its index takes long, and its settings cannot be wrong
        sources = {kind: self._source(kind) for kind in sorted(kinds, key=lambda kind: kind == BM25)}
        self.neighbours = [sources[kind] for kind in kinds]
        if needs_queries and settings.queries == LEXICAL:
            self.queries = self._lexical()

    def _needs(self, name: str) -> bool:
        """True if a column is needed, and missing for any row."""
        table = self.corpus.rows.data
        sources = {name, "next"} if name == "continuation" else {name}
        is_complete = any(not table.column(n).null_count for n in sources & set(table.column_names))
        return getattr(self.settings, name) not in (NONE, [NONE]) and not is_complete

    def _lexical(self) -> Any:
        from stzoo_master.lexical import LexicalQueries

        self.notes.append(
            "Queries are lexical: titles and words with the highest tf-idf, not questions by a model."
        )
        return LexicalQueries(self.corpus.rows, self.settings.queries_per_passage, self.work)

    def _generator(self) -> Any:
        from stzoo_master.generate import Queries

        settings = self.settings
        return Queries(
            settings.queries,
            per_passage=settings.queries_per_passage,
            max_tokens=settings.query_tokens,
            top_k=settings.query_top_k,
            batch_size=settings.generator_batch_size,
            device=settings.device,
        )

    def _continuation(self) -> Any:
        from stzoo_master.generate import Continuations

        settings = self.settings
        return Continuations(
            settings.continuation,
            max_tokens=settings.continuation_tokens,
            top_k=settings.continuation_top_k,
            batch_size=settings.generator_batch_size,
            device=settings.device,
        )

    def _source(self, kind: str) -> Any:
        import stzoo_master.related as related

        rows, k = self.corpus.rows, self.settings.neighbours_per_passage
        if kind == BM25:
            return related.NearestByBM25(rows, k, self.work, self.settings.language)
        if kind != DOCUMENT:
            try:
                return related.NearestByEncoder(rows, k, kind, self.work, device=self.settings.device)
            except ModelError as error:  # an encoder that cannot be loaded, or a misspelt source
                raise ModelError(
                    f"{error} Neighbours are found by {DOCUMENT}, {BM25} or an encoder; repeat the option "
                    "for several."
                ) from error
        source = related.SameDocument(rows, k, self.settings.document_pattern)
        if not source.has_any:
            self.notes.append(
                "No neighbours by document: no two adjacent passages have ids that match "
                f"{self.settings.document_pattern} with the same document."
            )
        else:  # the user must judge whether ids name documents; they may just count lines
            counts = source.metadata
            self.notes.append(
                f"Neighbours by document: {counted(counts['passages_with_neighbours'], 'passage')} in "
                f"{counted(counts['documents'], 'document')}, according to ids such as {rows[0]['id']}. If "
                "that is wrong, set --document-pattern or choose other --neighbours."
            )
        return source

    def metadata(self) -> dict[str, Any]:
        """How each column is made, and which columns the corpus already has."""
        return {
            "brought": sorted({*self.columns, "next"} & set(self.corpus.rows.column_names)),
            "queries": self.queries and self.queries.metadata,
            "continuation": self.continuation and self.continuation.metadata,
            "neighbours": [source.metadata for source in self.neighbours],
            "frequencies": self.settings.frequencies,
        }

    def shard(self, first: int, last: int) -> dict[str, list[Any]]:
        """Fills in the missing values of the rows `first` to `last` - 1."""
        rows = self.corpus.rows[first:last]
        texts = rows["text"]

        def existing(name: str) -> list[Any]:
            return list(rows.get(name, [None] * len(texts)))

        values = {name: existing(name) for name in self.columns}
        for row, following in enumerate(existing("next")):
            values["continuation"][row] = values["continuation"][row] or (following and following[0])
        # differs between shards, and is the same if a killed shard is repeated
        seed = (self.settings.seed + first * 1_000_003) % 2**32
        if self.settings.queries == LEXICAL and self.queries:
            _fill(values["queries"], lambda missing: _take(self.queries(first, last), missing))
        elif self.queries:
            _fill(values["queries"], lambda missing: self.queries(_take(texts, missing), seed))
        if self.continuation:
            _fill(values["continuation"], lambda missing: self.continuation(_take(texts, missing), seed))
        if self.neighbours:
            _fill(values["neighbours"], lambda missing: _take(self._neighbour_texts(first, last), missing))
        return values

    def _neighbour_texts(self, first: int, last: int) -> list[list[str]]:
        from stzoo_master.related import combine, texts_of

        texts = texts_of(self.corpus.rows, combine(*(source(first, last) for source in self.neighbours)))
        # two sources may give different rows with the same text
        return [list(dict.fromkeys(row))[: self.settings.neighbours_per_passage] for row in texts]

    def finish(self, folder: Path) -> None:
        """Writes the table of word frequencies."""
        from stzoo_master.words import write_table

        if self.settings.frequencies == COUNT:
            write_table(folder / TABLE, _count(self.corpus, self.tokenizer), self.tokenizer)
        elif self.settings.frequencies != NONE:
            write_table(folder / TABLE, dict(zip(*self._given_counts, strict=True)), self.tokenizer)


def _fill(values: list[Any], make: Callable[[list[int]], list[Any]]) -> None:
    """Makes the missing values, in one call with their indices, and fills them in."""
    missing = [index for index, value in enumerate(values) if not value]
    for index, value in zip(missing, make(missing) if missing else [], strict=True):
        values[index] = value or None


def _take(values: list[Any], indices: list[int]) -> list[Any]:
    return [values[index] for index in indices]


def frequencies(corpus: Corpus, tokenizer: Any, table: str | None = None) -> tuple[list[str], Any, str]:
    """Finds the word frequencies of a corpus.

    Args:
        corpus: The corpus.
        tokenizer: The tokenizer that splits the words.
        table: Path to a table of word counts. None for the one in the folder of the corpus, or else to count
            the words and cache the result.

    Returns:
        The words, int64 [words] with their numbers of occurrences, and a phrase that says where these come
        from.

    Raises:
        DataError: If the table is invalid.
    """
    from stzoo_master.words import read_table, write_table

    stored = Path(corpus.sources[0]).expanduser() / TABLE
    if table is not None:
        path, source = Path(table), f"in {table}"
    elif len(corpus.sources) == 1 and stored.is_file():
        path, source = stored, f"in {stored}"
    else:
        name = f"{corpus.fingerprint[:32]}-{tokenizer_fingerprint(tokenizer)[:32]}.parquet"
        path, source = cache_folder() / "frequencies" / name, "counted in the corpus"
        if not path.is_file():
            write_table(path, _count(corpus, tokenizer), tokenizer)
    return *read_table(path, tokenizer), source


def _count(corpus: Corpus, tokenizer: Any) -> dict[str, int]:
    from stzoo_master.related import column
    from stzoo_master.words import count_words

    return count_words(column(corpus.rows, "text", "counting words"), tokenizer)
