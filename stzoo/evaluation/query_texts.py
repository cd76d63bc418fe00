"""The texts of queries, which results do not include, from the data set."""

from collections.abc import Container
from pathlib import Path

from stzoo.data import registry
from stzoo.data.rows import read_jsonl


def query_texts(
    data: Path, dataset: str, queries: Container[str], progress: bool | None = None
) -> dict[str, str]:
    """The texts of some queries by id; empty if the data set is not there.

    Args:
        data: The data set's BEIR folder, or the parent of several.
        dataset: Name of the data set in the results.
        queries: Ids of the queries.
        progress: True for a progress bar on stderr after two seconds; None shows it on a terminal only.
    """
    entry = registry.find(dataset)
    names = [dataset, *(entry.names if entry else ())]
    # a task of several over one corpus has the name FOLDER-TASK
    names += [dataset[:i] for i, letter in enumerate(dataset) if letter == "-"]
    folders = [data / name for name in names] + ([data] if data.resolve().name in names else [])
    for file in (folder / name for folder in folders for name in ("queries.jsonl", "queries.jsonl.gz")):
        if file.is_file():
            rows = (
                (str(row.get("_id", row.get("id"))), str(row.get("text")))
                for _, row in read_jsonl(file, progress)
            )
            return {query: text for query, text in rows if query in queries}
    return {}
