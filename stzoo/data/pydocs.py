"""The built-in corpus: docstrings of the running interpreter's standard library. It needs no network.

1. The library's source files are parsed with `ast`, in name order; nothing is imported, so nothing runs.
   Installed packages and the library's tests are left out.
2. Every docstring of at least 8 words is a passage, titled with its qualified name.
3. A docstring with a summary of 4 to 30 words of prose and at least 14 more words is also a pair: the summary
   (its first sentence) is the query, and the rest is the answer. A shorter rest ("Returns None if there is no
   more.") seldom shows which docstring it is from.
4. A hash of the summary puts about 80 % of the queries into train, 5 % into dev and 15 % into test.

Relevance: two texts are the same if their words are, regardless of case and punctuation. A summary that
several objects share is one query with several relevant passages, and a rest that they share is one passage
that is relevant to several queries. A summary that also occurs in a rest is not used as a query.

The corpus to search: only the rests of the pairs, without titles. Other docstrings would be unjudged answers
(the only line of an overriding method is often the summary itself), and the name "shutil.copytree" would
reveal words of "Recursively copy a directory tree". The name is the passage's id, so that readers see it.

The corpus for pre-training: every passage, but only the rests of dev and test pairs, and no other passage
that contains a held-out summary. So no held-out query is seen in training. (The rests are seen: a corpus is
known before its queries are.)
"""

import ast
import functools
import hashlib
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stzoo.data.beir import write_beir
from stzoo.errors import DataError
from stzoo.utils.progress import progress_bar

SPLITS = ("train", "dev", "test")
MIN_WORDS = 8
REST_WORDS = 14
SUMMARY_WORDS = range(4, 31)

_LEFT_OUT = {"site-packages", "dist-packages", "lib-dynload", "__pycache__", "test", "tests", "idle_test"}
_Named = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_BLANK_LINE = re.compile(r"\n\s*\n")
# Ends at a full stop after a word, bracket or quote and before a capital letter, but not at that of "e.g.".
_SENTENCE = re.compile(r".+?[\w)\]}'\"`](?<!\be\.g)(?<!\bi\.e)[.!?](?=\s+[\"'`(*]*[A-Z])")
# Calls, grammars, doctests, headings and "the following:" are not queries.
_NO_PROSE = re.compile(r"^[\w.]+\(|>>>| :?= |==|--.*--|:$")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Docstring:
    """A docstring, with all white space replaced by single spaces.

    Attributes:
        name: Qualified name, e.g. "shutil.rmtree"; a second object with the same name ends in "#2".
        text: The whole docstring.
        summary: The first sentence if it can be a query, otherwise "".
        rest: The text after the summary; "" if there is no summary.
    """

    name: str
    text: str
    summary: str
    rest: str


@dataclass(frozen=True)
class Pair:
    """A summary, and the rest of a docstring with this summary.

    Attributes:
        id: Id of the query: "q" and 12 hex digits of the SHA-256 of its words.
        query: The summary.
        passage_id: Qualified name of the first docstring with this rest.
        passage: The rest, which contains no query.
        split: "train", "dev" or "test".
    """

    id: str
    query: str
    passage_id: str
    passage: str
    split: str


def source_files() -> list[Path]:
    """The Python files of the running interpreter's standard library, sorted, without its tests.

    Raises:
        DataError: If there are none (e.g. if the library is in a zip file or an executable).
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = [path for path in root.rglob("*.py") if not _LEFT_OUT & set(path.relative_to(root).parts)]
    if not files:
        raise DataError(
            f"{root} has no Python files, so there are no docstrings to read; expected the source of the "
            "standard library. Use another interpreter, or a corpus of your own."
        )
    return sorted(files)


def passages(exclude_queries: Sequence[str] = ("dev", "test")) -> list[dict[str, str]]:
    """The passages for pre-training, in the order of the source files.

    Args:
        exclude_queries: Splits whose queries must not be in the passages: only the rests of their pairs are
            included, and other passages that contain such a query are left out. () gives whole docstrings.

    Returns:
        Rows of "id" and "title" (both the qualified name) and "text"; no two texts have the same words.
    """
    held_out = {_words(pair.query) for pair in pairs() if pair.split in exclude_queries}
    rows: list[dict[str, str]] = []
    seen: set[str] = set()
    asked = _Finder(held_out)
    for doc in docstrings():
        text = doc.rest if _words(doc.summary) in held_out else doc.text
        words = _words(text)
        if len(text.split()) >= MIN_WORDS and words not in seen and not asked.inside(words):
            seen.add(words)
            rows.append({"id": doc.name, "title": doc.name, "text": text})
    return rows


@functools.cache
def pairs() -> list[Pair]:
    """The judged pairs, in the order of the source files. A query or a passage may be in several of them."""
    whole = [doc for doc in docstrings() if doc.summary]
    answers: dict[str, Docstring] = {}
    for doc in whole:
        answers.setdefault(_words(doc.rest), doc)
    asked = _Finder({_words(doc.summary) for doc in whole})
    spoilt = {summary for rest in answers for summary in asked.inside(rest)}
    queries: dict[str, str] = {}
    found: dict[tuple[str, str], Pair] = {}
    for doc in whole:
        words, rest = _words(doc.summary), _words(doc.rest)
        if words in spoilt:
            continue
        digest = hashlib.sha256(words.encode()).hexdigest()
        share = int(digest[:8], 16) / 16**8
        split = "train" if share < 0.8 else "dev" if share < 0.85 else "test"
        answer = answers[rest]
        query = queries.setdefault(words, doc.summary)
        found.setdefault((words, rest), Pair("q" + digest[:12], query, answer.name, answer.rest, split))
    return list(found.values())


def beir() -> tuple[list[dict[str, str]], dict[str, str], dict[str, dict[str, dict[str, int]]]]:
    """The pairs as a BEIR data set.

    Returns:
        The passages as rows of "_id", "title" (always "") and "text"; the queries by id; and for each split
        the grades, query id -> passage id -> 1.
    """
    corpus = {pair.passage_id: pair.passage for pair in pairs()}
    qrels: dict[str, dict[str, dict[str, int]]] = {split: {} for split in SPLITS}
    for pair in pairs():
        qrels[pair.split].setdefault(pair.id, {})[pair.passage_id] = 1
    rows = [{"_id": name, "title": "", "text": text} for name, text in corpus.items()]
    return rows, {pair.id: pair.query for pair in pairs()}, qrels


def write_pydocs(folder: str | Path) -> Path:
    """Writes the pairs as a BEIR folder (qrels/{train,dev,test}.tsv) and returns it.

    Raises:
        OutputError: If the folder has other content, or cannot be written.
    """
    return write_beir(folder, *beir())


def write_documented(folder: str | Path) -> Path:
    """Writes the whole docstrings of the pairs, with their summaries, as a corpus to search, and returns it.

    Raises:
        OutputError: If the folder has other content, or cannot be written.
    """
    whole = {doc.name: doc.text for doc in docstrings()}
    ids = dict.fromkeys(pair.passage_id for pair in pairs())
    return write_beir(folder, [{"_id": name, "title": "", "text": whole[name]} for name in ids], {}, {})


@functools.cache
def docstrings() -> tuple[Docstring, ...]:
    """Every docstring of the standard library, in the order of its source files."""
    root = Path(sysconfig.get_path("stdlib"))
    found: list[Docstring] = []
    names: dict[str, int] = {}
    for path in progress_bar(source_files(), desc="Reading docstrings", unit=" files", leave=False):
        parts = path.relative_to(root).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for name, text in _walk(ast.parse(path.read_bytes(), filename=str(path)), module):
            names[name] = names.get(name, 0) + 1
            summary, rest = _split(text)
            unique = name if names[name] == 1 else f"{name}#{names[name]}"
            found.append(Docstring(unique, " ".join(text.split()), summary, rest))
    return tuple(found)


def _walk(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Names and cleaned docstrings of a module, class or function and of everything defined in it."""
    if isinstance(node, ast.Module | _Named):
        text = ast.get_docstring(node)
        if text:
            yield name, text
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, f"{name}.{child.name}" if isinstance(child, _Named) else name)


def _split(text: str) -> tuple[str, str]:
    """The summary and the rest, or two empty strings if one of them is unsuitable."""
    first, *others = _BLANK_LINE.split(text.strip(), maxsplit=1)
    first, other = " ".join(first.split()), " ".join("".join(others).split())
    sentence = _SENTENCE.match(first)
    summary = sentence[0] if sentence else first
    rest = f"{first[len(summary) :]} {other}".strip()
    prose = re.match(r"[\"'`]?[A-Z]", summary) and not _NO_PROSE.search(summary)
    if prose and len(_WORD.findall(summary)) in SUMMARY_WORDS and len(rest.split()) >= REST_WORDS:
        return summary, rest
    return "", ""


def _words(text: str) -> str:
    return " ".join(_WORD.findall(text.lower()))


class _Finder:
    """Finds which of many texts occur in another; all are results of `_words`."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.by_start: dict[tuple[str, ...], list[str]] = {}
        for text in texts:
            self.by_start.setdefault(self._start(text.split(), 0), []).append(text)

    @staticmethod
    def _start(words: list[str], at: int) -> tuple[str, ...]:
        return tuple(words[at : at + SUMMARY_WORDS.start])

    def inside(self, text: str) -> set[str]:
        words, padded = text.split(), f" {text} "
        candidates = (self.by_start.get(self._start(words, at), ()) for at in range(len(words)))
        return {found for near in candidates for found in near if f" {found} " in padded}
