"""Parts of finished answers, from which an interrupted run continues.

OUTPUT/parts/manifest.json      what the answers depend on (see `stzoo.utils.parts`)
OUTPUT/parts/part-000000.json   the answers for 64 passages, whether they were kept or not; a part grows
                                while a slow generator works, so an interruption loses its last batch

The number of queries is not part of the manifest: a run with a larger --count keeps what it has.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from stzoo.utils.files import atomic_file
from stzoo.utils.parts import Part, Parts

FOLDER, MANIFEST, PARTS = "parts", "manifest.json", r"part-\d{6,}\.json"
SIZE = 64  # passages per part


class Asked(TypedDict):
    """One answer.

    Keys:
        row: Row of the passage in the corpus.
        passage: Id of the passage.
        style: Style that was asked for.
        text: The query, or what was rejected.
        reason: Why it was rejected; "" if it was not.
    """

    row: int
    passage: str
    style: str
    text: str
    reason: str


class Content(TypedDict):
    """The content of a part.

    Keys:
        answers: Those of each passage in turn, equally many for each.
        usage: Counts of requests and tokens.
        seconds: Time that it took.
    """

    answers: list[Asked]
    usage: dict[str, int]
    seconds: float


class AnswerParts(Parts[Content]):
    """Parts of answers, as JSON with a SHA-256.

    Args:
        output: Folder of the run.
        passages: Number of passages to visit.
        number: Answers per passage.
    """

    def __init__(self, output: Path, passages: int, number: int):
        super().__init__(output / FOLDER, "part-{number:06d}.json", passages, SIZE)
        self._number = number  # answers per passage

    def load(self, part: Part) -> Content | None:
        """See `Parts`. The last part of a run with a smaller count is too short."""
        return self.stored(part) if self.visited(part) >= len(part) else None

    def visited(self, part: Part) -> int:
        """Passages that a part has answers for."""
        content = self.stored(part)
        return len(content["answers"]) // self._number if content else 0

    def make(self, part: Part, make: Callable[[Part], Content]) -> Content:
        """See `Parts`. A part that is too short is extended."""
        if self.stored(part) is None:
            return super().make(part, make)
        with atomic_file(part.path) as draft:
            content = make(part)
            self.save(draft, part, content)
        return content

    def stored(self, part: Part) -> Content | None:
        """The content of a part, which may be too short; None if its file is missing or damaged."""
        try:
            stored = json.loads(part.path.read_text(encoding="utf-8"))
            content: Content = stored["content"]
            return content if stored["sha256"] == _checksum(part, content) else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def save(self, draft: Path, part: Part, content: Content) -> None:
        """See `Parts`."""
        stored = {"sha256": _checksum(part, content), "content": content}
        draft.write_text(json.dumps(stored, ensure_ascii=False, indent=1), encoding="utf-8")


def _checksum(part: Part, content: Mapping[str, Any]) -> str:
    return hashlib.sha256(f"{part.number} {json.dumps(content, sort_keys=True)}".encode()).hexdigest()
