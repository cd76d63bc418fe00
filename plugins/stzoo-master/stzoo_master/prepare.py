"""The data of MASTER: what a passage is asked, how it might go on, what stands near it, which words are rare.

Rows that the corpus brings a column for keep it; the rest is made. The released files, token ids under
"text", "queries" and "next", are read as they are.

Source: https://github.com/microsoft/SimXNS at 0163380, MASTER/README.md: queries by docT5, continuations by
GPT-2, the form of the data, how words are counted.

Unlike: the settings of the two generators are not published; see generate.py for those here.
    The released code halves passages where the paper's figure draws a neighbour; here there are neighbours.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field

from stzoo import ModelError, Preparation, RecipeError
from stzoo.data.corpus import Corpus, cache_folder, tokenizer_fingerprint
from stzoo.data.languages import check_language
from stzoo.training.settings import LanguageCode, PrepareSettings
from stzoo_master.related import DOCUMENT_PATTERN

DOCUMENT, BM25, LEXICAL, COUNT, NONE = "document", "bm25", "lexical", "count", "none"
TABLE = "frequencies/words.parquet"  # in the folder of the data set


class MASTERSettings(PrepareSettings):
    """Settings of `stzoo prepare master`."""

    queries: str = Field(
        "doc2query/msmarco-t5-base-v1",
        description="a sequence-to-sequence model (folder or Hub id), lexical (no model), or none",
    )
    queries_per_passage: int = Field(10, ge=1, description="queries a passage")
    query_tokens: int = Field(64, ge=1, description="longest query in tokens of its model")
    query_top_k: int = Field(10, ge=0, description="queries are drawn from this many best words; 0: from all")
    continuation: str = Field("gpt2", description="a causal model (folder or Hub id), or none")
    continuation_tokens: int = Field(128, ge=1, description="longest continuation in tokens of its model")
    continuation_top_k: int = Field(50, ge=0, description="drawn from this many best words; 0: from all")
    generator_batch_size: int = Field(32, ge=1, description="passages at a time in the generators")
    neighbours: list[str] = Field(
        [DOCUMENT],
        min_length=1,
        description="by document (passages of one), bm25, an encoder (folder or Hub id), or none; in turn if "
        "several",
    )
    language: LanguageCode | None = Field(
        None, description="of the passages, for neighbours by bm25: de, german, none; detected if left out"
    )
    neighbours_per_passage: int = Field(3, ge=1, description="neighbours a passage, of each kind and in all")
    document_pattern: str = Field(
        DOCUMENT_PATTERN, description="of ids; passages with the same first group are of one document"
    )
    frequencies: str = Field(
        COUNT, description="how often words stand: count, none, or a Parquet table (word, count)"
    )


class MASTERData(Preparation):
    """Queries, continuations, neighbours and word frequencies for pre-training with the objective `master`.

    Args:
        settings: what makes each column.
        corpus: with what it brings of them.
        tokenizer: of the base to be pre-trained.
        work: for indexes.

    Raises:
        DataError: if a table of frequencies does not hold.
        ModelError: if a generator or encoder cannot be loaded, or is none.
        RecipeError: if "none" is given with other neighbours, the document pattern is not a regular
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
                    "the language is for neighbours by bm25; give --neighbours bm25, or drop it."
                )
            check_language(settings.language)
        if settings.frequencies not in (COUNT, NONE):
            if not Path(settings.frequencies).is_file():
                raise RecipeError(
                    f"frequencies is {settings.frequencies!r}, and there is no such file; expected count, "
                    "none, or a Parquet table (word, count)."
                )
            from stzoo_master.words import read_table

            self._own_table = read_table(settings.frequencies, tokenizer)
        # nothing is loaded that has nothing to do, and what finds a mistake soon comes first
        asks = self._wants("queries")
        self.queries: Any = self._generator() if asks and settings.queries != LEXICAL else None
        self.continuation: Any = self._continuation() if self._wants("continuation") else None
        kinds = settings.neighbours if self._wants("neighbours") else []
        # BM25, whose index takes long and whose settings cannot be wrong, comes last
        related = {kind: self._related(kind) for kind in sorted(kinds, key=lambda kind: kind == BM25)}
        self.neighbours = [related[kind] for kind in kinds]
        if asks and settings.queries == LEXICAL:
            self.queries = self._lexical()

    def _wants(self, name: str) -> bool:
        """True if a column is to be made for any row."""
        table = self.corpus.rows.data
        named = {name, "next"} if name == "continuation" else {name}
        whole = [n for n in named & set(table.column_names) if not table.column(n).null_count]
        return getattr(self.settings, name) not in (NONE, [NONE]) and not whole

    def _lexical(self) -> Any:
        from stzoo_master.lexical import LexicalQueries

        self.notes.append(
            "Queries are lexical: titles and the words of the highest tf-idf, not what a model would ask."
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

    def _related(self, kind: str) -> Any:
        import stzoo_master.related as related

        rows, k = self.corpus.rows, self.settings.neighbours_per_passage
        if kind == BM25:
            return related.NearestByBM25(rows, k, self.work, self.settings.language)
        if kind != DOCUMENT:
            try:
                return related.NearestByEncoder(rows, k, kind, self.work, device=self.settings.device)
            except ModelError as error:  # of an encoder, or of a misspelt kind
                raise ModelError(
                    f"{error} Neighbours are by {DOCUMENT}, {BM25} or an encoder; give several one by one."
                ) from error
        found = related.SameDocument(rows, k, self.settings.document_pattern)
        if not found.found:
            self.notes.append(
                "No neighbours by document: no two passages that stand together have ids that match "
                f"{self.settings.document_pattern}."
            )
        else:  # ids may count the lines of a file, or all passages: that is for the user to see
            self.notes.append(
                f"Neighbours by document: {found.facts['passages_with_neighbours']} passages in "
                f"{found.facts['documents']} document(s), told by ids such as {rows[0]['id']}; "
                "if that is wrong, give --document-pattern or other --neighbours."
            )
        return found

    def facts(self) -> dict[str, Any]:
        """What makes each column, and which of them the corpus brings."""
        return {
            "brought": sorted({*self.columns, "next"} & set(self.corpus.rows.column_names)),
            "queries": self.queries and self.queries.facts,
            "continuation": self.continuation and self.continuation.facts,
            "neighbours": [source.facts for source in self.neighbours],
            "frequencies": self.settings.frequencies,
        }

    def shard(self, first: int, last: int) -> dict[str, list[Any]]:
        """Makes what the corpus does not bring for these rows."""
        given = self.corpus.rows[first:last]
        texts = given["text"]

        def brought(name: str) -> list[Any]:
            return list(given.get(name, [None] * len(texts)))

        made = {name: brought(name) for name in self.columns}
        for place, following in enumerate(brought("next")):
            made["continuation"][place] = made["continuation"][place] or (following and following[0])
        # another for each shard, and the same after a kill
        seed = (self.settings.seed + first * 1_000_003) % 2**32
        if self.settings.queries == LEXICAL and self.queries:
            _fill(made["queries"], lambda places: _some(self.queries(first, last), places))
        elif self.queries:
            _fill(made["queries"], lambda places: self.queries(_some(texts, places), seed))
        if self.continuation:
            _fill(made["continuation"], lambda places: self.continuation(_some(texts, places), seed))
        if self.neighbours:
            _fill(made["neighbours"], lambda places: _some(self._near(first, last), places))
        return made

    def _near(self, first: int, last: int) -> list[list[str]]:
        from stzoo_master.related import combine, texts_of

        texts = texts_of(self.corpus.rows, combine(*(source(first, last) for source in self.neighbours)))
        # two sources may give two rows of one text
        return [list(dict.fromkeys(row))[: self.settings.neighbours_per_passage] for row in texts]

    def finish(self, folder: Path) -> None:
        """Writes the table of word frequencies."""
        from stzoo_master.words import write_table

        if self.settings.frequencies == COUNT:
            write_table(folder / TABLE, _count(self.corpus, self.tokenizer), self.tokenizer)
        elif self.settings.frequencies != NONE:
            write_table(folder / TABLE, dict(zip(*self._own_table, strict=True)), self.tokenizer)


def _fill(values: list[Any], make: Callable[[list[int]], list[Any]]) -> None:
    """Puts what is made for the places without a value there."""
    places = [place for place, value in enumerate(values) if not value]
    for place, value in zip(places, make(places) if places else [], strict=True):
        values[place] = value or None


def _some(values: list[Any], places: list[int]) -> list[Any]:
    return [values[place] for place in places]


def frequencies(corpus: Corpus, tokenizer: Any, given: str | None = None) -> tuple[list[str], Any, str]:
    """The word frequencies of a corpus: given, or of the one folder that it is, or counted now and kept.

    Returns:
        The words; int64 [words], how often each stands in it; and where that is from, in words.

    Raises:
        DataError: if a table does not hold.
    """
    from stzoo_master.words import read_table, write_table

    beside = Path(corpus.sources[0]).expanduser() / TABLE
    if given is not None:
        path, whence = Path(given), f"of {given}"
    elif len(corpus.sources) == 1 and beside.is_file():
        path, whence = beside, f"of {beside}"
    else:
        name = f"{corpus.fingerprint[:32]}-{tokenizer_fingerprint(tokenizer)[:32]}.parquet"
        path, whence = cache_folder() / "frequencies" / name, "counted in the corpus"
        if not path.is_file():
            write_table(path, _count(corpus, tokenizer), tokenizer)
    return *read_table(path, tokenizer), whence


def _count(corpus: Corpus, tokenizer: Any) -> dict[str, int]:
    from stzoo_master.related import column
    from stzoo_master.words import count_words

    return count_words(column(corpus.rows, "text", "counting words"), tokenizer)
