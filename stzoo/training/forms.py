"""The forms of a training row, each told by the names in the first row."""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError
from ..judged import as_text
from ..provenance import evidence_sets, id_of, objects
from .sets import Candidate
from .values import At

ANCHORS = ("anchor", "query", "question")
POSITIVES = ("positive", "answer", "passage", "document")
SCORES, LABELS = ("scores", "score"), ("labels", "label")


class Example(NamedTuple):
    """A row as its form is read.

    Where the form gives ids alone, the candidates' texts are "", and the query's, too, in id triples.
    """

    query: str
    positives: list[Candidate]
    negatives: list[Candidate]
    query_id: str = ""


class Form(NamedTuple):
    """A form of training data.

    Attributes:
        name: whose it is.
        holds: what a row holds.
        fits: True if a first row with these keys is of this form.
        read: reads a row.
        named: what the row names by id: "" for nothing, "passages" or "pages".
    """

    name: str
    holds: str
    fits: Callable[[Collection[str]], bool]
    read: Callable[[Any, At], Example]
    named: str = ""


def _columns(row: dict[str, Any], at: At) -> Example:
    anchor, positive, label, score = (
        next((name for name in names if name in row), "") for names in (ANCHORS, POSITIVES, LABELS, SCORES)
    )
    query = at.text(row.get(anchor), anchor or ANCHORS[0])
    positives = at.texts(row.get(positive), positive)
    negatives = [text for name in _negatives(row) for text in at.texts(row[name], name)]
    marked = label and not negatives and _is_marked(row[label])
    teacher = score if score or marked else label
    texts = positives + negatives
    scores = at.numbers(row[teacher] if teacher else None, teacher, len(texts))
    passages = [Candidate(text, None, one) for text, one in zip(texts, scores, strict=True)]
    if not marked:
        return Example(query, passages[: len(positives)], passages[len(positives) :])
    marks = at.numbers(row[label], label, len(texts))
    both = list(zip(passages, marks, strict=True))
    return Example(query, [one for one, mark in both if mark], [one for one, mark in both if not mark])


def _negatives(row: dict[str, Any]) -> list[str]:
    """The names of the negatives' columns in their order."""
    numbered = [name for name in row if name.startswith("negative_") and name[9:].isdecimal()]
    plain = [name for name in ("negative", "negatives") if name in row]
    return plain + sorted(numbered, key=lambda name: int(name[9:]))


def _is_marked(label: Any) -> bool:
    """True if labels are 0 and 1 alone: they say which passages are positive, and are no teacher's scores."""
    if isinstance(label, str):
        return bool(re.fullmatch(r"\[?\s*[01](\s*,\s*[01])*\s*]?", label))
    labels = label if isinstance(label, list) else [label]
    return bool(labels) and all(one in (0, 1) for one in labels)


def _flag(row: dict[str, Any], at: At) -> Example:
    query = at.text(row.get("query"), "query")
    return Example(query, _side(row, "pos", at), _side(row, "neg", at), _id(row, "query_id", at))


def _side(row: dict[str, Any], name: str, at: At) -> list[Candidate]:
    texts = at.texts(row.get(name), name)
    ids = at.texts(row.get(f"{name}_id"), f"{name}_id") or [""] * len(texts)
    if len(ids) != len(texts):
        raise at.error(f"{len(ids)} {name}_id for {len(texts)} passages", "an id a passage")
    scores = at.numbers(row.get(f"{name}_scores"), f"{name}_scores", len(texts))
    return list(map(Candidate, texts, ids, scores))


def _tevatron(row: dict[str, Any], at: At) -> Example:
    positives, negatives = (
        [_passage(one, at) for one in objects(row, f"{kind}_passages", *at)]
        for kind in ("positive", "negative")
    )
    return Example(at.text(row.get("query"), "query"), positives, negatives, _id(row, "query_id", at))


def _passage(one: dict[str, Any], at: At) -> Candidate:
    title = as_text(one.get("title"), "title", *at)
    return Candidate(f"{title} {at.text(one.get('text'), 'text')}".strip(), _id(one, "docid", at))


def _tevatron_ids(row: dict[str, Any], at: At) -> Example:
    positives, negatives = (
        [Candidate("", id_of({name: one}, name, *at)) for one in _list(row, name, at)]
        for name in ("positive_document_ids", "negative_document_ids")
    )
    query = row["query_text"] if "query_text" in row else row.get("query")
    return Example(at.text(query, "query_text"), positives, negatives, _id(row, "query_id", at))


def _list(row: dict[str, Any], name: str, at: At) -> list[Any]:
    found = row.get(name)
    if not isinstance(found, list | None):
        raise at.error(f"{name} of type {type(found).__name__}", "a list of ids")
    return found or []


def _kilt(row: dict[str, Any], at: At) -> Example:
    pages = dict.fromkeys(page for found in evidence_sets(row, *at) for page in sorted(found))
    query = at.text(row.get("input"), "input")
    return Example(query, [Candidate("", page) for page in pages], [], id_of(row, "id", *at))


def _triple(row: list[str], at: At) -> Example:
    query, positive, negative = _three(row, at)
    return Example(query, [Candidate(positive)], [Candidate(negative)])


def _id_triple(row: list[str], at: At) -> Example:
    query, positive, negative = (field.strip() for field in _three(row, at))
    return Example("", [Candidate("", positive)], [Candidate("", negative)], query)


def _three(row: list[str], at: At) -> list[str]:
    if len(row) != 3 or not all(map(str.strip, row)):
        raise at.error(f"{len(row)} fields, {sum(map(bool, row))} of them filled", "three that are filled")
    return row


def _id(row: dict[str, Any], key: str, at: At) -> str:
    """An id that may be missing."""
    return "" if row.get(key) in (None, "") else id_of(row, key, *at)


def _has(*names: str) -> Callable[[Collection[str]], bool]:
    return lambda keys: all(name in keys for name in names)


KINDS = (
    Form(
        "FlagEmbedding",
        "{query, pos: [...], neg: [...]}, also pos_scores, neg_scores; stzoo's mined files",
        _has("query", "pos"),
        _flag,
    ),
    Form(
        "Tevatron",
        "{query_id, query, positive_passages: [{docid, title, text}], negative_passages: [...]}",
        _has("positive_passages"),
        _tevatron,
    ),
    Form(
        "Tevatron by ids",
        "{query_id, query_text, positive_document_ids, negative_document_ids}, with a corpus",
        _has("positive_document_ids"),
        _tevatron_ids,
        "passages",
    ),
    Form(
        "KILT",
        "{id, input, output: [{provenance: [{wikipedia_id}]}]}, with a corpus",
        _has("input", "output"),
        _kilt,
        "pages",
    ),
    Form(
        "sentence-transformers",
        "columns anchor (or query, question), positive (or answer, passage, document), negative or "
        "negative_1 ..., also scores or labels",
        lambda keys: any(name in keys for name in ANCHORS) and any(name in keys for name in POSITIVES),
        _columns,
    ),
)
TRIPLES = Form("MS MARCO triples", "query<TAB>positive<TAB>negative, as texts", lambda _: False, _triple)
ID_TRIPLES = Form(
    "MS MARCO triples by ids",
    "query id<TAB>passage id<TAB>passage id, with a corpus",
    lambda _: False,
    _id_triple,
    "passages",
)


def form_of(row: dict[str, Any] | list[str], at: At) -> Form:
    """The form that a first row is of.

    Raises:
        DataError: if it is of none; it lists them all.
    """
    if isinstance(row, list):
        if len(row) == 3:
            return ID_TRIPLES if all(map(_is_id, row)) else TRIPLES
        raise unknown_form(f"a line of {len(row)} fields", at)
    for form in KINDS:
        if form.fits(row):
            return form
    raise unknown_form(f"a row with {', '.join(map(str, row)) or 'nothing'}", at)


def _is_id(field: str) -> bool:
    """True if it has no space between words, in a script that puts spaces there."""
    return field.isascii() and len(field.split()) == 1


def unknown_form(found: str, at: At) -> DataError:
    """The error that lists the forms."""
    return at.error(found, f"one of these forms:\n{described()}\n")


def is_header(names: Sequence[str]) -> bool:
    """True if these are the names of columns of a form."""
    return any(form.fits(names) for form in KINDS)


def described() -> str:
    """The forms, a line each."""
    lines = ["- BEIR: a folder with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv"]
    lines += [f"- {form.name}: {form.holds}" for form in (*KINDS, TRIPLES, ID_TRIPLES)]
    return "\n".join(lines)


def examples(form: Form, rows: Iterator[tuple[int, Any]], file: Path) -> Iterator[tuple[int, Example]]:
    """Reads rows of one form, and yields each with its line.

    Raises:
        DataError: if a row does not hold.
    """
    for line, row in rows:
        at = At(file, line)
        example = form.read(row, at)
        if form is not ID_TRIPLES and not example.query.strip():
            raise at.error("a blank query", "text")
        if not form.named and not all(one.text.strip() for one in example.positives):
            raise at.error("a blank positive", "text")
        yield line, example
