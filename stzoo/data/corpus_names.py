"""Names of corpora: which files are read, and the ids of data sets on the Hub; it imports nothing heavy."""

from stzoo.errors import DataError
from stzoo.utils.inputs import user_path

IN_FOLDERS = (".jsonl", ".jsonl.gz", ".parquet", ".txt", ".txt.gz")
# A .json file in a folder is usually a record or settings (run.json), and a .tsv file is judgements, so these
# are read only if they are named.
SUFFIXES = (*IN_FOLDERS, ".json", ".json.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz")


def check_exists(source: str, *, words: str = "'pydocs', ") -> None:
    """Checks that a source is a file or folder, or has the form of a data set's id on the Hub.

    Args:
        source: The source, as the user gave it.
        words: Further sources, for the message.

    Raises:
        DataError: If it is neither.
    """
    if source != "pydocs" and not user_path(source).exists() and not is_hub_id(source):
        raise DataError(
            f"there is no file or folder {source}; expected a file, a folder, {words}or the id of a data set "
            "on the Hub (org/name or org/name:config:split)."
        )


def is_hub_id(source: str) -> bool:
    """True if it has the form of a data set's id on the Hub: org/name or org/name:config:split."""
    name, *rest = source.split(":")
    owner, slash, short = name.partition("/")
    is_id = owner.strip(".~") and slash and short and "/" not in short and len(rest) in (0, 2)
    return bool(is_id) and not name.lower().endswith(SUFFIXES)
