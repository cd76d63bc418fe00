"""The roles of columns in training data, and the option that assigns them (`--columns`)."""

from collections.abc import Mapping, Sequence
from typing import Any

from stzoo.errors import RecipeError, abbreviated, check_known, quoted

# `label` and `grade` mark the positive passages.
COLUMN_ROLES = (
    *("query", "positive", "negative", "label", "grade", "score"),
    *("query_id", "positive_id", "negative_id", "positive_score", "negative_score"),
)

IGNORE = "ignore"  # the role of columns that are not used


def parse_columns(
    given: str | Mapping[str, Any] | None,
    roles: Sequence[str] = (*COLUMN_ROLES, IGNORE),
    example: str = "query=question,positive=text",
) -> dict[str, list[str]]:
    """Parses the columns of data by role, from "query=question,positive=passage" or a mapping.

    The roles positive, negative and ignore may have several columns ("negative=a,negative=b"; in a mapping, a
    list). Columns with the role ignore are not used.

    Args:
        given: The columns.
        roles: The roles that there are, by default those of training data.
        example: For messages.

    Raises:
        RecipeError: If a role is unknown, or a column has two roles.
    """
    pairs: list[tuple[str, Any]] = []
    if isinstance(given, str):
        for pair in given.split(",") if given else ():
            role, equals, name = pair.partition("=")
            if not equals or not name.strip():
                raise RecipeError(f"columns has {quoted(pair)}; expected ROLE=COLUMN, e.g. {example}.")
            pairs.append((role.strip(), name.strip()))
    elif isinstance(given, Mapping):
        for role, names in given.items():
            pairs += [(role, name) for name in (names if isinstance(names, list | tuple) else [names])]
    elif given is not None:
        raise RecipeError(f"columns is {quoted(given)}; expected columns by role.")
    found: dict[str, list[str]] = {}
    for role, name in pairs:
        check_known("role in columns", str(role), roles)
        if not isinstance(name, str):
            raise RecipeError(f"columns.{role} is {quoted(name)}; expected the name of a column.")
        if name in (one for names in found.values() for one in names):
            raise RecipeError(f"columns has {quoted(name)} twice; expected one role per column.")
        found.setdefault(role, []).append(name)
    for role, names in found.items():
        if len(names) > 1 and role not in ("positive", "negative", IGNORE):
            raise RecipeError(
                f"columns has {', '.join(map(abbreviated, names))} as {role}; expected one column."
            )
    return found
