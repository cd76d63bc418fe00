"""Facts on well-known judged sets, and the suites that averages are named after: the rows of registry.yaml.

A set is looked up by its name, its name in mteb or on the Hub ("scifact", "SciFact", "mteb/scifact");
capitals and marks other than "/" do not matter. The head of registry.yaml says where each fact comes from.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

import yaml


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is known of a judged set; None where no source says.

    Attributes:
        name: as BEIR writes it; a forum of CQADupStack is "cqadupstack-android".
        split: to score on.
        documents: in the corpus.
        queries: judged in the split.
        relevant: pairs with a grade above 0.
        judged: pairs with any grade.
        missing: judged documents that the corpus itself lacks.
        shares_ids: True if a document under a query's own id is that query, and so no answer.
        zip: BEIR's archive; `zip_bytes` and `md5` are its size and checksum.
        folder: of the set in the archive.
        mteb: the data set on the Hub, and `revision` its commit.
        beir: BEIR's own copy on the Hub.
        task: name in mteb.
        licence: as stated there.
        get: how to get a set that is not public.
        also: other names.
    """

    name: str
    split: str = "test"
    documents: int | None = None
    queries: int | None = None
    relevant: int | None = None
    judged: int | None = None
    missing: int = 0
    shares_ids: bool = False
    zip: str | None = None
    zip_bytes: int | None = None
    md5: str | None = None
    folder: str = ""
    mteb: str | None = None
    revision: str | None = None
    beir: str | None = None
    task: str | None = None
    licence: str | None = None
    get: str | None = None
    also: tuple[str, ...] = ()

    @property
    def names(self) -> Iterator[str]:
        """All names that it goes by."""
        given = (self.name, self.folder, self.task, self.mteb, self.beir, *self.also)
        return (name for name in given if name)


@cache
def entries() -> Mapping[str, Entry]:
    """The sets by name."""
    return MappingProxyType({name: _entry(name, row) for name, row in _rows()["sets"].items()})


@cache
def suites() -> Mapping[str, tuple[str, ...]]:
    """Names of sets by suite; the name of another suite among them counts as one set, its mean."""
    return MappingProxyType({name: tuple(sets) for name, sets in _rows()["suites"].items()})


def find(name: str) -> Entry | None:
    """The set that goes by this name, or None."""
    return _by_key().get(_key(name))


def expand(names: Sequence[str]) -> list[str]:
    """Names of sets, each once, with the sets of a suite in its place; other names are left as they are."""
    by_key = {_key(suite): members for suite, members in suites().items()}
    found: dict[str, None] = {}
    for name in names:
        members = by_key.get(_key(name))
        found |= dict.fromkeys([name] if members is None else expand(members))
    return list(found)


def shares_ids(name: str) -> bool:
    """True if a document under a query's own id is that query: ArguAna, Quora and what was made of them.

    Args:
        name: of a set or its folder; only its letters matter.
    """
    return _letters(name) in _sharing()


def missing(name: str) -> int:
    """How many judged documents the official corpus of this set lacks (ArguAna: 5)."""
    entry = find(name)
    return entry.missing if entry else 0


@cache
def _rows() -> dict[str, Any]:
    text = files(__package__).joinpath("registry.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def _entry(name: str, row: dict[str, Any]) -> Entry:
    row = dict(row)
    archive, hub, also = row.pop("zip", {}), row.pop("hub", {}), tuple(row.pop("also", ()))
    if archive:
        row = {"folder": archive["file"].removesuffix(".zip"), **row}
        row |= {"zip": archive["file"], "zip_bytes": archive["bytes"], "md5": archive["md5"]}
    return Entry(name=name, **row.pop("counts"), **hub, **row, also=also)


@cache
def _by_key() -> dict[str, Entry]:
    return {_key(name): entry for entry in entries().values() for name in entry.names}


@cache
def _sharing() -> frozenset[str]:
    rows = (entry for entry in entries().values() if entry.shares_ids)
    return frozenset(_letters(name.rpartition("/")[2]) for entry in rows for name in entry.names)


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9/]", "", name.lower())


def _letters(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())
