"""What a column of training data can be, and how a user says which is what (`--columns`)."""

from collections.abc import Mapping
from typing import Any

from stzoo.errors import RecipeError, abbreviated, check_known, quoted

# what a column of training data can be; `label` and `grade` say which passages are positive
COLUMN_ROLES = (
    *("query", "positive", "negative", "label", "grade", "score"),
    *("query_id", "positive_id", "negative_id", "positive_score", "negative_score"),
)

IGNORE = "ignore"  # what a column is called that is not used


def parse_columns(given: str | Mapping[str, Any] | None) -> dict[str, list[str]]:
    """What columns of training data are, by role, from "query=question,positive=passage" or a mapping.

    A role may have several columns ("negative=a,negative=b"; in a mapping, a list). Columns of the role
    "ignore" are not used.

    Raises:
        RecipeError: if there is no such role, or a column has two.
    """
    pairs: list[tuple[str, Any]] = []
    if isinstance(given, str):
        for pair in given.split(",") if given else ():
            role, equals, name = pair.partition("=")
            if not equals or not name.strip():
                raise RecipeError(
                    f"columns has {quoted(pair)}; expected ROLE=COLUMN, e.g. query=question,positive=text."
                )
            pairs.append((role.strip(), name.strip()))
    elif isinstance(given, Mapping):
        for role, names in given.items():
            pairs += [(role, name) for name in (names if isinstance(names, list | tuple) else [names])]
    elif given is not None:
        raise RecipeError(f"columns is {quoted(given)}; expected columns by role.")
    found: dict[str, list[str]] = {}
    for role, name in pairs:
        check_known("role in columns", str(role), (*COLUMN_ROLES, IGNORE))
        if not isinstance(name, str):
            raise RecipeError(f"columns.{role} is {quoted(name)}; expected the name of a column.")
        if name in (one for names in found.values() for one in names):
            raise RecipeError(f"columns names {quoted(name)} twice; a column is one thing.")
        found.setdefault(role, []).append(name)
    for role, names in found.items():
        if len(names) > 1 and role not in ("positive", "negative", IGNORE):
            raise RecipeError(f"columns names {', '.join(map(abbreviated, names))} as {role}; expected one.")
    return found
