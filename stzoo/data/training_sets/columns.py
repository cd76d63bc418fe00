"""The roles of columns in training rows, by their usual names or by the option `--columns`.

They are decided from the whole file before the first row is used. Ambiguous names are refused, and so are
unknown columns that look like negatives, positives or labels; other columns are reported as unused.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from stzoo.data.column_roles import COLUMN_ROLES, IGNORE
from stzoo.data.row_location import RowLocation
from stzoo.errors import abbreviated, quoted

Given = Mapping[str, Sequence[str]]  # columns by role, from the option

# The usual names of each role, the most certain first: `answer` is a passage only if no other column is.
NAMES = {
    "query": (r"anchor|query|question",),
    "positive": (
        r"pos(itive)?s?(_?\d+)?",
        r"passages?|documents?|docs?|contexts?|paragraphs?",
        r"answer",
    ),
    "negative": (r"(hard_?)?neg(ative)?s?(_?\d+)?",),
    "label": (r"labels?",),
    "grade": (r"(is_?)?relevan(t|ce)s?|grades?",),
    "score": (r"(teacher_?)?scores?|relevance_scores?|similarit(y|ies)",),
    "query_id": (r"q(uery)?_?id",),
    "positive_id": (r"pos(itive)?_?ids?",),
    "negative_id": (r"neg(ative)?_?ids?",),
    "positive_score": (r"pos(itive)?_?scores?",),
    "negative_score": (r"neg(ative)?_?scores?",),
}
# Parts of names, and whole words in them, that suggest a role.
LOOKS = {
    "negative": (
        r"negativ|hardneg|distract|irrelevan|incorrect|reject|contradict|unrelated|mismatch",
        {"neg", "negs", "hard", "wrong", "bad", "false"},
    ),
    "positive": (r"positiv", {"pos", "gold"}),
    "label": (
        r"label|relevan|score|similar|judg|impossible|answerable|duplicate",
        {"grade", "grades", "rating", "ratings", "rel", "qrel", "qrels", "sim"}
        | {"target", "match", "selected", "accepted", "correct", "y"},
    ),
}
OF_LABELS = ("label", "grade", "score", "positive_score", "negative_score")
SHOWN = {
    "positive": "positive",
    "negative": "negatives",
    "label": "label",
    "score": "scores",
}
MEANING = {
    "label": " (1: positive, 0: negative)",
    "grade": " (above 0: positive, others: negative)",
    "score": " (a teacher's)",
}
MOST_SHOWN = 6


@dataclass(frozen=True)
class Columns:
    """The roles of a file's columns.

    Attributes:
        form: Name of the format of its rows.
        roles: Columns by role, see `stzoo.data.column_roles.COLUMN_ROLES`.
        unused: The other columns.
    """

    form: str
    roles: Mapping[str, Sequence[str]]
    unused: Sequence[str] = ()

    def one(self, role: str) -> str:
        """The first column of a role, or ""."""
        return next(iter(self.roles.get(role, ())), "")

    @property
    def marks_positives(self) -> bool:
        """True if a column marks the positive passages."""
        return "label" in self.roles or "grade" in self.roles

    @property
    def meaning(self) -> str:
        """The roles of labels and scores; "" if there are none."""
        return ", ".join(role for role in OF_LABELS[:3] if role in self.roles)

    def record(self) -> dict[str, Any]:
        """The values for the record of a run."""
        return {"form": self.form, **{role: list(names) for role, names in self.roles.items()}} | (
            {"unused": list(self.unused)} if self.unused else {}
        )

    def sentence(self) -> str:
        """A description for the user, e.g. "query ← question, positive ← passage; not used: id"."""
        parts = (
            f"{SHOWN.get(role, role.replace('_', ' '))} ← {_listed(names)}{MEANING.get(role, '')}"
            for role, names in self.roles.items()
        )
        return ", ".join(parts) + (f"; not used: {_listed(self.unused)}" if self.unused else "")


def _listed(names: Sequence[str]) -> str:
    shown = [abbreviated(name, 40) for name in names[:MOST_SHOWN]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def has_columns(names: Collection[str], given: Given) -> bool:
    """True if the names include columns of queries and of positives."""
    if given and all(name in names for column in given.values() for name in column):
        return True
    return all(
        given.get(role) or any(_fits(name, usual) for name in names for usual in NAMES[role])
        for role in ("query", "positive")
    )


def find_columns(form: str, names: Sequence[str], given: Given, at: RowLocation) -> Columns:
    """The roles of columns by their names alone.

    Args:
        form: Name of the format, for the record.
        names: Names of all columns.
        given: Columns by role, from the option.
        at: Location of the first row, for messages.

    Raises:
        DataError: If a role is ambiguous.
    """
    taken = {name for column in given.values() for name in column}
    roles: dict[str, Sequence[str]] = {}
    for role in COLUMN_ROLES:
        found = list(given.get(role, ())) or _usual(role, [name for name in names if name not in taken])
        if role in OF_LABELS[:2] and role not in given and any(one in given for one in OF_LABELS[:2]):
            found = []  # the option says what marks positives
        if found:
            roles[role] = _ordered(found)
        unnumbered = [name for name in found if not re.search(r"\d$", name)]
        if role != "negative" and role not in given and len(unnumbered) > 1:
            raise at.error(
                f"the columns {_listed(unnumbered)}, each of which can be the {role.replace('_', ' ')}",
                f"one of them; name it, for example --columns {role}={unnumbered[0]}",
            )
    if "label" in roles and "grade" in roles:
        label, grade = roles["label"][0], roles["grade"][0]
        raise at.error(
            f"the columns {label} and {grade}, each of which can say which passages are positive",
            f"one of them; leave the other out by --columns ignore={label} or --columns ignore={grade}",
        )
    if "score" in roles and ("positive_score" in roles or "negative_score" in roles):
        raise at.error(
            f"scores in {roles['score'][0]} and in columns of positives or negatives",
            f"one kind; leave the other out by --columns ignore={roles['score'][0]}",
        )
    for role in ("query", "positive"):
        if role not in roles:
            raise at.error(f"no {role} among the columns {_listed(names)}", f"one: --columns {role}=NAME")
    return with_unused(Columns(form, roles), names, given, at)


def with_unused(
    columns: Columns, names: Sequence[str], given: Given, at: RowLocation, *, named: bool = True
) -> Columns:
    """Adds the columns without a role as unused.

    Args:
        columns: The columns that have a role.
        names: Names of all columns.
        given: Columns by role, from the option.
        at: Location of the first row, for messages.
        named: True if the option can assign roles in this format.

    Raises:
        DataError: If an unused column looks as if it had a role.
    """
    used = {name for column in columns.roles.values() for name in column}
    unused = [name for name in names if name not in used]
    for name in unused:
        family = _looks_like(name)
        if family and name not in given.get(IGNORE, ()) and not _is_settled(family, given):
            short = abbreviated(name, 60)
            role = f"its role (--columns {family}={short}), or " if named else ""
            raise at.error(
                f"the column {short!r}, which looks like {family}s but is unknown ({columns.sentence()})",
                f"{role}--columns ignore={short} to leave it out",
            )
    return replace(columns, unused=unused)


def _is_settled(family: str, given: Given) -> bool:
    """True if the option assigns the columns of a family."""
    return any(role in given for role in (OF_LABELS if family == "label" else (family,)))


def check_given(names: Sequence[str], given: Given, at: RowLocation) -> None:
    """Refuses columns in the option that do not exist."""
    for role, column in given.items():
        for name in column:
            if name not in names:
                raise at.error(
                    f"no column {quoted(name)}, which --columns names as {role}",
                    f"one of {_listed(names)}",
                )


def _usual(role: str, names: Sequence[str]) -> list[str]:
    """The columns with the most certain of a role's usual names."""
    tiers = ([name for name in names if _fits(name, usual)] for usual in NAMES[role])
    return next((tier for tier in tiers if tier), [])


def _fits(name: str, usual: str) -> bool:
    return re.fullmatch(usual, _plain(name)) is not None


def _plain(name: str) -> str:
    """hardNegative-2 as hard_negative_2."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[\W_]+", "_", spaced).strip("_").lower()


def _ordered(names: Iterable[str]) -> list[str]:
    """Names without a number first, then by their numbers."""

    def number(name: str) -> int:
        found = re.search(r"[0-9]{1,9}$", name)
        return int(found[0]) if found else -1

    return sorted(names, key=number)


def _looks_like(name: str) -> str | None:
    plain = _plain(name)
    words = {*re.split(r"[_\d]+", plain)}
    return next(
        (family for family, (part, whole) in LOOKS.items() if re.search(part, plain) or words & whole), None
    )


# What labels and scores mean


class _Seen(NamedTuple):
    """The first row of each kind, or None."""

    negatives: RowLocation | None
    label: RowLocation | None
    no_label: RowLocation | None
    not_binary: RowLocation | None
    not_whole: RowLocation | None
    score_alone: RowLocation | None
    score: RowLocation | None


def settle_labels(columns: Columns, given: Given, rows: Iterable[tuple[RowLocation, Any]]) -> Columns:
    """Settles what labels, grades and scores mean, which must be the same in all rows.

    By default labels are 0 and 1, grades are whole numbers, and scores, or labels in rows with negatives, are
    a teacher's scores.

    Args:
        columns: The result of `find_columns`.
        given: Columns by role, from the option.
        rows: All rows of the file.

    Raises:
        DataError: If their meaning is ambiguous; the error names the line.
    """
    mark = "label" if "label" in columns.roles else "grade" if "grade" in columns.roles else ""
    if not mark and "score" not in columns.roles:
        return columns
    seen = _see(columns, mark, rows)
    if mark and not seen.label:
        columns, mark = _without(columns, mark), ""
    if "score" in columns.roles and not seen.score:
        columns = _without(columns, "score")
    name = columns.one(mark) if mark else ""
    if mark and mark not in given and seen.negatives:
        if mark == "grade" or "score" in columns.roles:
            raise seen.negatives.error(
                f"negatives in a row with {name}, which marks the positive passages",
                f"one or the other; leave it out by --columns ignore={name}, or say --columns {mark}={name}",
            )
        columns, mark = replace(columns, roles=_renamed(columns.roles, "label", "score")), ""
    wrong = seen.not_binary if mark == "label" else seen.not_whole if mark == "grade" else None
    if wrong:
        raise wrong.error(
            f"a {name} that is not {'0 or 1' if mark == 'label' else 'a whole number'}",
            f"one of these in all rows: --columns label={name} (1 is positive, 0 negative), --columns "
            f"grade={name} (whole numbers; above 0 is positive) or --columns score={name} (a teacher's; all "
            "passages are positive)",
        )
    if mark and seen.no_label:
        raise seen.no_label.error(
            f"a row without {name}, which other rows have", f"{name} in each row, or --columns ignore={name}"
        )
    name = columns.one("score")
    if name and "score" not in given and not mark and seen.score_alone:
        raise seen.score_alone.error(
            f"a {name} and no negatives: the {name} of a positive, or one that says whether it is a positive",
            f"one of these: --columns score={name} (all passages are positive), --columns label={name} "
            f"(1 is positive, 0 negative), --columns grade={name} (whole numbers; above 0 is positive) or "
            f"--columns ignore={name}",
        )
    return columns


def _see(columns: Columns, mark: str, rows: Iterable[tuple[RowLocation, Any]]) -> _Seen:
    negatives = columns.roles.get("negative", ())
    label, score = columns.one(mark) if mark else "", columns.one("score")
    seen: dict[str, RowLocation | None] = dict.fromkeys(_Seen._fields)

    def note(kind: str, at: RowLocation) -> None:
        seen[kind] = seen[kind] or at

    for at, row in rows:
        has_negatives = any(row.get(name) not in (None, "", []) for name in negatives)
        if has_negatives:
            note("negatives", at)
        numbers = at.number_list(row.get(label), label) if label else []
        note("label" if numbers else "no_label", at)
        if not all(one in (0, 1) for one in numbers):
            note("not_binary", at)
        if not all(one.is_integer() for one in numbers):
            note("not_whole", at)
        scored = row.get(score) not in (None, "", []) if score else bool(numbers)
        if scored and score:
            note("score", at)
        if scored and not has_negatives:
            note("score_alone", at)
    return _Seen(**seen)


def _without(columns: Columns, role: str) -> Columns:
    roles = {name: found for name, found in columns.roles.items() if name != role}
    return replace(columns, roles=roles, unused=[*columns.unused, *columns.roles[role]])


def _renamed(roles: Mapping[str, Sequence[str]], old: str, new: str) -> dict[str, Sequence[str]]:
    return {new if role == old else role: names for role, names in roles.items()}
