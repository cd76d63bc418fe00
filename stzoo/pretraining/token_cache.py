"""The tokens of a corpus, made once and then read from Arrow files.

CACHE/tokens/KEY/tokens.json         what the tokens depend on; KEY is a hash of it
CACHE/tokens/KEY/part-000000.arrow   16 384 passages: by view, lists of token ids and of word numbers

Training reads these files in place of the text, so nothing is tokenised twice, and the length of every
passage in tokens is known before the first step. A killed run loses the part that it was making. Processes
that torchrun started share the parts. Nothing is deleted automatically: a note says how much all folders
take once that is much, and any of them may be deleted when no run uses it.
"""

import contextlib
import hashlib
import inspect
import json
import mmap
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import tokenizers
from datasets import Dataset
from datasets.table import InMemoryTable

from stzoo.data.corpus import Corpus, exclusive
from stzoo.errors import OutputError
from stzoo.pretraining import objective as objective_module
from stzoo.pretraining import tokens as tokens_module
from stzoo.pretraining.objective import Objective
from stzoo.pretraining.tokens import Tokens, tokenize
from stzoo.utils import inputs
from stzoo.utils.cache import cache_folder
from stzoo.utils.distributed import is_main_process
from stzoo.utils.files import fingerprint
from stzoo.utils.messages import counted, notify
from stzoo.utils.parts import Part, Parts, open_manifest
from stzoo.utils.progress import advance, progress_bar
from stzoo.utils.workers import started

PART_ROWS = 16_384
AT_ONCE = 1024  # passages per call of the tokenizer: enough for all cores, and some 50 MB of its results
OPEN_FILES = 256
NOTED_BYTES = 1e9  # size of all caches of tokens from which the user is reminded of them
COUNTS = ("texts", "tokens", "truncated", "unknown")
_METADATA = b"stzoo"  # key in the metadata of a part


@dataclass(frozen=True)
class StoredPart:
    """A part of the cache.

    Attributes:
        batch: The memory-mapped columns VIEW_input_ids and VIEW_words.
        counts: COUNTS by view.
        mapped: The mapping of the file; None before it is written.
    """

    batch: pa.RecordBatch
    counts: dict[str, dict[str, int]]
    mapped: mmap.mmap | None = None

    def place(self, view: str) -> "_Place":
        """Says where the file has the tokens of a view, and releases the memory of the mapping."""
        assert self.mapped is not None
        ids, words = self.batch.column(f"{view}_input_ids"), self.batch.column(f"{view}_words")
        rows = None
        if pa.types.is_list(ids.type.value_type):
            rows = ids.offsets.to_numpy().copy()
            ids, words = ids.values, words.values
        texts, start = ids.offsets.to_numpy().copy(), pa.py_buffer(self.mapped).address
        buffers = [values.values.buffers()[1] for values in (ids, words)]
        ids_at, words_at = [buffer.address - start if buffer else 0 for buffer in buffers]  # empty: no buffer
        ids_type, words_type = [np.dtype(values.values.type.to_pandas_dtype()) for values in (ids, words)]
        self.release()
        return _Place(texts, rows, ids_at, words_at, ids_type, words_type)

    def release(self) -> None:
        """Gives back the memory of pages that were read, which stay in the system's cache of files."""
        if self.mapped is not None and hasattr(self.mapped, "madvise"):  # not on Windows
            self.mapped.madvise(mmap.MADV_DONTNEED)


class _Place(NamedTuple):
    """Where the tokens of a view are in a file."""

    texts: np.ndarray  # offsets of texts, in tokens
    rows: np.ndarray | None  # offsets of rows, in texts, if a row has a list of them
    ids_at: int
    words_at: int
    ids_type: np.dtype[Any]
    words_type: np.dtype[Any]


@dataclass
class TokenParts(Parts[StoredPart]):
    """The Arrow files of a token cache.

    Args:
        key: Hash of what the tokens depend on, which each file repeats.
    """

    key: str = ""

    def load(self, part: Part) -> StoredPart | None:
        """The memory-mapped file; None if it is missing, cut short or of other work."""
        try:
            with part.path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            reader = pa.ipc.open_file(pa.py_buffer(mapped))
            metadata = json.loads((reader.schema.metadata or {}).get(_METADATA, b"{}"))
            if metadata.get("key") != self.key or metadata.get("number") != part.number:
                return None
            batch = reader.get_batch(0)
        except (OSError, ValueError, pa.ArrowException):
            return None
        stored = StoredPart(batch, metadata["counts"], mapped)
        stored.release()
        return stored if batch.num_rows == len(part) else None

    def save(self, draft: Path, part: Part, content: StoredPart) -> None:
        """See `Parts`."""
        metadata = json.dumps({"key": self.key, "number": part.number, "counts": content.counts})
        batch = content.batch.replace_schema_metadata({_METADATA: metadata.encode()})
        with pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)


class TokenRows(Dataset):
    """The tokens of a corpus as a Dataset. A batch has a row of `Tokens` (or a list of them) by view.

    Args:
        parts: Parts that have all been made.

    Attributes:
        views: Names of the views.
        lengths: int32 [N], number of tokens in the first view of each row.
        counts: COUNTS of the whole corpus by view.
    """

    def __init__(self, parts: TokenParts):
        stored = [parts.read(part) for part in parts]
        batches = [one.batch.replace_schema_metadata(None) for one in stored]
        super().__init__(InMemoryTable.from_batches(batches), fingerprint=parts.key[:32])
        self.parts = parts
        self.views = list(stored[0].counts)
        self.counts = {
            view: {name: sum(one.counts[view][name] for one in stored) for name in COUNTS}
            for view in self.views
        }
        self._paths = [part.path for part in parts]
        self._places = [{view: one.place(view) for view in self.views} for one in stored]
        self._files: dict[int, BinaryIO] = {}
        first = [places[self.views[0]] for places in self._places]
        lengths = [np.diff(at.texts if at.rows is None else at.texts[at.rows]) for at in first]
        self.lengths = np.concatenate(lengths)

    def __getitems__(self, keys: list[int]) -> list[dict[str, Tokens | list[Tokens]]]:
        """Rows for `Objective.pad`."""
        return [self._row(*divmod(key, self.parts.size)) for key in keys]

    def _row(self, part: int, number: int) -> dict[str, Tokens | list[Tokens]]:
        row: dict[str, Tokens | list[Tokens]] = {}
        for view, at in self._places[part].items():
            ends = at.texts[number : number + 2]
            if at.rows is not None:
                ends = at.texts[at.rows[number] : at.rows[number + 1] + 1]
            first, count = int(ends[0]), int(ends[-1] - ends[0])
            ids = self._read(part, at.ids_at, at.ids_type, first, count)
            words = self._read(part, at.words_at, at.words_type, first, count)
            if at.rows is None:
                row[view] = Tokens(ids, words)
            else:
                row[view] = [Tokens(ids[one:end], words[one:end]) for one, end in pairwise(ends - first)]
        return row

    def _read(self, part: int, at: int, kind: np.dtype[Any], first: int, count: int) -> np.ndarray:
        # pages of a mapping would count as memory of the process, up to the size of the cache
        file = self._files.get(part)
        if file is None:
            if len(self._files) == OPEN_FILES:
                self._files.popitem()[1].close()
            file = self._files[part] = self._paths[part].open("rb", buffering=0)
        size, at = count * kind.itemsize, at + first * kind.itemsize
        if hasattr(os, "pread"):  # workers of the data loader share the position of a file
            return np.frombuffer(os.pread(file.fileno(), size, at), kind)
        file.seek(at)
        return np.frombuffer(file.read(size), kind)

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenRows, (self.parts,)

    def record(self) -> dict[str, Any]:
        """The values for the record of a run."""
        return {"sorted_by": "tokens", "views": self.counts}

    def describe(self, unknown: str | None) -> str:
        """A sentence on the tokens of the first view.

        Args:
            unknown: The token of unknown words.
        """
        counts = self.counts[self.views[0]]
        tokens, texts = max(counts["tokens"], 1), max(counts["texts"], 1)
        verb = "has" if len(self) == 1 else "have"
        text = f"The {counted(len(self), 'passage')} {verb} {counted(counts['tokens'], 'token')}"
        if counts["truncated"]:
            longest = int(self.lengths.max())
            share = f"{counts['truncated'] / texts:.1%}"
            text += f"; {counts['truncated']:,} ({share}) are truncated to {counted(longest, 'token')}"
        if counts["unknown"] >= tokens / 100:
            text += f"; {counts['unknown'] / tokens:.1%} of the tokens are {unknown}"
        return f"{text}."


def load_tokens(objective: Objective, corpus: Corpus, *, cache: str | Path | None = None) -> TokenRows:
    """Tokenises a corpus as an objective reads it, or maps the tokens that an earlier run has made.

    Args:
        objective: The objective, after `configure_for`.
        corpus: The corpus.
        cache: Folder for the Arrow files; None for `cache_folder()`.

    Raises:
        ModelError: If the tokenizer is not a fast one.
        OutputError: If the cache cannot be written, or was made from something else.
        PluginError: If rows differ in their views.
    """
    depends = _depends(objective, corpus)
    key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
    folder = (inputs.user_path(cache, OutputError) if cache else cache_folder()) / "tokens" / key[:32]
    with exclusive(folder):
        folder.mkdir(exist_ok=True)
        open_manifest(folder / "tokens.json", depends, parts=r"part-\d+\.arrow")
    parts = TokenParts(folder, "part-{number:06d}.arrow", len(corpus.rows), PART_ROWS, key)
    if parts.missing():
        _make(parts, objective, corpus)
        _note_size(folder)
    return TokenRows(parts)


def _note_size(folder: Path) -> None:
    """Says where the tokens are, and what all caches of tokens take, if that is much."""
    sizes: dict[Path, int] = defaultdict(int)
    with contextlib.suppress(OSError):  # another process may delete some of them
        for path in folder.parent.glob("*/part-*.arrow"):
            sizes[path.parent] += path.stat().st_size
    if sum(sizes.values()) >= NOTED_BYTES:
        notify(
            f"the tokens are cached in {folder} ({sizes[folder] / 1e9:.1f} GB). {folder.parent} has "
            f"{counted(len(sizes), 'cache')} of tokens, {sum(sizes.values()) / 1e9:.1f} GB in all; you may "
            "delete those that no run uses."
        )


def is_cacheable(objective: Objective) -> bool:
    """True if the objective leaves it to `Objective.collate` to tokenise its texts."""
    return type(objective).collate is Objective.collate and "collate" not in vars(objective)


def _depends(objective: Objective, corpus: Corpus) -> dict[str, Any]:
    """What decides the tokens."""
    tokenizer = objective.backbone.tokenizer
    sample = objective.texts_by_view(corpus.sample())
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    plain = {name: value for name, value in backend.items() if name not in ("truncation", "padding")}
    special = [tokenizer.cls_token_id, tokenizer.sep_token_id]
    options = [getattr(tokenizer, name, None) for name in ("truncation_side", "split_special_tokens")]
    return {
        "corpus": corpus.fingerprint,
        "passages": len(corpus.rows),
        "limits": {view: objective.token_limit(view) for view in sample},
        "texts": _hash(sample),
        "tokenizer": _hash([plain, special, options, tokenizers.__version__]),
        "code": _code(type(objective)),
        "part_rows": PART_ROWS,
    }


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _code(kind: type) -> str:
    """Hash of this code, and of the modules of the objective's classes where they are files."""
    files = {__file__, str(tokens_module.__file__), str(objective_module.__file__)}
    for one in kind.__mro__[: kind.__mro__.index(Objective)]:
        try:
            files.add(inspect.getfile(one))
        except (OSError, TypeError):  # defined at a prompt; the sample of texts remains
            continue
    return fingerprint(*sorted(file for file in files if Path(file).is_file()))


def _make(parts: TokenParts, objective: Objective, corpus: Corpus) -> None:
    """Makes the missing parts, together with other processes."""
    hidden = None if is_main_process() else True
    with progress_bar(
        total=parts.rows, unit=" passages", desc="Tokenising the corpus", disable=hidden
    ) as bar:
        (reference,) = corpus.reader()(0, 1)  # every row must have its views

        def read(part: Part) -> list[dict[str, list[Any]]]:
            """The texts of a part by view, AT_ONCE rows at a time."""
            rows, blocks = corpus.reader(), []
            for first in range(part.first, part.last, AT_ONCE):
                block = rows(first, min(first + AT_ONCE, part.last))
                texts = objective.texts_by_view([reference, *block])
                blocks.append({view: values for view, (_, *values) in texts.items()})
            return blocks

        limits = {view: objective.token_limit(view) for view in objective.texts_by_view([reference])}
        with started(_Tokeniser(objective.backbone.tokenizer, limits)) as workers:
            parts.complete(workers, read, bar=bar)


@dataclass(frozen=True)
class _Tokeniser:
    """Tokenises the texts of a part.

    Attributes:
        tokenizer: The tokenizer.
        limits: Number of tokens to which texts are truncated, by view.
    """

    tokenizer: Any
    limits: dict[str, int]

    def __call__(self, blocks: list[dict[str, list[Any]]]) -> StoredPart:
        columns: dict[str, _Column] = {}
        for block in blocks:
            for view, values in block.items():
                nested = isinstance(values[0], list)
                texts = [text for row in values for text in row] if nested else values
                if view not in columns:
                    columns[view] = _Column(self.tokenizer, self.limits[view], nested)
                columns[view].add(tokenize(self.tokenizer, texts, self.limits[view]), list(map(len, values)))
            advance(len(values))
        arrays = {name: array for view, column in columns.items() for name, array in column.arrays(view)}
        return StoredPart(pa.record_batch(arrays), {view: column.counts for view, column in columns.items()})


class _Column:
    """The tokens of one view in a part, in the smallest types that are enough for any text."""

    def __init__(self, tokenizer: Any, limit: int, nested: bool):
        self.unknown = tokenizer.unk_token_id
        largest = max(tokenizer.get_vocab().values())
        self.ids_type = np.uint16 if largest <= np.iinfo(np.uint16).max else np.int32
        self.words_type = np.int16 if limit <= np.iinfo(np.int16).max else np.int32
        self.nested = nested
        self.ids, self.words = [np.empty(0, self.ids_type)], [np.empty(0, self.words_type)]
        self.lengths, self.per_row = [0], [0]
        self.counts = dict.fromkeys(COUNTS, 0)

    def add(self, texts: list[Tokens], per_row: list[int]) -> None:
        """Adds texts, of which each row has so many."""
        for text in texts:
            words = text.words
            if words.max(initial=-1) > np.iinfo(self.words_type).max:  # after many words without a token
                words = np.unique(words, return_inverse=True)[1] + words.min()
            self.ids.append(text.ids.astype(self.ids_type))
            self.words.append(words.astype(self.words_type))
            self.lengths.append(len(text.ids))
            self.counts["truncated"] += text.truncated
        self.per_row += per_row
        self.counts["texts"] += len(texts)

    def arrays(self, view: str) -> Iterator[tuple[str, pa.Array]]:
        """The columns, by name."""
        ids, words = np.concatenate(self.ids), np.concatenate(self.words)
        self.counts["tokens"] = len(ids)
        self.counts["unknown"] = int((ids == self.unknown).sum()) if self.unknown is not None else 0
        texts = pa.array(np.cumsum(self.lengths), pa.int32())
        rows = pa.array(np.cumsum(self.per_row), pa.int32())
        for name, values in (("input_ids", ids), ("words", words)):
            array = pa.ListArray.from_arrays(texts, pa.array(values))
            yield f"{view}_{name}", pa.ListArray.from_arrays(rows, array) if self.nested else array
