"""The formats of training rows, each recognised by the names of its columns."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stzoo.data.column_roles import COLUMN_ROLES, IGNORE
from stzoo.data.kilt_provenance import evidence_sets
from stzoo.data.row_location import RowLocation
from stzoo.data.training_sets.columns import (
    Columns,
    Given,
    check_given,
    find_columns,
    has_columns,
    settle_labels,
    with_unused,
)
from stzoo.data.training_sets.sets import MADE, Candidate
from stzoo.errors import DataError, abbreviated
from stzoo.utils.messages import counted


class Example(NamedTuple):
    """A row, whatever its format.

    If the format has only ids, the candidates' texts are "", and in id triples the query's text as well.
    """

    query: str
    positives: list[Candidate]
    negatives: list[Candidate]
    query_id: str = ""


class Form(NamedTuple):
    """A format of training data.

    Attributes:
        name: Name of the library or data set that it comes from.
        holds: Description of a row, for messages.
        read: Reads a row; None for formats whose columns `stzoo.data.training_sets.columns` finds.
        roles: Column by role.
        needs: Columns by which the format is recognised.
        named: What a row refers to by id: "passages", "pages", or "" for nothing.
    """

    name: str
    holds: str
    read: Callable[[Any, RowLocation], Example] | None
    roles: dict[str, str]
    needs: tuple[str, ...] = ()
    named: str = ""


class Understood(NamedTuple):
    """How the rows of a file are read.

    Attributes:
        form: Their format.
        columns: The roles of their columns.
        read: Reads a row.
    """

    form: Form
    columns: Columns
    read: Callable[[Any, RowLocation], Example]


def _read_columns(columns: Columns) -> Callable[[dict[str, Any], RowLocation], Example]:
    """Returns a function that reads a row with these columns."""
    names = {role: columns.one(role) for role in COLUMN_ROLES}
    mark = "label" if names["label"] else "grade" if names["grade"] else ""

    def texts(row: dict[str, Any], role: str, at: RowLocation) -> list[str]:
        return [text for name in columns.roles.get(role, ()) for text in at.texts(row.get(name), name)]

    def numbers(row: dict[str, Any], role: str, count: int, at: RowLocation) -> list[float | None]:
        return at.numbers(row.get(names[role]), names[role], count) if names[role] else [None] * count

    def ids(row: dict[str, Any], role: str, count: int, at: RowLocation) -> list[str]:
        value = row.get(names[role]) if names[role] else None
        if value in (None, "", []):
            return [""] * count
        key = names[role]
        found = [
            "" if one is None else one if isinstance(one, str) else at.id({key: one}, key)
            for one in (value if isinstance(value, list) else [value])
        ]
        if len(found) != count:
            raise at.error(
                f"{key} has {counted(len(found), 'id')} for {counted(count, 'passage')}", "one id per passage"
            )
        return found

    def read(row: dict[str, Any], at: RowLocation) -> Example:
        query = at.text(row.get(names["query"]), names["query"])
        sides = [texts(row, role, at) for role in ("positive", "negative")]
        counts = [len(side) for side in sides]
        both = sum(counts)
        if names["score"]:
            scores = numbers(row, "score", both, at)
        else:
            scores = [
                one
                for role, count in zip(("positive_score", "negative_score"), counts, strict=True)
                for one in numbers(row, role, count, at)
            ]
        named = [
            one
            for role, count in zip(("positive_id", "negative_id"), counts, strict=True)
            for one in ids(row, role, count, at)
        ]
        passages = list(map(Candidate, [*sides[0], *sides[1]], named, scores))
        query_id = _id(row, names["query_id"], at) if names["query_id"] else ""
        if not mark:
            return Example(query, passages[: counts[0]], passages[counts[0] :], query_id)
        marks = [(one or 0) > 0 for one in numbers(row, mark, both, at)]
        found = list(zip(passages, marks, strict=True))
        return Example(
            query, [one for one, good in found if good], [one for one, good in found if not good], query_id
        )

    return read


def _tevatron(row: dict[str, Any], at: RowLocation) -> Example:
    positives, negatives = (
        [_passage(one, at) for one in at.objects(row, f"{kind}_passages")]
        for kind in ("positive", "negative")
    )
    return Example(at.text(row.get("query"), "query"), positives, negatives, _id(row, "query_id", at))


def _passage(one: dict[str, Any], at: RowLocation) -> Candidate:
    title = at.optional_text(one.get("title"), "title")
    return Candidate(f"{title} {at.text(one.get('text'), 'text')}".strip(), _id(one, "docid", at))


def _tevatron_ids(row: dict[str, Any], at: RowLocation) -> Example:
    positives, negatives = (
        [Candidate("", at.id({name: one}, name)) for one in _list(row, name, at)]
        for name in ("positive_document_ids", "negative_document_ids")
    )
    query = row["query_text"] if "query_text" in row else row.get("query")
    return Example(at.text(query, "query_text"), positives, negatives, _id(row, "query_id", at))


def _list(row: dict[str, Any], name: str, at: RowLocation) -> list[Any]:
    found = row.get(name)
    if not isinstance(found, list | None):
        raise at.error(f"{name} of type {type(found).__name__}", "a list of ids")
    return found or []


def _kilt(row: dict[str, Any], at: RowLocation) -> Example:
    pages = dict.fromkeys(page for found in evidence_sets(row, at) for page in sorted(found))
    query = at.text(row.get("input"), "input")
    return Example(query, [Candidate("", page) for page in pages], [], at.id(row, "id"))


def _triple(row: list[str], at: RowLocation) -> Example:
    query, positive, negative = _three(row, at)
    return Example(query, [Candidate(positive)], [Candidate(negative)])


def _id_triple(row: list[str], at: RowLocation) -> Example:
    query, positive, negative = (field.strip() for field in _three(row, at))
    return Example("", [Candidate("", positive)], [Candidate("", negative)], query)


def _three(row: list[str], at: RowLocation) -> list[str]:
    if len(row) != 3 or not all(map(str.strip, row)):
        raise at.error(
            f"{counted(len(row), 'field')}, {sum(map(bool, row))} of them filled", "three fields with text"
        )
    return row


def _id(row: dict[str, Any], key: str, at: RowLocation) -> str:
    """The id under a key, or "" if it is missing."""
    return "" if row.get(key) in (None, "") else at.id(row, key)


# The columns of these two are found by `stzoo.data.training_sets.columns`.
FLAG = Form(
    "FlagEmbedding",
    "{query, pos: [...], neg: [...]}, also pos_scores, neg_scores; stzoo's mined files",
    None,
    {},
)
COLUMNS = Form(
    "sentence-transformers",
    "columns anchor (or query, question), positive (or passage, document, context, or else answer), negative "
    "(or hard_negative, negative_1 ...), also scores, labels or relevance; others with --columns",
    None,
    {},
)
FIXED = (
    Form(
        "Tevatron",
        "{query_id, query, positive_passages: [{docid, title, text}], negative_passages: [...]}",
        _tevatron,
        {
            "query": "query",
            "query_id": "query_id",
            "positive": "positive_passages",
            "negative": "negative_passages",
        },
        ("positive_passages",),
    ),
    Form(
        "Tevatron by ids",
        "{query_id, query_text, positive_document_ids, negative_document_ids}, with a corpus",
        _tevatron_ids,
        {
            "query": "query_text",
            "query_id": "query_id",
            "positive_id": "positive_document_ids",
            "negative_id": "negative_document_ids",
        },
        ("positive_document_ids",),
        "passages",
    ),
    Form(
        "KILT",
        "{id, input, output: [{provenance: [{wikipedia_id}]}]}, with a corpus",
        _kilt,
        {"query": "input", "query_id": "id", "positive": "output"},
        ("input", "output"),
        "pages",
    ),
)
TRIPLES = Form(
    "MS MARCO triples",
    "query<TAB>positive<TAB>negative, as texts",
    _triple,
    {"query": "field 1", "positive": "field 2", "negative": "field 3"},
)
ID_TRIPLES = Form(
    "MS MARCO triples by ids",
    "query id<TAB>passage id<TAB>passage id, with a corpus",
    _id_triple,
    {"query_id": "field 1", "positive_id": "field 2", "negative_id": "field 3"},
    named="passages",
)


def understand(
    file: Path,
    names: Sequence[str] | None,
    rows: Callable[[], Iterator[tuple[RowLocation, Any]]],
    given: Given,
) -> Understood:
    """The format of a file's rows and the roles of their columns, decided from all rows.

    Args:
        file: Path of the file, for messages.
        names: Names of its columns; None if each row has its own.
        rows: Streams the rows with their locations, the same each time.
        given: Columns by role, from the option.

    Raises:
        DataError: If the format is unknown (the error lists all formats), there is no row, or the role of a
            column is ambiguous.
    """
    first = next(rows(), None)
    if first is None:
        raise DataError(f"{file} has no row; expected training data:\n{describe_formats()}")
    at, row = first
    if isinstance(row, list):
        return _understand_triples(row, given, at)
    if names is None:
        names = list(dict.fromkeys(name for _, row in rows() for name in row))
    names = [name for name in names if name != MADE]
    check_given(names, given, at)
    for form in FIXED:
        if not given.keys() - {IGNORE} and all(name in names for name in form.needs):
            assert form.read is not None
            roles = {role: [name] for role, name in form.roles.items() if name in names}
            if "query" not in roles and "query" in names:  # Tevatron by ids has either
                roles["query"] = ["query"]
            columns = with_unused(Columns(form.name, roles), names, given, at, named=False)
            return Understood(form, columns, form.read)
    if not has_columns(names, given):
        raise unknown_form(f"a row with {', '.join(map(abbreviated, names)) or 'nothing'}", at)
    form = FLAG if "query" in names and "pos" in names else COLUMNS
    columns = settle_labels(find_columns(form.name, names, given, at), given, rows())
    return Understood(form, columns, _read_columns(columns))


def _understand_triples(row: list[str], given: Given, at: RowLocation) -> Understood:
    if given:
        raise at.error("a line without column names, which --columns needs", "a header, or no --columns")
    if len(row) != 3:
        raise unknown_form(f"a line of {counted(len(row), 'field')}", at)
    form = ID_TRIPLES if all(map(_is_id, row)) else TRIPLES
    assert form.read is not None
    return Understood(
        form, Columns(form.name, {role: [name] for role, name in form.roles.items()}), form.read
    )


def _is_id(field: str) -> bool:
    """True for ASCII text without spaces."""
    return field.isascii() and len(field.split()) == 1


OTHER_NAMES = "- columns with other names: give their roles by --columns query=NAME,positive=NAME"


def unknown_form(found: str, at: RowLocation) -> DataError:
    """The error for an unknown format, which lists all formats."""
    return at.error(found, f"one of these formats:\n{describe_formats()}\n{OTHER_NAMES}")


def is_header(names: Sequence[str], given: Given) -> bool:
    """True if these are column names of a format, or of the option."""
    return any(all(name in names for name in form.needs) for form in FIXED) or has_columns(names, given)


def describe_formats() -> str:
    """The formats, one per line."""
    lines = ["- BEIR: a folder with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv"]
    lines += [f"- {form.name}: {form.holds}" for form in (FLAG, *FIXED, COLUMNS, TRIPLES, ID_TRIPLES)]
    return "\n".join(lines)


def examples(
    understood: Understood, rows: Iterator[tuple[RowLocation, Any]]
) -> Iterator[tuple[RowLocation, Example]]:
    """Reads the rows of a file, and yields each with its location.

    Raises:
        DataError: If a row is invalid.
    """
    for at, row in rows:
        example = understood.read(row, at)
        if understood.form is not ID_TRIPLES and not example.query.strip():
            raise at.error("a blank query", "text")
        if not understood.form.named and not all(one.text.strip() for one in example.positives):
            raise at.error("a blank positive", "text")
        yield at, example


class Blanks:
    """Leaves passages without text out of rows, and counts them."""

    def __init__(self) -> None:
        self.passages = self.rows = 0

    def without(self, rows: Iterator[tuple[RowLocation, Example]]) -> Iterator[tuple[RowLocation, Example]]:
        """Yields the rows that have a passage with text."""
        for at, row in rows:
            positives, negatives = (
                [one for one in side if one.text.strip()] for side in (row.positives, row.negatives)
            )
            blank = len(row.positives) + len(row.negatives) - len(positives) - len(negatives)
            self.passages += blank
            if blank and not positives and not negatives:
                self.rows += 1
            else:
                yield at, Example(row.query, positives, negatives, row.query_id)

    def notes(self) -> Iterator[str]:
        """Notes on what was left out."""
        if self.passages:
            yield f"left out {counted(self.passages, 'passage')} without text"
        if self.rows:
            yield f"left out {counted(self.rows, 'row')} without any passage with text"
