"""Work cut into parts that are numbered, made once, and written whole or not at all.

FOLDER/MANIFEST.json   what every part depends on; a folder made from anything else is refused
FOLDER/PART files      each holds the rows `first` to `last - 1` of the work

A part does not depend on which others were made before it, so a run that is stopped at any moment loses the
part that it was making and ends with the same files as a run that was not.
"""

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from stzoo.errors import DataError, OutputError, abbreviated, first_line
from stzoo.utils.distributed import rank, world_size
from stzoo.utils.files import WAIT_S, claimed_file, remove_files, sha256, write_json, writing
from stzoo.utils.messages import notify
from stzoo.utils.progress import advancing
from stzoo.utils.workers import ThisProcess, Workers, applied

T = TypeVar("T")


# -- the manifest


def open_manifest(
    path: Path, settings: Mapping[str, Any], *, parts: str = "", may_have: Collection[str] = ()
) -> dict[str, Any]:
    """Reads the manifest of a folder, or writes it where there is none, and returns it.

    Args:
        path: Path of the manifest.
        settings: What the parts depend on, as JSON. A manifest may have more keys.
        parts: Regular expression for names of files that are removed if there is no manifest, as nothing says
            what they were made from.
        may_have: Names of files and folders that may be there before the manifest.

    Raises:
        OutputError: If the manifest is damaged or has other values, or if there is none and the folder has
            other files. Nothing is changed.
    """
    folder = path.parent
    if not path.exists():
        names = {entry.name for entry in folder.glob("*") if not entry.name.startswith(".")}
        if path.name in names:  # another process has just written it
            return open_manifest(path, settings, parts=parts, may_have=may_have)
        orphans = {name for name in names if re.fullmatch(parts, name)}
        if others := sorted(names - orphans - set(may_have)):
            raise OutputError(
                f"{folder} has no {path.name} but other files ({', '.join(others[:5])}); expected an empty "
                "folder or one that stzoo has made. Move them away, or choose another folder."
            )
        remove_files(folder, orphans)
        write_json(path, settings)
        return dict(settings)
    found = read_manifest(path)
    check_manifest(folder, found, settings)
    return found


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads a manifest.

    Raises:
        OutputError: If it cannot be read or is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"{path} cannot be read: {first_line(error)}. Remove {path.parent}.") from None
    if not isinstance(found, dict):
        raise OutputError(f"{path} is damaged: it is not a JSON object. Remove {path.parent}.")
    return found


def check_manifest(
    made: Path | str,
    found: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    exact: bool = False,
    fault: str = "was made with other settings",
    advice: str = "Use those settings, choose another output, or remove this one (with --overwrite, where "
    "the command has it).",
) -> None:
    """Refuses what was made from other settings.

    Args:
        made: Path of the file or folder, or what it is, for the message.
        found: Its manifest.
        settings: What the parts depend on now. A manifest may have more keys.
        exact: True to compare those keys too, and to distinguish None inside a value from a missing key.
        fault: What a difference means, for the message.
        advice: What to do then, for the message.

    Raises:
        OutputError: If a value differs; it names each key with its two values.
    """
    if differing := differences(found, settings, exact=exact):
        shown = "; ".join(
            f"{key}: {abbreviated(repr(then))} then, {abbreviated(repr(now))} now"
            for key, (then, now) in differing.items()
        )
        raise OutputError(f"{made} {fault} ({shown}). {advice}")


def differences(
    found: Mapping[str, Any], settings: Mapping[str, Any], *, exact: bool = False
) -> dict[str, tuple[Any, Any]]:
    """The values that differ, e.g. {"model.revision": (then, now)}; None is the same as no value."""
    plain = json.loads(json.dumps(dict.fromkeys(found if exact else ()) | dict(settings)))
    return {key: two for name in plain for key, two in _differing(name, found.get(name), plain[name], exact)}


def _differing(key: str, then: Any, now: Any, exact: bool) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(then, dict) and isinstance(now, dict) and not (exact and then.keys() != now.keys()):
        for name in {**then, **now}:
            yield from _differing(f"{key}.{name}", then.get(name), now.get(name), exact)
    elif then != now:
        yield key, (then, now)


def damaged(folder: Path, checksums: Mapping[str, Any]) -> list[str]:
    """The names of files that are missing or do not match the SHA-256 that a manifest has of them."""
    return [
        name
        for name, expected in checksums.items()
        if not (folder / name).is_file() or sha256(folder / name) != expected
    ]


# -- the parts


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        number: Place among the parts, from 0.
        first: Its first row.
        last: The row after its last one.
        path: Path of its file.
    """

    number: int
    first: int
    last: int
    path: Path

    def __len__(self) -> int:
        return self.last - self.first


@dataclass(frozen=True)
class Claim(Generic[T]):
    """A part that is reserved for this process; see `Parts.reserve`."""

    parts: "Parts[T]"
    part: Part
    draft: Path
    until: contextlib.ExitStack

    def save(self, content: T) -> None:
        """Writes the content of the part, and ends the claim.

        Raises:
            OutputError: If the disk is full or the folder cannot be written.
        """
        with self.until, writing(self.part.path):
            self.parts.save(self.draft, self.part, content)


@dataclass
class Parts(Generic[T]):
    """The parts of a work of some rows; a sequence of `Part`. A subclass defines `load` and `save`.

    Args:
        folder: Folder of the files.
        name: File name with a field {number} or {first}, e.g. "part-{number:06d}.safetensors".
        rows: Rows of the work.
        size: Rows of a part; the last one may have fewer.
    """

    folder: Path
    name: str
    rows: int
    size: int

    def load(self, part: Part) -> T | None:
        """The content of a part; None if its file is missing, damaged or of other work."""
        raise NotImplementedError

    def save(self, draft: Path, part: Part, content: T) -> None:
        """Writes the content of a part to a file that takes its place later."""
        raise NotImplementedError

    def __len__(self) -> int:
        return -(-self.rows // self.size)

    def __getitem__(self, number: int) -> Part:
        if not 0 <= number < len(self):
            raise IndexError(number)
        first = number * self.size
        path = self.folder / self.name.format(number=number, first=first)
        return Part(number, first, min(first + self.size, self.rows), path)

    def __iter__(self) -> Iterator[Part]:
        return map(self.__getitem__, range(len(self)))

    def missing(self) -> list[Part]:
        """The parts that are still to be made; a damaged one is."""
        return [part for part in self if self.load(part) is None]

    def read(self, part: Part) -> T:
        """The content of a part that was made.

        Raises:
            DataError: If its file is missing or damaged.
        """
        if (content := self.load(part)) is None:
            raise DataError(
                f"{part.path} is missing or damaged. Run the command that wrote it again; it makes only the "
                "parts that are missing."
            )
        return content

    def get(self, part: Part, make: Callable[[Part], T]) -> T:
        """The content of a part, which is made if it is missing; see `make`."""
        content = self.load(part)
        return self.make(part, make) if content is None else content

    def make(self, part: Part, make: Callable[[Part], T]) -> T:
        """Makes and writes a part, in place of a damaged one if there is one.

        Args:
            part: One of `missing()`.
            make: Computes its content.

        Raises:
            OutputError: If another process is making it, the disk is full or the folder cannot be written.
        """
        with contextlib.ExitStack() as claims:
            claim, content = self.reserve(part, claims)
            if content is not None:
                return content
            if claim is None:
                raise OutputError(f"{part.path} is being made by another process. Wait for it to end.")
            content = make(part)
            claim.save(content)
        return content

    def complete(
        self,
        compute: Callable[[Any], Any] | Workers,
        take: Callable[[Part], Any] | None = None,
        *,
        pack: Callable[[Part, Any], T] | None = None,
        each: Callable[[Part, T], None] | None = None,
        bar: Any = None,
        weight: Callable[[Part], int] = len,
    ) -> None:
        """Makes all missing parts, together with any other processes that do the same.

        A process makes the parts that no other one is making, and returns when all are there. The parts of
        one that dies are made by the others, or by the next call. Processes of torchrun begin at different
        parts, so that each makes neighbouring ones.

        Args:
            compute: Computes a part from what `take` returns: a function that this process applies, or the
                workers that do (see `stzoo.utils.workers`).
            take: Reads what a part is computed from; by default the part itself.
            pack: Makes the content of what was computed; by default the same.
            each: Gets every part with its content once, as it is found or made.
            bar: Progress bar to advance.
            weight: Units of the bar per part.

        Raises:
            OutputError: If the disk is full or the folder cannot be written.
        """
        workers = ThisProcess(compute) if callable(compute) else compute
        done = 0

        def finish(part: Part, content: T) -> None:
            nonlocal done
            if each:
                each(part, content)
            done += weight(part)
            if bar is not None:
                bar.update(done - bar.n)

        missing = []
        for part in self:
            if (content := self.load(part)) is None:
                missing.append(part)
            else:
                finish(part, content)
        first = len(missing) * (rank() % world_size()) // world_size()
        missing = missing[first:] + missing[:first]
        with advancing(bar):
            while missing:
                left = self._round(missing, workers, take, pack, finish)
                if len(left) == len(missing):
                    time.sleep(WAIT_S)  # other processes make them
                missing = left

    def _round(
        self,
        missing: list[Part],
        workers: Workers,
        take: Callable[[Part], Any] | None,
        pack: Callable[[Part, Any], T] | None,
        finish: Callable[[Part, T], None],
    ) -> list[Part]:
        """Makes those of the missing parts that no other process is making, and returns the others."""
        left: list[Part] = []
        at_work: dict[int, Claim[T]] = {}
        with contextlib.ExitStack() as claims:

            def reserved() -> Iterator[tuple[int, Any]]:
                for part in missing:
                    claim, content = self.reserve(part, claims)
                    if claim:
                        at_work[part.number] = claim
                        yield part.number, take(part) if take else part
                    elif content is None:
                        left.append(part)
                    else:
                        finish(part, content)

            for number, computed in applied(workers, reserved()):
                claim = at_work.pop(number)
                content = pack(claim.part, computed) if pack else computed
                claim.save(content)
                finish(claim.part, content)
        return left

    def reserve(self, part: Part, claims: contextlib.ExitStack) -> tuple["Claim[T] | None", T | None]:
        """Reserves a missing part for this process until it is saved, or `claims` closes.

        Returns:
            The claim, or None if another process is making the part or has made it; and its content, or None
            if it is missing.
        """
        until = claims.enter_context(contextlib.ExitStack())
        draft = until.enter_context(self.claim(part))
        content = self.load(part)  # another process may have made it since
        if draft is None or content is not None:
            until.close()
            return None, content
        if part.path.exists():
            notify(f"{part.path} is damaged, or was made from something else, and is made again.")
        return Claim(self, part, draft, until), None

    def claim(self, part: Part) -> contextlib.AbstractContextManager[Path | None]:
        """Reserves a part for this process and gives the path to write it to; see `claimed_file`.

        Each of several processes can go through `missing()` and make the parts that it gets. Another one may
        have made a part since, so `load` it first.
        """
        return claimed_file(part.path)


class ArrayParts(Parts[dict[str, np.ndarray]]):
    """Parts of arrays by name, as safetensors with the SHA-256 of number and arrays."""

    def load(self, part: Part) -> dict[str, np.ndarray] | None:
        """See `Parts`."""
        try:
            with safe_open(part.path, "numpy") as opened:
                stored = (opened.metadata() or {}).get("sha256")
                arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no dict
        except (OSError, SafetensorError):
            return None
        # older versions left the number out
        return arrays if stored == _checksum(arrays, part.number) or stored == _checksum(arrays) else None

    def save(self, draft: Path, part: Part, content: dict[str, np.ndarray]) -> None:
        """See `Parts`."""
        draft.write_bytes(save(content, {"sha256": _checksum(content, part.number)}))


def _checksum(arrays: Mapping[str, np.ndarray], number: int | None = None) -> str:
    digest = hashlib.sha256(b"" if number is None else f"{number} ".encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()
