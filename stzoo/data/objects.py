"""Corpora, judged data and training data that are given as Python objects in place of a path.

Every function of stzoo that reads a path also takes an object. It is written once to stzoo's cache, and from
there on it is a path like any other. Its name there says what it was and ends in a fingerprint of its content
("list-of-350-texts-5d41402abc4b"), which records of runs keep. So an equal object of the same type has the
same path, and a run that is resumed with other content is refused. A copy that was edited is written again.
The copies may be deleted when no run needs them.

The rows of a corpus have a "text", and may have a "title" and an "_id" or "id"; rows without an id are
numbered from 1.
"""

import contextlib
import datetime
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from functools import partial
from numbers import Number
from pathlib import Path
from typing import Any
from uuid import UUID

from stzoo.data.beir import write_beir
from stzoo.data.corpus_names import SUFFIXES
from stzoo.data.object_rows import CORPUS, object_rows
from stzoo.data.remote import local_copy
from stzoo.data.rows import Rows
from stzoo.errors import DataError, abbreviated, first_line, quoted
from stzoo.utils.cache import cache_folder
from stzoo.utils.files import NEW, draft_folder, fingerprint, writing
from stzoo.utils.inputs import is_url
from stzoo.utils.messages import counted

JUDGED = "a BEIR folder, or the dicts (corpus, queries, qrels) that BEIR's GenericDataLoader returns"
PARTS = ("corpus", "queries", "qrels")
RUNS = "a run file, or scores by document id by query id"
TRAINING = (
    "the path of a file or folder, a list of dicts, a pandas or polars frame, an Arrow table, a "
    "datasets.Dataset, or the dicts (corpus, queries, qrels) of BEIR"
)
TRAINING_ROW = 'a dict such as {"query": "…", "positive": "…"}'


def corpus_path(given: Any) -> str:
    """The path of a corpus: as given, that of a URL's copy, or that of a folder with its corpus.jsonl.

    Raises:
        DataError: If it is no corpus, a row has no text, or a URL cannot be read.
    """
    if is_url(given):
        return str(local_copy(given))
    if isinstance(given, str | os.PathLike):
        return os.fspath(given)

    def write(draft: Path) -> str:
        count = _write_jsonl(draft / "corpus.jsonl", _corpus_rows(given))
        if not count:
            raise DataError(f"the corpus, a {type(given).__name__}, is empty; expected {CORPUS}.")
        return _description(given, count, "text")

    return str(keep(write))


def corpus_paths(given: Any) -> list[str]:
    """The paths of one corpus or several; see `corpus_path`.

    A list of strings is a list of texts, unless each of them has the form of a path or name (no white space,
    or a known ending) or is an existing path. A list of a single string is a list of sources.
    """
    if not isinstance(given, list | tuple) or not given or is_judged(given):
        return [corpus_path(given)]
    if all(isinstance(one, str | os.PathLike) for one in given):
        is_texts = len(given) > 1 and not all(map(_names_source, given))
        if is_texts and (named := [one for one in given if _is_there(one)]):
            other = next(one for one in given if not _names_source(one))
            raise DataError(
                f"{quoted(str(named[0]))} is a file or folder, but {quoted(str(other))} is not. Correct its "
                'path, or give texts as dicts: {"text": "…"}.'
            )
        return [corpus_path(given)] if is_texts else list(map(os.fspath, given))
    if given[0] is None or isinstance(given[0], Mapping | Number):
        return [corpus_path(given)]
    return [corpus_path(one) for one in given]


def judged_path(given: Any, split: str = "test") -> str:
    """The path of judged data: as given, or that of a BEIR folder, or of a folder with several.

    Args:
        given: A path, or the dicts (corpus, queries, qrels), as a tuple or by these names. The corpus may be
            whatever `corpus_path` takes; the qrels may be given by split: {"dev": {query: {document: 1}}}.
            Or a dict of such data sets by name, which become the subfolders of a folder.
        split: The split that the qrels are of, if they do not name it.

    Raises:
        DataError: If it is no judged data.
    """
    if isinstance(given, str | os.PathLike):
        return os.fspath(given)
    if is_judged(given):
        return str(keep(lambda draft: _write_judged(draft, given, split)))
    if not is_several(given):
        raise DataError(f"{_fault(given)}; expected {JUDGED}.")

    def write(draft: Path) -> str:
        for name, one in given.items():
            if not re.fullmatch(r"[\w-][\w.-]*", name):
                raise DataError(f"a data set is named {quoted(name)}; expected letters, digits, _, . and -.")
            _write_judged(draft / name, one, split)
        return counted(len(given), "data set")

    return str(keep(write))


def _fault(given: Any) -> str:
    """What is wrong with an object that is no judged data."""
    kind = type(given).__name__
    if isinstance(given, Mapping) and (parts := given.keys() & set(PARTS)):
        return f"a {kind} with {' and '.join(sorted(parts))} only was given"
    if not isinstance(given, list | tuple):
        return f"an object of type {kind} was given"
    if len(given) != len(PARTS):
        return f"a {kind} of {counted(len(given), 'item')} was given"
    wrong = [name for name, part in zip(PARTS, given, strict=True) if not isinstance(part, Mapping)]
    if name := next((name for name in wrong if name != "corpus"), ""):
        return f"a {kind} was given whose {name} are of type {type(given[PARTS.index(name)]).__name__}"
    query = next(query for query, grades in given[2].items() if not isinstance(grades, Mapping))
    found = type(given[2][query]).__name__
    return (
        f"a {kind} was given whose qrels of {quoted(str(query))} are of type {found}, not grades by document"
    )


def training_path(given: Any) -> str:
    """The path of training data: as given, or that of a jsonl file or BEIR folder.

    Raises:
        DataError: If it is no training data.
    """
    if isinstance(given, str | os.PathLike):
        return os.fspath(given)
    if is_judged(given):
        return judged_path(given, "train")

    def write(draft: Path) -> str:
        rows = (row for _, row in _given_rows(given, TRAINING, row=TRAINING_ROW))
        count = _write_jsonl(draft / "train.jsonl", rows)
        if not count:
            raise DataError(f"the training data, a {type(given).__name__}, is empty; expected rows.")
        return _description(given, count, "row")

    return str(keep(write, "train.jsonl"))


def training_paths(given: Any) -> list[str]:
    """The paths of texts that a model was trained on: those of training data, or of corpora."""
    if isinstance(given, list | tuple) and given and not is_judged(given):
        if all(isinstance(one, str | os.PathLike) for one in given):
            return corpus_paths(given)
        if not isinstance(given[0], Mapping):
            return [path for one in given for path in training_paths(one)]
    return [training_path(given)]


def run_paths(given: Any) -> list[str]:
    """The run files of one system or several: as given, or NAME=FILE for runs that are given as dicts.

    Args:
        given: File names, or scores by document id by query id, or a dict of such runs by name.

    Raises:
        DataError: If it is neither.
    """
    if not isinstance(given, Mapping):
        several = given if isinstance(given, list | tuple) else [given]
        if not all(isinstance(one, str | os.PathLike) for one in several):
            wrong = next(type(one).__name__ for one in several if not isinstance(one, str | os.PathLike))
            raise DataError(f"an object of type {wrong} was given as run; expected {RUNS}.")
        return list(map(os.fspath, several))
    runs = given if _names_splits(given) else {"run": given}
    return [f"{name}={keep(partial(_write_run, run), 'run.trec')}" for name, run in runs.items()]


def _write_run(run: Any, draft: Path) -> str:
    lines = []
    for query, scores in run.items():
        if not isinstance(scores, Mapping):
            raise DataError(f"the run of {quoted(str(query))} is of another form; expected {RUNS}.")
        numbers = {document: _score(query, document, score) for document, score in scores.items()}
        for rank, (document, score) in enumerate(sorted(numbers.items(), key=lambda one: -one[1]), 1):
            if any(len(str(one).split()) != 1 for one in (query, document)):
                raise DataError(f"the id {quoted(str(document))} or {quoted(str(query))} has white space.")
            lines.append(f"{query} Q0 {document} {rank} {score!r} run\n")
    (draft / "run.trec").write_text("".join(lines), encoding="utf-8")
    return f"run of {counted(len(run), 'query')}"


def _score(query: Any, document: Any, score: Any) -> float:
    try:
        number = math.nan if isinstance(score, str | bytes) else float(score)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor of several numbers
        number = math.nan
    if math.isnan(number):
        what = "NaN" if isinstance(score, float) else f"a {type(score).__name__}"
        raise DataError(
            f"the score of {quoted(str(document))} for {quoted(str(query))} is {what}; expected a float."
        )
    return number


def is_judged(given: Any) -> bool:
    """True for the dicts (corpus, queries, qrels), as a tuple or list or by these names."""
    if isinstance(given, Mapping):
        return given.keys() >= set(PARTS)
    if not isinstance(given, list | tuple) or len(given) != 3:
        return False
    _, queries, qrels = given
    if not isinstance(queries, Mapping) or not isinstance(qrels, Mapping):
        return False
    return all(isinstance(grades, Mapping) for grades in qrels.values())


def corpus_of(given: Any) -> Any:
    """The corpus of the dicts (corpus, queries, qrels); anything else as it is."""
    if not is_judged(given):
        return given
    return given["corpus"] if isinstance(given, Mapping) else given[0]


def is_several(given: Any) -> bool:
    """True for a dict of judged data sets by name."""
    if not isinstance(given, Mapping) or is_judged(given) or not given:
        return False
    return all(isinstance(name, str) and is_judged(one) for name, one in given.items())


def _names_source(text: str | os.PathLike[str]) -> bool:
    """True if it is the path of a corpus, or could be the name of one."""
    return _is_there(text) or (str(text).isascii() and len(str(text).split()) == 1)


def _is_there(text: str | os.PathLike[str]) -> bool:
    """True if it is "pydocs", exists, or ends as the path of a corpus does."""
    if not isinstance(text, str) or text == "pydocs" or text.lower().endswith(SUFFIXES):
        return True
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # too long for a path, a NUL byte
        return Path(text).expanduser().exists()
    return False


def _corpus_rows(given: Any) -> Iterator[dict[str, Any]]:
    """The rows of a corpus with an "_id" and a "text" each."""
    given = corpus_of(given)
    if isinstance(given, str | bytes):
        raise DataError(f"a single text was given as corpus; expected {CORPUS}.")
    for at, row in _given_rows(given):
        if "text" not in row and "title" not in row:
            names = abbreviated(", ".join(map(str, row))) or "none"
            raise at.error(f"the columns {names}", 'a "text" (a "title" and an "_id" or "id" may be there)')
        found = row.get("_id") if row.get("_id") is not None else row.get("id")
        yield {**row, "_id": str(at.line) if found is None else found, "text": row.get("text") or ""}


def _write_judged(folder: Path, given: Any, split: str) -> str:
    parts = [given[name] for name in PARTS] if isinstance(given, Mapping) else given
    corpus, queries, qrels = parts
    if not isinstance(queries, Mapping) or not isinstance(qrels, Mapping):
        wrong = type(qrels if isinstance(queries, Mapping) else queries).__name__
        raise DataError(f"the queries or qrels are of type {wrong}; expected dicts by query id.")
    count = 0

    def rows() -> Iterator[dict[str, str]]:
        nonlocal count
        for count, row in enumerate(_corpus_rows(corpus), 1):  # noqa: B007 - counted for the name
            yield {"_id": str(row["_id"]), "title": row.get("title") or "", "text": row["text"]}

    texts = {str(query): _query_text(query, text) for query, text in queries.items()}
    by_split = qrels if _names_splits(qrels) else {split: qrels}
    grades = {
        name: {str(query): _grades(query, judged) for query, judged in of.items()}
        for name, of in by_split.items()
    }
    write_beir(folder, rows(), texts, grades)
    return f"{counted(count, 'passage')} {counted(len(texts), 'query')}"


def _names_splits(qrels: Mapping[str, Any]) -> bool:
    first = next(iter(qrels.values()), None)
    return isinstance(first, Mapping) and isinstance(next(iter(first.values()), None), Mapping)


def _query_text(query: Any, text: Any) -> str:
    text = text.get("text") if isinstance(text, Mapping) else text
    if not isinstance(text, str):
        raise DataError(f"the query {quoted(str(query))} is of type {type(text).__name__}; expected a text.")
    return text


def _grades(query: Any, judged: Any) -> dict[str, int]:
    try:
        grades = {str(document): int(grade) for document, grade in judged.items()}
        if any(grade != grades[str(document)] for document, grade in judged.items()):
            raise ValueError
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise DataError(
            f"the qrels of {quoted(str(query))} are of another form; expected grades (whole numbers) by "
            "document id."
        ) from None
    return grades


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes rows and returns their number. Values that JSON lacks (dates, …) become texts."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, row in enumerate(rows, 1):
            try:
                line = json.dumps(row, default=_plain)
            except (TypeError, ValueError, RecursionError) as error:  # a key that is no text, a circle
                raise DataError(f"row {count} cannot be written as JSON: {first_line(error)}.") from None
            file.write(line + "\n")
    return count


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # of numpy's types
        return value.tolist()
    if isinstance(value, datetime.date | datetime.time | Decimal | UUID | os.PathLike):
        return str(value)
    raise DataError(f"a value of type {type(value).__name__} was given; expected texts, numbers or lists.")


def _description(given: Any, count: int, noun: str) -> str:
    is_plain = isinstance(given, list | tuple | Mapping)
    return f"{type(given).__name__} of {counted(count, noun if is_plain else 'row')}"


CHECK = ".fingerprint"  # in a copy whose name does not end in its fingerprint


def keep(write: Callable[[Path], str], file: str = "", *, name: str = "") -> Path:
    """Writes a folder into the cache, and returns its path there, or that of its only file.

    Args:
        write: Writes into a draft folder, and returns what the object was.
        file: Name of the only file, if its path is to be returned.
        name: Name in the cache; by default what the object was, with the fingerprint of what was written. A
            folder of that name is written again only if it was edited or damaged.

    Raises:
        OutputError: If the cache cannot be written. Errors that the user's iterables raise are passed on.
    """
    root = _root()
    if name and _is_whole(root / name):
        return root / name
    try:
        with writing(root), draft_folder(root / "object") as box:
            draft = box / NEW / "copy"
            draft.mkdir(parents=True)
            what = write(draft).replace(",", "").replace(" ", "-")
            if name:
                (draft / CHECK).write_text(_digest(draft))
            target = root / (name or f"{what}-{_digest(draft)}{Path(file).suffix}")
            if not file and target.exists() and not _is_whole(target):
                shutil.rmtree(target)
            try:
                (draft / file if file else draft).replace(target)
            except OSError:
                if not target.exists():  # otherwise it has the same content
                    raise
    except _GivenError as error:
        raise error.error from error.error.__cause__
    return target


def _root() -> Path:
    return cache_folder() / "objects"


def is_copy(path: str) -> bool:
    """True if a path is that of an object's copy."""
    return Path(path).is_relative_to(_root())


def _digest(folder: Path) -> str:
    return fingerprint(*sorted(path for path in folder.iterdir() if path.name != CHECK))[:12]


def _is_whole(folder: Path) -> bool:
    """True for a folder that is as `keep` wrote it; False if it was edited or damaged, or is missing."""
    if not folder.is_dir():
        return False
    check = folder / CHECK
    return _digest(folder) == (check.read_text() if check.is_file() else folder.name[-12:])


class _GivenError(Exception):
    """Keeps an OSError of the user's object apart from those of the cache."""

    def __init__(self, error: OSError):
        super().__init__()
        self.error = error


def _given_rows(given: Any, expected: str = CORPUS, **options: Any) -> Rows:
    """The rows of an object; see `object_rows`."""
    try:
        yield from object_rows(given, expected, **options)
    except OSError as error:
        raise _GivenError(error) from error
