"""Preparing a corpus: the columns that an objective reads beside the text, made once and kept as Parquet.

A plugin's `Preparation` makes them, in shards of some hundred passages, which are kept in `work/` until all
are made (see `stzoo.utils.parts`). Then they are put together into `passages-….parquet` in the order of the
corpus, and the folder is a corpus for `stzoo pretrain` and a data set for `datasets.load_dataset`. Memory
does not grow with the corpus, unless what a plugin looks up does.
"""

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from stzoo.data.corpus import Corpus, load_corpus, tokenizer_fingerprint
from stzoo.errors import RecipeError
from stzoo.models.loading import load_tokenizer
from stzoo.plugins import manager
from stzoo.training import runs
from stzoo.training.settings import PrepareSettings
from stzoo.utils.distributed import require_one_process
from stzoo.utils.files import atomic_file, files_under, remove_files
from stzoo.utils.parts import Part, Parts

WORK = "work"  # of an unfinished preparation
FILE_ROWS = 200_000
GROUP_ROWS = 10_000  # of a file's row groups


class Preparation:
    """The base of all preparations: subclass it, set `Settings`, `columns` and `reads`, write `shard`.

    Args:
        settings: of `Settings`.
        corpus: with those of `columns` and `reads` that it brings.
        tokenizer: a fast one, of the base to be pre-trained.
        work: a folder that a kill does not touch; what is kept here must be whole or absent.

    Attributes:
        Settings: a subclass of `stzoo.training.settings.PrepareSettings`; its fields are the flags.
        columns: what is made, by name: str or list[str].
        reads: what is read of the corpus, if it is there, beside the id, the text and `columns`.
        notes: what the user should know, one sentence each.
    """

    Settings: ClassVar[type[PrepareSettings]] = PrepareSettings
    columns: ClassVar[Mapping[str, Any]] = {}
    reads: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, settings: Any, corpus: Corpus, tokenizer: Any, work: Path):
        self.settings, self.corpus, self.tokenizer, self.work = settings, corpus, tokenizer, work
        self.notes: list[str] = []

    def facts(self) -> dict[str, Any]:
        """What the columns are made by, for the manifest; a run goes on only if it is the same."""
        return {}

    def shard(self, first: int, last: int) -> dict[str, list[Any]]:
        """Makes the columns of rows first to last - 1; the same whatever was made before."""
        raise NotImplementedError(f"{type(self).__name__} must define shard(first, last)")

    def finish(self, folder: Path) -> None:
        """Writes into subfolders what stands beside the rows, when all are made."""


def prepare(
    preparation: str,
    recipe: str | Path | None = None,
    *,
    output: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> Path:
    """Makes a data set for an objective that reads more than plain text.

    Args:
        preparation: its name; see `stzoo list preparations`.
        recipe: a YAML file or the name of an installed recipe.
        output: the folder for the data set; run.json in it is the manifest.
        resume: go on with the unfinished data set in `output`.
        overwrite: remove the data set that is in `output`.
        settings: of the preparation; they win over the recipe's.

    Returns:
        the output folder, which `--corpus` of `stzoo pretrain` takes.

    Raises:
        StzooError: for a user's mistake; see stzoo.errors.
    """
    require_one_process("prepare")
    kind: type[Preparation] = manager.resolve(manager.find("preparation", preparation))  # type: ignore[assignment]
    wanted = kind.Settings.read(recipe, settings)
    names = [
        manager.full_name("preparation", one) for one in (wanted.preparation or preparation, preparation)
    ]
    if names[0] != names[1]:
        raise RecipeError(
            f"the recipe {recipe} is for `stzoo prepare {wanted.preparation}`, not {preparation}."
        )
    wanted = wanted.model_copy(update={"preparation": preparation})
    if wanted.threads:
        torch.set_num_threads(wanted.threads)
    with runs.start(output, wanted, resume=resume, overwrite=overwrite, worth=(f"{WORK}/*",)) as run:
        manager.use("preparation", preparation)
        if run.metadata["status"] == "finished":
            _clear(run.folder)  # what a kill at the very end has left
            return run.folder
        tokenizer = load_tokenizer(wanted.tokenizer)
        corpus = load_corpus(
            wanted.corpus,
            min_words=wanted.min_words,
            skip_bad_lines=wanted.skip_bad_lines,
            columns={**kind.columns, **kind.reads},
            tokenizer=tokenizer,
        )
        run.record()  # before the first index is made, so that a kill leaves what can be gone on with
        work = run.folder / WORK
        work.mkdir(exist_ok=True)
        made = kind(wanted, corpus, tokenizer, work)
        run.record_inputs(
            corpus=corpus.facts(),
            tokenizer=tokenizer_fingerprint(tokenizer),
            made_by=made.facts(),
        )
        shards = _make(made, work)
        draft = run.folder / runs.MODEL_DRAFT
        draft.mkdir()
        filled = _put_together(shards, made.columns, draft)
        made.finish(draft)
        run.install(draft, also=["README.md"])
        run.record(filled=filled, notes=made.notes, peak_memory_mib=_peak_memory())
        _write_card(run, kind)
        run.record(status="finished")
        _clear(run.folder, [runs.UNFINISHED_WORK])  # not before: a kill in the midst would cost all shards
        return run.folder


def _clear(folder: Path, patterns: Sequence[str] = runs.WORK_FILES) -> None:
    """Removes what a preparation has kept in `work`, and nothing else that lies there."""
    names = files_under(folder)
    left = [name for name in names if any(re.fullmatch(pattern, name) for pattern in patterns)]
    remove_files(folder, left)


class _Shards(Parts[pa.Table]):
    def load(self, part: Part) -> pa.Table | None:
        """See `Parts`."""
        try:
            table = pq.read_table(part.path)
        except (OSError, pa.ArrowException):
            return None
        return table if len(table) == len(part) else None

    def save(self, draft: Path, part: Part, content: pa.Table) -> None:  # noqa: ARG002 - as of others
        """See `Parts`."""
        pq.write_table(content, draft, compression="zstd")


def _make(made: Preparation, work: Path) -> _Shards:
    """Makes each shard that is not there yet."""
    rows, schema = made.corpus.rows, _schema(made.columns)
    shards = _Shards(work, "rows-{first:09d}.parquet", len(rows), made.settings.shard_rows)

    def make(part: Part) -> pa.Table:
        given = rows[part.first : part.last]
        values = {"id": given["id"], "text": given["text"], **made.shard(part.first, part.last)}
        return pa.table(values, schema)

    with tqdm(total=len(rows), unit=" passages", desc="preparing", disable=None) as bar:
        for part in shards:
            shards.get(part, make)
            bar.update(len(part))
    return shards


def _schema(columns: Mapping[str, Any]) -> Any:
    types = {str: pa.string(), list[str]: pa.list_(pa.string())}
    return pa.schema({"id": pa.string(), "text": pa.string()} | {n: types[t] for n, t in columns.items()})


def _put_together(shards: _Shards, columns: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """Copies the shards into files of FILE_ROWS rows.

    Returns:
        how many rows each column fills.
    """
    filled, schema, parts = dict.fromkeys(columns, 0), _schema(columns), list(shards)
    shards_a_file, shards_a_group = (max(1, rows // shards.size) for rows in (FILE_ROWS, GROUP_ROWS))
    files = math.ceil(len(parts) / shards_a_file)
    for number in range(files):
        name = f"passages-{number:05d}-of-{files:05d}.parquet"
        with (
            atomic_file(folder / name) as draft,
            pq.ParquetWriter(draft, schema, compression="zstd") as writer,
        ):
            of_file = parts[number * shards_a_file : (number + 1) * shards_a_file]
            for place in range(0, len(of_file), shards_a_group):
                table = pa.concat_tables(map(shards.read, of_file[place : place + shards_a_group]))
                for column in filled:
                    values = table[column]
                    if pa.types.is_list(values.type):
                        values = pc.list_value_length(values)
                        filled[column] += pc.sum(pc.greater(values, 0)).as_py() or 0
                    else:
                        filled[column] += len(values) - values.null_count
                writer.write_table(table)
    return filled


def _peak_memory() -> int | None:
    """Of this process, in MiB; Windows does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    return kib // (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _called(source: str) -> str:
    """What it is called on the Hub or in its folder, as a path tells nobody else anything."""
    return Path(source).resolve().name if Path(source).exists() else source


def _write_card(run: runs.Run, kind: type[Preparation]) -> None:
    """A card that the Hub and `datasets` read."""
    facts, settings = run.metadata, run.metadata["recipe"]
    total = facts["corpus"]["passages"]
    rows = "\n".join(f"| `{name}` | {count} of {total} |" for name, count in facts["filled"].items())
    made_by = json.dumps(facts["made_by"], indent=2, ensure_ascii=False)
    notes = "".join(f"- {note}\n" for note in facts["notes"])
    sources, tokenizer = ", ".join(map(_called, settings["corpus"])), _called(settings["tokenizer"])
    text = f"""---
configs:
- config_name: default
  data_files: passages-*.parquet
---
# {sources}, prepared for {settings["preparation"]}

{(kind.__doc__ or "").strip().splitlines()[0]}

Made by `stzoo prepare {settings["preparation"]}` (stzoo {facts["versions"]["stzoo"]}) from {total} passages
of {sources}, with the tokenizer of `{tokenizer}` and seed {settings["seed"]}. `run.json` is the
whole manifest. The rows are under the licence of their source.

| column | filled |
|---|---|
{rows}

{notes}
What made the columns:

```json
{made_by}
```
"""
    with atomic_file(run.folder / "README.md") as draft:
        draft.write_text(text, encoding="utf-8")
