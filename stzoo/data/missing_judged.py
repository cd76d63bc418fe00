"""What to do about judgements of queries and documents that a data set lacks."""

from collections.abc import Mapping
from pathlib import Path

from stzoo.data import registry
from stzoo.data.qrels import Qrels
from stzoo.data.rows import read_lines
from stzoo.data.texts import Texts
from stzoo.errors import DataError, RecipeError, quoted
from stzoo.utils.messages import counted

MISSING_JUDGED = ("error", "drop", "not-found")
_HINTS = {  # "not-found" is not for queries: without a text, nothing can be searched
    "query": "stzoo bench and score continue with --missing-judged drop (leave such judgements out)",
    "document": "stzoo bench and score continue with --missing-judged drop (leave such judgements out) or "
    "not-found (count such documents as not found)",
}


def check_missing_judged(missing_judged: str) -> None:
    """Checks the value of the option.

    Raises:
        RecipeError: If it is unknown.
    """
    if missing_judged not in MISSING_JUDGED:
        raise RecipeError(
            f"missing_judged is {quoted(missing_judged)}; expected one of {', '.join(MISSING_JUDGED)}."
        )


def settle_queries(judgements: Qrels, queries: Mapping[str, str], path: Path, way: str) -> tuple[str, ...]:
    """Removes the judgements of missing queries, or refuses them; returns notes.

    Args:
        judgements: Grade by document id by query id; changed in place.
        queries: Text by id of the queries that exist.
        path: Path of the qrels file, for messages.
        way: One of `MISSING_JUDGED`.

    Raises:
        DataError: If queries are missing and `way` is not "drop", or no judgement remains.
    """
    unknown = set(judgements).difference(queries)
    if not unknown:
        return ()
    if way != "drop":
        raise _unknown(path, 0, unknown, "query", "the queries")
    for query in unknown:
        del judgements[query]
    if not judgements:
        raise DataError(f"{path}: queries.jsonl has none of the judged queries, so nothing can be scored.")
    return (f"{counted(len(unknown), 'judged query')} not in queries.jsonl: left out (missing_judged: drop)",)


def settle_documents(
    judgements: Qrels, corpus_ids: Texts, path: Path, way: str, name: str
) -> tuple[str, ...]:
    """Removes, keeps or refuses the judgements of missing documents; returns notes.

    Args:
        judgements: Grade by document id by query id; changed in place.
        corpus_ids: Ids of the documents that exist.
        path: Path of the qrels file, for messages.
        way: One of `MISSING_JUDGED`.
        name: Name of the data set, for the registry.

    Raises:
        DataError: If documents are missing that must not be, or no judgement remains.
    """
    unknown = {document for grades in judgements.values() for document in grades}.difference(corpus_ids)
    if not unknown:
        return ()
    text = f"{counted(len(unknown), 'judged document')} not in the corpus"
    if way == "not-found":
        return (f"{text}: counted as not found (missing_judged: not-found)",)
    if way == "error":
        if len(unknown) > registry.missing(name):
            raise _unknown(path, 1, unknown, "document", "the corpus")
        return (f"{text} (known of {name}): never found",)
    before = len(judgements)
    for query in list(judgements):
        for document in unknown.intersection(judgements[query]):
            del judgements[query][document]
        if not judgements[query]:
            del judgements[query]
    if not judgements:
        raise DataError(f"{path}: the corpus has none of the judged documents, so nothing can be scored.")
    lost = before - len(judgements)
    return (
        f"{text}: left out (missing_judged: drop)"
        + f", with {counted(lost, 'query')} without any other" * bool(lost),
    )


def _unknown(path: Path, column: int, names: set[str], kind: str, where: str) -> DataError:
    """The error for the first line of the qrels that has one of these names in a column."""
    for at, row in read_lines(path):
        name = row.split("\t")[column]
        if at.line > 1 and name in names:
            found = f"the unknown {kind} {quoted(name)} (one of {len(names)})"
            return at.error(found, f"an id of {where} of {path.parent.parent} ({_HINTS[kind]})")
    return DataError(f"{path} was changed while it was read. Start again.")
