"""The registry of well-known retrieval data sets, and of the suites whose averages are reported.

A data set is looked up by its name, or its name in mteb or on the Hub ("scifact", "SciFact", "mteb/scifact");
case and punctuation other than "/" do not matter. The head of registry.yaml lists the sources.
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
    """A data set's entry; values that no source states are None.

    Attributes:
        name: BEIR's name; a forum of CQADupStack is "cqadupstack-android".
        split: Split to score on.
        documents: Number of documents in the corpus.
        queries: Number of judged queries in the split.
        relevant: Number of pairs with a grade above 0.
        judged: Number of pairs with any grade.
        missing: Number of judged documents that the official corpus lacks.
        shares_ids: True if a document with a query's id is that query, and so no answer.
        zip: File name of BEIR's archive.
        zip_bytes: Size of the archive, in bytes.
        md5: Checksum of the archive.
        folder: Folder of the data set in the archive.
        mteb: Id of mteb's copy on the Hub.
        revision: Commit of mteb's copy.
        beir: Id of BEIR's copy on the Hub.
        task: Name of the task in mteb.
        licence: Licence, as stated on the Hub.
        get: How to get a data set that is not public.
        also: Other names.
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
        """All names of the data set."""
        given = (self.name, self.folder, self.task, self.mteb, self.beir, *self.also)
        return (name for name in given if name)


@cache
def entries() -> Mapping[str, Entry]:
    """The entries by name."""
    return MappingProxyType({name: _entry(name, row) for name, row in _rows()["sets"].items()})


@cache
def suites() -> Mapping[str, tuple[str, ...]]:
    """Names of data sets by suite. Another suite among them counts as one data set, by its mean."""
    return MappingProxyType({name: tuple(sets) for name, sets in _rows()["suites"].items()})


def find(name: str) -> Entry | None:
    """The entry with this name, or None. Case and punctuation do not matter."""
    return _by_key().get(_key(name)) if re.fullmatch(r"[\w/-]+", name, re.ASCII) else None


def suite(name: str) -> tuple[str, ...] | None:
    """The members of the suite with this name, or None."""
    return next((members for one, members in suites().items() if _key(one) == _key(name)), None)


def expand(names: Sequence[str]) -> list[str]:
    """Replaces names of suites by those of their data sets, and keeps other names; each appears once."""
    found: dict[str, None] = {}
    for name in names:
        members = suite(name)
        found |= dict.fromkeys([name] if members is None else expand(members))
    return list(found)


def shares_ids(name: str) -> bool:
    """True if a document with a query's id is that query, as in ArguAna, Quora and data sets made from them.

    Args:
        name: Name of a data set or its folder; only letters matter.
    """
    return _letters(name) in _sharing()


def missing(name: str) -> int:
    """Number of judged documents that the data set's official corpus lacks (ArguAna: 5)."""
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
